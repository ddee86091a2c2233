"""Files of polygons: QuPath GeoJSON and MS COCO JSON, read into named regions in level-0 pixels.

Only the standard library and numpy: what is wrong in a file is said here, in one line that names the file and the
feature; geometry begins in `stedm.slides.annotations`.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stedm.errors import StedmError
from stedm.io.files import require_file

# What QuPath calls a region that somebody drew; all else is measured (cells, detections, tiles) or a container.
_ANNOTATION = ("annotation", "PathAnnotationObject")
_OLD_OBJECT = re.compile(r"(Path|TMA)[A-Za-z]*Object")
# Objects without an area, which QuPath keeps beside polygons.
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
# Slides have about 10^5 pixels a side; numbers far beyond are damage and stop rasterisers.
_LARGEST_COORDINATE = 1e8
# Ten million points take about 170.
_MOST_BYTES = 512 << 20

Rings = list[np.ndarray]


@dataclass(frozen=True)
class Region:
    """What one feature or annotation of a file says.

    `polygons`: for each polygon its rings, float64 (n, 2) of x, y in level-0 pixels: the outer one and then the holes.
    `name`: its class, None = unclassified; `label`: what somebody called the object itself. `where`: for error lines
    ("feature 3").
    """

    where: str
    polygons: list[Rings]
    name: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class PolygonFile:
    """What a file has for one slide.

    `left_out`: objects that are not read as regions, by what they are; `size_px`: width and height of the image that
    the polygons were drawn on, where the file says it.
    """

    regions: list[Region]
    left_out: Counter[str]
    size_px: tuple[int, int] | None = None


def read_polygons(path: str | Path, image_name: str | None = None) -> PolygonFile:
    """Regions of a GeoJSON or COCO file, in the order of the file; gzip is recognised by its content.

    Args:
        image_name: which image of a COCO file (its `file_name`, with or without folders); GeoJSON has one slide.

    Raises:
        StedmError: the file is missing, damaged, neither of the two, or a feature in it can't be read right.
    """
    path = Path(path)
    content = read_json(path)
    if is_coco(content):
        return _coco_regions(path, content, image_name)
    read = list(_geojson_regions(path, content))
    return PolygonFile(
        [region for region in read if isinstance(region, Region)],
        Counter(kind for kind in read if isinstance(kind, str)),
    )


def read_json(path: Path) -> Any:
    """Parsed JSON (UTF-8 with or without BOM, UTF-16, UTF-32), gzipped or not; `StedmError` with one line."""
    try:
        require_file(path)
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise StedmError(
                f"{path}: more than {_MOST_BYTES >> 20} MB of text{' when unpacked' if zipped else ''}; export the "
                "annotations alone (without cells and detections), a file a slide"
            )
        return json.loads(data)
    except FileNotFoundError as error:
        raise StedmError(f"{path}: missing; correct the path of the annotation") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StedmError(f"{path}: damaged gzip file ({error}); export it again") from error
    except OSError as error:
        raise StedmError(f"{path}: not readable ({error}); replace the file") from error
    except UnicodeDecodeError as error:
        raise StedmError(f"{path}: not UTF-8 text (byte {error.start}); export it again as UTF-8") from error
    except json.JSONDecodeError as error:
        raise StedmError(
            f"{path}: not complete JSON (line {error.lineno}, column {error.colno}: {error.msg}); export it again"
        ) from error
    except (RecursionError, ValueError) as error:  # brackets in brackets; whole numbers of thousands of digits
        raise StedmError(f"{path}: not usable JSON ({error}); export it again") from error


def is_coco(content: Any) -> bool:
    """Whether parsed JSON has the lists of an MS COCO file."""
    return isinstance(content, dict) and "type" not in content and {"images", "annotations"} <= set(content)


# ---- QuPath GeoJSON -----------------------------------------------------------------------------------------------


def _geojson_regions(path: Path, content: Any) -> Iterator[Region | str]:
    kind = content.get("type") if isinstance(content, dict) else None
    if isinstance(content, list):
        features = content
    elif kind == "FeatureCollection":
        features = content.get("features")
        if not isinstance(features, list):
            raise StedmError(f"{path}: a FeatureCollection without a list of features; export it again")
    elif kind == "Feature":
        features = [content]
    elif kind in ("Polygon", "MultiPolygon", "GeometryCollection", *_WITHOUT_AREA):
        features = [{"type": "Feature", "geometry": content}]
    else:
        raise StedmError(
            f"{path}: neither GeoJSON (FeatureCollection, Feature, Polygon, MultiPolygon, or a list of features) nor "
            "COCO (images, annotations, categories); export it as GeoJSON from QuPath"
        )
    for index, feature in enumerate(features):
        yield _geojson_region(path, f"feature {index}", feature)


def _geojson_region(path: Path, where: str, feature: Any) -> Region | str:
    """A region; of an object that is none, what it is."""
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise StedmError(f"{path}: {where}: not a GeoJSON Feature; export the file again")
    properties = feature.get("properties")
    properties = {} if properties is None else properties
    if not isinstance(properties, dict):
        raise StedmError(f"{path}: {where}: properties are not a mapping; export the file again")
    kind = _object_kind(feature, properties)
    if kind not in _ANNOTATION:
        return f"of type {kind}"
    if _lies_on_another_plane(feature):
        return "on another plane (z, t or c)"
    polygons = list(_geometry_polygons(path, where, feature.get("geometry")))
    return Region(where, polygons, *_geojson_names(path, where, properties))


def _object_kind(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """QuPath's type of an object; other tools say none, and mean a region. Versions before 0.3 write it as the id."""
    if "nucleusGeometry" in feature:
        return "cell"
    for kind in (properties.get("objectType"), properties.get("object_type")):
        if kind is not None:
            return " ".join(str(kind).lower().split())[:40]
    old = feature.get("id")
    return old if isinstance(old, str) and _OLD_OBJECT.fullmatch(old) else "annotation"


def _lies_on_another_plane(feature: dict[str, Any]) -> bool:
    """Whether QuPath drew it in another depth, time or channel than the first; channel -1 is all of them."""
    planes = [holder.get("plane") for holder in (feature, feature.get("geometry")) if isinstance(holder, dict)]
    return any(
        isinstance(plane, dict) and any(plane.get(axis) not in (None, 0, -1) for axis in "ztc") for plane in planes
    )


def _geojson_names(path: Path, where: str, properties: dict[str, Any]) -> tuple[str | None, str | None]:
    """Class, and the name that somebody gave the object.

    QuPath writes `classification: {name}` (0.2 to now) or `classification: {names: [Tumor, Positive]}` for derived
    classes ("Tumor: Positive"); other tools, and scripts for older versions, `classification: "Tumor"`.
    """
    found = properties.get("classification")
    if isinstance(found, dict):
        parts = found.get("names")
        found = ": ".join(map(str, parts)) if isinstance(parts, list) and parts else found.get("name")
    names = (found, properties.get("name"))
    for name in names:
        if name is not None and not isinstance(name, str):
            raise StedmError(f"{path}: {where}: class or name {name!r} is not a text; set it in QuPath")
    return tuple((name or "").strip() or None for name in names)


def _geometry_polygons(path: Path, where: str, geometry: Any) -> Iterator[Rings]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection":
        parts = geometry.get("geometries")
        if not isinstance(parts, list):
            raise StedmError(f"{path}: {where}: a GeometryCollection without geometries; export the file again")
        for part in parts:
            yield from _geometry_polygons(path, where, part)
    elif kind in ("Polygon", "MultiPolygon"):
        coordinates = geometry.get("coordinates")
        polygons = [coordinates] if kind == "Polygon" else coordinates
        if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
            raise StedmError(f"{path}: {where}: a {kind} without coordinates; draw it again or remove it")
        for rings in polygons:
            yield [_ring(path, where, ring) for ring in rings]
    elif kind not in _WITHOUT_AREA:
        kind = " ".join(str(kind or "missing").split())
        raise StedmError(f"{path}: {where}: no polygon (geometry is {kind}); draw it again or remove it")


def _ring(path: Path, where: str, points: Any) -> np.ndarray:
    """float64 (n, 2), first point not repeated at the end; a third coordinate is left out."""
    try:
        ring = np.asarray(points)
    except ValueError:
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] < 2 or ring.dtype.kind not in "iuf":
        raise StedmError(f"{path}: {where}: coordinates are not a list of pairs of numbers; draw it again or remove it")
    ring = ring[:, :2].astype(np.float64)
    if not (np.abs(ring) < _LARGEST_COORDINATE).all():  # also false for NaN
        raise StedmError(f"{path}: {where}: a coordinate is NaN, infinite or beyond any slide; correct or remove it")
    # GeoJSON closes rings, COCO doesn't, and some tools forget to: closed or not, it means the same polygon.
    if len(ring) > 1 and (ring[0] == ring[-1]).all():
        ring = ring[:-1]
    if len(set(map(tuple, ring[:8].tolist()))) < 3 and len(np.unique(ring, axis=0)) < 3:
        raise StedmError(f"{path}: {where}: a polygon needs three different points; draw it again or remove it")
    return ring


# ---- MS COCO JSON -------------------------------------------------------------------------------------------------


def _coco_regions(path: Path, content: dict[str, Any], image_name: str | None) -> PolygonFile:
    names, images = coco_categories(path, content), _coco_images(path, content)
    image = _coco_image(path, list(images.values()), image_name)
    regions = []
    for index, annotation in enumerate(coco_list(path, content, "annotations")):
        if annotation.get("image_id") not in images:
            raise StedmError(
                f"{path}: annotation {index}: image_id {annotation.get('image_id')!r} is not in images; export it again"
            )
        if annotation["image_id"] == image["id"]:
            regions.append(_coco_region(path, index, annotation, names))
    sides = [image.get(side) for side in ("width", "height")]
    said = all(isinstance(side, int | float) and 0 < side < _LARGEST_COORDINATE for side in sides)
    return PolygonFile(regions, Counter(), (int(sides[0]), int(sides[1])) if said else None)


def coco_regions_by_image(path: Path, content: dict[str, Any]) -> dict[str, list[Region]]:
    """All regions of a COCO file by the `file_name` of their image, images without any included."""
    names, images = coco_categories(path, content), _coco_images(path, content)
    regions: dict[str, list[Region]] = {str(image.get("file_name")): [] for image in images.values()}
    if len(regions) < len(images):
        raise StedmError(f"{path}: several images have one file_name; keep one")
    for index, annotation in enumerate(coco_list(path, content, "annotations")):
        if annotation.get("image_id") not in images:
            raise StedmError(
                f"{path}: annotation {index}: image_id {annotation.get('image_id')!r} is not in images; export it again"
            )
        name = str(images[annotation["image_id"]].get("file_name"))
        regions[name].append(_coco_region(path, index, annotation, names))
    return regions


def coco_categories(path: Path, content: dict[str, Any]) -> dict[Any, str]:
    """Names of the categories by id."""
    categories = _by_id(path, "categories", coco_list(path, content, "categories"))
    for number, category in categories.items():
        if not isinstance(category.get("name"), str):
            raise StedmError(f"{path}: category {number}: needs a name")
    return {number: category["name"].strip() for number, category in categories.items()}


def _coco_images(path: Path, content: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    return _by_id(path, "images", coco_list(path, content, "images"))


def _by_id(path: Path, key: str, entries: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Entries by their id; with an id twice nobody knows which one is meant."""
    found: dict[Any, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        number = entry.get("id")
        if number is None:
            raise StedmError(f"{path}: {key}: entry {index} has no id; give it one")
        if number in found:
            raise StedmError(f"{path}: {key}: id {number!r} is there twice; give each entry an id of its own")
        found[number] = entry
    return found


def coco_list(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Entries of a COCO file under a key, as mappings whose ids are no lists; `StedmError` if they aren't."""
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise StedmError(f"{path}: a COCO file needs a list of entries under {key!r}; export it again")
    for index, entry in enumerate(entries):
        if any(isinstance(entry.get(name), list | dict) for name in ("id", "image_id", "category_id", "file_name")):
            raise StedmError(f"{path}: {key}: entry {index} has a list where an id belongs; export the file again")
    return entries


def _coco_image(path: Path, images: list[dict[str, Any]], image_name: str | None) -> dict[str, Any]:
    files = [str(image.get("file_name", "")).replace("\\", "/") for image in images]
    if image_name is None:
        if len(images) != 1:
            raise StedmError(f"{path}: has {len(images)} images; say which one by its file name (image_name)")
        return images[0]
    wanted = str(image_name).replace("\\", "/")
    exact = [i for i, file in enumerate(files) if file == wanted]
    found = exact or [i for i, file in enumerate(files) if file.rsplit("/", 1)[-1] == wanted.rsplit("/", 1)[-1]]
    if len(found) != 1:
        problem = f"has {len(found)} images named" if found else "has no image named"
        raise StedmError(f"{path}: {problem} {image_name} among its {len(images)}; correct the name or the file")
    return images[found[0]]


def _coco_region(path: Path, index: int, annotation: dict[str, Any], names: dict[Any, str]) -> Region:
    """`segmentation` is a list of parts, each x, y, x, y, ...; CATCH has one such list without the outer brackets."""
    where, parts = f"annotation {index}", annotation.get("segmentation")
    if annotation.get("category_id") not in names:
        raise StedmError(
            f"{path}: {where}: category_id {annotation.get('category_id')!r} is not in categories; export it again"
        )
    if isinstance(parts, dict):
        raise StedmError(f"{path}: {where}: the segmentation is run-length encoded; export polygons instead")
    if not isinstance(parts, list) or not parts:
        raise StedmError(f"{path}: {where}: has no segmentation polygon; draw it again or remove it")
    if not isinstance(parts[0], list):
        parts = [parts]
    polygons = []
    for part in parts:
        if not isinstance(part, list) or len(part) % 2:
            raise StedmError(f"{path}: {where}: not pairs of x and y (an odd number of values); correct or remove it")
        polygons.append([_ring(path, where, [part[i : i + 2] for i in range(0, len(part), 2)])])
    return Region(where, polygons, names[annotation["category_id"]])
