"""Label maps to QuPath: `write_geojson` turns rows of class indices, however many, into polygons with holes.

The map comes in bands of rows and no more than one band is held, beside the regions that reach into the next band.
Within a band all regions together are a coverage, which is simplified as one (shapely's `coverage_simplify`, after
Visvalingam & Whyatt 1993): neighbours keep the same border, so that no gap and no overlap opens between classes.
Where two bands meet nothing is moved, and the halves of a region join exactly.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from stedm.errors import StedmError
from stedm.io.files import replacing
from stedm.io.images import CLASS_COLOURS
from stedm.io.ownership import SEGMENTED
from stedm.slides.class_mapping import QUPATH_IGNORE
from stedm.slides.geometry import geometry_libraries

_IGNORE_COLOUR = (180, 180, 180)
# A thousandth of a level-0 pixel: far below what any rasteriser sees, and half as many characters as a double.
_DECIMALS = 3


def write_geojson(
    path: str | Path,
    bands: Iterable[np.ndarray],
    classes: Sequence[str],
    *,
    downsample: float,
    mpp: float,
    tolerance_um: float = 0.0,
    skip: Sequence[str] | None = None,
    ignore_index: int = 255,
    smallest_um2: float = 0.0,
    colours: Sequence[tuple[int, int, int]] = CLASS_COLOURS,
    origin: tuple[float, float] = (0.0, 0.0),
) -> dict[str, int]:
    """Write a label map as GeoJSON that QuPath opens: one annotation for each connected region (4 neighbours).

    Args:
        bands: uint8 (rows, width) arrays of class indices, from top to bottom, of any heights and one width. One array
            is one band.
        classes: names by index. `ignore_index` is written as QuPath's class "Ignore*".
        downsample: level-0 pixels a pixel of the map.
        mpp: microns per pixel of the map.
        tolerance_um: detail to give up, about the root of the area of the triangles that are cut off or filled; 0 = the
            exact outlines of the pixels. Half a pixel's diagonal and more takes the stairs away.
        skip: classes that are not written; None = the first, the background.
        smallest_um2: regions below this area are left out, so that whatever lies around reads there as unannotated.
        colours: RGB by class index, repeated where there are more classes.
        origin: level-0 pixels of the map's corner.

    Returns:
        Pixels of each class in the map (also of skipped ones), counted before simplification; and of "Ignore*".

    Raises:
        StedmError: bands of different widths, a value that is no class, or numbers that make no sense. The file appears
            whole or not at all.
    """
    geometry_libraries()
    if not (downsample > 0 and mpp > 0 and tolerance_um >= 0 and smallest_um2 >= 0):
        raise StedmError(f"{path}: downsample and mpp must be above 0, tolerance_um and smallest_um2 not below 0")
    skipped = [classes[0]] if skip is None else list(skip)
    if strangers := sorted(set(skipped) - {*classes, QUPATH_IGNORE}):
        raise StedmError(f"{path}: {', '.join(strangers)} is no class; skip some of {', '.join(classes)}")
    names = dict(enumerate(classes)) | {ignore_index: QUPATH_IGNORE}
    kept = np.zeros(256, bool)
    kept[[index for index, name in names.items() if name not in skipped]] = True
    joiner = _Joiner(kept, tolerance_um / mpp, smallest_um2 / mpp**2)
    counts = np.zeros(256, np.int64)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        writer = _Writer(file, names, colours, downsample, origin)
        for band in _checked(path, bands, names):
            counts += np.bincount(band.ravel(), minlength=256)
            writer.write(joiner.add(band))
        writer.write(joiner.finish())
        writer.finish()
    return {name: int(counts[index]) for index, name in names.items() if index < len(classes) or counts[index]}


def _checked(path: str | Path, bands: Iterable[np.ndarray], names: dict[int, str]) -> Iterator[np.ndarray]:
    known, width = np.isin(np.arange(256), list(names)), None
    for band in bands:
        band = np.ascontiguousarray(band)
        width = band.shape[-1] if width is None else width
        if band.ndim != 2 or band.dtype != np.uint8 or band.shape[1] != width:
            raise StedmError(f"{path}: a band of a label map is uint8 (rows, {width}), got {band.dtype} {band.shape}")
        if band.size and not known[band].all():
            raise StedmError(f"{path}: values {np.unique(band[~known[band]]).tolist()} in the label map are no class")
        if band.size:
            yield band


# ---- regions across bands -----------------------------------------------------------------------------------------


@dataclass
class _Joiner:
    """Collects the parts of each region until a band passes in which it has no pixel in the last row.

    Everything is in pixels of the map. `add` and `finish` give (class index, polygon) of regions that are complete.
    """

    kept: np.ndarray
    tolerance_px: float
    smallest_px: float
    top: int = 0
    open_parts: list[list[Any]] = field(default_factory=list)
    open_values: list[int] = field(default_factory=list)
    # Of the last row of the band before: which open region each pixel is part of, -1 = none.
    last_row: np.ndarray | None = None

    def add(self, band: np.ndarray) -> Iterator[tuple[int, Any]]:
        labels, values = _connected(band)
        polygons = _coverage(labels, self.top, self.tolerance_px)
        n_open, is_kept = len(self.open_parts), self.kept[values]
        if self.last_row is None:
            self.last_row = np.full(band.shape[1], -1)
        group_of = self._groups(labels[0], values)
        parts: list[list[Any]] = [[] for _ in range(group_of.max(initial=-1) + 1)]
        value_of = np.zeros(len(parts), np.intp)
        for region, group in enumerate(group_of[:n_open]):
            parts[group] += self.open_parts[region]
            value_of[group] = self.open_values[region]
        for label in np.flatnonzero(is_kept):
            parts[group_of[n_open + label]].append(polygons[label])
            value_of[group_of[n_open + label]] = values[label]
        bottom = np.where(is_kept[labels[-1]], group_of[n_open + labels[-1]], -1)
        still_open = np.unique(bottom[bottom >= 0])
        renumbered = np.full(len(parts) + 1, -1)
        renumbered[still_open] = np.arange(len(still_open))
        self.open_parts, self.open_values = [parts[g] for g in still_open], value_of[still_open].tolist()
        self.last_row, self.top = renumbered[bottom], self.top + len(band)
        closed = [(int(value_of[g]), parts[g]) for g in range(len(parts)) if renumbered[g] < 0 and parts[g]]
        return self._joined(closed)

    def finish(self) -> Iterator[tuple[int, Any]]:
        closed = list(zip(self.open_values, self.open_parts, strict=True))
        self.open_parts, self.open_values = [], []
        return self._joined(closed)

    def _groups(self, first_row: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Number of the joined region for the open regions and then for the labels of the new band."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n_open, above = len(self.open_parts), self.last_row
        assert above is not None
        same = above >= 0
        same[same] = np.asarray(self.open_values, np.intp)[above[same]] == values[first_row[same]]
        links = np.unique(np.stack([above[same], n_open + first_row[same]]), axis=1)
        size = n_open + len(values)
        graph = coo_array((np.ones(links.shape[1], np.int8), (links[0], links[1])), shape=(size, size))
        return connected_components(graph, directed=False)[1]

    def _joined(self, closed: list[tuple[int, list[Any]]]) -> Iterator[tuple[int, Any]]:
        _, shapely = geometry_libraries()
        for value, parts in closed:
            region = shapely.union_all(parts) if parts[1:] else parts[0]
            # Takes out the points between pixels on straight lines that simplification and joining leave.
            region = shapely.simplify(region, 0)
            if not region.is_empty and region.area >= self.smallest_px:
                yield value, region


def _connected(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected regions (4 neighbours) of equal value: their numbers 0.., int32 (rows, width), and their values."""
    from skimage.measure import label

    labels = label(band, background=256, connectivity=1).astype(np.int32) - 1
    values = np.zeros(labels.max() + 1, np.intp)
    values[labels] = band
    return labels, values


def _coverage(labels: np.ndarray, top: int, tolerance_px: float) -> np.ndarray:
    """One polygon for each label (index = number), in pixels of the map; together they cover the band."""
    rasterio, shapely = geometry_libraries()
    polygons = np.empty(labels.max() + 1, dtype=object)
    transform = rasterio.Affine.translation(0, top)
    for geometry, number in rasterio.features.shapes(labels, connectivity=4, transform=transform):
        polygons[int(number)] = shapely.Polygon(geometry["coordinates"][0], geometry["coordinates"][1:])
    broken = ~shapely.is_valid(polygons)  # outlines that meet themselves in a corner
    polygons[broken] = shapely.make_valid(polygons[broken])
    if tolerance_px == 0:
        return polygons
    # A coverage needs every corner of a neighbour in both outlines: a point at each pixel gives all of them.
    dense = shapely.transform(shapely.segmentize(polygons, 1.0), np.rint)
    return shapely.coverage_simplify(dense, tolerance_px, simplify_boundary=False)


# ---- the file -----------------------------------------------------------------------------------------------------


@dataclass
class _Writer:
    """Writes features one by one, in level-0 pixels, as QuPath 0.3 and later exports and opens them."""

    file: TextIO
    names: dict[int, str]
    colours: Sequence[tuple[int, int, int]]
    downsample: float
    origin: tuple[float, float]
    written: int = 0

    def __post_init__(self) -> None:
        self.file.write(f'{{"type": "FeatureCollection", "generator": "{SEGMENTED}", "features": [')

    def write(self, regions: Iterable[tuple[int, Any]]) -> None:
        _, shapely = geometry_libraries()
        for value, region in regions:
            scaled = shapely.transform(region, lambda xy: np.round(xy * self.downsample + self.origin, _DECIMALS))
            name = self.names[value]
            colour = _IGNORE_COLOUR if name == QUPATH_IGNORE else self.colours[value % len(self.colours)]
            feature = {
                "type": "Feature",
                "geometry": _geometry(scaled),
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name, "color": list(colour)},
                },
            }
            self.file.write(("," if self.written else "") + "\n" + json.dumps(feature, ensure_ascii=False))
            self.written += 1

    def finish(self) -> None:
        self.file.write("\n]}\n")


def _geometry(region: Any) -> dict[str, Any]:
    """GeoJSON of a shapely polygon or multi-polygon; whole numbers without a decimal point."""
    _, shapely = geometry_libraries()
    polygons = [
        [_plain(shapely.get_coordinates(ring)) for ring in (polygon.exterior, *polygon.interiors)]
        for polygon in shapely.get_parts(region)
    ]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _plain(points: np.ndarray) -> list[list[float]]:
    return (points.astype(np.int64) if (points == np.rint(points)).all() else points).tolist()
