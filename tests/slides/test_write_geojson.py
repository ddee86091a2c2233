"""Label maps as GeoJSON: what is read back is the map, however it was cut into bands."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stedm.errors import StedmError
from stedm.seeds import numpy_generator
from stedm.slides.annotations import read_annotation
from stedm.slides.write_geojson import _connected, _coverage, _Joiner, write_geojson

CLASSES = ["background", "tumour", "stroma"]


def smooth_map(shape=(200, 260), n=3, sigma=9.0):
    fields = [gaussian_filter(numpy_generator(0, "map", i).normal(size=shape), sigma) for i in range(n)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def bands(array, height):
    return [array[top : top + height] for top in range(0, len(array), height)]


def read_back(path, shape, downsample, x=0.0, y=0.0):
    return read_annotation(path, CLASSES, unannotated="background").rasterise(x, y, shape, downsample)


def geometries(path):
    import shapely

    features = json.loads(path.read_text())["features"]
    return [(f["properties"]["classification"]["name"], shapely.geometry.shape(f["geometry"])) for f in features]


def ious(a, b):
    return [((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in np.unique(a)]


@pytest.mark.parametrize(("downsample", "height"), [(1, 37), (4, 1), (2.5, 8), (16 / 3, 5)])
def test_exact_outlines_give_back_the_map(tmp_path, downsample, height):
    """Noise has every kind of corner: holes in holes, regions that touch in a point, at borders of bands too."""
    noise = np.array([0, 1, 2, 255], np.uint8)[numpy_generator(1, "noise").integers(0, 4, (37, 41))]
    path = tmp_path / "map.geojson"
    write_geojson(path, bands(noise, height), CLASSES, downsample=downsample, mpp=1.0, origin=(1000, -50.5))
    np.testing.assert_array_equal(read_back(path, noise.shape, downsample, 1000, -50.5), noise)
    assert all(geometry.is_valid for _, geometry in geometries(path))


@pytest.mark.parametrize(("downsample", "height"), [(1, 300), (4, 64), (2.5, 33)])
def test_simplified_outlines_give_back_the_map_with_iou_099(tmp_path, downsample, height):
    """Tolerance of one pixel: IoU of every class at least 0.99, a fraction of the points, no gap and no overlap."""
    import shapely

    array, exact, path = smooth_map((300, 320), sigma=20), tmp_path / "exact.geojson", tmp_path / "map.geojson"
    options = {"downsample": downsample, "mpp": 0.5 * downsample, "skip": []}
    write_geojson(exact, bands(array, height), CLASSES, **options)
    write_geojson(path, bands(array, height), CLASSES, tolerance_um=0.5 * downsample, **options)
    assert min(ious(array, read_back(path, array.shape, downsample))) >= 0.99
    found, outlines = [g for _, g in geometries(path)], [g for _, g in geometries(exact)]
    assert shapely.get_num_coordinates(found).sum() < 0.5 * shapely.get_num_coordinates(outlines).sum()
    # A thousandth of a pixel is rounded away at each corner.
    whole = array.size * downsample**2
    assert sum(g.area for g in found) == pytest.approx(whole, rel=1e-5)
    assert shapely.union_all(found).area == pytest.approx(whole, rel=1e-5)


def test_neighbours_share_every_corner():
    """Where three regions meet at a straight border too: otherwise shapely doesn't see a coverage."""
    import shapely

    y, x = np.mgrid[:120, :120]
    centres = numpy_generator(2, "cells").uniform(0, 120, (25, 2))
    labels = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1).astype(np.int32)
    labels[:40, 60:] = labels[:40, 60:].min()
    labels, _ = _connected(labels.astype(np.uint8))
    cells = _coverage(labels, 7, 1.0)
    assert shapely.coverage_is_valid(cells)
    assert shapely.total_bounds(cells).tolist() == [0, 7, 120, 127]


def test_bands_leave_no_trace_in_exact_outlines(tmp_path):
    """The same regions, each in one piece, whatever the height of the bands."""
    array, kinds = smooth_map(sigma=4), []
    for height in (200, 64, 1):
        path = tmp_path / f"{height}.geojson"
        write_geojson(path, bands(array, height), CLASSES, downsample=1, mpp=1.0)
        kinds.append(sorted((name, geometry.normalize().wkt) for name, geometry in geometries(path)))
    assert kinds[0] == kinds[1] == kinds[2]
    assert len(kinds[0]) > 20


def test_regions_that_meet_or_part_bands_later_are_one(tmp_path):
    """A ring in bands of one row begins as one, parts into two arms and meets again; another class ends inside."""
    array = np.zeros((9, 9), np.uint8)
    array[1:8, 1:8], array[2:7, 2:7], array[3:6, 3:6] = 1, 0, 2
    path = tmp_path / "ring.geojson"
    write_geojson(path, bands(array, 1), CLASSES, downsample=2, mpp=1.0)
    found = dict(geometries(path))
    assert {name: geometry.area for name, geometry in found.items()} == {"tumour": 96, "stroma": 36}
    assert len(found["tumour"].interiors) == 1


def test_memory_is_bounded_by_the_regions_that_are_open():
    """Regions are handed on in the band after their last row, not at the end of the slide."""
    array = np.zeros((400, 50), np.uint8)
    array[5::20, 10:20] = array[6::20, 10:20] = 1
    joiner, done = _Joiner(np.array([False, True] + [False] * 254), 0.0, 0.0), []
    for band in bands(array, 10):
        done += joiner.add(band)
        assert sum(map(len, joiner.open_parts)) <= 1
    assert len(done) == 20
    assert list(joiner.finish()) == []


def test_features_are_as_qupath_opens_them(tmp_path):
    """objectType, nested classification with an RGB colour, closed rings of plain numbers in level-0 pixels."""
    array = np.array([[1, 1, 0], [1, 255, 2]], np.uint8)
    path = tmp_path / "out.geojson"
    counts = write_geojson(path, [array], CLASSES, downsample=4, mpp=1.0, colours=[(1, 2, 3), (4, 5, 6)])
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    by_name = {f["properties"]["classification"]["name"]: f for f in content["features"]}
    assert set(by_name) == {"tumour", "stroma", "Ignore*"}
    assert by_name["stroma"]["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "stroma", "color": [1, 2, 3]},
    }
    assert by_name["tumour"]["geometry"]["type"] == "Polygon"
    (ring,) = by_name["stroma"]["geometry"]["coordinates"]
    assert sorted(map(tuple, ring[1:])) == [(8, 4), (8, 8), (12, 4), (12, 8)]
    assert ring[0] == ring[-1]
    assert "8.0" not in path.read_text()
    assert counts == {"background": 1, "tumour": 3, "stroma": 1, "Ignore*": 1}


def test_small_regions_and_skipped_classes_are_left_out(tmp_path):
    array = np.zeros((20, 20), np.uint8)
    array[2:4, 2:4], array[8:18, 8:18], array[0, 19] = 1, 1, 2
    path = tmp_path / "out.geojson"
    write_geojson(path, [array], CLASSES, downsample=1, mpp=2.0, smallest_um2=17, skip=["stroma"])
    assert sorted((name, geometry.area) for name, geometry in geometries(path)) == [
        ("background", 295),
        ("tumour", 100),
    ]


def test_a_map_without_regions_is_an_empty_collection(tmp_path):
    path = tmp_path / "out.geojson"
    counts = write_geojson(path, [np.zeros((4, 4), np.uint8), np.zeros((0, 4), np.uint8)], CLASSES, downsample=1, mpp=1)
    assert json.loads(path.read_text())["features"] == []
    assert counts == {"background": 16, "tumour": 0, "stroma": 0}
    assert (read_back(path, (4, 4), 1) == 0).all()


@pytest.mark.parametrize(
    ("band", "options", "message"),
    [
        (np.full((2, 4), 3, np.uint8), {}, r"values \[3\] in the label map are no class"),
        (np.zeros((2, 5), np.uint8), {}, r"is uint8 \(rows, 4\), got uint8 \(2, 5\)"),
        (np.zeros((2, 4), np.int64), {}, "got int64"),
        (np.zeros((2, 4), np.uint8), {"tolerance_um": -1}, "tolerance_um and smallest_um2 not below 0"),
        (np.zeros((2, 4), np.uint8), {"skip": ["fat"]}, "fat is no class"),
    ],
)
def test_bad_maps_are_refused_and_leave_nothing(tmp_path, band, options, message):
    path = tmp_path / "out.geojson"
    path.write_text("before")
    with pytest.raises(StedmError, match=message):
        write_geojson(path, [np.ones((2, 4), np.uint8), band], CLASSES, **{"downsample": 1, "mpp": 1.0, **options})
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["out.geojson"]
