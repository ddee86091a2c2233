"""The preset for one GPU: latents of 256 px with an autoencoder, pixels of 128 px without; at full size, on shapes."""

import json
from pathlib import Path

import pytest

from stedm.config import RunConfig, load_config
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.experiment.cost import USABLE, cost, training_memory
from stedm.experiment.experiment import Experiment
from stedm.experiment.resolve import PUBLISHED, check_first_stage, first_stage_text, resolve, resolve_if_there

SD_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 256,
}
"""The architecture of stabilityai/sd-vae-ft-mse, whose weights are not at hand."""


@pytest.fixture
def autoencoder(tmp_path) -> Path:
    """A folder as the published autoencoder's, without weights."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(SD_VAE))
    return tmp_path / "vae"


@pytest.fixture
def preset(tmp_path):
    """Function: the preset with overrides, of data that aren't there."""
    (tmp_path / "c.yaml").write_text("name: x\ndata: {path: gone}\n")

    def load(*overrides: str) -> RunConfig:
        return resolve_if_there(load_config(tmp_path / "c.yaml", list(overrides), preset="gpu"))

    return load


def test_with_an_autoencoder_it_fits_the_card_it_says(preset, autoencoder):
    config = preset(f"diffusion.codec.source={autoencoder}")
    assert (config.diffusion.codec.kind, config.data.side) == ("autoencoder", 256)
    assert first_stage_text(config) is None
    counted = cost(config, n_classes=2)
    assert counted.latent == (4, 32, 32)
    assert counted.parameters["codec"] == pytest.approx(83.65e6, rel=1e-3)
    assert counted.encoded == config.recolour.probability, "the latents of the others are kept"
    assert config.synthesis.sampling.nfe == 16
    # src/stedm/config/presets/gpu.yaml: the whole batch at once fits 16 GB.
    assert (config.machine.accumulate, config.machine.activation_checkpointing) == (1, False)
    assert training_memory(config, 2, "bf16").total < USABLE * 16 * 2**30


def test_without_one_it_works_on_pixels_and_says_how_to_give_one(preset):
    config = preset()
    assert (config.diffusion.codec.kind, config.data.side) == ("pixel", 128)
    hint = first_stage_text(config)
    assert f"hf download {PUBLISHED}" in hint
    assert f"--set diffusion.codec.source={PUBLISHED}" in hint
    assert "\n" not in hint
    assert first_stage_text(config.model_copy(update={"preset": "cpu"})) is None
    # What the hint says is enough.
    given = preset(hint.partition("--set ")[2].split()[0])
    codec = given.diffusion.codec
    assert (codec.kind, codec.source, given.data.side) == ("autoencoder", PUBLISHED, 256)


def test_the_published_vq_f4_is_one_key_too(preset, tmp_path):
    config = preset(f"diffusion.codec.weights={tmp_path}/model.ckpt")
    assert (config.diffusion.codec.kind, config.data.side) == ("vq-f4", 256)
    with pytest.raises(StedmError, match=r"model.ckpt: missing; docs/codecs.md"):
        check_first_stage(config)


def test_sides_of_data_are_such_that_latents_can_be_halved(tiny_dataset, autoencoder, tmp_path):
    (tmp_path / "d.yaml").write_text(f"name: x\ndata: {{path: {tiny_dataset(image_px=88)}}}\n")
    sides = {
        given: resolve(load_config(tmp_path / "d.yaml", [given] if given else None, "gpu")).data.side
        for given in ("", f"diffusion.codec.source={autoencoder}")
    }
    assert list(sides.values()) == [80, 64]


def test_what_would_stop_a_run_after_hours_stops_it_at_its_start(tiny_dataset, tiny_run, autoencoder, tmp_path):
    values = tiny_run({"path": tiny_dataset()})
    values["diffusion"]["codec"] = {"source": str(autoencoder)}
    config = RunConfig.model_validate(values)
    with pytest.raises(StedmError, match=r"vae: no weights here"):
        Experiment(config, tmp_path / "run").check()
    (autoencoder / "diffusion_pytorch_model.safetensors").touch()
    oblong = config.model_copy(update={"data": config.data.model_copy(update={"image_px": 24})})
    with pytest.raises(StedmError, match="image_px 24: must be a multiple of 16 for this first stage and 2 levels"):
        Experiment(oblong, tmp_path / "other").check()
    assert len(DatasetFolder.open(config.data.path)) > 0
