"""Style encoders and first stages of one's own, given from Python: trained, saved, and wanted again when loaded."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from stedm import StyleDiffusion
from stedm.config import MachineConfig, RecolourConfig
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.train import train_diffusion
from stedm.errors import StedmError
from stedm.training import trainer

LAYOUTS = np.zeros((2, 16, 16), np.uint8)


class MeanColour(nn.Module):
    """A style encoder of 4 parameters a number, with neither `measure` nor anything else of ours."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.project = nn.Linear(3, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(images.mean(dim=(2, 3)))


class Halved:
    """A first stage that is no module: every second pixel, whitened by eye."""

    latent_channels, factor = 3, 2

    def encode(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return 2.0 * nn.functional.avg_pool2d(images, 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(latents / 2.0, scale_factor=2.0).clamp(-1.0, 1.0)


class Learnable(nn.Module):
    """A first stage that is a module, whose weights must stay."""

    latent_channels, factor = 3, 1

    def __init__(self):
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.tensor(2.0)), nn.Dropout(0.5)

    def encode(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        return self.dropout(self.scale * images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents / self.scale).clamp(-1.0, 1.0)


@pytest.fixture
def style(cohort):
    return [cohort[1].read_image(row, 16) for row in range(2)]


def test_a_style_encoder_of_ones_own_learns_and_is_wanted_again(diffusion_config, cohort, style, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "WEIGHT_DECAY", 0.0)
    own = MeanColour()
    before = own.project.weight.detach().clone()
    model = train_diffusion(diffusion_config(ema_decay=0.0), *cohort, tmp_path, image_px=16, style_encoder=own)
    learned = model.denoiser.style_encoder.project.weight
    assert not torch.equal(learned, before)
    assert torch.equal(own.project.weight, before), "a copy learns"
    drawn = model.generate(LAYOUTS, style, steps=2)
    loaded = StyleDiffusion.from_pretrained(tmp_path / "model", style_encoder=MeanColour())
    assert torch.equal(loaded.denoiser.style_encoder.project.weight, learned)
    assert np.array_equal(loaded.generate(LAYOUTS, style, steps=2), drawn)
    assert loaded.fingerprint == model.fingerprint
    with pytest.raises(StedmError, match="module of your own; give it") as error:
        StyleDiffusion.from_pretrained(tmp_path / "model")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(StedmError, match="not weights of this network"):
        StyleDiffusion.from_pretrained(tmp_path / "model", style_encoder=nn.Sequential(MeanColour()))


@pytest.mark.parametrize("kind", [Halved, Learnable])
def test_a_first_stage_of_ones_own_stays_as_it_is_and_is_wanted_again(diffusion_config, cohort, style, tmp_path, kind):
    own = kind()
    model = train_diffusion(diffusion_config(), *cohort, tmp_path, image_px=16, codec=own)
    assert model.codec is own
    assert model.denoiser.config.latent_channels == 3
    if kind is Learnable:
        assert own.scale == 2.0
        assert not own.training
    drawn = model.generate(LAYOUTS, style, steps=2)
    loaded = StyleDiffusion.from_pretrained(tmp_path / "model", codec=kind())
    assert np.array_equal(loaded.generate(LAYOUTS, style, steps=2), drawn)
    with pytest.raises(StedmError, match=rf"a codec of your own \({kind.__name__}\); give it") as error:
        StyleDiffusion.from_pretrained(tmp_path / "model")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "model" / "codec").exists()


def test_what_a_model_has_itself_is_not_given(diffusion_config, cohort, tmp_path):
    train_diffusion(diffusion_config(steps=1), *cohort, tmp_path, image_px=16)
    with pytest.raises(StedmError, match="has a codec"):
        StyleDiffusion.from_pretrained(tmp_path / "model", codec=Halved())
    with pytest.raises(StedmError, match="has style encoder conv"):
        StyleDiffusion.from_pretrained(tmp_path / "model", style_encoder=MeanColour())


@pytest.mark.parametrize(
    ("style", "dim", "message"),
    [
        ({"dim": 16}, 8, r"gives \(2, 8\) for 2 images; \(2, 16\) expected"),
        ({"dim": 16, "aggregation": "set-vit"}, 16, "reads the images itself"),
        ({"dim": 16, "encoder": "resnet18", "weights": "a.safetensors"}, 16, "are for the encoder"),
    ],
)
def test_a_style_encoder_that_does_not_fit_is_refused(style, dim, message):
    with pytest.raises(StedmError, match=message):
        StyleDenoiser(2, 12, 2, style=style, style_encoder=MeanColour(dim))


def test_latents_of_ones_own_are_not_cached(diffusion_config, cohort, tmp_path):
    config = diffusion_config(steps=1)
    machine = MachineConfig(cache_latents=True)
    train_diffusion(
        config, *cohort, tmp_path, image_px=16, codec=Halved(), machine=machine, recolour=RecolourConfig(probability=0)
    )
    assert not (tmp_path / "latents").exists()


def test_the_configuration_of_a_saved_denoiser_is_that_of_the_run(diffusion_config, cohort, tmp_path):
    config = diffusion_config(steps=1)
    train_diffusion(config, *cohort, tmp_path, image_px=16)
    saved = json.loads((tmp_path / "model" / "denoiser" / "config.json").read_text())
    assert saved["denoiser"] == config.denoiser.model_dump(mode="json")
    assert saved["style"] == config.style.model_dump(mode="json")
    assert (saved["n_classes"], saved["latent_channels"], saved["layout_factor"], saved["image_px"]) == (2, 12, 2, 16)
    assert "style_encoder" not in saved
