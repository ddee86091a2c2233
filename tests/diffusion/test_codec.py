"""Codecs: latents of unit variance, pictures back, saved = loaded."""

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from stedm.diffusion.codec import AutoencoderCodec, PixelCodec, load_codec
from stedm.errors import StedmError


def _pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tint = torch.tensor([0.2, 0.6, 0.9]).view(1, 3, 1, 1)
    return (torch.rand(6, 3, 16, 16, generator=generator) * tint).clamp(-1, 1)


def _autoencoder(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return kind(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, layers_per_block=1, **blocks)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_survive_exactly_and_latents_are_normalised(factor, tmp_path):
    codec = PixelCodec(factor).measured(_pictures())
    latents = codec.encode(_pictures())
    assert latents.shape == (6, 3 * factor**2, 16 // factor, 16 // factor)
    assert latents.mean().abs() < 0.01
    assert (latents.std() - 1).abs() < 0.02
    torch.testing.assert_close(codec.decode(latents), _pictures())
    codec.save_pretrained(tmp_path / "codec")
    torch.testing.assert_close(load_codec(tmp_path / "codec").encode(_pictures()), latents)


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
def test_a_diffusers_autoencoder_from_a_local_folder(kind, tmp_path):
    _autoencoder(kind).save_pretrained(tmp_path / "theirs")
    codec = AutoencoderCodec.from_pretrained(tmp_path / "theirs").measured(_pictures())
    latents = codec.encode(_pictures())
    assert latents.shape == (6, 3, 8, 8) == (6, codec.latent_channels, 16 // codec.factor, 16 // codec.factor)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert codec.decode(latents).shape == (6, 3, 16, 16)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    codec.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(load_codec(tmp_path / "ours").encode(_pictures()), latents)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(StedmError, match=r"config\.json is missing"):
        AutoencoderCodec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(StedmError, match="not an autoencoder"):
        load_codec(tmp_path)
