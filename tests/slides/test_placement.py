"""What annotations are left out or refused because it can't be meant: other planes, measurements, other places."""

import json

import pandas as pd
import pytest

from stedm.cli import main
from stedm.config import TilingConfig
from stedm.data.tiles import tile_slides
from stedm.errors import StedmError
from stedm.slides.annotations import read_annotation

CLASSES = ["background", "tumour"]
SLIDE_PX = (1000, 800)


def box(left, top, right, bottom, name="tumour", **more):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {}) | more
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def coco(scale=1.0, images=((1, "a.tif", 1000, 800),), categories=((1, "tumour"),), image_id=1):
    ring = [100 * scale, 100 * scale, 500 * scale, 100 * scale, 500 * scale, 400 * scale]
    return {
        "images": [dict(zip(("id", "file_name", "width", "height"), image, strict=True)) for image in images],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [{"id": 1, "image_id": image_id, "category_id": 1, "segmentation": [ring]}],
    }


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, **options):
        content = {"type": "FeatureCollection", "features": content} if isinstance(content, list) else content
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        options = {"unannotated": "background", "slide_px": SLIDE_PX, "image_name": "a.tif", **options}
        return read_annotation(tmp_path / "a.geojson", CLASSES, **options)

    return write_and_read


def painted(annotation) -> int:
    return int((annotation.rasterise(0, 0, (800, 1000), 1) == 1).sum())


# ---- QuPath's objects ---------------------------------------------------------------------------------------------

OTHERS = {
    "cell": (box(600, 600, 660, 660, objectType="cell"), "1 of type cell"),
    "with a nucleus": (box(600, 600, 660, 660) | {"nucleusGeometry": {}}, "1 of type cell"),
    "detection": (box(600, 600, 660, 660, objectType="detection"), "1 of type detection"),
    "tile": (box(600, 600, 660, 660, objectType="tile"), "1 of type tile"),
    "core": (box(600, 600, 660, 660, objectType="TMA core"), "1 of type tma core"),
    "version 0.2": (
        box(6, 6, 66, 66, objectType=None) | {"id": "PathDetectionObject"},
        "PathDetectionObject",
    ),
    "version 0.3": (box(600, 600, 660, 660, objectType=None, object_type="detection"), "1 of type detection"),
    "no class, no geometry": ({"type": "Feature", "geometry": None, "properties": {"objectType": "cell"}}, "type cell"),
    "depth": (box(600, 600, 660, 660), {"z": 3, "t": 0, "c": -1}, "1 on another plane"),
    "time": (box(600, 600, 660, 660), {"z": 0, "t": 1, "c": -1}, "1 on another plane"),
    "channel": (box(600, 600, 660, 660), {"c": 2}, "1 on another plane"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_annotation_of_the_first_plane_is_left_out_and_counted(read, case):
    feature, *plane, line = OTHERS[case]
    if plane:
        feature = {**feature, "geometry": {**feature["geometry"], "plane": plane[0]}}
    annotation = read([box(0, 0, 100, 100), feature])
    assert painted(annotation) == 100 * 100
    assert len(annotation.notes) == 1
    assert annotation.notes[0].startswith("a.geojson: objects left out: ")
    assert line in annotation.notes[0]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"id": "PathAnnotationObject"},
        {"id": "8f0c-4711"},
        {"plane": {"c": -1, "z": 0, "t": 0}},
        {"plane": {"c": 0}},
    ],
)
def test_annotations_are_painted_without_a_line(read, more):
    feature = box(0, 0, 100, 100)
    if "plane" in more:
        feature["geometry"]["plane"] = more["plane"]
    else:
        feature |= more
        del feature["properties"]["objectType"]
    annotation = read([feature])
    assert (painted(annotation), annotation.notes) == (100 * 100, ())


def test_a_file_without_regions_says_what_the_slide_counts_as(read):
    assert read([]).notes == ("a.geojson: no region with an area: all of the slide counts as background",)
    notes = read([box(0, 0, 9, 9, objectType="cell")] * 3).notes
    assert [note.split(": ", 1)[1] for note in notes] == [
        "objects left out: 3 of type cell",
        "no region with an area: all of the slide counts as background",
    ]


def test_classes_that_are_ignored_unknown_are_named(read):
    mapping = {"mapping": {"tumour": "tumour"}, "unknown": "ignore"}
    [note] = read([box(0, 0, 9, 9, "Tumor"), box(0, 0, 9, 9, "Tumor"), box(0, 0, 9, 9)], mapping=mapping).notes
    assert "not in the class mapping are ignored: Tumor (2)" in note


# ---- off the slide ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unannotated", ["background", "ignore"])
@pytest.mark.parametrize(
    "corners", [(20000, 20000, 24000, 24000), (-3000, -3000, -1000, -1000), (400, 400, 4000, 3200), (0, 0, 4000, 3200)]
)
def test_annotations_off_the_slide_are_refused(read, corners, unannotated):
    with pytest.raises(StedmError, match=r"a\.geojson: \d+% of the annotated area lies off the slide.* 1000 x 800 px"):
        read([box(*corners)], unannotated=unannotated)


def test_a_little_over_the_edge_is_no_line_and_more_is_one(read):
    assert read([box(500, 300, 1010, 805)]).notes == ()
    assert read([box(-200, 0, 800, 800)]).notes == ("a.geojson: 20% of the annotated area lies off the slide",)
    [note] = read([box(0, 0, 500, 500), box(2000, 0, 2100, 100), box(-60, -60, -10, -10)]).notes
    assert "2 regions lie off the slide (feature 1, feature 2) and count nowhere" in note
    # The slide's size is not always known.
    assert read([box(20000, 20000, 24000, 24000)], slide_px=None).notes == ()


@pytest.mark.parametrize(("scale", "size"), [(0.25, (250, 200)), (4.0, (4000, 3200)), (1.0, (800, 1000))])
def test_coco_drawn_on_another_size_is_refused(read, scale, size):
    with pytest.raises(StedmError, match=rf"its width x height, {size[0]} x {size[1]} px, are not those of the slide"):
        read(coco(scale, [(1, "a.tif", *size)]))


def test_coco_of_the_slides_size_or_of_none_is_read(read):
    for size in ((1000, 800), (1001, 800), (0, 0), (None, None), ("", "")):
        assert painted(read(coco(1, [(1, "a.tif", *size)]))) == pytest.approx(60_000, rel=0.01)


# ---- ids that mean two things -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [(1, "tumour"), (1, "background")]}, "categories: id 1 is there twice"),
        ({"categories": [(1, "tumour"), (1.0, "tumour")]}, r"categories: id 1\.0 is there twice"),
        ({"categories": [(1, "tumour"), (None, "background")]}, "categories: entry 1 has no id"),
        ({"images": [(1, "a.tif", 1000, 800), (1, "b.tif", 1000, 800)]}, "images: id 1 is there twice"),
        ({"images": [(1, "a.tif", 1000, 800), (None, "b.tif", 1000, 800)]}, "images: entry 1 has no id"),
        ({"image_id": "1"}, "annotation 0: image_id '1' is not in images"),
        ({"image_id": None}, "annotation 0: image_id None is not in images"),
    ],
)
def test_coco_ids_that_are_missing_or_there_twice(read, changes, message):
    with pytest.raises(StedmError, match=rf"a\.geojson: {message}"):
        read(coco(**changes))


def test_coco_names_may_be_there_twice(read):
    assert painted(read(coco(categories=[(1, "tumour"), (2, "tumour")]))) > 0


# ---- what `stedm tile` says ---------------------------------------------------------------------------------------


@pytest.fixture
def tile(tmp_path, write):
    """Function: features and the split -> what tiling does with one slide, tissue in the box (64, 64, 448, 320)."""
    write.tiff(tmp_path / "a.tif", write.tissue())

    def run(features, unannotated="background"):
        (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        (tmp_path / "slides.csv").write_text(
            "slide_id,patient_id,split,image,annotation\na,p,train,a.tif,a.geojson\nb,q,train,b.tif,\n"
        )
        (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes() + b"\0")
        mapping = {"mapping": {"tumour": "tumour", "Ignore*": "ignore"}, "unannotated": unannotated}
        tissue = {"mpp": 4.0, "smallest_piece_um2": 100, "largest_hole_um2": 0}
        config = TilingConfig(tile_px=64, classes=CLASSES, class_mapping=mapping, tissue=tissue)
        return tile_slides(tmp_path / "slides.csv", tmp_path / "out", config)

    return run


@pytest.mark.parametrize("unannotated", ["background", "ignore"])
def test_annotations_that_miss_all_tissue_are_refused(tile, unannotated):
    done = tile([box(0, 0, 40, 40), box(460, 330, 500, 380)], unannotated=unannotated)
    assert done.slides == 1
    [failure] = done.failures
    assert failure.startswith("slide a: ")
    assert "no region touches tissue" in failure


@pytest.mark.parametrize("features", [[box(0, 0, 70, 70)], [box(0, 0, 40, 40, "Ignore*")], []])
def test_a_speck_of_tissue_is_enough_and_ignored_glass_is_no_miss(tile, features):
    assert tile(features).failures == []


def test_tiling_names_what_was_left_out_also_when_it_goes_on(tile, tmp_path):
    features = [box(100, 100, 300, 300), box(100, 100, 120, 120, objectType="cell")]
    for _ in range(2):
        assert tile(features).notes == ["slide a: a.geojson: objects left out: 1 of type cell"]
        (tmp_path / "out" / "metadata.csv").unlink()


def test_a_corrected_annotation_is_read_again(tile, tmp_path):
    tile([box(100, 100, 300, 300)])
    before = pd.read_csv(tmp_path / "out" / "metadata.csv")["fraction_tumour"].sum()
    tile([box(64, 64, 448, 320)])
    after = pd.read_csv(tmp_path / "out" / "metadata.csv")["fraction_tumour"].sum()
    assert after / before == pytest.approx(384 * 256 / 200**2, rel=0.01)


def test_the_command_says_it(tile, tmp_path, capsys):
    tile([box(100, 100, 300, 300)])
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    options = ["--tile-px", "64", "--workers", "1", "--set", "classes=[x]", "class_mapping={unannotated: x}"]
    with pytest.raises(SystemExit):
        main(["tile", str(tmp_path / "slides.csv"), "-o", str(tmp_path / "other"), *options])
    assert "slide a: a.geojson: no region with an area: all of the slide counts as x" in capsys.readouterr().err
