"""From slides to tiles, and from a segmenter to maps of slides: resolution, grid, tissue."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stedm.config.base import Fraction, Part, Positive, checked, read_values


class TissueConfig(Part):
    """What counts as tissue (see stedm.slides.tissue)."""

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
    class_mapping: Path | dict[str, Any] | None = None
    """Names in the annotations -> classes: a YAML file or its content (see docs/annotations.md); null = the names are
    those of the classes."""
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
    image_format: Literal["png", "tiff"] = "png"
    """Of images; masks are PNG. `tiff` isn't compressed: larger files that are read about ten times as fast, for
    cohorts that don't fit in memory (docs/performance.md)."""
    tissue: TissueConfig = TissueConfig()

    @model_validator(mode="after")
    def _stride(self) -> "TilingConfig":
        if self.stride_px is not None and self.stride_px > self.tile_px:
            raise ValueError("stride_px must not be larger than tile_px: tissue between the tiles would be lost")
        return self


class SlideSegmentationConfig(Part):
    """`stedm segment` on slides (see stedm.segmentation.whole_slide)."""

    mpp: Annotated[float, Field(gt=0)] | None = None
    """Microns per pixel at which the network looks; null = that of its training images."""
    tile_px: Positive | None = None
    """Side of the tiles that the network sees; null = that of its training images."""
    overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    """Part of a tile's side that it shares with the next one; there both are blended."""
    batch: Positive = 8
    """Tiles that go through the network at once."""
    workers: Positive = 2
    """Threads that read tiles while the network works."""
    tolerance_um: Annotated[float, Field(ge=0)] | None = None
    """Detail of the outlines to give up (see docs/annotations.md); 0 = none; null = three quarters of a pixel."""
    smallest_um2: Annotated[float, Field(ge=0)] = 0.0
    """Regions below this area are not exported."""
    skip: list[str] | None = None
    """Classes that are not exported; null = the first, the background. They are counted all the same."""
    label_map: bool = False
    """Also write the class indices as a pyramidal OME-TIFF."""
    tissue: TissueConfig = TissueConfig()


def load_tiling_config(path: str | Path | None, overrides: list[str] | None = None) -> TilingConfig:
    """Read a YAML file (or start from the defaults), apply `a.b=c` overrides, validate.

    A class mapping that is a file is read (relative to the YAML file), so that the result is complete in itself; its
    `classes` count where there are no others. Raises `StedmError` with one line per problem.
    """
    source = "--set" if path is None else str(path)
    config = checked(TilingConfig, read_values(None if path is None else Path(path), overrides), source)
    mapping = config.class_mapping
    if isinstance(mapping, Path):
        mapping = read_values((Path() if path is None else Path(path).parent) / mapping.expanduser(), None)
    classes = config.classes or (mapping or {}).get("classes") or []
    return checked(TilingConfig, {**config.model_dump(), "class_mapping": mapping, "classes": classes}, source)
