"""Annotations as class indices: against skimage's rasteriser, by area, in every dialect, and when damaged."""

import gzip
import json
import pickle
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from stedm.errors import StedmError
from stedm.seeds import numpy_generator
from stedm.slides.annotations import _VERTICES_OF_A_PIECE, read_annotation
from stedm.slides.class_mapping import ClassMapping

CLASSES = ["background", "tumour", "stroma"]
SQUARE = [[10, 20], [50, 20], [50, 60], [10, 60], [10, 20]]
HOLE = [[20, 30], [20, 40], [30, 40], [30, 30], [20, 30]]


def feature(rings, of_class="tumour", /, kind="Polygon", **properties):
    properties = {"objectType": "annotation", **properties}
    if of_class is not None:
        properties["classification"] = {"name": of_class, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def coco(*annotations, images=("a.svs", "b.svs")):
    return {
        "categories": [{"id": 7, "name": "tumour"}, {"id": 3, "name": "stroma"}],
        "images": [{"id": i, "file_name": name, "width": 100, "height": 100} for i, name in enumerate(images)],
        "annotations": [{"id": i, "image_id": 0, "category_id": 7, **each} for i, each in enumerate(annotations)],
    }


@pytest.fixture
def read(tmp_path):
    """Write JSON content and read it as an annotation."""

    def write_and_read(content, classes=CLASSES, name="slide.geojson", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_annotation(path, classes, **{"unannotated": "background", **options})

    return write_and_read


def star(seed, centre, radius, n=60):
    """A random star-shaped ring (n, 2), which doesn't cross itself."""
    generator = numpy_generator(seed, "star")
    angle = np.sort(generator.uniform(0, 2 * np.pi, n))
    distance = radius * generator.uniform(0.5, 1, n)
    return np.stack([centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle)], axis=1)


def skimage_raster(ring, x, y, tile_px, downsample):
    """The independent rasteriser: skimage counts pixels by their centres, so half a pixel is between the two frames."""
    from skimage.draw import polygon2mask

    return polygon2mask((tile_px, tile_px), (np.asarray(ring)[:, ::-1] - (y, x)) / downsample - 0.5)


# ---- rasterising --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("downsample", [1, 2.5, 8])
def test_rasters_equal_those_of_skimage(read, downsample):
    """Outer ring, hole and a region on top, at several offsets and scales: pixel by pixel."""
    outer, hole, island = star(0, (300, 300), 250), star(1, (300, 300), 90), star(2, (380, 300), 60)
    annotation = read(collection(feature([outer.tolist(), hole.tolist()]), feature([island.tolist()], "stroma")))
    for x, y in [(0, 0), (130.5, 77.25), (-40, 300)]:
        ours = annotation.rasterise(x, y, 64, downsample)
        theirs = skimage_raster(outer, x, y, 64, downsample) & ~skimage_raster(hole, x, y, 64, downsample)
        theirs = np.where(skimage_raster(island, x, y, 64, downsample), 2, theirs.astype(int))
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.uint8
    assert len(np.unique(annotation.rasterise(0, 0, 600, 1))) == 3


def test_area_is_that_of_the_polygon(read):
    """Shoelace formula, and a square to the pixel."""
    ring = star(3, (500, 500), 400)
    x, y = ring.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    annotation = read(collection(feature([ring.tolist()])))
    assert annotation.rasterise(0, 0, 1000, 1).sum() == pytest.approx(area, rel=2e-3)
    assert annotation.rasterise(0, 0, 250, 4).sum() * 16 == pytest.approx(area, rel=1e-2)
    square = read(collection(feature([SQUARE, HOLE])))
    assert square.rasterise(0, 0, 100, 1).sum() == 40 * 40 - 10 * 10
    assert square.bounds == (10, 20, 50, 60)


def test_tiles_join_to_the_whole_image(read):
    """A region of thousands of vertices is cut into pieces: no seam shows, in no tile."""
    angle = np.linspace(0, 2 * np.pi, 20000, endpoint=False)
    radius = 900 * (1 + 0.1 * np.sin(90 * angle))
    ring = np.stack([1000 + radius * np.cos(angle), 1000 + radius * np.sin(angle)], axis=1)
    annotation = read(collection(feature([ring.tolist()])))
    assert len(annotation.pieces) > 20000 / _VERTICES_OF_A_PIECE
    whole = annotation.rasterise(0, 0, (250, 250), 8)
    np.testing.assert_array_equal(whole, skimage_raster(ring, 0, 0, 250, 8))
    tiles = [[annotation.rasterise(x, y, 50, 8) for x in range(0, 2000, 400)] for y in range(0, 2000, 400)]
    np.testing.assert_array_equal(np.block(tiles), whole)


def test_pickled_annotations_are_the_same(read, tmp_path):
    annotation = read(collection(feature([SQUARE])))
    annotation.rasterise(0, 0, 8, 8)
    copy = pickle.loads(pickle.dumps(annotation))
    np.testing.assert_array_equal(copy.rasterise(0, 0, 70, 1), annotation.rasterise(0, 0, 70, 1))
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "labels.png")
    labels = read_annotation(tmp_path / "labels.png", CLASSES, label_downsample=2)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels)).rasterise(0, 0, 4, 2), np.eye(4))


# ---- overlaps, unannotated area, classes --------------------------------------------------------------------------


def box(x0, y0, x1, y1):
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]


def test_smaller_regions_lie_on_top_unless_the_mapping_ranks_classes(read):
    """In whichever order the file has them; an outline counts with its holes filled."""
    small, large = feature(box(20, 20, 30, 30), "stroma"), feature(box(0, 0, 50, 50), "tumour")
    for features in ([small, large], [large, small]):
        tile = read(collection(*features)).rasterise(0, 0, 50, 1)
        assert (tile == 2).sum() == 100
        mapping = {"mapping": {"stroma": "stroma", "tumour": "tumour"}, "order": ["stroma", "tumour"]}
        assert (read(collection(*features), mapping=mapping).rasterise(0, 0, 50, 1) == 1).all()
    thin_ring = feature([*box(0, 0, 50, 50), *box(2, 2, 48, 48)], "tumour")
    blob = feature(box(0, 10, 20, 40), "stroma")
    assert read(collection(blob, thin_ring)).rasterise(0, 0, 50, 1)[20, 1] == 2


def test_ignored_regions_lie_on_ranked_classes(read):
    content = collection(feature(box(0, 0, 50, 50), "fold"), feature(box(10, 10, 20, 20), "tumour"))
    mapping = {"mapping": {"fold": "ignore", "tumour": "tumour"}, "order": ["tumour"]}
    assert (read(content, mapping=mapping).rasterise(0, 0, 50, 1) == 255).all()
    assert (read(content, mapping=mapping | {"order": None}).rasterise(0, 0, 50, 1) == 1).sum() == 100


def test_unannotated_area_is_ignored_or_a_class(read):
    content = collection(feature([SQUARE]))
    values = [read(content, unannotated=what).rasterise(0, 0, 100, 1)[0, 0] for what in ("ignore", "stroma")]
    assert values == [255, 2]
    assert read(content, unannotated=None).rasterise(0, 0, 100, 1)[0, 0] == 255
    assert read(content, unannotated=None, mapping={"unannotated": "stroma"}).rasterise(0, 0, 100, 1)[0, 0] == 2
    assert read(content, unannotated="ignore", ignore_index=9).rasterise(0, 0, 100, 1)[0, 0] == 9


def test_mapping_renames_and_a_file_of_it_says_the_same(read, tmp_path):
    content = collection(feature(box(0, 0, 10, 10), "Tumor"), feature(box(20, 0, 30, 10), "Necrosis"))
    rules = {"Tumor": "tumour", "Necrosis": "ignore"}
    path = tmp_path / "classes.yaml"
    path.write_text("Tumor: tumour\nNecrosis: ignore\n")
    for mapping in (rules, {"mapping": rules}, ClassMapping(mapping=rules), path, str(path)):
        tile = read(content, mapping=mapping).rasterise(0, 0, 32, 1)
        assert [(tile == value).sum() for value in (0, 1, 255)] == [32 * 32 - 200, 100, 100]


def test_unknown_classes_are_listed_together_or_ignored(read):
    content = collection(*(feature(box(0, 0, 9, 9), name) for name in ("Fat", "tumour", "Blood", "Fat")))
    with pytest.raises(StedmError, match=r"slide.geojson: unknown classes Blood \(1\), Fat \(2\); known are") as error:
        read(content)
    assert "\n" not in str(error.value)
    mapping = {"mapping": {"tumour": "tumour"}, "unknown": "ignore"}
    assert set(np.unique(read(content, mapping=mapping).rasterise(0, 0, 12, 1))) <= {0, 1, 255}


def test_a_mapping_to_a_class_that_is_not_there_is_refused(read, tmp_path):
    content = collection(feature([SQUARE]))
    for mapping in ({"tumour": "tumor"}, {"order": ["tumour", "fat"]}, {"unclassified": "x"}, {"unannotated": "y"}):
        with pytest.raises(StedmError, match="is no class; classes are background, tumour, stroma"):
            read(content, mapping=mapping, unannotated=None)
    (tmp_path / "m.yaml").write_text("mapping: {tumour: tumour}\nunknwon: ignore\n")
    with pytest.raises(StedmError, match=r"m.yaml: unknwon"):
        read(content, mapping=tmp_path / "m.yaml")
    (tmp_path / "m.yaml").write_text("- tumour\n")
    with pytest.raises(StedmError, match=r"m.yaml: .*; a class mapping has lines"):
        read(content, mapping=tmp_path / "m.yaml")


# ---- dialects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    {
        "collection": collection(feature([SQUARE, HOLE])),
        "list": [feature([SQUARE, HOLE])],
        "feature": feature([SQUARE, HOLE]),
        "old classification": collection(
            {**feature([SQUARE, HOLE], None), "properties": {"classification": "tumour", "isLocked": False}}
        ),
        "colorRGB and id of QuPath 0.2": collection(
            {
                **feature([SQUARE, HOLE], None),
                "id": "PathAnnotationObject",
                "properties": {"classification": {"name": "tumour", "colorRGB": -3670016}, "measurements": []},
            }
        ),
        "name of the object": collection(feature([SQUARE, HOLE], None, name="tumour")),
        "names": collection({**feature([SQUARE, HOLE], None, classification={"names": ["tumour"]})}),
        "multi-polygon": collection(feature([[SQUARE, HOLE]], kind="MultiPolygon")),
        "geometry collection": collection(
            {
                **feature([]),
                "geometry": {
                    "type": "GeometryCollection",
                    "geometries": [feature([SQUARE, HOLE])["geometry"], {"type": "Point", "coordinates": [1, 2]}],
                },
            }
        ),
        "not closed": collection(feature([SQUARE[:-1], HOLE[:-1]])),
        "other direction": collection(feature([SQUARE[::-1], HOLE[::-1]])),
        "third coordinate": collection(feature([[[*p, 0] for p in SQUARE], [[*p, 0] for p in HOLE]])),
        "points, lines and the root beside it": collection(
            {**feature([]), "geometry": {"type": "LineString", "coordinates": [[0, 0], [99, 99]]}},
            feature([SQUARE, HOLE]),
            feature([[[0, 0], [99, 0], [99, 99], [0, 99]]], None, objectType="root"),
        ),
        "byte order mark": b"\xef\xbb\xbf" + json.dumps(feature([SQUARE, HOLE])).encode(),
        "UTF-16": json.dumps(feature([SQUARE, HOLE])).encode("utf-16"),
        "gzip": gzip.compress(json.dumps(feature([SQUARE, HOLE])).encode()),
    }.items(),
    ids=lambda case: case[0],
)
def test_every_dialect_reads_the_same(read, content):
    tile = read(content[1]).rasterise(0, 0, 70, 1)
    assert (tile == 1).sum() == 1500
    assert tile[25, 15] == 1
    assert tile[35, 25] == 0


def test_derived_classes_and_objects_without_a_class(read):
    derived = feature(box(0, 0, 10, 10), None, classification={"names": ["Tumor", "Positive"]})
    mapping = {"mapping": {"Tumor: Positive": "tumour"}, "unclassified": "ignore"}
    tile = read(collection(derived, feature(box(20, 0, 30, 10), None, name="ROI 1")), mapping=mapping)
    assert [(tile.rasterise(0, 0, 32, 1) == value).sum() for value in (1, 255)] == [100, 100]
    bare = {"type": "MultiPolygon", "coordinates": [box(0, 0, 10, 10), box(20, 0, 30, 10)]}
    assert read(bare, mapping={"unclassified": "stroma"}).rasterise(0, 0, 32, 1).sum() == 400
    assert (read(collection(feature(box(0, 0, 10, 10), "Ignore*"))).rasterise(0, 0, 10, 1) == 255).all()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_the_same_in_both_of_unicodes_forms(read, forms):
    in_file, in_mapping = (unicodedata.normalize(form, "Drüse") for form in forms)
    tile = read(collection(feature(box(0, 0, 10, 10), in_file)), mapping={in_mapping: "stroma"})
    assert (tile.rasterise(0, 0, 10, 1) == 2).all()


def test_coco_parts_and_the_flat_list_of_catch(read):
    """Parts of one annotation, one flat list as CATCH has it, and the image chosen by its name."""
    flat = [0, 0, 10, 0, 10, 10, 0, 10]
    content = coco(
        {"segmentation": [flat, [20, 0, 30, 0, 30, 10, 20, 10]]},
        {"segmentation": flat, "category_id": 3, "image_id": 1},
    )
    a, b = (read(content, image_name=name).rasterise(0, 0, 32, 1) for name in ("a.svs", "slides/b.svs"))
    assert [(a == value).sum() for value in (1, 2)] == [200, 0]
    assert [(b == value).sum() for value in (1, 2)] == [0, 100]
    alone = read(coco({"segmentation": flat}, images=("only.svs",))).rasterise(0, 0, 32, 1)
    assert alone.sum() == 100
    assert (read(coco(images=("only.svs",))).rasterise(0, 0, 32, 1) == 0).all()


# ---- label images -----------------------------------------------------------------------------------------------


def labels_file(tmp_path, array, name="labels.png", **options):
    if name.endswith(".png"):
        Image.fromarray(array).save(tmp_path / name)
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / name, array, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["labels.png", "labels.tif"])
def test_label_images_at_their_own_scale(tmp_path, name, monkeypatch):
    array = numpy_generator(0, "labels").integers(0, 3, (40, 30)).astype(np.uint8)
    path = labels_file(tmp_path, array, name)
    annotation = read_annotation(path, CLASSES, slide_px=(30 * 16, 40 * 16))
    np.testing.assert_array_equal(annotation.rasterise(0, 0, (40, 30), 16), array)
    np.testing.assert_array_equal(annotation.rasterise(160, 32, 8, 4), np.kron(array[2:4, 10:12], np.ones((4, 4))))
    outside = read_annotation(path, CLASSES, unannotated="stroma", label_downsample=16).rasterise(-32, 600, 8, 16)
    # Row 37.5 of the labels: centres lie on the border and count below it.
    np.testing.assert_array_equal(outside[:2, 2:], array[38:40, :6])
    assert (outside[:, :2] == 2).all()
    assert (outside[2:] == 2).all()
    # Images too large for memory are read by windows: the same values.
    monkeypatch.setattr("stedm.slides.label_images._IN_MEMORY_PX", 10)
    by_window = read_annotation(path, CLASSES, label_downsample=16)
    assert (by_window._pixels is None) == name.endswith(".tif")
    np.testing.assert_array_equal(by_window.rasterise(160, 32, 8, 4), annotation.rasterise(160, 32, 8, 4))


def test_label_values_are_mapped_by_number(tmp_path):
    array = np.repeat(np.array([[0, 1, 7, 255]], np.uint8), 4, axis=0)
    path = labels_file(tmp_path, array)
    annotation = read_annotation(path, CLASSES, {7: "tumour", 1: "stroma", 0: "ignore", 255: "ignore"}, slide_px=(4, 4))
    assert annotation.rasterise(0, 0, 4, 1)[0].tolist() == [255, 2, 1, 255]
    with pytest.raises(StedmError, match=r"labels.png: values 7 are no class"):
        read_annotation(path, CLASSES, slide_px=(4, 4))


def test_sizes_of_pyramid_levels_are_rounded(tmp_path):
    path = labels_file(tmp_path, np.zeros((625, 313), np.uint8))
    assert read_annotation(path, CLASSES, slide_px=(5007, 10007)).downsample == 16
    assert read_annotation(path, CLASSES, slide_px=(5007, 10007), label_downsample=15.99).downsample == 15.99


# ---- damaged files ------------------------------------------------------------------------------------------------

MALFORMED = {
    # name: (content, start of the message after the file name, or None = read, painting so many pixels of class 1)
    "empty file": (b"", "not complete JSON"),
    "truncated": (json.dumps(collection(feature([SQUARE]))).encode()[:-40], "not complete JSON"),
    "truncated gzip": (gzip.compress(b'{"type": "FeatureCollection"}' * 9)[:-9], "damaged gzip"),
    "not JSON at all": (b"<annotations/>", "not complete JSON"),
    "latin-1": ('{"type": "Tum\xf6r"}'.encode("latin-1"), "not UTF-8 text"),
    "a number": (b"42", "neither GeoJSON"),
    "another kind of JSON": ({"type": "Topology"}, "neither GeoJSON"),
    "deeply nested": (b"[" * 100000, "not usable JSON|not complete JSON"),
    "features no list": ({"type": "FeatureCollection", "features": {}}, "a FeatureCollection without a list"),
    "feature no feature": (collection(feature([SQUARE]), 3), "feature 1: not a GeoJSON Feature"),
    "properties no mapping": (collection(feature([SQUARE]) | {"properties": [1]}), "feature 0: properties"),
    "geometry missing": (
        collection(feature([SQUARE]), feature([SQUARE]) | {"geometry": None}),
        "feature 1: no polygon",
    ),
    "unknown geometry": (collection(feature([SQUARE], kind="Circle")), "feature 0: no polygon .geometry is Circle"),
    "no coordinates": (collection(feature([])), "feature 0: a Polygon without coordinates"),
    "two points": (collection(feature([[[1, 1], [5, 5], [1, 1]]])), "feature 0: a polygon needs three different"),
    "polygon with brackets missing": (collection(feature(SQUARE)), "feature 0: coordinates are not"),
    "brackets missing in a multi-polygon": (collection(feature([SQUARE], kind="MultiPolygon")), "feature 0: coord"),
    "NaN": (collection(feature([[[1, 1], [float("nan"), 5], [9, 9]]])), "feature 0: a coordinate is NaN"),
    "infinity": (collection(feature([[[1, 1], [1e999, 5], [9, 9]]])), "feature 0: a coordinate is NaN, infinite"),
    "out of this world": (collection(feature([[[1, 1], [1e300, 5], [9, 9]]])), "feature 0: a coordinate is NaN"),
    "texts": (collection(feature([[["1", "1"], ["5", "5"], ["9", "1"]]])), "feature 0: coordinates are not"),
    "ragged": (collection(feature([[[1, 1], [5], [9, 9]]])), "feature 0: coordinates are not"),
    "class missing": (collection(*[feature([SQUARE], None)] * 3), "feature 0 .and 2 more. has no class"),
    "class null": (collection(feature([SQUARE], None, classification=None)), "feature 0 has no class"),
    "class a number": (collection(feature([SQUARE], None, classification=7)), "feature 0: class or name 7 is not"),
    "class unknown": (
        collection(feature([SQUARE], "Tumor")),
        "unknown classes Tumor .1.; known are background, tumour",
    ),
    "COCO run-length": (
        coco({"segmentation": {"counts": [1], "size": [1, 1]}}),
        "annotation 0: the segmentation is run",
    ),
    "COCO odd": (coco({"segmentation": [[1, 2, 3]]}), "annotation 0: not pairs"),
    "COCO two points": (coco({"segmentation": [[1, 1, 2, 2]]}), "annotation 0: a polygon needs three"),
    "COCO without polygons": (coco({"segmentation": []}), "annotation 0: has no segmentation"),
    "COCO category": (coco({"category_id": 99}), "annotation 0: category_id 99 is not in categories"),
    "COCO list as id": (coco({"image_id": [1]}), "annotations: entry 0 has a list where an id"),
    "COCO without the image": (coco(images=("other.svs",)), "has no image named a.svs among its 1"),
    "COCO with the image twice": (coco(images=("x/a.svs", "y/a.svs")), "has 2 images named a.svs"),
    "COCO without categories": ({"images": [], "annotations": []}, "a COCO file needs a list of entries under 'cat"),
    # Read right:
    "no features": (collection(), 0),
    "not closed": (collection(feature([SQUARE[:-1]])), 1600),
    "bow-tie": (collection(feature([[[0, 0], [40, 40], [40, 0], [0, 40], [0, 0]]])), 800),
    "hole outside": (collection(feature([box(0, 0, 10, 10)[0], box(20, 0, 30, 10)[0]])), 200),
    "flat": (collection(feature([[[0, 0], [5, 5], [9, 9], [0, 0]]]), feature([SQUARE])), 1600),
    "points repeated": (collection(feature([[p for p in SQUARE for _ in range(3)]])), 1600),
    "beyond the slide": (collection(feature(box(-1e6, -1e6, 10, 10))), 100),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_read_right_or_refused_in_one_line(read, case):
    content, expected = MALFORMED[case]
    if isinstance(expected, int):
        tile = read(content).rasterise(0, 0, 70, 1)
        # Diagonal edges run through centres of pixels: half of them count.
        assert (tile == 1).sum() == pytest.approx(expected, abs=41 if case == "bow-tie" else 0)
        return
    with pytest.raises(StedmError, match=rf"slide\.geojson: ({expected})") as error:
        read(content, image_name="a.svs")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


BAD_LABELS = {
    "RGB": (np.zeros((8, 8, 3), np.uint8), {"slide_px": (8, 8)}, "one 8-bit channel of class indices, this one RGB"),
    "16 bits": (np.zeros((8, 8), np.uint16), {"slide_px": (8, 8)}, "this one I;16"),
    "other size": (
        np.zeros((8, 9), np.uint8),
        {"slide_px": (64, 64)},
        "9 x 8 px, which doesn't cover the slide of 64 x",
    ),
    "other scale": (
        np.zeros((80, 80), np.uint8),
        {"slide_px": (640, 640), "label_downsample": 4},
        "80 x 80 px, which doesn't cover",
    ),
    "no scale": (np.zeros((8, 8), np.uint8), {}, "say how large the slide is"),
    "finer than the slide": (np.zeros((16, 16), np.uint8), {"slide_px": (8, 8)}, "larger than the slide of 8 x 8 px"),
    "scale 0": (np.zeros((8, 8), np.uint8), {"label_downsample": 0}, "it is a number above 0"),
    "value": (np.full((8, 8), 3, np.uint8), {"slide_px": (8, 8)}, "values 3 are no class"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_label_images_are_refused_in_one_line(tmp_path, case):
    array, options, expected = BAD_LABELS[case]
    with pytest.raises(StedmError, match=f"labels.png: .*{expected}") as error:
        read_annotation(labels_file(tmp_path, array), CLASSES, **options)
    assert "\n" not in str(error.value)


def _png_of_size(width, height):
    """A PNG whose header says so, and which has next to no data."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_label_images_too_large_to_read_are_told_by_their_headers(tmp_path):
    (tmp_path / "labels.png").write_bytes(_png_of_size(40_000, 40_000))
    with pytest.raises(StedmError, match=r"labels\.png: 40000 x 40000 px are too large for a PNG"):
        read_annotation(tmp_path / "labels.png", CLASSES, slide_px=(40_000, 40_000))
    tifffile = pytest.importorskip("tifffile")
    options = {"rowsperstrip": 30_000, "compression": "zlib", "shape": (30_000, 30_000), "dtype": np.uint8}
    tifffile.imwrite(tmp_path / "labels.tif", iter([zlib.compress(b"")]), **options)
    with pytest.raises(StedmError, match=r"labels\.tif: 30000 x 30000 px in 1 strips are too large"):
        read_annotation(tmp_path / "labels.tif", CLASSES, slide_px=(30_000, 30_000))


def test_text_that_grows_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stedm.slides.polygon_files._MOST_BYTES", 1 << 20)
    (tmp_path / "bomb.geojson").write_bytes(gzip.compress(b" " * (1 << 21)))
    with pytest.raises(StedmError, match=r"bomb\.geojson: more than 1 MB of text when unpacked; export"):
        read_annotation(tmp_path / "bomb.geojson", CLASSES)
    (tmp_path / "large.geojson").write_bytes(b" " * (1 << 21))
    with pytest.raises(StedmError, match=r"large\.geojson: more than 1 MB of text; export"):
        read_annotation(tmp_path / "large.geojson", CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Tumor: tumour\nStroma: stroma\nTumor: stroma\n", "found duplicate key Tumor"),
        ("mapping:\n  Tumor: tumour\n  Tumor: stroma\n", "found duplicate key Tumor"),
        ("mapping:\n  1: tumour\n  1: stroma\n", "found duplicate key 1"),
        (
            "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)),
            "is an alias; write the value",
        ),
        ("Tumor: [", "not a readable YAML"),
    ],
)
def test_mapping_files_that_mean_two_things_or_explode(read, tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(StedmError, match=rf"m\.yaml: .*{message}") as error:
        read(collection(feature([SQUARE])), mapping=tmp_path / "m.yaml")
    assert "\n" not in str(error.value)


def test_damaged_and_missing_label_images(tmp_path):
    path = labels_file(tmp_path, numpy_generator(0, "x").integers(0, 3, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(StedmError, match=r"labels.png: (damaged|not a readable) label image"):
        read_annotation(path, CLASSES, slide_px=(64, 64))
    path = labels_file(tmp_path, numpy_generator(0, "x").integers(0, 3, (64, 64)).astype(np.uint8), "labels.tif")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(StedmError, match=r"labels.tif: (damaged|not a readable) label image"):
        read_annotation(path, CLASSES, slide_px=(64, 64))
    with pytest.raises(StedmError, match=r"gone\.png: missing"):
        read_annotation(tmp_path / "gone.png", CLASSES)


def test_missing_libraries_are_named(read, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(StedmError, match=r'annotations of slides need rasterio: pip install "stedm\[slides\]"'):
        read(collection(feature([SQUARE])))
