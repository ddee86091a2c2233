"""Annotations of a slide as class indices of any tile of it: `read_annotation(...).rasterise(...)`.

Polygons come from QuPath GeoJSON or MS COCO JSON (`stedm.slides.polygon_files`), label images from PNG or TIFF;
their names become classes by `stedm.slides.class_mapping`. A pixel belongs to the region in which its centre lies.

Overlapping regions: by default the one with the smaller outline (holes filled) is on top. People draw necrosis,
vessels or an island of stroma onto the region around it, and neither QuPath nor COCO promises an order of the file;
size is the one order that survives an export. Where that is wrong, `order` of the mapping ranks the classes.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stedm.errors import StedmError
from stedm.slides.class_mapping import IGNORE, ClassMapping, as_mapping
from stedm.slides.geometry import geometry_libraries, tile_shape
from stedm.slides.label_images import LabelImage, is_label_image, label_scale
from stedm.slides.placement import drawn_on_another, off_slide
from stedm.slides.polygon_files import PolygonFile, Region, read_polygons

# Rasterising costs as much as the polygon has vertices, on every tile that it touches: pieces keep tiles fast.
_VERTICES_OF_A_PIECE = 512
_SMALLEST_PIECE_PX = 64.0


class Annotation(Protocol):
    """What was annotated on one slide; can be pickled for worker processes."""

    classes: list[str]
    ignore_index: int

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom of what is annotated, in level-0 pixels; None = nothing."""

    def rasterise(self, x: float, y: float, tile_px: int | tuple[int, int], downsample: float) -> np.ndarray:
        """Class indices of a tile.

        Args:
            x, y: the tile's top left corner in level-0 pixels; may be outside the slide.
            tile_px: side of the tile in its own pixels, or (rows, columns).
            downsample: level-0 pixels a pixel of the tile: mpp of the tile / mpp of the slide.

        Returns:
            uint8 (tile_px, tile_px) of class indices and `ignore_index`.
        """


def read_annotation(
    path: str | Path,
    classes: list[str],
    mapping: ClassMapping | dict | str | Path | None = None,
    unannotated: str | None = None,
    image_name: str | None = None,
    *,
    ignore_index: int = 255,
    slide_px: tuple[int, int] | None = None,
    label_downsample: float | None = None,
) -> Annotation:
    """Read one slide's annotation: GeoJSON, COCO JSON (either gzipped), or a label PNG or TIFF; told by the content.

    Args:
        classes: class names in the order of their indices.
        mapping: names in the file -> classes (`ClassMapping`, its YAML file, or the content of it); None = the names
            are those of the classes.
        unannotated: class of what lies outside all regions, or "ignore"; None = as the mapping says, which is "ignore".
        image_name: file name of the slide, which chooses the image in a COCO file of several.
        slide_px: width and height of the slide at level 0 (`Slide.size_px`). A label image must cover it, and without
            `label_downsample` it follows from it; polygons that lie mostly off it, or were drawn on an image of
            another size, are refused.
        label_downsample: level-0 pixels a pixel of the label image: mpp of the labels / mpp of the slide.

    Raises:
        StedmError: one line that names the file and the feature; see docs/annotations.md for what is read and refused.
    """
    path = Path(path)
    rules = as_mapping(mapping)
    if unannotated is not None:
        rules = rules.model_copy(update={"unannotated": unannotated})
    if not classes or len(classes) > ignore_index or ignore_index > 255 or IGNORE in classes:
        raise StedmError(f"{path}: needs 1 to {ignore_index} classes, none of them called {IGNORE!r}")
    if is_label_image(path):
        scale = label_scale(path, slide_px, label_downsample)
        rules.class_indices(list(classes), ignore_index)
        return LabelImage(list(classes), ignore_index, rules, path, scale).opened()
    file = read_polygons(path, image_name)
    if problem := drawn_on_another(file.size_px, slide_px):
        raise StedmError(f"{path}: {problem}")
    return _polygon_annotation(path, list(classes), ignore_index, rules, file, slide_px)


# ---- polygons -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PolygonAnnotation:
    """Polygons in painting order: what comes later lies on top. Made by `read_annotation`.

    `pieces`: shapely polygons in level-0 pixels, the regions cut into parts of few vertices; `values`: uint8, class
    index of each; `without_area`: how many objects of the file paint nothing (points, lines, polygons folded flat).
    `notes`: lines that whoever reads it for the first time should see (what was left out).
    """

    classes: list[str]
    ignore_index: int
    pieces: np.ndarray
    values: np.ndarray
    unannotated: int
    without_area: int = 0
    notes: tuple[str, ...] = ()

    @cached_property
    def _tree(self):
        return geometry_libraries()[1].STRtree(self.pieces)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tree"}

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """See `Annotation.bounds`."""
        return tuple(geometry_libraries()[1].total_bounds(self.pieces).tolist()) if len(self.pieces) else None

    def rasterise(self, x: float, y: float, tile_px: int | tuple[int, int], downsample: float) -> np.ndarray:
        """See `Annotation.rasterise`."""
        rasterio, shapely = geometry_libraries()
        rows, columns = tile_shape(tile_px)
        tile = np.full((rows, columns), self.unannotated, np.uint8)
        extent = shapely.box(x, y, x + columns * downsample, y + rows * downsample)
        hits = np.sort(self._tree.query(extent))
        if hits.size:
            rasterio.features.rasterize(
                zip(self.pieces[hits], self.values[hits].tolist(), strict=True),
                out=tile,
                transform=rasterio.Affine(downsample, 0, x, 0, downsample, y),
            )
        return tile


def _polygon_annotation(
    path: Path,
    classes: list[str],
    ignore_index: int,
    rules: ClassMapping,
    file: PolygonFile,
    slide_px: tuple[int, int] | None,
) -> PolygonAnnotation:
    _, shapely = geometry_libraries()
    values, unknown = _region_values(path, rules, classes, ignore_index, file.regions)
    polygons, of_region = _valid_polygons(file.regions)
    notes = [f"objects left out: {', '.join(f'{n} {kind}' for kind, n in sorted(file.left_out.items()))}"]
    notes = notes if file.left_out else []
    if unknown:
        notes.append(f"regions of classes that are not in the class mapping are ignored: {unknown}")
    if slide_px is not None:
        notes += off_slide(path, polygons, [file.regions[row].where for row in of_region], slide_px)
    if len(polygons) == 0:
        notes.append(f"no region with an area: all of the slide counts as {rules.unannotated}")
    values = values[of_region]
    outlines = shapely.area(shapely.polygons(shapely.get_exterior_ring(polygons)))
    painting = np.lexsort((np.arange(len(values)), -outlines, _ranks(rules, classes, ignore_index)[values]))
    many = shapely.get_num_coordinates(polygons) > _VERTICES_OF_A_PIECE
    pieces = [_cut(polygons[i]) if many[i] else [polygons[i]] for i in painting]
    return PolygonAnnotation(
        classes,
        ignore_index,
        np.array([piece for parts in pieces for piece in parts], dtype=object),
        np.repeat(values[painting], [len(parts) for parts in pieces]).astype(np.uint8),
        rules.index_of(rules.unannotated, classes, ignore_index),
        len(file.regions) - len(set(of_region.tolist())),
        tuple(f"{path.name}: {note}" for note in notes),
    )


def _region_values(
    path: Path, rules: ClassMapping, classes: list[str], ignore_index: int, regions: list[Region]
) -> tuple[np.ndarray, str]:
    """Class index of each region, intp, and the names that are unknown; in one error, unless they shall be ignored."""
    index_of = rules.class_indices(classes, ignore_index)
    values, unknown, nameless = np.full(len(regions), ignore_index, np.intp), Counter(), []
    for row, region in enumerate(regions):
        # An object's own name counts only where it has no class and the name is a known one: "ROI 1" is no class.
        # macOS writes accents decomposed.
        name, label = (text and unicodedata.normalize("NFC", text) for text in (region.name, region.label))
        name = name or (label if label in index_of else None)
        if name in index_of:
            values[row] = index_of[name]
        elif name is not None:
            unknown[name] += 1
        elif rules.unclassified is not None:
            values[row] = rules.index_of(rules.unclassified, classes, ignore_index)
        else:
            nameless.append(region.where)
    if nameless:
        more = f" (and {len(nameless) - 1} more)" if nameless[1:] else ""
        raise StedmError(
            f"{path}: {nameless[0]}{more} has no class; set it in QuPath, or say `unclassified: CLASS` or "
            "`unclassified: ignore` in the class mapping"
        )
    listed = ", ".join(f"{' '.join(name.split())} ({count})" for name, count in sorted(unknown.items()))
    if unknown and rules.unknown == "error":
        raise StedmError(
            f"{path}: unknown classes {listed}; known are {', '.join(index_of)}: add them to the class mapping, or say "
            "`unknown: ignore` in it"
        )
    return values, listed


def _valid_polygons(regions: list[Region]) -> tuple[np.ndarray, np.ndarray]:
    """Shapely polygons of the regions, and the row of its region for each; what has no area is left out.

    Rings that cross themselves become what even-odd filling paints: a bow-tie is two triangles.
    """
    _, shapely = geometry_libraries()
    drawn = [(shapely.Polygon(rings[0], rings[1:]), row) for row, at in enumerate(regions) for rings in at.polygons]
    polygons, rows = np.array([polygon for polygon, _ in drawn], dtype=object), np.array([row for _, row in drawn], int)
    if len(drawn) == 0:
        return polygons, rows
    parts, of_polygon = shapely.get_parts(_made_valid(polygons, shapely), return_index=True)
    # A repaired polygon may be a collection of a multi-polygon and lines.
    parts, of_part = shapely.get_parts(parts, return_index=True)
    has_area = shapely.area(parts) > 0
    return parts[has_area], rows[of_polygon[of_part[has_area]]]


def _made_valid(polygons: np.ndarray, shapely: Any) -> np.ndarray:
    broken = ~shapely.is_valid(polygons)
    polygons = polygons.copy()
    polygons[broken] = shapely.make_valid(polygons[broken])
    return polygons


def _ranks(rules: ClassMapping, classes: list[str], ignore_index: int) -> np.ndarray:
    """Rank of each value 0..255 in painting order; equal ranks are painted by size."""
    ranks = np.zeros(256, np.intp)
    if rules.order is not None:
        for rank, name in enumerate(rules.order, start=1):
            ranks[rules.index_of(name, classes, ignore_index)] = rank
        if IGNORE not in rules.order:
            ranks[ignore_index] = len(rules.order) + 1
    return ranks


def _cut(polygon: Any) -> list[Any]:
    """The polygon, halved again and again until no part has many vertices."""
    _, shapely = geometry_libraries()
    done, left = [], [polygon]
    while left:
        part = left.pop()
        x0, y0, x1, y1 = part.bounds
        if shapely.get_num_coordinates(part) <= _VERTICES_OF_A_PIECE or max(x1 - x0, y1 - y0) < _SMALLEST_PIECE_PX:
            done.append(part)
            continue
        # Off the lines on which centres and corners of pixels lie, so that no pixel is on both sides or on neither.
        middle = np.floor((x0 + x1) / 2 if x1 - x0 > y1 - y0 else (y0 + y1) / 2) + 0.318
        boxes = [(x0, y0, middle, y1), (middle, y0, x1, y1)]
        if x1 - x0 <= y1 - y0:
            boxes = [(x0, y0, x1, middle), (x0, middle, x1, y1)]
        halves = shapely.get_parts(shapely.intersection(part, [shapely.box(*box) for box in boxes]))
        left += [half for half in halves if half.area > 0]
    return done
