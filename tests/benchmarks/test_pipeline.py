"""The driver of the sample stream's rates, on tiny images: what it counts is right, and rates can be measured."""

import pipeline
from pipeline import GPUS, need, phantom, rate
from stedm.config import RunConfig, StyleConfig
from stedm.experiment.cost import cost

STYLE = StyleConfig(sampling="cohort", n_images=2, dim=16)


def _tiny() -> RunConfig:
    diffusion = {"batch": 2, "denoiser": {"channels": [16, 16], "norm_groups": 8}, "style": STYLE}
    return RunConfig(name="tiny", data={"phantom": {}, "image_px": 16}, diffusion=diffusion)


def test_what_a_gpu_needs_is_set_against_what_workers_deliver(tmp_path, monkeypatch, capsys):
    config = _tiny()
    assert pipeline.flops_per_sample(config) == cost(config, 2).flops_per_sample
    monkeypatch.setattr(pipeline, "configurations", lambda _: {("tiny", 16): config})
    monkeypatch.setattr(pipeline, "flops_per_sample", lambda _: 10**12)
    need(tmp_path, {("tiny", 16, "memory"): 100.0, ("tiny", 16, "TIFF"): 50.0, ("tiny", 16, "PNG"): 10.0})
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny") and "A100" in line]
    needed = GPUS["A100"][0] * GPUS["A100"][1] / 1e12
    ratios = [needed / (workers * delivered) for workers in (4, 8) for delivered in (100, 50, 10)]
    assert line.split()[4:] == [f"{needed:.0f}/s", *(f"{ratio:.2f}" for ratio in ratios)]


def test_rates_and_starts_are_measured(tmp_path):
    root = phantom(tmp_path / "data", 32, images=2)
    assert all(rate(root, 32, STYLE, 2, source) > 0 for source in pipeline.SOURCES)
    pipeline.many_images(tmp_path / "many", 8, 16)
    (tmp_path / "run").mkdir()
    pipeline.begin(tmp_path / "many", tmp_path / "run")
