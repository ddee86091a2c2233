"""Configurations: every problem is named, nothing is guessed, what is written reads back equal."""

from pathlib import Path

import pytest

from stedm.config import RunConfig, load_config, load_phantom_config, to_yaml
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


def test_the_schema_describes_every_field():
    schema = RunConfig.model_json_schema()
    assert "guidance" in str(schema["$defs"]["SynthesisConfig"]["properties"]["guidance"]["description"])
