"""Whether annotations lie where they can be meant: on the slide, and on its tissue.

What was drawn on a smaller export of a slide, or on another slide, would paint everything as unannotated.
"""

from pathlib import Path
from typing import Any

import numpy as np

from stedm.errors import StedmError
from stedm.slides.geometry import geometry_libraries
from stedm.slides.tissue import TissueMask

_MOST_OFF, _SOME_OFF = 0.5, 0.05
"""Parts of the annotated area off the slide: refused, and worth a line. Outlines drawn a little over the edge are
neither."""


def drawn_on_another(drawn_px: tuple[int, int] | None, slide_px: tuple[int, int] | None) -> str:
    """What is wrong where the file says which size of image it was drawn on; "" where it is the slide's."""
    if drawn_px is None or slide_px is None:
        return ""
    if all(abs(drawn - side) <= 1 for drawn, side in zip(drawn_px, slide_px, strict=True)):
        return ""
    return (
        f"its width x height, {drawn_px[0]} x {drawn_px[1]} px, are not those of the slide, {slide_px[0]} x "
        f"{slide_px[1]} px; bring the coordinates to the slide's full resolution and correct width and height"
    )


def off_slide(path: Path, polygons: np.ndarray, where: list[str], slide_px: tuple[int, int]) -> list[str]:
    """Lines about regions off the slide, none where all lie on it; `StedmError` where most of the area is off it.

    `where` names the feature of each polygon.
    """
    _, shapely = geometry_libraries()
    if len(polygons) == 0:
        return []
    slide, areas = shapely.box(0, 0, *slide_px), shapely.area(polygons)
    inside, over = areas.copy(), ~shapely.covers(slide, shapely.box(*shapely.bounds(polygons).T))
    inside[over] = shapely.area(shapely.intersection(polygons[over], slide))
    part_off = 1 - inside.sum() / areas.sum()
    if part_off > _MOST_OFF:
        reach = " to ".join(f"({x:.0f}, {y:.0f})" for x, y in shapely.total_bounds(polygons).reshape(2, 2))
        raise StedmError(
            f"{path}: {part_off:.0%} of the annotated area lies off the slide: it reaches from {reach}, the slide is "
            f"{slide_px[0]} x {slide_px[1]} px; export it from this slide at its full resolution"
        )
    wholly = list(dict.fromkeys(where[row] for row in np.flatnonzero(inside == 0)))
    if wholly:
        more = f" and {len(wholly) - 3} more" if wholly[3:] else ""
        return [f"{len(wholly)} regions lie off the slide ({', '.join(wholly[:3])}{more}) and count nowhere"]
    return [f"{part_off:.0%} of the annotated area lies off the slide"] if part_off > _SOME_OFF else []


def misses_tissue(annotation: Any, tissue: TissueMask) -> bool:
    """Whether no region of a class touches the slide's tissue; regions that are ignored may lie on glass."""
    if not hasattr(annotation, "pieces"):  # a label image says something of every place
        return False
    rasterio, _ = geometry_libraries()
    drawn = annotation.pieces[annotation.values != annotation.ignore_index]
    if len(drawn) == 0 or not tissue.mask.any():
        return False
    scale = rasterio.Affine.scale(tissue.downsample)
    touched = rasterio.features.rasterize(drawn, tissue.mask.shape, transform=scale, all_touched=True)
    return not (touched.astype(bool) & tissue.mask).any()
