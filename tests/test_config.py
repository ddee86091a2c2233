"""Configurations: every problem is named, nothing is guessed, what is written reads back equal."""

from pathlib import Path

import pytest

from configuration_page import all_keys, page, used_keys
from stedm.config import RunConfig, load_config, load_phantom_config, parse_config, to_yaml
from stedm.errors import StedmError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_committed_configurations_load_and_survive_a_round_trip(path, tmp_path):
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    again = load_config(tmp_path / "again.yaml")
    assert again == config
    assert again.fingerprint == config.fingerprint


def test_unknown_keys_and_bad_values_are_all_named_in_one_pass(config_file):
    path = config_file("name: x\ndata: {phantom: {}}\ndiffusion: {agregation: mean, steps: 0}\n")
    with pytest.raises(StedmError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert any("diffusion.agregation" in line for line in lines)
    assert any("diffusion.steps" in line for line in lines)
    assert all(str(path) in line for line in lines)


def test_overrides_win_and_are_typed(config_file):
    path = config_file("name: x\ndata: {phantom: {}}\n")
    config = load_config(path, ["diffusion.steps=7", "segmentation.seeds=[3,4]", "diffusion.codec.space_to_depth=4"])
    assert (config.diffusion.steps, config.segmentation.seeds) == (7, [3, 4])
    assert config.diffusion.codec.space_to_depth == 4
    with pytest.raises(StedmError, match="key=value"):
        load_config(path, ["diffusion.steps"])


def test_relative_paths_are_relative_to_the_file(config_file):
    path = config_file("name: x\ndata: {path: sub/cohort}\n")
    assert load_config(path).data.path == path.parent / "sub" / "cohort"
    given = ["diffusion.codec.kind=autoencoder", "diffusion.codec.source=someone/vae"]
    assert load_config(path, given).diffusion.codec.source == "someone/vae", "a name on the hub"
    (path.parent / "someone" / "vae").mkdir(parents=True)
    assert load_config(path, given).diffusion.codec.source == str(path.parent / "someone" / "vae")


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1\n- 2", "", "name: x", "name: x\ndata: {path: a, phantom: {}}"],
    ids=["broken", "list", "empty", "no data", "two sources"],
)
def test_bad_files_are_refused_clearly(config_file, text):
    with pytest.raises(StedmError, match=r"c\.yaml"):
        load_config(config_file(text))


def test_phantom_overrides(config_file):
    assert load_phantom_config(None, ["image_px=32"]).image_px == 32
    with pytest.raises(StedmError, match="pictur"):
        load_phantom_config(None, ["pictur=32"])


def test_the_schema_describes_the_fields():
    schema = RunConfig.model_json_schema()
    assert "Solver" in schema["$defs"]["Sampling"]["properties"]["sampler"]["description"]


def test_name_and_path_are_enough_for_the_recommended_design(config_file):
    config = load_config(config_file("name: x\ndata: {path: cohort}\n"))
    assert config.fine_tunes
    assert config.rounds.last == 2
    assert config.rounds.predicted.model_dump() == {"fraction": 0.5, "start": 0.8}
    assert config.synthesis.layouts == "warp"
    assert (config.diffusion.time_shift, config.segmentation.synthetic_fraction, config.segmentation.mirror) == (
        3,
        0.5,
        True,
    )
    assert "real+stain+synthetic" in config.segmentation.arms


def test_a_preset_lies_under_what_the_file_says(config_file):
    path = config_file("name: x\npreset: paper\ndata: {path: cohort}\ndiffusion: {batch: 4}\n")
    config = load_config(path)
    assert (config.diffusion.batch, config.diffusion.steps, config.diffusion.objective) == (4, 3900, "eps")
    assert config.rounds.last == 1
    assert load_config(path, preset="cpu").diffusion.steps == RunConfig.model_fields["diffusion"].default.steps
    assert load_config(path, ["diffusion.steps=5"], "gpu").diffusion.steps == 5
    # Another kind of first stage replaces that of the preset whole.
    assert load_config(path, ["diffusion.codec.kind=pixel"]).diffusion.codec.kind == "pixel"
    with pytest.raises(StedmError, match="preset"):
        load_config(path, preset="tpu")


@pytest.mark.parametrize(
    ("rounds", "last", "fine_tunes"),
    [
        ({}, 2, True),
        ({"number": 3}, 3, True),
        ({"number": 1}, 1, False),
        ({"fine_tune": None}, 2, False),
        ({"labels": None}, 2, False),
        # Nothing would change from round to round: there is one.
        ({"fine_tune": None, "predicted": None}, 1, False),
        ({"labels": None, "predicted": None}, 1, False),
        ({"predicted": None}, 2, True),
    ],
)
def test_what_rounds_change(rounds, last, fine_tunes):
    config = parse_config({"name": "x", "data": {"phantom": {}}, "rounds": rounds}, "test")
    assert (config.rounds.last, config.fine_tunes) == (last, fine_tunes)


def test_there_are_at_most_98_keys_and_each_is_used_by_a_committed_configuration():
    assert len(all_keys()) <= 98
    assert set(all_keys()) == used_keys()


def test_the_page_of_all_keys_is_current():
    assert (CONFIGS[0].parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("text", ["${oc.env:STEDM_SECRET}", "a${HOME}b", "a${b"])
@pytest.mark.parametrize("key", ["name", "data.path"])
def test_what_looks_like_a_variable_is_a_text(config_file, monkeypatch, text, key):
    """Folders are called so, and nothing of the environment gets into a configuration."""
    monkeypatch.setenv("STEDM_SECRET", "hunter2")
    there = {"name": "x", "data.path": "y", key: text}
    path = config_file(f"name: '{there['name']}'\ndata: {{path: '{there['data.path']}'}}\n")
    for config in (load_config(path), load_config(config_file("name: x\ndata: {path: y}\n"), [f"{key}={text}"])):
        assert (config.name, config.data.path.name) == (there["name"], there["data.path"])
        again = config_file(to_yaml(config))
        assert load_config(again) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=123", "name: .*valid string; put it in quotes"),
        ("segmentation.arms=real", r"segmentation\.arms: .*; write \[real\]"),
        ("diffusion={lr: 1,5e-4}", r"diffusion\.0\.0005: .*is its comma a decimal point"),
        ("synthesis.category_fractions={3: {gland: [0.1, 0.2]}}", "valid string; put it in quotes"),
    ],
)
def test_what_is_meant_is_told(config_file, override, said):
    with pytest.raises(StedmError, match=said):
        load_config(config_file("name: x\ndata: {path: y}\n"), [override])


def test_an_override_adds_to_a_mapping(config_file):
    path = config_file("name: x\ndata: {path: y}\nrounds: {predicted: {start: 0.6}}\n")
    for override in ("rounds.predicted={fraction: 1}", "rounds.predicted.fraction=1"):
        assert load_config(path, [override]).rounds.predicted.model_dump() == {"fraction": 1, "start": 0.6}
    assert load_config(path, ["rounds.predicted=null"]).rounds.predicted is None


def test_an_override_may_be_a_path_with_any_sign(config_file):
    path = config_file("name: x\ndata: {path: y}\n")
    for name in ("50% #1 'Ü' & co", "x{y}*?", "[a", "a=b"):
        overrides = [f"data.path=/data/{name}/d", "diffusion.steps=7 # few", "name='it is # one'"]
        config = load_config(path, overrides)
        assert (config.data.path.parent.name, config.diffusion.steps, config.name) == (name, 7, "it is # one")
