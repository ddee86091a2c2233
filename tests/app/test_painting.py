"""What the Paint tab does, without a page: styles, layouts, files to take away."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from stedm.app.files import read_layout, read_style
from stedm.app.opened import open_folder
from stedm.app.painting import Order, Painting, Recipe, Style, agreement
from stedm.config import MachineConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.io.images import class_palette, write_png
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import read_plan


@pytest.fixture
def painting(opened):
    return Painting(opened)


def order(layout: np.ndarray, **values) -> Order:
    values = {"style": Style(patient=0), "steps": 2, "seed": 5, **values}
    return Order(layout=base64.b64encode(layout.tobytes()).decode(), **values)


def test_layout_and_style_each_change_the_image(painting):
    layout = painting.layout_of(Recipe(kind="resample", row=0))
    changed = layout.copy()
    changed[:16] = 1
    images = [
        painting.kept(painting.paint(one)).image
        for one in (order(layout), order(layout), order(changed), order(layout, style=Style(patient=1)))
    ]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[3])


def test_networks_run_where_the_app_was_told(run, elsewhere):
    opened = open_folder(run)
    opened.machine = MachineConfig(device="cuda:7")
    with elsewhere():
        painting = Painting(opened)
        painting.paint(order(painting.layout_of(Recipe(kind="resample", row=0))))
        opened.segmenter(opened.judge).predict(np.zeros((32, 32, 3), np.uint8))


def test_a_mix_begins_at_one_patient_and_ends_at_the_other(painting):
    model = painting.opened.model()
    (first, last), found = (
        model.style_vectors([painting.style_of(Style(patient=p), 0)["style"] for p in (0, 1)]).numpy(),
        [painting.style_of(Style(patient=0, other=1, weight=w), 0)["style_vectors"].numpy() for w in (0, 0.5, 1)],
    )
    assert np.allclose(found, [first, (first + last) / 2, last], atol=1e-6)


def test_the_plan_row_that_is_downloaded_paints_the_same_image(painting, tmp_path):
    recipe = painting.from_prior(None, seed=3)
    layout = painting.layout_of(recipe)
    number = painting.paint(order(layout, recipe=recipe, style_guidance=2.0))
    with zipfile.ZipFile(io.BytesIO(painting.zip_of(number))) as archive:
        assert archive.namelist() == ["image.png", "mask.png", "row.json", "plan.parquet"]
        archive.extractall(tmp_path)
    synthesize(painting.opened.model(), read_plan(tmp_path / "plan.parquet"), tmp_path / "set")
    again = DatasetFolder.open(tmp_path / "set")
    assert np.array_equal(again.read_image(0), np.array(Image.open(tmp_path / "image.png")))
    assert np.array_equal(again.read_mask(0), np.array(Image.open(tmp_path / "mask.png")))
    assert Image.open(tmp_path / "image.png").text["Software"] == "stedm generate"


@pytest.mark.parametrize("style", [Style(patient=0), Style(set="held_out", patient=0), Style(patient=0, other=1)])
def test_what_no_plan_may_have_is_told_as_a_row_alone(painting, style):
    by_hand = style == Style(patient=0)
    recipe = None if by_hand else Recipe(kind="resample", row=0)
    number = painting.paint(order(np.ones((32, 32), np.uint8), style=style, recipe=recipe))
    with zipfile.ZipFile(io.BytesIO(painting.zip_of(number))) as archive:
        assert archive.namelist() == ["image.png", "mask.png", "row.json"]
        row = json.loads(archive.read("row.json"))
    assert (row["layout_kind"] == "painted by hand") == by_hand


def test_old_images_are_let_go(painting, monkeypatch):
    monkeypatch.setattr("stedm.app.painting.MOST_KEPT", 2)
    numbers = [painting.upload(np.zeros((4, 4, 3), np.uint8)) for _ in range(3)]
    assert list(painting.uploads) == numbers[1:]
    with pytest.raises(StedmError, match="no longer there; upload it again"):
        painting.style_of(Style(images=[{"upload": numbers[0]}]), 0)


def test_the_judge_has_not_learned_from_painted_images(opened, run):
    assert opened.judge == "real+stain"
    assert open_folder(run / "model").judge is None
    opened.segmenters = {"real+stain+synthetic": opened.segmenters["real+stain+synthetic"]}
    assert opened.judge is None


def test_agreement_leaves_unknown_pixels_out():
    mask = np.array([[0, 1], [255, 255]], np.uint8)
    assert agreement(mask, np.array([[0, 0], [1, 1]]), 2) == 0.5
    assert agreement(np.full((2, 2), 255), mask, 2) is None


def test_uploaded_images_become_what_the_model_knows(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((100, 300, 3), np.uint8))
    assert read_style((tmp_path / "a.png").read_bytes(), "a.png", 32).shape == (32, 32, 3)
    mask = np.zeros((64, 64), np.uint8)
    mask[:32], mask[60:] = 1, 255
    write_png(tmp_path / "m.png", mask, palette=class_palette())
    found = read_layout((tmp_path / "m.png").read_bytes(), "m.png", 32, ["a", "b"], 255)
    assert np.array_equal(found, mask[::2, ::2])
    with pytest.raises(StedmError, match=r"^m\.png: class indices 1 are out of range"):
        read_layout((tmp_path / "m.png").read_bytes(), "/x/m.png", 32, ["a"], 255)


def test_what_is_no_run_is_said(tmp_path, monkeypatch):
    with pytest.raises(StedmError, match="not a run, and no model"):
        open_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StedmError, match="no run below runs/"):
        open_folder(None)


def test_a_run_without_its_data_still_paints(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("data"))
    opened = open_folder(copy)
    assert "phantom patients are not there" in opened.data_problem
    painting = Painting(opened)
    number = painting.upload(np.full((32, 32, 3), 200, np.uint8))
    style = Style(images=[{"upload": number}])
    assert painting.kept(painting.paint(order(np.zeros((32, 32), np.uint8), style=style))).image.shape == (32, 32, 3)
