"""Executing a plan: a valid dataset folder, the same to the bit whether killed, sharded or neither."""

import hashlib
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stedm import StyleDiffusion
from stedm.cli import main
from stedm.config import (
    DenoiserConfig,
    DiffusionConfig,
    Guidance,
    MachineConfig,
    PredictedConfig,
    Sampling,
    StyleConfig,
    SynthesisConfig,
)
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder, write_metadata, write_png
from stedm.data.symmetry import symmetry
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.io.images import read_image_file
from stedm.layout.prior import LayoutPrior
from stedm.layout.recipe import KINDS
from stedm.synthesis.generate import _Painter, synthesize
from stedm.synthesis.plan import LIST_SEPARATOR, layout_recipe, make_plan, read_plan, write_plan
from stedm.workers.pool import parse_shard

CONFIG = DiffusionConfig(denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8), style=StyleConfig(dim=16))


@pytest.fixture
def dataset(tiny_dataset):
    return DatasetFolder.open(tiny_dataset(image_px=16))


@pytest.fixture
def model():
    return _model(seed=0)


def _model(seed: int) -> StyleDiffusion:
    denoiser = make_denoiser(CONFIG, PixelCodec(2), n_classes=2, seed=seed)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)
    model.precision = "fp32"
    return model


@pytest.fixture
def plan(dataset, tmp_path):
    settings = SynthesisConfig(n_images=22, batch=4, sampling=Sampling(steps=2), layouts="resample")
    write_plan(make_plan(settings, dataset.split("train"), dataset.split("unlabeled")), tmp_path / "plan.parquet")
    return read_plan(tmp_path / "plan.parquet")


def _content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_model_that_learned_from_deformed_images_gets_deformed_ones(model, plan, dataset, tmp_path, monkeypatch):
    shown = []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda layouts, style, **options: shown.extend(style) or generate(layouts, style, **options)
    )
    plan = plan.iloc[:4]
    synthesize(model, plan, tmp_path / "whole")
    model.style_sampling = "augmented"
    model.save_pretrained(tmp_path / "model")
    assert StyleDiffusion.from_pretrained(tmp_path / "model").style_sampling == "augmented"
    synthesize(model, plan, tmp_path / "deformed")
    synthesize(model, plan, tmp_path / "again")
    whole, deformed, again = shown[:4], shown[4:8], shown[8:]
    assert np.array_equal(deformed, again)
    assert {len(images) for images in whole} == {3}
    assert {len(images) for images in deformed} == {3}
    assert not any(np.array_equal(view, image) for view in deformed[0] for image in whole[0])


@pytest.mark.parametrize("image_id", ["../../../x", "/tmp/x", "a/../../b", "a\\..\\b", "a\x00", ""])
def test_a_plan_that_leads_elsewhere_is_refused_before_anything_is_written(model, plan, tmp_path, image_id):
    plan.loc[1, "image_id"] = image_id
    with pytest.raises(StedmError, match=r"plan row .*: image_id"):
        synthesize(model, plan, tmp_path / "deep" / "set")
    assert not (tmp_path / "deep").exists()
    write_plan(plan, tmp_path / "evil.parquet")
    with pytest.raises(StedmError, match=r"plan row .*: image_id"):
        read_plan(tmp_path / "evil.parquet")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library
def test_hugging_face_reads_the_set(model, plan, tmp_path, hugging_face):
    synthesize(model, plan.iloc[:4], tmp_path / "set")
    read = hugging_face(tmp_path / "set")
    assert read["layout_of"] == plan["layout_image_file_name"].tolist()[:4]
    assert {"image", "mask", "style_patient_id", "seed"} <= set(read.column_names)
    assert read[0]["mask"].size == (16, 16)


def test_the_set_is_a_valid_dataset_whose_masks_are_the_planned_layouts(model, plan, dataset, tmp_path):
    assert synthesize(model, plan, tmp_path / "set")
    assert check_dataset(tmp_path / "set") == []
    made = DatasetFolder.open(tmp_path / "set")
    assert len(made) == 22
    assert set(made.table["model_fingerprint"]) == {model.fingerprint}
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    for row in range(len(made)):
        planned = made.table.iloc[row]
        layout = dataset.read_mask(row_of[planned["layout_image_file_name"]])
        assert np.array_equal(made.read_mask(row), symmetry(layout, int(planned["layout_symmetry"])))


def test_masks_of_every_kind_of_layout_can_be_made_again_from_a_row(model, dataset, tmp_path):
    settings = SynthesisConfig(n_images=16, batch=8, sampling=Sampling(steps=1), layouts=dict.fromkeys(KINDS, 1))
    plan = make_plan(settings, dataset.split("train"), dataset.split("unlabeled"), image_px=16)
    write_plan(plan, tmp_path / "plan.parquet")
    assert synthesize(model, read_plan(tmp_path / "plan.parquet"), tmp_path / "set")
    assert check_dataset(tmp_path / "set") == []
    made = DatasetFolder.open(tmp_path / "set")
    assert set(made.table["layout_kind"]) == set(KINDS)
    prior = LayoutPrior(dataset.split("train"), 16)
    for number, row in enumerate(made.table.itertuples()):
        assert layout_recipe(row) == layout_recipe(plan.iloc[number])
        assert np.array_equal(made.read_mask(number), prior.build(layout_recipe(row)))


def test_a_image_can_be_made_again_from_its_row(model, plan, dataset, tmp_path):
    synthesize(model, plan, tmp_path / "set")
    made = DatasetFolder.open(tmp_path / "set")
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    planned = made.table.iloc[9]
    style = [dataset.read_image(row_of[name]) for name in planned["style_image_file_names"].split(LIST_SEPARATOR)]
    again = model.generate(
        made.read_mask(9),
        style,
        sampling=Sampling.model_validate_json(planned["sampling"]),
        seed=[planned["seed"]],
    )
    assert np.abs(again[0].astype(int) - made.read_image(9)).max() <= 1


def test_rows_with_other_guidance_are_drawn_with_it(model, dataset, tmp_path):
    sources = dataset.split("train"), dataset.split("unlabeled")
    plans = [
        make_plan(
            SynthesisConfig(
                n_images=4,
                batch=4,
                layouts="resample",
                sampling=Sampling(steps=2, guidance=Guidance(layout=layout)),
            ),
            *sources,
        )
        for layout in (1.0, 4.0)
    ]
    mixed = plans[0].copy()
    mixed.iloc[[1, 2]] = plans[1].iloc[[1, 2]]
    synthesize(model, mixed, tmp_path / "set")
    made = DatasetFolder.open(tmp_path / "set")
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    guided = Guidance(style=1.5, layout=4.0)
    for row, guidance in enumerate([Guidance(), guided, guided, Guidance()]):
        planned = made.table.iloc[row]
        style = [dataset.read_image(row_of[name]) for name in planned["style_image_file_names"].split(LIST_SEPARATOR)]
        again = model.generate(made.read_mask(row), style, guidance=guidance, steps=2, seed=[planned["seed"]])
        assert np.abs(again[0].astype(int) - made.read_image(row)).max() <= 1
        if guidance is guided:
            plain = model.generate(made.read_mask(row), style, steps=2, seed=[planned["seed"]])
            assert np.abs(plain[0].astype(int) - made.read_image(row)).max() > 1


def test_masks_are_not_black_in_viewers(model, plan, tmp_path):
    synthesize(model, plan, tmp_path / "set")
    for path in (tmp_path / "set" / "masks").iterdir():
        with Image.open(path) as mask:
            shown = np.array(mask.convert("RGB"))[np.array(mask) == 1]
            assert mask.mode == "P"
            assert (shown == (200, 0, 0)).all()


def test_an_error_of_writing_ends_the_run(model, plan, tmp_path, monkeypatch):
    """Images are written in a thread, where an error could get lost; of the last batch too."""
    last = f"{plan['image_id'].iloc[-1]}.png"

    def full_disk(path, array, **options):
        if path.name == last:
            raise OSError("No space left on device")
        write_png(path, array, **options)

    monkeypatch.setattr("stedm.synthesis.generate.write_png", full_disk)
    with pytest.raises(OSError, match="No space left"):
        synthesize(model, plan, tmp_path / "set")
    assert not (tmp_path / "set" / "metadata.csv").exists()
    monkeypatch.undo()
    assert synthesize(model, plan, tmp_path / "set")


@pytest.mark.parametrize("threads", [1, 3])
def test_painting_waits_neither_for_reading_nor_for_writing(model, plan, tmp_path, monkeypatch, threads):
    """The first batch is painted only when the next one has been read, the second when the first isn't written yet."""
    synthesize(model, plan, tmp_path / "one after the other")
    monkeypatch.setattr("stedm.synthesis.ahead.n_threads", lambda: threads)
    monkeypatch.setattr("stedm.synthesis.generate.n_threads", lambda: threads)
    read, second, calls, layout, generate = threading.Event(), threading.Event(), [], _Painter._layout, model.generate

    def count_layout(painter, recipe):
        calls.append(recipe)
        if len(calls) > 4:
            read.set()
        return layout(painter, recipe)

    def paint(*arguments, **options):
        assert read.wait(30), "nothing is read while images are painted"
        if len(painted) == 1:
            second.set()
        painted.append(None)
        return generate(*arguments, **options)

    def write(*arguments, **options):
        assert second.wait(30), "nothing is painted while images are written"
        write_png(*arguments, **options)

    painted = []
    monkeypatch.setattr(_Painter, "_layout", count_layout)
    monkeypatch.setattr(model, "generate", paint)
    monkeypatch.setattr("stedm.synthesis.generate.write_png", write)
    assert synthesize(model, plan, tmp_path / "set")
    assert _content(tmp_path / "set") == _content(tmp_path / "one after the other")


def test_an_error_of_reading_ends_the_run(model, plan, dataset, tmp_path):
    last = plan["style_image_file_names"].iloc[-1].split(LIST_SEPARATOR)[-1]
    (dataset.root / last).write_bytes(b"no image")
    with pytest.raises(StedmError, match=last):
        synthesize(model, plan, tmp_path / "set")
    assert not (tmp_path / "set" / "metadata.csv").exists()


def test_beside_a_gpu_each_style_image_is_encoded_once(model, plan, tmp_path, monkeypatch):
    """As it would be there: a CPU encodes as before, to the bit."""
    encoded, encode = [], model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    synthesize(model, plan, tmp_path / "each time")
    shown = [name for names in plan["style_image_file_names"] for name in names.split(LIST_SEPARATOR)]
    assert sum(encoded) == len(shown) > len(set(shown))
    monkeypatch.setattr("stedm.synthesis.encoded_once.EncodedOnce.suits", lambda _: True)
    for megabytes, n_encoded in ((512, len(set(shown))), (0, None)):
        encoded.clear()
        monkeypatch.setattr("stedm.synthesis.encoded_once._MOST_MB", megabytes)
        synthesize(model, plan, tmp_path / str(megabytes))
        assert n_encoded is None or sum(encoded) == n_encoded
        for name in plan["image_id"]:
            one, other = (
                read_image_file(tmp_path / folder, f"images/{name}.png").astype(int)
                for folder in ("each time", str(megabytes))
            )
            assert np.abs(one - other).max() <= 1


def test_shards_together_make_the_same_set(model, plan, tmp_path):
    synthesize(model, plan, tmp_path / "whole")
    assert not synthesize(model, plan, tmp_path / "parts", shard=parse_shard("2/2"))
    assert not (tmp_path / "parts" / "metadata.csv").exists()
    assert synthesize(model, plan, tmp_path / "parts", shard=parse_shard("1/2"))
    assert _content(tmp_path / "parts") == _content(tmp_path / "whole")


def test_an_engine_gives_the_same_set_and_gets_only_what_is_missing(model, plan, tmp_path, pickling_pool, elsewhere):
    model.save_pretrained(tmp_path / "model")
    synthesize(model, plan, tmp_path / "whole")
    machine = MachineConfig(device="cuda:7", precision="fp32")
    options = {"pool": pickling_pool, "model_folder": tmp_path / "model", "machine": machine}
    with elsewhere():
        assert not synthesize(model, plan, tmp_path / "out", shard=(1, 2), **options)
    assert pickling_pool.pieces == 3
    seen = []
    with elsewhere():
        assert synthesize(model, plan, tmp_path / "out", on_progress=lambda *done: seen.append(done), **options)
    assert pickling_pool.pieces == 6
    assert seen[0] == (10, 22)  # drawn by the other shard
    assert seen[-1] == (22, 22)
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def test_the_command_line_gives_batches_to_workers(model, plan, tmp_path, pickling_pool, monkeypatch):
    asked, model.precision = [], "auto"
    monkeypatch.setattr("stedm.workers.pool.make_pool", lambda *given: asked.append(given) or pickling_pool)
    model.save_pretrained(tmp_path / "model")
    synthesize(model, plan, tmp_path / "whole")
    command = ["synthesize", tmp_path / "model", tmp_path / "plan.parquet", "-o", tmp_path / "out", "--workers", "3"]
    with pytest.raises(SystemExit) as end:
        main(list(map(str, command)))
    assert end.value.code == 0
    assert asked == [("local", 3)]
    assert pickling_pool.pieces == 6
    assert _content(tmp_path / "out") == _content(tmp_path / "whole")


def _die_at_the_seventh_image() -> None:
    written, save = [], Image.Image.save

    def save_or_die(image, path, *arguments, **options):
        save(image, path, *arguments, **options)
        written.append(path)
        if sum(path.parents[1].name == "images" for path in written) == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    Image.Image.save = save_or_die


def test_a_killed_synthesis_resumes_to_the_same_set(model, plan, tmp_path, command):
    """A real process, killed with SIGKILL while it writes its seventh image."""
    model.save_pretrained(tmp_path / "model")
    verb, killed = ["synthesize", tmp_path / "model", tmp_path / "plan.parquet", "-o"], tmp_path / "killed"
    assert command(*verb, killed, before=_die_at_the_seventh_image) == -signal.SIGKILL
    assert 3 <= len(list(killed.glob("images/*.png"))) <= 6  # up to four threads write
    assert list(killed.glob("images/.*/*.png")), "it wasn't killed in the middle of a file"
    assert command(*verb, killed) == 0
    synthesize(StyleDiffusion.from_pretrained(tmp_path / "model"), plan, tmp_path / "whole")
    assert _content(killed) == _content(tmp_path / "whole"), "also nothing under temporary names"


def test_images_of_another_model_or_plan_are_not_mixed_in(model, plan, dataset, tmp_path):
    synthesize(model, plan, tmp_path / "set", shard=(0, 3))
    with pytest.raises(StedmError, match="another plan or model"):
        synthesize(_model(seed=1), plan, tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(StedmError, match="not empty"):
        synthesize(model, plan, tmp_path / "mine")


def test_predicted_layouts_are_painted_on_their_images(model, dataset, predicted_ones, tmp_path, pickling_pool):
    unlabeled = dataset.split("unlabeled")
    predicted = predicted_ones(unlabeled, tmp_path / "predicted")
    settings = SynthesisConfig(n_images=8, batch=4, sampling=Sampling(steps=2))
    every = PredictedConfig(fraction=1.0, start=0.02)
    sources = dataset.split("train"), unlabeled
    plan = make_plan(settings, *sources, image_px=16, predicted=predicted, predicted_config=every)
    write_plan(plan, tmp_path / "plan.parquet")
    plan = read_plan(tmp_path / "plan.parquet")
    assert synthesize(model, plan, tmp_path / "set")
    made = DatasetFolder.open(tmp_path / "set")
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    for row in range(len(made)):
        planned = made.table.iloc[row]
        source = dataset.read_image(row_of[planned["layout_image_file_name"]])
        source = symmetry(source, int(planned["layout_symmetry"]))
        assert made.read_mask(row).min() == 1
        # So little noise changes little, whatever the network says.
        assert np.abs(made.read_image(row).astype(int) - source).mean() < 6
    model.save_pretrained(tmp_path / "model")
    synthesize(model, plan, tmp_path / "others", pool=pickling_pool, model_folder=tmp_path / "model")
    for name in made.table["image_file_name"]:
        there, here = (read_image_file(tmp_path / folder, name).astype(int) for folder in ("others", "set"))
        assert np.abs(there - here).max() <= 1
    plan.loc[0, "layout_image_file_name"] = "images/gone.png"
    with pytest.raises(StedmError, match=r"gone.png is not in"):
        synthesize(model, plan, tmp_path / "third")
    nowhere = read_plan(tmp_path / "plan.parquet")
    del nowhere.attrs["predicted_layouts"]
    with pytest.raises(StedmError, match="doesn't say where"):
        synthesize(model, nowhere, tmp_path / "nowhere")
    lacking = predicted.table.iloc[:1]
    write_metadata(tmp_path / "predicted", predicted.info, lacking)
    with pytest.raises(StedmError, match="no layout of"):
        synthesize(model, read_plan(tmp_path / "plan.parquet"), tmp_path / "fourth")


def test_a_set_that_leaves_the_house_names_no_patient_and_no_source(model, plan, dataset, tmp_path):
    synthesize(model, plan, tmp_path / "set")
    synthesize(model, plan, tmp_path / "shared", pseudonymise=True)
    files = [
        path for path in sorted((tmp_path / "shared").rglob("*")) if path.suffix in (".csv", ".yaml", ".json", ".md")
    ]
    text = "".join(path.read_text() for path in files)
    assert not [name for name in [*dataset.patients(), *dataset.table["image_file_name"]] if name in text]
    assert str(tmp_path) not in text
    one, other = (DatasetFolder.open(tmp_path / name) for name in ("set", "shared"))
    assert one.table.groupby("patient_id").size().tolist() == other.table.groupby("patient_id").size().tolist()
    assert all((one.read_image(row) == other.read_image(row)).all() for row in range(len(one)))


@pytest.mark.parametrize("name", ["metadata.csv", "dataset.yaml", "images/synthetic-000001.png", "manifest.json"])
def test_a_damaged_set_is_one_line_and_no_other_result(model, plan, tmp_path, name):
    synthesize(model, plan, tmp_path / "set")
    path = tmp_path / "set" / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    lines = content.splitlines(keepends=True)
    for damaged in (bytes(flipped), b"".join(lines[: len(lines) // 2])):
        path.write_bytes(damaged)
        with pytest.raises(StedmError, match="damaged") as error:  # noqa: PT012
            folder = DatasetFolder.open(tmp_path / "set")
            for row in range(len(folder)):
                folder.read_image(row)
        assert "\n" not in str(error.value)
    path.write_bytes(content)
    assert len(DatasetFolder.open(tmp_path / "set")) == len(plan)
