"""Slides of flat colours and a network that knows the class of each colour: what must come out is known exactly."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from stedm import Segmenter
from stedm.cli import main
from stedm.config import MachineConfig, PhantomConfig, SegmentationConfig, SlideSegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.phantom.slides import draw_phantom_slide, write_phantom_slide
from stedm.progress import Reporter
from stedm.segmentation import whole_slide as module
from stedm.segmentation.model import SegmenterInfo, build_segmenter, load_segmenter, save_segmenter
from stedm.segmentation.slide_sources import is_slide, slides_in
from stedm.segmentation.whole_slide import (
    load_slide_config,
    map_bands,
    segment_slide,
    segment_slides,
)
from stedm.slides.annotations import read_annotation
from stedm.slides.slide import Slide
from stedm.slides.tissue import TissueMask
from stedm.slides.write_label_map import LabelMapWriter

CLASSES = ["stroma", "tumour"]
COLOURS = np.array([(230, 120, 170), (120, 60, 160)], np.uint8)
SIZE = (900, 700)
INFO = SegmenterInfo(architecture="unet", classes=CLASSES, image_px=64, mpp=1.0)
TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])
QUIET = Reporter(quiet=True)


class ColourNetwork(nn.Module):
    """Logits by the distance to the colours of the classes."""

    def __init__(self):
        super().__init__()
        colours = torch.from_numpy(COLOURS).float() / 127.5 - 1
        self.colours = nn.Parameter(colours, requires_grad=False)

    def forward(self, images):
        return -20 * (images[:, None] - self.colours[None, :, :, None, None]).square().sum(dim=2)


NETWORK = ColourNetwork()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """An Aperio-like slide, 450 x 350 microns, with empty glass around the tissue."""
    drawn = draw_phantom_slide(PhantomConfig(image_px=256), "train", 0, SIZE, unit_px=256)
    large = np.kron(drawn.layout[::4, ::4], np.ones((4, 4), np.uint8))
    drawn = replace(drawn, image=COLOURS[large.clip(0, 1)], layout=large)
    target = tmp_path_factory.mktemp("slides") / "a.svs"
    write_phantom_slide(drawn, target)
    return target


@pytest.fixture
def slide(path):
    return Slide.open(path)


def _map(slide, **values) -> np.ndarray:
    config = SlideSegmentationConfig(**values)
    return np.concatenate(list(map_bands(NETWORK, INFO, slide, config)))


def _expected(slide, mpp: float) -> np.ndarray:
    """The network's classes of the whole image at once, 255 where the tissue mask has no tissue."""
    image = slide.overview(mpp)
    distance = np.square(image[..., None, :].astype(int) - COLOURS.astype(int)).sum(axis=-1)
    tissue = TissueMask.of(slide)
    step = mpp / slide.mpp / tissue.downsample
    rows, columns = (((np.arange(n) + 0.5) * step).astype(int) for n in image.shape[:2])
    return np.where(tissue.mask[np.ix_(rows, columns)], distance.argmin(axis=-1), 255)


def _iou(a: np.ndarray, b: np.ndarray, value: int) -> float:
    return ((a == value) & (b == value)).sum() / ((a == value) | (b == value)).sum()


@pytest.mark.parametrize(
    "values",
    [{}, {"tile_px": 96, "overlap": 0.5, "batch": 3}, {"tile_px": 512, "workers": 1}, {"tile_px": 50, "overlap": 0.0}],
)
def test_the_blended_map_is_that_of_the_whole_image(slide, values):
    found, expected = _map(slide, **values), _expected(slide, 1.0)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape == (350, 450)
    assert {0, 1, 255} == set(np.unique(expected))
    assert np.array_equal(found, expected)


def test_at_the_resolution_that_is_asked_for(slide):
    for mpp in (0.5, 2.0):
        found, expected = _map(slide, mpp=mpp), _expected(slide, mpp)
        assert found.shape == expected.shape
        assert (found == expected).mean() > 0.999


def test_tiles_without_tissue_are_not_read(slide, monkeypatch):
    read, places = Slide.read, []

    def counted(self, x, y, tile_px, mpp):
        places.append((x, y))
        return read(self, x, y, tile_px, mpp)

    monkeypatch.setattr(Slide, "read", counted)
    found = _map(slide, tile_px=32, overlap=0.0)
    x, y = np.array(places).T
    assert (TissueMask.of(slide).fractions(x, y, 64) > 0).all()
    assert len(places) < 0.9 * 11 * 15
    assert (found[:8, :8] == 255).all()


def test_rows_are_given_as_soon_as_they_are_done(slide, monkeypatch):
    read, count = Slide.read, 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return read(*arguments)

    monkeypatch.setattr(Slide, "read", counted)
    config = SlideSegmentationConfig(tile_px=32, batch=2, workers=1)
    bands = map_bands(NETWORK, INFO, slide, config)
    seen = 0
    for number, band in enumerate(bands, start=1):
        seen += len(band)
        assert len(band) <= 32
        assert count <= 19 * number + 4  # the tiles of its row, and two batches
    assert seen == 350


def test_the_exported_polygons_give_the_map_back(tmp_path, slide):
    expected = _expected(slide, 1.0)
    for tolerance_um, least in ((None, 0.99), (0.0, 1.0)):
        config = SlideSegmentationConfig(tolerance_um=tolerance_um, skip=[])
        segment_slide(NETWORK, INFO, slide, tmp_path / "a.geojson", config)
        back = read_annotation(tmp_path / "a.geojson", CLASSES, image_name="a.svs").rasterise(0, 0, (350, 450), 2)
        assert min(_iou(back, expected, value) for value in (0, 1)) >= least


def test_band_height_changes_nothing(tmp_path, slide, monkeypatch):
    config = SlideSegmentationConfig(tolerance_um=0)
    segment_slide(NETWORK, INFO, slide, tmp_path / "a.geojson", config)
    monkeypatch.setattr(module, "_BAND_PX", 450 * 37)
    segment_slide(NETWORK, INFO, slide, tmp_path / "b.geojson", config)
    read = [read_annotation(tmp_path / name, CLASSES, unannotated="stroma") for name in ("a.geojson", "b.geojson")]
    maps = [annotation.rasterise(0, 0, (350, 450), 2) for annotation in read]
    assert np.array_equal(*maps)
    assert maps[0].any()


def test_bands_are_joined_and_cut_to_one_height():
    rows = np.arange(23, dtype=np.uint8)[:, None]
    for cut in ([5, 10, 11], [1, 2, 3], [22]):
        bands = list(module._of_height(np.split(rows, cut), 4))
        assert [len(band) for band in bands] == [4, 4, 4, 4, 4, 3]
        assert np.array_equal(np.concatenate(bands), rows)


def test_background_and_glass_are_not_exported(tmp_path, slide):
    segment_slide(NETWORK, INFO, slide, tmp_path / "a.geojson", SlideSegmentationConfig())
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"tumour"}
    segment_slide(NETWORK, INFO, slide, tmp_path / "a.geojson", SlideSegmentationConfig(skip=["tumour"]))
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert {feature["properties"]["classification"]["name"] for feature in features} == {"stroma"}


def test_areas_and_label_map_agree_with_the_map(tmp_path, slide):
    areas = segment_slide(NETWORK, INFO, slide, tmp_path / "a.geojson", SlideSegmentationConfig(label_map=True))
    expected = _expected(slide, 1.0)
    counts = np.array([(expected == value).sum() for value in (0, 1)])
    assert areas["class"].tolist() == CLASSES
    assert areas["pixels"].tolist() == counts.tolist()
    assert areas["area_mm2"].to_numpy() == pytest.approx(counts * 1e-6)
    assert areas["fraction"].to_numpy() == pytest.approx(counts / counts.sum())
    assert np.array_equal(tifffile.imread(tmp_path / "a.ome.tif"), expected)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.geojson", "a.ome.tif"]


def test_label_maps_are_pyramids_with_their_resolution(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (1100, 1301), np.uint8)
    with (tmp_path / "rows").open("w+b") as file:
        writer = LabelMapWriter(file, 1301)
        assert np.array_equal(np.concatenate(list(writer.passing(np.split(labels, [3, 700])))), labels)
        writer.write(tmp_path / "a.ome.tif", mpp=0.5)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(1100, 1301), (550, 650), (275, 325)]
        assert levels[0].pages[0].is_tiled
        for level, scale in zip(levels, (1, 2, 4), strict=True):
            height, width = level.shape
            assert np.array_equal(level.asarray(), labels[::scale, ::scale][:height, :width])
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata


# ---- models, several slides, mistakes -----------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return save_segmenter(
        tmp_path / "model", build_segmenter(TINY, 2), TINY, DatasetInfo("x", CLASSES), image_px=64, mpp=1.0
    )


def test_a_model_knows_its_resolution_and_old_ones_still_load(model):
    assert load_segmenter(model)[1].mpp == 1.0
    values = json.loads((model / "config.json").read_text())
    del values["mpp"]
    (model / "manifest.json").unlink()
    (model / "config.json").write_text(json.dumps(values))
    assert load_segmenter(model)[1].mpp is None


def test_a_segmenter_does_in_python_what_the_command_does(tmp_path, model, path):
    _succeeds(["segment", model, path, "-o", tmp_path / "out" / "x.geojson", "--tolerance-um", "2"])
    by_name = Segmenter.from_pretrained(model)
    assert by_name.predict_slide(path, tmp_path / "one.geojson", tolerance_um=2) == [tmp_path / "one.geojson"]
    assert (tmp_path / "one.geojson").read_bytes() == (tmp_path / "out" / "x.geojson").read_bytes()
    _table(tmp_path, path)
    with pytest.raises(StedmError, match="bad"):
        by_name.predict_slide(tmp_path / "slides.csv", tmp_path / "folder", tolerance_um=2)
    written = sorted(file.name for file in (tmp_path / "folder").glob("*.geojson"))
    assert written == ["one.geojson", "three.geojson", "two.geojson"]


def _own(n_classes: int) -> torch.nn.Module:
    return torch.nn.Conv2d(3, n_classes, 3, padding=1)


def test_slides_are_segmented_by_an_own_network(tmp_path, path, pickling_pool):
    info = DatasetInfo("x", CLASSES)
    model = save_segmenter(tmp_path / "own", _own(len(CLASSES)), None, info, image_px=64, mpp=1.0)
    [here] = Segmenter.from_pretrained(model, _own).predict_slide(path, tmp_path / "here")
    slides = slides_in(path, tmp_path / "there.geojson")
    done = segment_slides(model, slides, tmp_path / "there", reporter=QUIET, pool=pickling_pool, network=_own)
    assert done.written[0].read_bytes() == here.read_bytes()


@pytest.mark.parametrize("kind", ["png", "bmp", "jpg"])
def test_of_an_image_mpp_is_its_own_as_no_scanner_says_it(tmp_path, model, capsys, kind):
    """What a folder of images leaves people with: no slides.csv, no resolution in the file."""
    image, out = tmp_path / f"a.{kind}", tmp_path / "a.geojson"
    Image.fromarray(np.full((96, 128, 3), (150, 60, 150), np.uint8)).save(image)
    with pytest.raises(SystemExit):
        main(["segment", str(model), str(image), "-o", str(out)])
    assert "--mpp for one PNG" in capsys.readouterr().err
    _succeeds(["segment", model, image, "-o", out, "--mpp", "2.0", "--set", "skip=[]"])
    points = [point for ring in _rings(out) for point in ring]
    assert np.max(points, axis=0).tolist() == [128, 96]  # in its own pixels, whatever the model sees
    assert capsys.readouterr().out == (f"outlines are as coarse as what the network sees: 1 microns\n{out}: a.{kind}\n")
    _succeeds(["segment", model, image, "-o", out, "--mpp", "0.25", "--set", "skip=[]"])
    assert "sees: 1 microns, 4 of the image's pixels" in capsys.readouterr().out


def _rings(path: Path) -> list[list[list[float]]]:
    shapes = [feature["geometry"] for feature in json.loads(path.read_text())["features"]]
    polygons = [[s["coordinates"]] if s["type"] == "Polygon" else s["coordinates"] for s in shapes]
    return [ring for several in polygons for polygon in several for ring in polygon]


def test_command_line_one_slide(tmp_path, model, path, capsys, elsewhere):
    flags = ["--label-map", "--tolerance-um", "2", "--device", "cuda:7"]
    with elsewhere():
        _succeeds(["segment", model, path, "-o", tmp_path / "out" / "x.geojson", *flags])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["x.csv", "x.geojson", "x.ome.tif"]
    table = pd.read_csv(tmp_path / "out" / "x.csv")
    assert table["slide_id"].tolist() == ["a", "a"]
    assert table["mpp"].tolist() == [1.0, 1.0]
    _succeeds(["segment", model, path, "-o", tmp_path / "y.geojson", "--mpp", "4", "--set", "tile_px=32"])
    coarse = pd.read_csv(tmp_path / "y.csv")
    assert coarse["area_mm2"].sum() == pytest.approx(table["area_mm2"].sum(), rel=0.05)
    assert "1 of 1 slides" in capsys.readouterr().out


def _succeeds(arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code in (0, None)


def test_several_slides_and_one_that_is_broken(tmp_path, model, path):
    (tmp_path / "broken.svs").write_bytes(path.read_bytes()[:3000])
    rows = [("one", "p", "test", path, 0.5), ("two", "q", "test", tmp_path / "broken.svs", "")]
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "split", "image", "mpp"])
    table.to_csv(tmp_path / "slides.csv", index=False)
    slides = slides_in(tmp_path / "slides.csv", tmp_path / "out")
    done = segment_slides(model, slides, tmp_path / "out", reporter=QUIET)
    assert [file.name for file in done.written] == ["one.geojson"]
    assert len(done.failures) == 1
    assert "broken.svs" in done.failures[0]
    assert sorted(file.name for file in (tmp_path / "out").glob("[!.]*")) == ["areas.csv", "one.csv", "one.geojson"]
    assert pd.read_csv(tmp_path / "out" / "areas.csv").equals(pd.read_csv(tmp_path / "out" / "one.csv"))


def test_a_slide_that_breaks_half_way_leaves_nothing(tmp_path, model, path, monkeypatch):
    def broken(self, x, y, tile_px, mpp):
        if y > 300:
            raise StedmError(f"{self.path}: damaged at level 0")
        return np.zeros((tile_px, tile_px, 3), np.uint8)

    monkeypatch.setattr(Slide, "read", broken)
    slides = slides_in(path, tmp_path / "out")
    config = SlideSegmentationConfig(label_map=True)
    done = segment_slides(model, slides, tmp_path / "out", config, QUIET)
    assert done.failures == [f"{path}: damaged at level 0"]
    assert list((tmp_path / "out").iterdir()) == []


# ---- resuming and shards ------------------------------------------------------------------------------------------


def _content(folder) -> dict[str, bytes]:
    """OME-TIFF files have the time in them: their pixels."""
    files = [file for file in folder.glob("*") if file.is_file()]
    return {f.name: tifffile.imread(f).tobytes() if f.suffix == ".tif" else f.read_bytes() for f in files}


@pytest.mark.parametrize("reads", [3, 40, 75, 140])
def test_a_killed_segmentation_goes_on_below_the_rows_that_it_had(reads, tmp_path, model, path, monkeypatch):
    """Random weights, so that each tile gets something else, and batches that don't fit the rows."""
    monkeypatch.setattr("stedm.segmentation.row_checkpoint.WRITE_AFTER_PX", 2 * 24 * 450)
    config = SlideSegmentationConfig(tile_px=32, batch=7, label_map=True, skip=[])
    source, read, places = slides_in(path, tmp_path / "x"), Slide.read, []

    def killed(self, *place):
        if len(places) == limit:
            raise KeyboardInterrupt
        places.append(place)
        return read(self, *place)

    monkeypatch.setattr(Slide, "read", killed)
    limit = -1
    segment_slides(model, source, tmp_path / "whole", config, QUIET)
    n_whole, limit = len(places), reads
    places.clear()
    with pytest.raises(KeyboardInterrupt):
        segment_slides(model, source, tmp_path / "killed", config, QUIET)
    assert not list((tmp_path / "killed").glob("[!.]*"))
    limit = -1
    places.clear()
    segment_slides(model, source, tmp_path / "killed", config, QUIET)
    assert _content(tmp_path / "killed") == _content(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*.rows"))
    # Two rows of tiles are kept at a time, and one above is looked at again.
    assert len(places) <= n_whole - reads + 5 * 19
    assert (len(places) < n_whole) == (reads > 3)


def test_rows_of_other_settings_are_not_gone_on_with(tmp_path, model, path, monkeypatch):
    monkeypatch.setattr("stedm.segmentation.row_checkpoint.WRITE_AFTER_PX", 1)
    source, read = slides_in(path, tmp_path / "x"), Slide.read
    count = []
    monkeypatch.setattr(Slide, "read", lambda *a: count.append(1) or read(*a) if len(count) < 60 else _interrupt())
    with pytest.raises(KeyboardInterrupt):
        segment_slides(model, source, tmp_path / "out", SlideSegmentationConfig(tile_px=32), QUIET)
    assert list((tmp_path / "out").glob(".a.rows/*.npz"))
    monkeypatch.setattr(Slide, "read", read)
    config = SlideSegmentationConfig(tile_px=32, overlap=0.5)
    for name in ("out", "new"):
        segment_slides(model, source, tmp_path / name, config, QUIET)
    assert _content(tmp_path / "out") == _content(tmp_path / "new")


def _interrupt():
    raise KeyboardInterrupt


def _table(tmp_path, path):
    for name in ("two", "three"):
        (tmp_path / f"{name}.svs").write_bytes(path.read_bytes())
    rows = [("one", path), ("two", tmp_path / "two.svs"), ("three", tmp_path / "three.svs"), ("bad", tmp_path / "bad")]
    table = pd.DataFrame(rows, columns=["slide_id", "image"]).assign(patient_id="p", split="test")
    table.to_csv(tmp_path / "slides.csv", index=False)
    return slides_in(tmp_path / "slides.csv", tmp_path / "out")


def test_finished_slides_are_skipped(tmp_path, model, path, monkeypatch):
    slides, config = _table(tmp_path, path), SlideSegmentationConfig()
    first = segment_slides(model, slides, tmp_path / "out", config, QUIET)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.geojson")}
    (tmp_path / "out" / "two.geojson").unlink()
    left = tmp_path / "out" / ".stedm-00000000-1-abcdefgh"  # by a process that was killed, long ago
    left.mkdir()
    os.utime(left, (0, 0))
    (tmp_path / "three.svs").write_bytes(path.read_bytes() + b" ")
    again = segment_slides(model, slides, tmp_path / "out", config, QUIET)
    assert again == first
    assert not left.exists()
    changed = {file.stem for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed == {"two", "three"}
    assert set(pd.read_csv(tmp_path / "out" / "areas.csv")["slide_id"]) == {"one", "two", "three"}
    segment_slides(model, slides, tmp_path / "out", config.model_copy(update={"mpp": 2.0}), QUIET)
    assert not [file for file, time in before.items() if file.stat().st_mtime_ns == time]


def test_shards_together_do_all_slides(tmp_path, model, path):
    slides = _table(tmp_path, path)
    whole = segment_slides(model, slides, tmp_path / "whole", reporter=QUIET)
    parts = [segment_slides(model, slides, tmp_path / "out", reporter=QUIET, shard=(i, 3)) for i in (2, 0)]
    assert [part.complete for part in parts] == [False, False]
    assert not (tmp_path / "out" / "areas.csv").exists()
    last = segment_slides(model, slides, tmp_path / "out", reporter=QUIET, shard=(1, 3))
    assert last.complete
    assert last.failures == whole.failures
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_an_engine_gives_the_same(tmp_path, model, path, pickling_pool, elsewhere):
    slides, machine = _table(tmp_path, path), MachineConfig(device="cuda:7")
    with elsewhere():
        by_engine = segment_slides(model, slides, tmp_path / "out", reporter=QUIET, pool=pickling_pool, machine=machine)
    alone = segment_slides(model, slides, tmp_path / "whole", reporter=QUIET)
    assert by_engine.failures == alone.failures
    assert [file.name for file in by_engine.written] == ["one.geojson", "two.geojson", "three.geojson"]
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")
    assert pickling_pool.pieces == 4
    segment_slides(model, slides, tmp_path / "out", reporter=QUIET, pool=pickling_pool)
    assert pickling_pool.pieces == 5, "more than the slide that failed"


# ---- what is a slide, and mistakes --------------------------------------------------------------------------------


def test_what_counts_as_a_slide(tmp_path, path):
    small, large = tmp_path / "small.tif", tmp_path / "large.tif"
    tifffile.imwrite(small, np.zeros((64, 64, 3), np.uint8))
    tifffile.imwrite(large, np.zeros((16, 9000, 3), np.uint8), compression="zlib")
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    assert [is_slide(file) for file in (path, large, small, tmp_path / "p.png")] == [True, True, False, False]
    assert slides_in(small, tmp_path / "out") is None
    assert slides_in(small, tmp_path / "x.geojson")[0].path == small
    assert slides_in(path, tmp_path / "out")[0].name == "a"


def test_bad_input_is_one_line(tmp_path, model, path):
    (tmp_path / "mixed").mkdir()
    for name in ("a.svs", "b.svs", "c.png"):
        (tmp_path / "mixed" / name).write_bytes(b"x")
    (tmp_path / "two").mkdir()
    for name in ("a.svs", "b.svs"):
        (tmp_path / "two" / name).write_bytes(b"x")
    mistakes = {
        lambda: slides_in(tmp_path / "mixed", "out"): r"slides \(a.svs\) and images \(c.png\)",
        lambda: slides_in(tmp_path / "two", "x.geojson"): "one file for 2 slides",
        lambda: slides_in(path, tmp_path / "x.tif"): "FILE.geojson",
        lambda: slides_in(tmp_path / "none.svs", "out"): "no such image, slide or folder",
        lambda: load_slide_config(["overlap=0.7"]): "overlap",
        lambda: load_slide_config(["tolerance_um=-1"]): "tolerance_um",
    }
    slides = slides_in(path, tmp_path / "out")
    unknown = SlideSegmentationConfig(skip=["fat"])
    mistakes[lambda: segment_slides(model, slides, tmp_path / "out", unknown, QUIET)] = "fat is no class"
    for call, message in mistakes.items():
        with pytest.raises(StedmError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    network = build_segmenter(TINY, 2)
    save_segmenter(tmp_path / "model", network, TINY, DatasetInfo("x", CLASSES), image_px=64)
    with pytest.raises(StedmError, match="--mpp"):
        segment_slides(model, slides, tmp_path / "out", reporter=QUIET)
    assert not (tmp_path / "out").exists()


def test_options_of_slides_are_refused_for_images(tmp_path, model, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    with pytest.raises(SystemExit) as stop:
        main([str(value) for value in ("segment", model, tmp_path / "p.png", "-o", tmp_path / "out", "--label-map")])
    assert stop.value.code == 1
    assert "no slides" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_hidden_files_are_no_slides(tmp_path):
    for name in ("a.svs", "._a.svs", ".b.ndpi"):
        (tmp_path / name).write_bytes(b"x")
    assert [slide.path.name for slide in slides_in(tmp_path, tmp_path / "out")] == ["a.svs"]
