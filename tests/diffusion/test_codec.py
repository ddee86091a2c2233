"""Codecs: latents of unit variance, images back, saved = loaded."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from stedm.config import AutoencoderCodecConfig, PixelCodecConfig, VQF4CodecConfig
from stedm.diffusion.codec import AutoencoderCodec, PixelCodec, codec_shapes, load_codec, open_codec
from stedm.errors import StedmError


def _images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tint = torch.tensor([0.2, 0.6, 0.9]).view(1, 3, 1, 1)
    return (torch.rand(6, 3, 16, 16, generator=generator) * tint).clamp(-1, 1)


def _autoencoder(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    if kind is AutoencoderTiny:
        widths, numbers = (8, 8), (1, 1)
        return kind(3, 3, widths, widths, latent_channels=3, num_encoder_blocks=numbers, num_decoder_blocks=numbers)
    if kind is AutoencoderDC:
        sides = {"block_types": "ResBlock", "block_out_channels": (8, 8), "layers_per_block": (1, 1)}
        sides["qkv_multiscales"] = ((), ())
        both = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()}
        return kind(3, 3, **both, encoder_out_shortcut=False, decoder_in_shortcut=False)
    if kind is VQModel:
        blocks["vq_embed_dim"] = 3
    return kind(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, layers_per_block=1, **blocks)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_survive_exactly_and_latents_are_normalised(factor, tmp_path):
    codec = PixelCodec(factor).measured(_images())
    latents = codec.encode(_images())
    assert latents.shape == (6, 3 * factor**2, 16 // factor, 16 // factor)
    assert latents.mean().abs() < 0.01
    assert (latents.std() - 1).abs() < 0.02
    torch.testing.assert_close(codec.decode(latents), _images())
    codec.save_pretrained(tmp_path / "codec")
    torch.testing.assert_close(load_codec(tmp_path / "codec").encode(_images()), latents)


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC])
def test_a_diffusers_autoencoder_from_a_local_folder(kind, tmp_path):
    _autoencoder(kind).save_pretrained(tmp_path / "theirs")
    codec = AutoencoderCodec.from_pretrained(tmp_path / "theirs").measured(_images())
    latents = codec.encode(_images())
    assert latents.shape == (6, 3, 8, 8) == (6, codec.latent_channels, 16 // codec.factor, 16 // codec.factor)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert codec.decode(latents).shape == (6, 3, 16, 16)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    codec.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(load_codec(tmp_path / "ours").encode(_images()), latents)


def test_latents_of_a_vq_model_have_the_width_of_its_codes():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = VQModel(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, vq_embed_dim=5, **blocks)
    codec = AutoencoderCodec(model).measured(_images())
    assert codec.latent_channels == codec.encode(_images()).shape[1] == 5


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_distribution_is_drawn_from_with_noise_and_only_then():
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL)).measured(_images())
    moments = codec.moments(_images())
    assert moments.shape == (6, 6, 8, 8)
    one, same, other = (codec.sample(moments, _noise(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    many = torch.stack([codec.sample(moments, _noise(seed)) for seed in range(300)])
    torch.testing.assert_close(many.mean(dim=0), codec.encode(_images()), atol=6 / 300**0.5 * many.std().item(), rtol=0)
    torch.testing.assert_close(many.std(dim=0).mean(), (moments[:, 3:] / codec.std).mean(), rtol=0.02, atol=0)
    vq = AutoencoderCodec(_autoencoder(VQModel))
    assert torch.equal(vq.encode(_images(), _noise(0)), vq.encode(_images()))


def test_statistics_of_the_folder_are_kept_and_missing_ones_are_measured(tmp_path):
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL), mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    codec.save_pretrained(tmp_path / "vae")
    config = AutoencoderCodecConfig(source=str(tmp_path / "vae"))
    assert open_codec(config, _images()).mean.flatten().tolist() == [1.0, 2.0, 3.0]
    (tmp_path / "vae" / "latents.json").unlink()
    latents = open_codec(config, _images()).encode(_images())
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert isinstance(open_codec(PixelCodecConfig(), _images()), PixelCodec)


def test_a_hub_name_is_looked_up_in_the_local_cache_only(tmp_path, monkeypatch):
    import socket

    from huggingface_hub import constants

    def no_network(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = AutoencoderCodecConfig(source="someone/vae/vae")
    with pytest.raises(StedmError, match=r"hf download someone/vae") as error:
        open_codec(config, _images())
    assert len(str(error.value).splitlines()) == 1
    snapshot = tmp_path / "models--someone--vae" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (snapshot / "vae").mkdir(parents=True)
    (tmp_path / "models--someone--vae" / "refs").mkdir()
    (tmp_path / "models--someone--vae" / "refs" / "main").write_text(snapshot.name)
    _autoencoder(AutoencoderKL).save_pretrained(snapshot / "vae")
    assert open_codec(config, _images()).latent_channels == 3
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(StedmError, match="no weights here"):
        open_codec(config, _images())
    with pytest.raises(StedmError, match="no such folder"):
        open_codec(AutoencoderCodecConfig(source="/no/such/folder"), _images())


def test_the_published_vq_f4_is_converted_when_it_is_opened(ldm_state, small_vq_f4, tmp_path):
    torch.save({"state_dict": ldm_state}, tmp_path / "model.ckpt")
    config = VQF4CodecConfig(weights=tmp_path / "model.ckpt")
    latents = open_codec(config, _images()).encode(_images())
    assert latents.shape == (6, 3, 4, 4)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_the_shapes_of_a_vq_f4_need_no_file(tmp_path):
    codec = codec_shapes(VQF4CodecConfig(weights=tmp_path / "none.ckpt"))
    assert (codec.latent_channels, codec.factor) == (3, 4)
    # 55.3 M, as counted in the authors' network.
    assert round(sum(p.numel() for p in codec.parameters()) / 1e6, 1) == 55.3
    assert {p.device.type for p in codec.parameters()} == {"meta"}
    with pytest.raises(StedmError, match=r"none\.ckpt: no such checkpoint"):
        open_codec(VQF4CodecConfig(weights=tmp_path / "none.ckpt"), _images())


def test_what_encodes_no_images_is_refused(tmp_path):
    from diffusers import UNet2DModel

    UNet2DModel(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(StedmError, match="UNet2DModel"):
        AutoencoderCodec.from_pretrained(tmp_path / "unet")
    _autoencoder(VQModel).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(StedmError, match="no weights here"):
        AutoencoderCodec.from_pretrained(tmp_path / "pickled")


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(StedmError, match=r"config\.json is missing"):
        AutoencoderCodec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(StedmError, match="not an autoencoder"):
        load_codec(tmp_path)


def test_no_model_folder_says_where_its_parts_lay(tmp_path):
    _autoencoder(AutoencoderKL).save_pretrained(tmp_path / "vae")
    AutoencoderCodec.from_pretrained(tmp_path / "vae").save_pretrained(tmp_path / "model" / "codec")
    assert str(tmp_path) not in (tmp_path / "model" / "codec" / "config.json").read_text()


def test_float16_is_not_for_autoencoders():
    """Published ones leave its range; bfloat16 has the range of float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = AutoencoderCodec(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=3))
    images, plain = _images(), codec.encode(_images())
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(codec.encode(images), plain)
        assert torch.equal(codec.decode(plain), codec.decode(plain.float()))
        assert codec.decode(plain).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(codec.encode(images), plain)
        assert codec.encode(images).dtype == torch.float32
