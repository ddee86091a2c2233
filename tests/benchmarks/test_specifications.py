"""The specifications in benchmarks say what stedm knows."""

from pathlib import Path

import pytest
import yaml

import ablation
import downstream
import samplers

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
READERS = {"samplers": samplers.read_spec, "budgets": downstream.read_spec, "cohort": ablation.read_spec}
"""By a key that no other kind of specification has, looked for in this order."""


def _read(path: Path):
    keys = yaml.safe_load(path.read_text())
    return next(read for key, read in READERS.items() if key in keys)(path)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.yaml")), ids=lambda path: path.stem)
def test_all_that_a_committed_specification_asks_for_can_be_built_and_is_asked_for_once(path):
    spec = _read(path)
    if isinstance(spec, samplers.Spec):
        assert len(spec.settings) == len(set(map(str, spec.settings)))
        return
    place = (spec.budgets[0], spec.draws[0]) if isinstance(spec, downstream.Spec) else (spec.seeds[0],)
    built = {name: spec.config(name, *place).model_copy(update={"name": ""}) for name in spec.variants}
    lacking = {name: settings.get("control") for name, settings in spec.variants.items()}
    assert len({(config.fingerprint, lacking[name]) for name, config in built.items()}) == len(spec.variants)
    arms = {f"{name}/{arm}" for name, config in built.items() for arm in config.segmentation.arms}
    assert {arm for pair in getattr(spec, "compare", []) for arm in pair} <= arms


@pytest.mark.parametrize("name", ["samplers_ebhi", "samplers_phantom"])
def test_samplers_are_held_against_500_evaluations(name, tmp_path):
    spec = samplers.read_spec(BENCHMARKS / f"{name}.yaml", model=tmp_path / "model")
    assert spec.model == tmp_path / "model"
    calls = {str(setting): spec.network_calls(setting) for setting in spec.settings}
    assert calls["dpm++, 12 steps, guidance full"] == 24
    assert calls[str(spec.reference)] == max(calls.values()) == 500
    assert len(spec.seeds) == 5
