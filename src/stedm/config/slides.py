"""From slides to tiles: resolution, grid, tissue."""

from typing import Annotated

from pydantic import Field, model_validator

from stedm.config.base import Fraction, Part, Positive


class TissueConfig(Part):
    """What counts as tissue (see stedm.data.tissue)."""

    mpp: Annotated[float, Field(gt=0)] = 8.0
    """Microns per pixel at which tissue is looked for."""
    largest_hole_um2: Annotated[float, Field(ge=0)] = 40_000.0
    """Holes up to this area count as tissue (lumens, fat, tears); larger ones are glass."""
    smallest_piece_um2: Annotated[float, Field(ge=0)] = 40_000.0
    """Pieces below this area are dust."""
    exclude_pen: bool = True
    """Leave out blue, green and black pen. Switch it off for stains of these colours (trichrome, alcian blue)."""


class TilingConfig(Part):
    """`stedm tile`: which tiles of which slides (see stedm.data.tiles)."""

    name: str = "slides"
    """Name of the dataset."""
    classes: list[str] = []
    """Class names in the order of the mask indices; needed where slides have annotations."""
    ignore_index: Annotated[int, Field(ge=1, le=255)] = 255
    licence: str = ""
    citation: str = ""
    tile_px: Positive = 512
    """Side of the square tiles."""
    mpp: Annotated[float, Field(gt=0)] = 1.0
    """Microns per pixel of the tiles, the same for all slides."""
    stride_px: Positive | None = None
    """From tile to tile; null = `tile_px` (no overlap)."""
    min_tissue: Fraction = 0.5
    """A tile needs at least this part of its area to be tissue."""
    min_annotated: Fraction = 0.05
    """A tile of an annotated slide has a mask if at least this part of it is not `ignore_index`."""
    tissue: TissueConfig = TissueConfig()

    @model_validator(mode="after")
    def _stride(self) -> "TilingConfig":
        if self.stride_px is not None and self.stride_px > self.tile_px:
            raise ValueError("stride_px must not be larger than tile_px: tissue between the tiles would be lost")
        return self
