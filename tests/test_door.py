"""What `import stedm` offers: it is there, it is shown, and nobody waits for torch to see it."""

import importlib.util
import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import stedm
from stedm.config import (
    DenoiserConfig,
    DiffusionConfig,
    PhantomConfig,
    SegmentationConfig,
    StyleConfig,
    SynthesisConfig,
    parse_config,
)
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError

DOOR = {
    "DatasetFolder",
    "Guidance",
    "Sampling",
    "Segmenter",
    "StyleBank",
    "StyleDiffusion",
    "__version__",
    "check",
    "run",
}
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_dir_and_help_show_the_door():
    assert set(stedm.__all__) == DOOR
    assert set(dir(stedm)) >= DOOR
    page = pydoc.render_doc(stedm, renderer=pydoc.plaintext)
    for name in DOOR - {"__version__"}:
        assert f"class {name}" in page or f"    {name}(" in page, name


def test_everything_behind_the_door_says_what_it_is():
    for name in DOOR - {"__version__"}:
        thing = getattr(stedm, name)
        assert inspect.getdoc(thing), name
        assert importlib.util.find_spec(f"stedm.{name}") is None, f"a module stedm.{name} would take its place"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stedm.nothing


SLOW = ["torch", "numpy", "pandas", "pydantic"]
HALF_OF_THE_WAIT = [
    *("diffusers", "accelerate", "timm", "torchvision", "segmentation_models_pytorch", "torch._dynamo"),
    *("scipy", "skimage", "sklearn", "matplotlib", "jinja2", "torchmetrics", "ray", "openslide", "tiffslide"),
]
"""Libraries of one stage or another, which import them where they use them."""


@pytest.mark.parametrize(
    ("statement", "absent"),
    [("import stedm; dir(stedm)", SLOW), ("import stedm.experiment.experiment", HALF_OF_THE_WAIT)],
)
def test_importing_and_looking_around_waits_for_nothing(statement, absent):
    code = f"import sys; {statement}; print(*sorted({set(absent)} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_check_finds_what_the_command_finds(tiny_dataset):
    root = tiny_dataset()
    assert stedm.check(root) == stedm.check(DatasetFolder.open(root)) == []
    (root / "images" / "trainP0-0.png").unlink()
    [problem] = stedm.check(str(root))
    assert "trainP0-0.png" in problem


@pytest.fixture
def values(tiny_dataset, tiny_run):
    return tiny_run({"path": str(tiny_dataset())}, arms=["real", "real+synthetic"], seeds=[0])


@pytest.mark.usefixtures("plain_reports")
def test_run_is_the_whole_experiment_from_a_file_or_an_object(tmp_path, values, pickling_pool, monkeypatch):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    summary = stedm.run(tmp_path / "c.yaml", tmp_path / "run", overrides={"segmentation.arms": ["real"], "seed": 1})
    assert list(summary["arms"]) == ["real"]
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["segmentation"]["arms"], written["seed"]) == (["real"], 1)
    assert json.loads((tmp_path / "run" / "report" / "summary.json").read_text())["arms"].keys() == {"real"}
    again = stedm.run(tmp_path / "c.yaml", tmp_path / "run", overrides=["segmentation.arms=[real]", "seed=1"])
    assert again["arms"] == summary["arms"]
    config = parse_config(values, "test")
    asked = []
    monkeypatch.setattr("stedm.experiment.api.make_pool", lambda *given, **_: asked.append(given) or pickling_pool)
    by_two = stedm.run(config, tmp_path / "object", workers=2)
    assert asked == [("local", 2)]
    assert pickling_pool.pieces > 2
    assert list(by_two["arms"]) == ["real", "real+synthetic"]
    with pytest.raises(StedmError, match="not for a RunConfig"):
        stedm.run(config, tmp_path / "object", overrides={"seed": 2})


def test_a_configuration_from_python_means_the_same_from_anywhere(tmp_path, values, monkeypatch):
    """The run folder holds it, and `stedm app RUN` and `stedm run RUN/config.yaml` read it from there."""
    root, asked = Path(values["data"]["path"]), []
    monkeypatch.setattr("stedm.experiment.api._run", lambda config, *_, **__: asked.append(config))
    monkeypatch.chdir(root.parent)
    stedm.run(parse_config({**values, "data": {"path": root.name}}, "test"), tmp_path / "run")
    # Two characters that JSON writes as four escapes.
    named = "\U0001f52c \U00020bb7"
    stedm.run(root, tmp_path / "run", overrides={"name": named})
    assert [(config.data.path, config.name) for config in asked] == [(root, values["name"]), (root, named)]


@pytest.mark.usefixtures("plain_reports")
def test_a_dataset_folder_runs_with_the_defaults_and_what_is_said(tmp_path, values):
    root = Path(values["data"]["path"])
    said = {f"segmentation.{key}": value for key, value in values["segmentation"].items()}
    said |= {"segmentation.arms": ["real"], "data.image_px": 32}
    for number, dataset in enumerate((root, str(root), DatasetFolder.open(root))):
        stedm.run(dataset, tmp_path / str(number), overrides=said)
        written = yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())
        assert (written["name"], written["data"]["path"]) == ("tiny", str(root))
    with pytest.raises(StedmError, match="no such configuration"):
        stedm.run(tmp_path / "nothing", tmp_path / "other")


def test_ten_lines_train_generate_and_segment(tmp_path):
    spec = importlib.util.spec_from_file_location("ten_lines", EXAMPLES / "ten_lines.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    images, masks = example.main(
        tmp_path,
        PhantomConfig(image_px=32, patients={"train": 1, "unlabeled": 2, "val": 1, "test": 1}, images_per_patient=3),
        DiffusionConfig(
            steps=2,
            batch=2,
            denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8),
            style=StyleConfig(dim=16),
        ),
        SynthesisConfig(n_images=4, sampling=stedm.Sampling(steps=2)),
        SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[16, 8, 8], steps=2, batch=2),
        image_px=32,
    )
    assert (images.shape, images.dtype) == ((1, 32, 32, 3), np.uint8)
    assert (masks.shape, masks.dtype) == ((3, 32, 32), np.uint8)
    again = stedm.Segmenter.from_pretrained(tmp_path / "segmenter")
    samples = [sample["image"] for sample in stedm.DatasetFolder.open(tmp_path / "data").split("test")]
    assert np.array_equal(again.predict(np.stack(samples)), masks)
    assert stedm.StyleDiffusion.from_pretrained(tmp_path / "diffusion" / "model").classes == again.classes
