"""Nothing is written over what is read, nor over what somebody else wrote; stedm's own files may be made anew."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.cli import main
from stedm.config import RunConfig, SegmentationConfig, SlideSegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.evaluation.compare import compare_reports
from stedm.evaluation.scoring import evaluate_segmenter
from stedm.experiment.folder import claim
from stedm.io.images import write_png
from stedm.io.ownership import SEGMENTED, check_folder, check_outputs, is_marked
from stedm.segmentation.model import build_segmenter, save_segmenter
from stedm.segmentation.predict import segment_folder
from stedm.segmentation.slide_sources import SlideSource
from stedm.segmentation.whole_slide import segment_slides

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


@pytest.fixture
def model(tmp_path):
    known = DatasetInfo("tiny", ["background", "disc"])
    return save_segmenter(
        tmp_path / "model", build_segmenter(TINY, 2, seed=0), TINY, known, image_px=32, mpp=1.0, source_px=[32, 32]
    )


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for name in ("a", "b"):
        write_png(folder / f"{name}.png", np.random.default_rng(len(name)).integers(0, 256, (32, 32, 3), np.uint8))
    return folder


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_read_is_never_written_over_not_even_through_links(tmp_path, overwrite):
    source = tmp_path / "a.png"
    source.write_text(SEGMENTED)  # even if it was made by stedm
    (tmp_path / "soft.png").symlink_to(source)
    os.link(source, tmp_path / "hard.png")
    (tmp_path / "folder").symlink_to(tmp_path)
    for output in (source, tmp_path / "soft.png", tmp_path / "hard.png", tmp_path / "folder" / "a.png"):
        with pytest.raises(StedmError, match="is read by this command"):
            check_outputs({output: SEGMENTED}, [source], overwrite=overwrite)
    check_outputs({tmp_path / "new.png": SEGMENTED}, [source], overwrite=overwrite)


def test_only_marked_files_are_replaced_without_being_asked(tmp_path):
    path = tmp_path / "a.csv"
    for content, is_own in ((b"class,pixels\n", True), (b"x" * 10**6 + b"class,pixels", True), (b"something", False)):
        path.write_bytes(content)
        assert is_marked(path, "class,pixels") == is_own
    with pytest.raises(StedmError, match=r"a\.csv: is there and stedm did not write it; .*--overwrite"):
        check_outputs({path: "class,pixels"})
    check_outputs({path: "class,pixels"}, overwrite=True)
    path.unlink()
    path.mkdir()
    with pytest.raises(StedmError, match="is a folder"):
        check_outputs({path: "class,pixels"}, overwrite=True)


def test_segment_leaves_images_and_masks_of_others_alone(tmp_path, model, images):
    before = _bytes(images)
    (tmp_path / "link").symlink_to(images)
    for output in (images, tmp_path / "link"):
        for source in (images, images / "a.png"):
            with pytest.raises(StedmError, match="is read by this command"):
                segment_folder(model, source, output, overwrite=True)
    masks = tmp_path / "masks"
    write_png(masks / "b.png", np.ones((32, 32), np.uint8))  # drawn by hand, or cut from annotations by `stedm tile`
    drawn = _bytes(masks)
    with pytest.raises(StedmError, match="stedm did not write it"):
        segment_folder(model, images, masks)
    assert _bytes(images) == before
    assert _bytes(masks) == drawn  # nothing was begun
    segment_folder(model, images, masks, overwrite=True)
    assert segment_folder(model, images, masks) == [masks / "a.png", masks / "b.png"]
    with Image.open(masks / "b.png") as edited:
        edited.save(masks / "b.png")  # a program that draws masks knows nothing of the mark
    with pytest.raises(StedmError, match=r"b\.png: is there and stedm did not write it"):
        segment_folder(model, images, masks)


def test_masks_beside_images_are_no_images_the_next_time(tmp_path, model):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.jpg")
    for _ in range(2):
        assert segment_folder(model, tmp_path, tmp_path) == [tmp_path / "a.png"]


def test_annotations_of_slides_are_not_replaced(tmp_path, model):
    pytest.importorskip("tiffslide")
    slide = tmp_path / "a.tif"
    array = np.full((512, 512, 3), 240, np.uint8)
    array[100:400, 100:400] = (150, 60, 140)
    Image.fromarray(array).save(slide)
    config = SlideSegmentationConfig(label_map=True)

    def segment(output, **options):
        return segment_slides(model, [SlideSource("a", slide, 1.0)], output, config, inputs=[slide], **options)

    drawn = tmp_path / "a.geojson"
    drawn.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(StedmError, match=r"a\.geojson: is there and stedm did not write it"):
        segment(drawn)
    assert "generator" not in drawn.read_text()
    assert not segment(drawn, overwrite=True).failures
    assert json.loads(drawn.read_text())["generator"] == SEGMENTED
    segment(drawn)  # its own
    Image.fromarray(array).save(tmp_path / "a.ome.tif")
    with pytest.raises(StedmError, match=r"a\.ome\.tif: is there"):
        segment(drawn)
    (tmp_path / "a.ome.tif").unlink()
    (tmp_path / "a.csv").write_text("slide,diagnosis\n")
    with pytest.raises(StedmError, match=r"a\.csv: is there"):
        segment(drawn)


def test_reports_do_not_replace_files_of_others(tmp_path, model, tiny_dataset):
    root, report = tiny_dataset(), tmp_path / "report"
    report.mkdir()
    (report / "summary.json").write_text('{"my": "notes"}')
    with pytest.raises(StedmError, match=r"summary\.json: is there"):
        evaluate_segmenter(model, root, "test", report)
    assert [path.name for path in report.iterdir()] == ["summary.json"]
    evaluate_segmenter(model, root, "test", report, overwrite=True)
    evaluate_segmenter(model, root, "test", report)
    evaluate_segmenter(model, root, "val", tmp_path / "other")
    for name, mark in (("counts.parquet", "n_pictures"), ("per_patient.csv", "iou_seed_sd")):
        assert is_marked(report / name, mark)
    joined = tmp_path / "joined"
    joined.mkdir()
    (joined / "summary.json").write_text('{"my": "notes"}')
    again = tmp_path / "again"
    evaluate_segmenter(model, root, "test", again)
    with pytest.raises(StedmError, match=r"summary\.json: is there"):
        compare_reports([report, again], joined / "c.html")
    compare_reports([report, again], joined / "c.html", overwrite=True)
    compare_reports([report, again], joined / "c.html")


def test_a_configuration_is_not_taken_for_the_one_of_a_run(tmp_path):
    config = RunConfig.model_validate({"name": "x", "data": {"path": str(tmp_path)}})
    own = tmp_path / "study" / "config.yaml"
    own.parent.mkdir()
    own.write_text("# my study\nname: x\n")
    with pytest.raises(StedmError, match=r"config\.yaml: is there and stedm did not write it"):
        claim(own.parent, config)
    assert own.read_text() == "# my study\nname: x\n"
    claim(tmp_path / "run", config)
    claim(tmp_path / "run", config)
    with pytest.raises(StedmError, match="is a file and a run is a folder"):
        claim(own, config)


def test_folders_of_others_are_not_replaced_by_a_model(tmp_path, model):
    (tmp_path / "mine").mkdir()
    check_folder(tmp_path / "mine", "config.json")
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StedmError, match=r"mine: is there and has no config\.json"):
        save_segmenter(tmp_path / "mine", build_segmenter(TINY, 2), TINY, DatasetInfo("x", ["a", "b"]), image_px=32)
    assert (tmp_path / "mine" / "thesis.txt").is_file()
    check_folder(model, "config.json")


def test_commands_that_write_one_file(tmp_path, tiny_dataset, capsys):
    root = tiny_dataset()
    (tmp_path / "c.yaml").write_text(f"name: x\ndata: {{path: {root}}}\n")

    def run(*arguments) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, capsys.readouterr().err

    for output in (tmp_path / "c.yaml", root / "metadata.csv"):
        before = output.read_bytes()
        code, said = run("plan", tmp_path / "c.yaml", "-n", 2, "-o", output)
        assert code == 1
        assert len(said.splitlines()) == 1
        assert output.read_bytes() == before
    plan = tmp_path / "plan.parquet"
    for _ in range(2):
        assert run("plan", tmp_path / "c.yaml", "-n", 2, "-o", plan)[0] == 0
    pd.DataFrame({"patient_id": ["mine"]}).to_parquet(plan)
    assert run("plan", tmp_path / "c.yaml", "-n", 2, "-o", plan)[0] == 1
    assert run("plan", tmp_path / "c.yaml", "-n", 2, "-o", plan, "--overwrite")[0] == 0
    layout, style = root / "masks" / "trainP0-0.png", root / "images" / "unlabeledP0-0.png"
    for output, line in ((layout, "is read by"), (style, "is read by"), (root / "dataset.yaml", "did not write it")):
        before = output.read_bytes()
        code, said = run("generate", tmp_path, "--layout", layout, "--style", style, "-o", output)
        assert code == 1
        assert line in said
        assert output.read_bytes() == before
