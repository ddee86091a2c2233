"""Annotations of a slide as class indices of any tile of it: `read_annotation(...).rasterise(...)`.

Polygons come from QuPath GeoJSON or MS COCO JSON (`stedm.slides.polygon_files`), label images from PNG or TIFF;
their names become classes by `stedm.slides.class_mapping`. A pixel belongs to the region in which its centre lies.

Overlapping regions: by default the one with the smaller outline (holes filled) is on top. People draw necrosis,
vessels or an island of stroma onto the region around it, and neither QuPath nor COCO promises an order of the file;
size is the one order that survives an export. Where that is wrong, `order` of the mapping ranks the classes.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stedm.errors import StedmError
from stedm.io.images import UNREADABLE
from stedm.slides.class_mapping import IGNORE, ClassMapping, as_mapping
from stedm.slides.polygon_files import Region, read_regions

# Rasterising costs as much as the polygon has vertices, on every tile that it touches: pieces keep tiles fast.
_VERTICES_OF_A_PIECE = 512
_SMALLEST_PIECE_PX = 64.0
# Label images up to so many pixels are kept in memory, larger TIFFs are read window by window.
_IN_MEMORY_PX = 2**28
_PNG_START = b"\x89PNG"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF


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
        slide_px: width and height of the slide at level 0. A label image must cover it (checked), and without
            `label_downsample` it follows from it.
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
    if _is_image(path):
        scale = _label_downsample(path, slide_px, label_downsample)
        rules.class_indices(list(classes), ignore_index)
        return LabelImage(list(classes), ignore_index, rules, path, scale).opened()
    return _polygon_annotation(path, list(classes), ignore_index, rules, read_regions(path, image_name))


def geometry_libraries() -> tuple[Any, Any]:
    """(rasterio, shapely), imported late because only slides need them."""
    try:
        import rasterio
        import rasterio.errors
        import rasterio.features
        import shapely
    except ImportError as error:
        raise StedmError(f'annotations of slides need {error.name}: pip install "stedm[slides]"') from error
    return rasterio, shapely


# ---- polygons -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PolygonAnnotation:
    """Polygons in painting order: what comes later lies on top. Made by `read_annotation`.

    `pieces`: shapely polygons in level-0 pixels, the regions cut into parts of few vertices; `values`: uint8, class
    index of each; `without_area`: how many objects of the file paint nothing (points, lines, polygons folded flat).
    """

    classes: list[str]
    ignore_index: int
    pieces: np.ndarray
    values: np.ndarray
    unannotated: int
    without_area: int = 0

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
        rows, columns = _shape(tile_px)
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
    path: Path, classes: list[str], ignore_index: int, rules: ClassMapping, regions: list[Region]
) -> PolygonAnnotation:
    _, shapely = geometry_libraries()
    values = _region_values(path, rules, classes, ignore_index, regions)
    polygons, of_region = _valid_polygons(regions)
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
        len(regions) - len(set(of_region.tolist())),
    )


def _region_values(
    path: Path, rules: ClassMapping, classes: list[str], ignore_index: int, regions: list[Region]
) -> np.ndarray:
    """Class index of each region, intp; all names that are unknown are listed in one error."""
    index_of = rules.class_indices(classes, ignore_index)
    values, unknown, nameless = np.full(len(regions), ignore_index, np.intp), Counter(), []
    for row, region in enumerate(regions):
        # An object's own name counts only where it has no class and the name is a known one: "ROI 1" is no class.
        name = region.name or (region.label if region.label in index_of else None)
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
    if unknown and rules.unknown == "error":
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items()))
        raise StedmError(
            f"{path}: unknown classes {listed}; known are {', '.join(index_of)}: add them to the class mapping, or say "
            "`unknown: ignore` in it"
        )
    return values


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


def _shape(tile_px: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = tile_px if isinstance(tile_px, tuple) else (tile_px, tile_px)
    return int(rows), int(columns)


# ---- label images -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class LabelImage:
    """An image of class indices that covers the slide at its own resolution; nearest neighbour at any other.

    Without a mapping the values are class indices; with one, their decimal text ("0", "1", ...) is the name. Outside
    the image everything is as unannotated. A pickled one reads its file anew.
    """

    classes: list[str]
    ignore_index: int
    rules: ClassMapping
    path: Path
    downsample: float
    _source: Any = field(default=None, repr=False)
    _pixels: np.ndarray | None = field(default=None, repr=False)

    def opened(self) -> "LabelImage":
        """Itself, with the file open and, unless it is a huge TIFF, its pixels in memory and checked."""
        if self._source is None:
            self._source = _open_labels(self.path)
            width, height = self._source.size
            if width * height <= _IN_MEMORY_PX or not self._source.has_windows:
                self._pixels = self._mapped(self._source.read())
        return self

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """See `Annotation.bounds`; a label image says something of all that it covers."""
        width, height = self.opened()._source.size
        return (0.0, 0.0, width * self.downsample, height * self.downsample)

    def rasterise(self, x: float, y: float, tile_px: int | tuple[int, int], downsample: float) -> np.ndarray:
        """See `Annotation.rasterise`."""
        (width, height), (rows, columns) = self.opened()._source.size, _shape(tile_px)
        row = np.floor((y + (np.arange(rows) + 0.5) * downsample) / self.downsample).astype(np.intp)
        column = np.floor((x + (np.arange(columns) + 0.5) * downsample) / self.downsample).astype(np.intp)
        inside_row, inside_column = (row >= 0) & (row < height), (column >= 0) & (column < width)
        unannotated = self.rules.index_of(self.rules.unannotated, self.classes, self.ignore_index)
        tile = np.full((rows, columns), unannotated, np.uint8)
        if inside_row.any() and inside_column.any():
            tile[np.ix_(inside_row, inside_column)] = self._labels_at(row[inside_row], column[inside_column])
        return tile

    def _labels_at(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        if self._pixels is not None:
            return self._pixels[np.ix_(row, column)]
        window = ((int(row[0]), int(row[-1]) + 1), (int(column[0]), int(column[-1]) + 1))
        return self._mapped(self._source.read(window))[np.ix_(row - row[0], column - column[0])]

    def _mapped(self, values: np.ndarray) -> np.ndarray:
        """Stored values -> uint8 class indices."""
        table = np.full(256, -1, np.int16)
        if self.rules.mapping is None:
            table[: len(self.classes)] = np.arange(len(self.classes))
            table[self.ignore_index] = self.ignore_index
        else:
            if self.rules.unknown == "ignore":
                table[:] = self.ignore_index
            for name, index in self.rules.class_indices(self.classes, self.ignore_index).items():
                if name.isascii() and name.isdigit() and int(name) < 256:
                    table[int(name)] = index
        mapped = table[values]
        if (mapped < 0).any():
            strangers = np.unique(values[mapped < 0])
            listed = ", ".join(map(str, strangers[:9])) + (" and more" if strangers[9:].size else "")
            raise StedmError(
                f"{self.path}: values {listed} are no class; without a mapping values are 0 to "
                f"{len(self.classes) - 1} and ignore_index {self.ignore_index}: map them, or write class indices"
            )
        return mapped.astype(np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None, "_pixels": None}


class _PngLabels:
    """Read whole. By Pillow: GDAL gives memory as it was where a PNG file is cut off."""

    has_windows = False

    def __init__(self, path: Path) -> None:
        from PIL import PngImagePlugin

        self.path = path
        with path.open("rb") as file:
            # Image.open refuses as an attack what is only a large map; the limit here is that of memory.
            image = PngImagePlugin.PngImageFile(file)
            self.size = image.size
            # Grey of 1, 2 or 4 bits would be stretched to 0..255 by Pillow, so that indices change.
            if image.mode != "P" and (image.mode != "L" or image.tile[0].args != "L"):
                raise StedmError(f"{path}: a label image has one 8-bit channel of class indices, this one {image.mode}")
            if image.width * image.height > 2**31:
                raise StedmError(f"{path}: too large for a PNG; write the label image as a tiled TIFF")

    def read(self, window: Any = None) -> np.ndarray:
        from PIL import PngImagePlugin

        try:
            with self.path.open("rb") as file:
                return np.asarray(PngImagePlugin.PngImageFile(file))
        except UNREADABLE as error:
            raise StedmError(f"{self.path}: damaged label image ({error}); write it again") from error


class _TiffLabels:
    """Read by windows ((top, bottom), (left, right)), so that it may be of any size."""

    has_windows = True

    def __init__(self, path: Path) -> None:
        import warnings

        rasterio, _ = geometry_libraries()
        self.path = path
        with warnings.catch_warnings():
            # Images of tissue lie nowhere on Earth.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            self.file = rasterio.open(path.resolve(), driver="GTiff")
        self.size = (self.file.width, self.file.height)
        if self.file.count != 1 or self.file.dtypes[0] != "uint8":
            found = f"{self.file.count} of {self.file.dtypes[0]}"
            raise StedmError(f"{path}: a label image has one 8-bit channel of class indices, this one {found}")

    def read(self, window: Any = None) -> np.ndarray:
        rasterio, _ = geometry_libraries()
        try:
            return self.file.read(1, window=window)
        except rasterio.errors.RasterioError as error:
            raise StedmError(f"{self.path}: damaged label image ({error}); write it again") from error


def _is_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (_PNG_START, *_TIFF_STARTS)
    except FileNotFoundError as error:
        raise StedmError(f"{path}: missing; correct the path of the annotation") from error
    except OSError as error:
        raise StedmError(f"{path}: not readable ({error})") from error


def _open_labels(path: Path) -> _PngLabels | _TiffLabels:
    rasterio, _ = geometry_libraries()
    try:
        with path.open("rb") as file:
            is_png = file.read(4) == _PNG_START
        return _PngLabels(path) if is_png else _TiffLabels(path)
    except (*UNREADABLE, rasterio.errors.RasterioError) as error:
        raise StedmError(f"{path}: not a readable label image ({error}); write it again") from error


def _label_downsample(path: Path, slide_px: tuple[int, int] | None, label_downsample: float | None) -> float:
    """Level-0 pixels a label pixel; `StedmError` if it is not known or the image doesn't cover the slide."""
    if label_downsample is not None and not 0 < label_downsample < np.inf:
        raise StedmError(f"{path}: label_downsample is {label_downsample}; it is a number above 0")
    if slide_px is None:
        if label_downsample is None:
            raise StedmError(f"{path}: say how large the slide is (slide_px) or a label pixel is (label_downsample)")
        return float(label_downsample)
    size = _open_labels(path).size
    scale = label_downsample or slide_px[0] / size[0]
    whole_number = max(1, round(scale))
    if label_downsample is None and abs(slide_px[0] / whole_number - size[0]) < 1:
        # Sizes are rounded: 10,007 px against 625 means 16, not 16.011.
        scale = float(whole_number)
    # A pixel of rounding, and 0.2 % for an mpp of few digits.
    if any(abs(whole / scale - side) > 1 + 0.002 * side for whole, side in zip(slide_px, size, strict=True)):
        raise StedmError(
            f"{path}: the label image is {size[0]} x {size[1]} px, which doesn't cover the slide of "
            f"{slide_px[0]} x {slide_px[1]} px at one scale; write it anew from the same slide"
        )
    return float(scale)
