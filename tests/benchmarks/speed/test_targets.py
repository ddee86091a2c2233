"""benchmarks/speed: every target gives what it promises, and its figures fit each other. No time is asserted."""

import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from speed.__main__ import TARGETS, main, measure, show, text
from speed.effort import GROWTH_SIZES, Effort
from speed.setting import open_setting
from stedm.experiment.cost import cost

TINY = Effort(
    repeats=1,
    steps=3,
    warm_up_steps=3,
    profiled_steps=1,
    images=5,
    matmul_n=32,
    growth_sizes={
        "style images": (1, 2),
        "planned images": (3, 6),
        "patients": (4, 8),
        "image size": (64, 128),
    },
    growth_seconds=0.0,
)
OVERRIDES = [
    "data.image_px=16",
    "data.phantom.image_px=16",
    "data.phantom.patients={train: 2, unlabeled: 2, val: 0, test: 0}",
    "data.phantom.images_per_patient=3",
    "diffusion.batch=2",
    "diffusion.denoiser.channels=[8,8]",
    "diffusion.denoiser.norm_groups=4",
    "diffusion.denoiser.layout_channels=4",
    "diffusion.style.dim=8",
    "diffusion.style.n_images=2",
    "machine.precision=fp32",
    "synthesis.sampling.steps=2",
    "synthesis.batch=3",
    "segmentation.encoder=tu-test_resnet",
]


@pytest.fixture(scope="module")
def setting():
    with open_setting(overrides=OVERRIDES) as opened:
        yield opened


def _run(target: str, setting) -> dict:
    result = import_module(f"speed.{target}").run(setting, TINY)
    show(target, result)  # every kind of value can be shown
    return json.loads(json.dumps(result, allow_nan=False))


def test_train_divides_the_whole_step(setting):
    found = _run("train", setting)
    figures, phases = found["figures"], found["tables"]["phases"]
    assert [row["phase"] for row in phases] == ["data", "prepare", "forward", "backward", "optimiser"]
    assert all(row["share"] > 0 for row in phases)
    assert math.isclose(sum(row["share"] for row in phases), 1.0)
    both = sum(row["share"] for row in phases if row["phase"] in ("forward", "backward"))
    assert math.isclose(figures["share_forward_and_backward"], both)
    assert figures["steps_measured"] == TINY.steps
    assert figures["share_of_matmul_peak"] > 0
    operators = found["tables"]["operators"]
    assert any("convolution" in row["operator"] for row in operators)
    assert 0 < sum(row["share"] for row in operators) <= 1.0 + 1e-9
    assert [row["share"] for row in operators] == sorted((row["share"] for row in operators), reverse=True)


def test_train_counts_the_flops_of_the_real_step(setting):
    """As many as the shapes alone say, but for samples whose style dropped out."""
    found = _run("train", setting)
    figures = found["figures"]
    most = cost(setting.config, len(setting.dataset.info.classes)).flops_per_step / 1e9
    assert 0.5 * most < figures["gflop_forward_and_backward"] <= most * (1 + 1e-9)


def test_sampling_counts_network_calls(setting):
    found = _run("sampling", setting)
    rows = {(row["sampler"], row["guidance"], row["batch"]): row for row in found["tables"]["samplers"]}
    assert {"dpm++", "unipc", "euler"} <= {sampler for sampler, _, _ in rows}
    calls = {key: row["network_calls"] for key, row in rows.items()}
    assert calls["dpm++", "style", 8] == 12
    assert calls["dpm++", "none", 8] == 6
    assert calls["dpm++", "style and layout", 8] == 18
    assert {batch for _, _, batch in rows} == {1, 8, 32}
    assert rows["dpm++", "style", 8]["ratio_to_base"] == 1.0
    assert 0 < found["figures"]["share_outside_denoiser"] < 1
    assert all(row["share_of_matmul_peak"] > 0 for row in rows.values())


def test_data(setting):
    found = _run("data", setting)
    parts = [row["part"].removeprefix("style sampling ") for row in found["tables"]["parts"]]
    assert parts[4:] == ["none", "augmented", "nearby", "multi-patch", "cohort"]
    assert found["figures"]["samples_per_s"] > 0


def test_synthesis_divides_the_whole_time(setting):
    found = _run("synthesis", setting)
    figures, phases = found["figures"], found["tables"]["phases"]
    assert figures["images"] == 5
    assert figures["network_calls_per_image"] == 4
    assert [row["phase"] for row in phases] == ["denoiser", "style", "outside"]
    assert math.isclose(sum(row["share"] for row in phases), 1.0)
    assert all(row["share"] > 0 for row in phases), "a network is no longer watched"
    assert len(list((setting.folder / "speed-synthesis" / "images").glob("*.png"))) == 5


def test_growth(setting):
    found = _run("growth", setting)
    exponents, points = found["tables"]["exponents"], found["tables"]["points"]
    assert {row["axis"] for row in exponents} == set(GROWTH_SIZES)
    assert len(points) == 2 * len(exponents) == 2 * found["figures"]["curves"]
    assert all(row["ms"] > 0 and row["megabytes"] > 0 for row in points)
    size = {row["what"]: row for row in exponents if row["axis"] == "image size"}
    # Memory is counted, not timed: four times the pixels take about four times the memory.
    assert 1.3 < size["training step"]["exponent_memory"] < 2.3
    assert size["training step"]["at_most"] == 2.0


def test_the_command_prints_tables_and_writes_json(capsys, tmp_path):
    target = tmp_path / "out" / "speed.json"
    main(["synthesis", "-n", "3", "-o", str(target), "--set", *OVERRIDES])
    written = json.loads(target.read_text())
    assert set(written) == {"machine", "configuration", "targets"}
    assert set(written["targets"]) == {"synthesis"}
    machine = written["machine"]
    assert {"processor", "cores", "threads", "device", "precision", "load_at_start", "torch"} <= set(machine)
    assert machine["processor"]
    assert machine["cores"] >= 1
    shown = capsys.readouterr().out
    for words in ("machine", "processor", "synthesis: phases", "share outside network", "%"):
        assert words in shown


def test_a_configuration_of_the_user_is_measured(tmp_path, tiny_dataset):
    root = tiny_dataset(image_px=16)
    config = tmp_path / "c.yaml"
    config.write_text(f"name: mine\ndata: {{path: {root}, image_px: 16}}\n")
    own = [text for text in OVERRIDES if not text.startswith("data")]
    measured = measure(["synthesis"], config, own, TINY, show)
    assert measured["configuration"]["name"] == "mine"
    assert measured["targets"]["synthesis"]["figures"]["images"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "tiny"], "nothing is left beside it"


def test_it_runs_from_the_repository_and_its_mistakes_are_one_line():
    repository = Path(__file__).parents[3]
    command = [sys.executable, "-m", "benchmarks.speed", "train", "none.yaml"]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    told = "none.yaml: no such configuration file; give a YAML file or a dataset folder"
    assert ended.stderr.splitlines() == [told]


def test_every_target_has_its_file():
    for name in TARGETS:
        assert callable(import_module(f"speed.{name}").run)


def test_values_are_shown_for_people():
    shown = [("share", 0.8574), ("ms", 12345.6), ("ms", 0.01234), ("within", False), ("n", 10_000), ("x", None)]
    assert [text(name, value) for name, value in shown] == ["85.7 %", "12,346", "0.0123", "no", "10,000", "–"]
