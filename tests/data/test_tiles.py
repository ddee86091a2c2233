"""From slides to tiles: what is cut where, resuming, slides that fail, and rows that are read from slides."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stedm.cli import main
from stedm.config import PhantomConfig, TilingConfig, load_tiling_config
from stedm.data import tiles
from stedm.data.cache import ImageCache
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder
from stedm.data.positions import SlidePositions
from stedm.data.tiles import tile_grid, tile_slides
from stedm.errors import StedmError
from stedm.phantom.slides import classes, make_phantom_slides
from stedm.seeds import numpy_generator
from stedm.slides.slide import Slide
from stedm.slides.tissue import TissueMask
from stedm.slides.write_geojson import write_geojson
from stedm.style.sampling import StyleSampler

PHANTOM = PhantomConfig(image_px=256, patients={"train": 2, "unlabeled": 1, "val": 1, "test": 1})
SIZE = (900, 700)
CONFIG = TilingConfig(tile_px=64, mpp=1.0, classes=classes(PHANTOM))


class Truth:
    """Stands for an annotation: a label PNG of level 0."""

    opened: ClassVar[list[str]] = []

    def __init__(self, path: Path):
        self.opened.append(path.stem)
        self.labels = np.array(Image.open(path))

    def rasterise(self, x, y, tile_px, downsample):
        columns, rows = (np.floor(at + (np.arange(tile_px) + 0.5) * downsample).astype(int) for at in (x, y))
        inside = (rows < self.labels.shape[0])[:, None] & (columns < self.labels.shape[1])
        found = self.labels[np.ix_(rows.clip(0, self.labels.shape[0] - 1), columns.clip(0, self.labels.shape[1] - 1))]
        return np.where(inside, found, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Folder of a cohort of 5 slides, 900 x 700 px at 0.5 microns."""
    root = tmp_path_factory.mktemp("cohort")
    make_phantom_slides(PHANTOM, root, SIZE, unit_px=256)
    return root


@pytest.fixture(autouse=True)
def reader(request, monkeypatch):
    """Annotations are read by `Truth`, but in the tests of stedm.slides.annotations."""
    if request.function in (test_with_the_reader_of_annotations, test_geojson_gives_the_masks_of_the_truth):
        return
    Truth.opened = []
    for module in ("stedm.data.tiles", "stedm.data.regions"):
        monkeypatch.setattr(f"{module}.annotation_reader", lambda *arguments: lambda path, slide: Truth(path))


@pytest.fixture
def tiled(cohort, tmp_path):
    """Function: the cohort as a dataset folder."""

    def make(name: str = "out", table_only: bool = False, **changes) -> DatasetFolder:
        config = CONFIG.model_copy(update=changes)
        tile_slides(cohort / "slides.csv", tmp_path / name, config, table_only=table_only)
        return DatasetFolder.open(tmp_path / name)

    return make


# ---- the grid -----------------------------------------------------------------------------------------------------


def _whole(width: int, height: int, mpp: float = 0.5) -> tuple[Slide, TissueMask]:
    slide = Slide(Path("a.svs"), mpp, (width, height), (1.0,), "openslide")
    return slide, TissueMask(np.ones((-(-height // 10), -(-width // 10)), bool), 10.0)


@pytest.mark.parametrize(("stride_px", "mpp"), [(None, 1.0), (32, 1.0), (50, 0.7), (None, 0.5)])
def test_the_grid_covers_the_tissue(stride_px, mpp):
    slide, tissue = _whole(1000, 620)
    grid = tile_grid(slide, tissue, TilingConfig(tile_px=64, mpp=mpp, stride_px=stride_px, min_tissue=0))
    covered = np.zeros((620, 1000), int)
    side = 64 * mpp / 0.5
    for x, y in zip(grid["x"], grid["y"], strict=True):
        covered[y : y + round(side), x : x + round(side)] += 1
    # Corners are whole pixels, so a fractional stride leaves or doubles a line.
    assert (covered == 0).mean() < 0.03
    step = (stride_px or 64) * mpp / 0.5
    assert covered[: int(side), : int(side)].max() == np.ceil(side / step) ** 2 or step != int(step)
    assert sorted(set(grid["x"]))[:3] == [0, round(step), round(2 * step)]


@pytest.mark.parametrize(("size", "columns"), [((100, 64), [0, 36]), ((128, 64), [0, 64]), ((50, 64), [0])])
def test_tiles_of_a_plain_image_lie_inside(size, columns):
    slide = Slide(Path("a.png"), 1.0, size, (1.0,), "image")
    tissue = TissueMask(np.ones((size[1] // 2, size[0] // 2), bool), 2.0)
    grid = tile_grid(slide, tissue, TilingConfig(tile_px=64, mpp=1.0, min_tissue=0))
    assert (grid["x"].tolist(), set(grid["y"])) == (columns, {0})
    hanging = tile_grid(replace(slide, reader="openslide"), tissue, TilingConfig(tile_px=64, mpp=1.0, min_tissue=0))
    assert hanging["x"].tolist() == list(range(0, size[0], 64))


def test_only_tiles_with_enough_tissue_are_kept():
    slide, tissue = _whole(640, 640)
    tissue.mask[:, 32:] = False
    for min_tissue, columns in ((0.0, 3), (0.4, 3), (0.5, 3), (0.6, 2), (1.0, 2)):
        grid = tile_grid(slide, tissue, TilingConfig(tile_px=64, mpp=1.0, min_tissue=min_tissue))
        assert grid["x"].nunique() == columns, min_tissue
    assert grid["tissue_fraction"].eq(1).all()


def test_tiles_hang_over_the_edge_but_a_slide_smaller_than_a_tile_is_one():
    slide, tissue = _whole(100, 90)
    grid = tile_grid(slide, tissue, TilingConfig(tile_px=64, mpp=1.0))
    assert grid[["x", "y", "slide_mpp"]].to_numpy().tolist() == [[0, 0, 0.5]]
    assert grid["tissue_fraction"][0] == pytest.approx(100 * 90 / 128**2, abs=1e-4)


# ---- written tiles ------------------------------------------------------------------------------------------------


def test_tiles_are_a_dataset_folder(tiled, cohort):
    dataset = tiled()
    assert check_dataset(dataset.root) == []
    assert dataset.info.classes == ["stroma", "tumour"]
    assert set(dataset.table["split"]) == {"train", "unlabeled", "val", "test"}
    row = int(np.flatnonzero(dataset.table["split"] == "test")[3])
    tile = dataset.table.iloc[row]
    slide = Slide.open(cohort / "slides" / "T00.svs")
    np.testing.assert_array_equal(dataset.read_image(row), slide.read(tile["x"], tile["y"], 64, 1.0))
    mask = dataset.read_mask(row)
    np.testing.assert_array_equal(
        mask, Truth(cohort / "annotations" / "T00.png").rasterise(tile["x"], tile["y"], 64, 2)
    )
    for value, name in enumerate(dataset.info.classes):
        assert tile[f"fraction_{name}"] == pytest.approx((mask == value).mean(), abs=1e-4)


def test_tiles_may_be_tiff_that_is_not_compressed(tiled):
    as_png, as_tiff = tiled("png"), tiled("tiff", image_format="tiff")
    assert check_dataset(as_tiff.root) == []
    assert as_tiff.table["image_file_name"].str.endswith(".tif").all()
    same = [column for column in as_png.table if column != "image_file_name"]
    pd.testing.assert_frame_equal(as_png.table[same], as_tiff.table[same])
    for row in np.flatnonzero(as_png.has_mask)[::9]:
        np.testing.assert_array_equal(as_png.read_image(row), as_tiff.read_image(row))
        np.testing.assert_array_equal(as_png.read_mask(row), as_tiff.read_mask(row))
    sizes = {path.stat().st_size - 64 * 64 * 3 for path in as_tiff.root.rglob("*.tif")}
    assert len(sizes) == 1  # pixels as they are, and a header
    assert sizes.pop() < 500


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_hugging_face_reads_the_folder(cohort, tmp_path, hugging_face):
    """Also where slides are called as it calls splits."""
    slides = pd.read_csv(cohort / "slides.csv", dtype=str, keep_default_na=False)
    slides["slide_id"] = ["train_1", "xtrain_1", "my test", "val", "dev-3"]
    for column in ("image", "annotation"):
        slides[column] = [name and str(cohort / name) for name in slides[column]]
    slides.to_csv(tmp_path / "slides.csv", index=False)
    tile_slides(tmp_path / "slides.csv", tmp_path / "out", CONFIG)
    read = hugging_face(tmp_path / "out")
    dataset = DatasetFolder.open(tmp_path / "out")
    assert len(read) == len(dataset)
    assert {"image", "mask", "x", "y", "tissue_fraction"} <= set(read.column_names)
    assert set(read["slide_id"]) == set(slides["slide_id"]) == set(dataset.table["slide_id"])
    folders = dataset.table["image_file_name"].str.split("/").str[1]
    assert folders[dataset.table["slide_id"] == "train_1"].unique().tolist() == ["xtrain_1"]
    assert folders[dataset.table["slide_id"] == "xtrain_1"].unique().tolist() == ["xxtrain_1"]


def test_annotations_of_unlabeled_slides_stay_closed(tiled):
    dataset = tiled(table_only=True)
    assert sorted(set(Truth.opened)) == ["A00", "A01", "T00", "V00"]
    unlabeled = dataset.split("unlabeled")
    assert unlabeled.table["fraction_tumour"].isna().all()
    assert (unlabeled.table["mask_file_name"] != "").all()
    assert check_dataset(dataset.root, read_unlabeled_masks=False) == []
    with pytest.raises(StedmError, match="allow_unlabeled_masks"):
        unlabeled.read_mask(0)
    assert "U00" not in Truth.opened
    upper = DatasetFolder.open(dataset.root, allow_unlabeled_masks=True).split("unlabeled")
    assert upper.read_mask(0).shape == (64, 64)


def test_with_the_reader_of_annotations(cohort, tmp_path):
    tile_slides(cohort / "slides.csv", tmp_path / "lazy", CONFIG, table_only=True)
    dataset = DatasetFolder.open(tmp_path / "lazy").split("test")
    truth = Truth(cohort / "annotations" / "T00.png")
    for row in (0, 3):
        tile = dataset.table.iloc[row]
        np.testing.assert_array_equal(dataset.read_mask(row), truth.rasterise(tile["x"], tile["y"], 64, 2))
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read_mask(0), dataset.read_mask(0))


def test_geojson_gives_the_masks_of_the_truth(cohort, tmp_path):
    """slides.csv + GeoJSON, as QuPath writes it, to tiles and to rows that are read from the slides."""
    slides = pd.read_csv(cohort / "slides.csv", keep_default_na=False)
    for row in slides.itertuples():
        labels = Truth(cohort / row.annotation).labels
        outlines = tmp_path / f"{row.slide_id}.geojson"
        write_geojson(outlines, [labels[:300], labels[300:]], CONFIG.classes, downsample=1, mpp=0.5, skip=[])
        slides.loc[row.Index, ["image", "annotation"]] = [str(cohort / row.image), str(outlines)]
    slides.to_csv(tmp_path / "slides.csv", index=False)
    for name, table_only in (("written", False), ("lazy", True)):
        tile_slides(tmp_path / "slides.csv", tmp_path / name, CONFIG, table_only=table_only)
        dataset = DatasetFolder.open(tmp_path / name).split("test")
        truth = Truth(cohort / "annotations" / "T00.png")
        for row, tile in enumerate(dataset.table.itertuples()):
            # A pixel of a tile is two of the slide wide: where a border runs between these, either class is right.
            read, true = dataset.read_mask(row), truth.rasterise(tile.x, tile.y, 64, 2)
            assert (read != true).mean() < 0.02
        assert len(dataset) > 3


def test_tiles_that_nobody_annotated(tiled, monkeypatch):
    """They can't be scored, but they show the style of their slide."""
    halves = lambda n: np.indices((n, n))[0].astype(np.uint8) * 2 // n  # noqa: E731
    drawn = lambda self, x, y, n, d: halves(n) if x < 300 else np.full((n, n), 255, np.uint8)  # noqa: E731
    monkeypatch.setattr(Truth, "rasterise", drawn)
    dataset = tiled()
    bare = dataset.table[dataset.table["mask_file_name"] == ""]
    assert set(bare["split"]) == {"train"}
    assert (bare["x"] >= 300).all()
    assert (dataset.split("test").table["x"] < 300).all()
    assert check_dataset(dataset.root) == []


@pytest.mark.parametrize("table_only", [True, False])
def test_the_positive_class_alone_is_said_when_tiles_are_made(cohort, tmp_path, monkeypatch, table_only):
    """An export of the tumour, everything else ignored: a network scores 1 with one answer."""
    drawn = lambda self, x, y, n, d: np.where(np.eye(n), 255, 1).astype(np.uint8)  # noqa: E731
    monkeypatch.setattr(Truth, "rasterise", drawn)
    done = tile_slides(cohort / "slides.csv", tmp_path / "out", CONFIG, table_only=table_only)
    (line,) = [line for line in done.warnings if "hold only class" in line and "train" in line]
    assert f"hold only class {CONFIG.classes[1]}, beside ignored pixels" in line
    assert line in check_dataset(tmp_path / "out")


def test_a_slide_in_two_splits_is_said_and_refused_by_the_check(cohort, tmp_path):
    slides = pd.read_csv(cohort / "slides.csv", dtype=str, keep_default_na=False)
    slides["image"] = [str(cohort / name) for name in slides["image"]]
    slides["annotation"] = ""
    copy = tmp_path / "copy.tif"
    shutil.copy(slides.loc[slides["split"] == "train", "image"].iloc[0], copy)
    slides.loc[slides["split"] == "test", "image"] = str(copy)
    slides.to_csv(tmp_path / "slides.csv", index=False)
    done = tile_slides(
        tmp_path / "slides.csv", tmp_path / "out", CONFIG.model_copy(update={"classes": []}), table_only=True
    )
    (line,) = done.warnings
    assert "are the same slide, in several splits (test, train)" in line
    assert line in check_dataset(tmp_path / "out")


# ---- rows that are regions ----------------------------------------------------------------------------------------


def test_regions_are_what_written_tiles_are(tiled):
    written, lazy = tiled("written"), tiled("lazy", table_only=True)
    pd.testing.assert_frame_equal(written.table, lazy.table)
    assert not (lazy.root / "images").exists()
    assert not (lazy.root / "masks").exists()
    assert check_dataset(lazy.root) == []
    rows = np.flatnonzero(written.table["split"] != "unlabeled")[::9]
    caches = [ImageCache(dataset, 32) for dataset in (written, lazy)]
    for row in rows:
        np.testing.assert_array_equal(caches[0].image(row), caches[1].image(row))
        np.testing.assert_array_equal(caches[0].mask(row), caches[1].mask(row))
        np.testing.assert_array_equal(written.read_image(row), lazy.read_image(row))
        assert written.image_size(row) == lazy.image_size(row) == (64, 64)


def test_regions_can_be_sent_to_worker_processes(tiled):
    dataset = tiled(table_only=True)
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read_image(5), dataset.read_image(5))


def test_regions_are_at_home_in_slides_csv(tiled):
    """Who moves the slides edits one file."""
    dataset = tiled(table_only=True)
    path = dataset.root / "slides.csv"
    slides = pd.read_csv(path)
    assert slides["mpp"].eq(0.5).all()
    path.write_text(slides.assign(image=slides["image"].str.replace("A00", "moved")).to_csv(index=False))
    assert any("moved.svs: no such slide" in problem for problem in check_dataset(dataset.root))
    path.write_text(slides.assign(mpp=0.25).to_csv(index=False))
    assert any("tile it again" in problem for problem in check_dataset(dataset.root))
    path.write_text(slides[1:].to_csv(index=False))
    assert any("has no slide" in problem for problem in check_dataset(dataset.root))


@pytest.mark.parametrize("kind", ["nearby", "multi-patch"])
@pytest.mark.parametrize("split", ["train", "unlabeled"])
def test_styles_come_from_other_places_of_the_same_slide(tiled, kind, split, monkeypatch):
    """Overlapping tiles: the tile itself and all that share a pixel with it are never its style."""
    dataset = tiled(table_only=True, stride_px=32).split(split)
    cache = ImageCache(dataset, 64)
    sampler, seen = StyleSampler(cache, kind, 3), []
    image = ImageCache.image
    monkeypatch.setattr(ImageCache, "image", lambda self, row: seen.append(row) or image(self, row))
    table, generator = dataset.table, numpy_generator(0, "styles")
    for row in generator.permutation(len(dataset))[:10]:
        seen.clear()
        _, present = sampler(int(row), generator)
        assert present.all()
        target, shown = table.iloc[row], table.iloc[seen]
        assert set(shown["slide_id"]) == {target["slide_id"]}
        apart = np.maximum((shown["x"] - target["x"]).abs(), (shown["y"] - target["y"]).abs())
        assert (apart >= 128).all()
        if kind == "nearby":
            assert (apart < 256).all()
    assert SlidePositions(dataset).known(0)


# ---- resuming and failing -----------------------------------------------------------------------------------------


def _files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*.png")}


def test_an_interrupted_tiling_goes_on(cohort, tmp_path, monkeypatch):
    done, write = [], tiles.write_png

    def interrupted(path, array, **options):
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append(path)
        write(path, array, **options)

    monkeypatch.setattr(tiles, "write_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tile_slides(cohort / "slides.csv", tmp_path / "a", CONFIG)
    assert not (tmp_path / "a" / "metadata.csv").exists()
    first = _files(tmp_path / "a")
    assert len(first) == 20
    monkeypatch.setattr(tiles, "write_png", write)
    monkeypatch.setattr(tiles, "slide_rows", None)  # the tissue is known already
    tile_slides(cohort / "slides.csv", tmp_path / "a", CONFIG)
    monkeypatch.undo()
    again = _files(tmp_path / "a")
    assert {path: again[path] for path in first} == first
    assert check_dataset(tmp_path / "a") == []


def test_other_settings_need_another_folder(tiled, cohort, tmp_path):
    tiled("out")
    with pytest.raises(StedmError, match="another min_tissue, mpp"):
        tiled("out", mpp=2.0, min_tissue=0.1)
    with pytest.raises(StedmError, match="another table_only"):
        tiled("out", table_only=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(StedmError, match="not empty"):
        tiled("full")


def test_a_corrected_row_is_done_anew(cohort, tmp_path):
    slides = pd.read_csv(cohort / "slides.csv")
    slides["image"] = [str(cohort / name) for name in slides["image"]]
    slides["annotation"] = ""
    slides = slides[slides["split"] == "train"]
    path, config = tmp_path / "slides.csv", CONFIG.model_copy(update={"classes": []})
    path.write_text(slides.to_csv(index=False))
    tile_slides(path, tmp_path / "a", config)
    before = _files(tmp_path / "a")
    slides.loc[0, "image"] = str(cohort / "slides" / "T00.svs")
    path.write_text(slides.to_csv(index=False))
    tile_slides(path, tmp_path / "a", config)
    dataset = DatasetFolder.open(tmp_path / "a")
    tile, name = dataset.table.iloc[0], str(tmp_path / "a" / dataset.table["image_file_name"].iloc[-1])
    expected = Slide.open(cohort / "slides" / "T00.svs").read(tile["x"], tile["y"], 64, 1.0)
    np.testing.assert_array_equal(dataset.read_image(0), expected)
    assert _files(tmp_path / "a")[name] == before[name]


def test_no_classes_for_annotations(cohort, tmp_path):
    with pytest.raises(StedmError, match="name the classes"):
        tile_slides(cohort / "slides.csv", tmp_path / "a", CONFIG.model_copy(update={"classes": []}))


def test_a_slide_of_glass_has_no_tiles(cohort, tmp_path):
    Image.new("RGB", (400, 400), (244, 243, 242)).save(tmp_path / "glass.png")
    (tmp_path / "slides.csv").write_text(
        f"slide_id,patient_id,split,image,mpp\nglass,p,train,glass.png,1.0\na,q,train,{cohort}/slides/A00.svs,\n"
    )
    done = tile_slides(tmp_path / "slides.csv", tmp_path / "a", CONFIG)
    assert done.without_tissue == ["glass"]
    assert done.slides == 1
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,split,image,mpp\nglass,p,train,glass.png,1.0\n")
    with pytest.raises(StedmError, match="no slide has a tile"):
        tile_slides(tmp_path / "slides.csv", tmp_path / "b", CONFIG)


def test_bad_slides_are_one_line_each_and_the_rest_goes_on(cohort, tmp_path, capsys):
    (tmp_path / "bad.svs").write_text("not a slide")
    (tmp_path / "slides.csv").write_text(
        "slide_id,patient_id,split,image\n"
        f"bad,p,train,bad.svs\ngone,q,test,gone.svs\na,r,train,{cohort}/slides/A00.svs\n"
    )
    command = ["tile", str(tmp_path / "slides.csv"), "-o", str(tmp_path / "out"), "--tile-px", "32", "--mpp", "2"]
    command += ["--workers", "1", "--table-only"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stedm: ")]
    assert len(problems) == 2
    assert "slide bad: " in problems[0]
    assert "not readable as a slide" in problems[0]
    assert "slide gone: " in problems[1]
    assert set(DatasetFolder.open(tmp_path / "out").table["slide_id"]) == {"a"}
    # The next call tries them again.
    (tmp_path / "gone.svs").write_bytes((cohort / "slides" / "A01.svs").read_bytes())
    with pytest.raises(SystemExit):
        main(command)
    assert set(DatasetFolder.open(tmp_path / "out").table["slide_id"]) == {"a", "gone"}
    (tmp_path / "bad.svs").write_bytes((cohort / "slides" / "U00.svs").read_bytes())
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert not stop.value.code


def test_a_slide_that_breaks_while_its_tiles_are_written(cohort, tmp_path, monkeypatch):
    read = Slide.read
    monkeypatch.setattr(Slide, "read", lambda self, *a: _damaged() if "V00" in self.path.name else read(self, *a))
    done = tile_slides(cohort / "slides.csv", tmp_path / "a", CONFIG)
    assert done.failures == ["slide V00-slide: damaged"]
    dataset = DatasetFolder.open(tmp_path / "a")
    assert "V00-slide" not in set(dataset.table["slide_id"])
    assert check_dataset(tmp_path / "a") == []


def _damaged():
    raise StedmError("damaged")


def test_worker_processes_give_the_same(cohort, tmp_path):
    config = TilingConfig(tile_px=64, mpp=1.0)
    text = (
        f"slide_id,patient_id,split,image\na,r,train,{cohort}/slides/A00.svs\nb,s,unlabeled,{cohort}/slides/U00.svs\n"
    )
    (tmp_path / "slides.csv").write_text(text + "c,t,test,gone.svs\n")
    for workers in (1, 2):
        done = tile_slides(tmp_path / "slides.csv", tmp_path / str(workers), config, workers=workers)
        assert len(done.failures) == 1
    one, two = (DatasetFolder.open(tmp_path / name) for name in ("1", "2"))
    pd.testing.assert_frame_equal(one.table, two.table)
    np.testing.assert_array_equal(one.read_image(3), two.read_image(3))


def test_an_engine_gives_the_same(cohort, tmp_path, pickling_pool):
    for name, pool in (("one", None), ("two", pickling_pool)):
        tile_slides(cohort / "slides.csv", tmp_path / name, CONFIG, pool=pool)
    one, two = (DatasetFolder.open(tmp_path / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one.table, two.table)
    assert _pixels(one.root) == _pixels(two.root)
    count = pickling_pool.pieces
    (two.root / one.table["image_file_name"].iloc[0]).unlink()
    tile_slides(cohort / "slides.csv", tmp_path / "two", CONFIG, pool=pickling_pool)
    assert _pixels(one.root) == _pixels(two.root)
    assert pickling_pool.pieces == 2 * count - 5, "tissue was looked for again"


def _pixels(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


@pytest.mark.parametrize("table_only", [False, True])
def test_shards_together_make_the_same_dataset(table_only, cohort, tmp_path):
    slides = pd.read_csv(cohort / "slides.csv")
    for column in ("image", "annotation"):
        slides[column] = [str(cohort / name) for name in slides[column]]
    slides.loc[1, "image"] = str(tmp_path / "gone.svs")
    slides.to_csv(tmp_path / "slides.csv", index=False)

    def make(name: str, **options):
        return tile_slides(tmp_path / "slides.csv", tmp_path / name, CONFIG, table_only=table_only, **options)

    whole = make("whole")
    for shard in ((2, 3), (0, 3)):
        part = make("parts", shard=shard)
        assert not part.complete
        assert part.tiles < whole.tiles
        assert not (tmp_path / "parts" / "metadata.csv").exists()
    assert make("parts", shard=(1, 3)) == whole
    assert whole.complete
    assert len(whole.failures) == 1
    one, two = (DatasetFolder.open(tmp_path / name) for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(one.table, two.table)
    assert _pixels(one.root) == _pixels(two.root)
    assert check_dataset(two.root) == []


# ---- configuration ------------------------------------------------------------------------------------------------


def test_the_configuration_is_complete_in_itself(tmp_path):
    (tmp_path / "classes.yaml").write_text("classes: [a, b]\nmapping: {Tumor: b}\n")
    (tmp_path / "tiling.yaml").write_text("class_mapping: classes.yaml\nstride_px: 64\n")
    config = load_tiling_config(tmp_path / "tiling.yaml", ["tile_px=128"])
    assert config.classes == ["a", "b"]
    assert config.class_mapping == {"classes": ["a", "b"], "mapping": {"Tumor": "b"}}
    assert (config.stride_px, config.tile_px) == (64, 128)
    assert TilingConfig(**yaml.safe_load(json.dumps(config.model_dump(mode="json")))) == config
    for wrong, message in (("stride_px=600", "must not be larger"), ("tissue.mmp=1", "Extra inputs")):
        with pytest.raises(StedmError, match=message):
            load_tiling_config(None, [wrong])


def test_a_damaged_table_of_tiles_is_one_line(cohort, tmp_path):
    tile_slides(cohort / "slides.csv", tmp_path / "tiles", CONFIG, table_only=True)
    path = next((tmp_path / "tiles" / ".tiling").glob("*.parquet"))
    table = pd.read_parquet(path)
    table.loc[0, "x"] += 1  # under the sum of what was there
    table.to_parquet(path, index=False)
    with pytest.raises(StedmError, match=rf"{path.name}: .*; remove it") as error:
        tile_slides(cohort / "slides.csv", tmp_path / "tiles", CONFIG, table_only=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("column", "value"), [("x", "left"), ("mpp", "0"), ("tile_px", None)])
def test_places_that_are_no_numbers_are_refused_when_the_table_is_opened(tiled, column, value):
    root = tiled(table_only=True).root
    table = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False)
    table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    table.to_csv(root / "metadata.csv", index=False)
    with pytest.raises(StedmError, match=f"column {column} is missing" if value is None else "must be numbers"):
        DatasetFolder.open(root)
