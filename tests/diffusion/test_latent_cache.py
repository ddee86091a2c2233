"""Cached latents: the same training, one encoding an image and symmetry."""

import json
import resource

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from stedm.config import AutoencoderCodecConfig, MachineConfig, RecolourConfig
from stedm.data.cache import ImageCache
from stedm.data.symmetry import N_SYMMETRIES, symmetry, to_signed
from stedm.diffusion.codec import AutoencoderCodec
from stedm.diffusion.latent_cache import LatentCache
from stedm.diffusion.train import train_diffusion
from stedm.errors import DiskError


def _autoencoder(kind: type, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        return kind(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, **blocks)


@pytest.fixture
def encodings(monkeypatch):
    """Numbers of images that autoencoders have encoded, call by call."""
    counts = []
    for kind in (AutoencoderKL, VQModel):

        def counting(self, x, *arguments, _encode=kind.encode, **options):
            counts.append(len(x))
            return _encode(self, x, *arguments, **options)

        monkeypatch.setattr(kind, "encode", counting)
    return counts


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
def test_training_on_cached_latents_has_the_losses_of_training_that_encodes(
    kind, diffusion_config, cohort, tmp_path, encodings
):
    _autoencoder(kind).save_pretrained(tmp_path / "vae")
    losses = {}
    for cached in (False, True):
        config = diffusion_config(
            codec=AutoencoderCodecConfig(source=str(tmp_path / "vae")),
            steps=12,
            batch=8,
        )
        encodings.clear()
        rows = []
        train_diffusion(
            config,
            *cohort,
            tmp_path / str(cached),
            image_px=16,
            machine=MachineConfig(cache_latents=cached),
            recolour=RecolourConfig(probability=0),
            on_progress=lambda done, total, loss, rows=rows: rows.append(loss),
        )
        losses[cached] = rows
        # The first encodings measure the latents (15 images); with a cache one more tells their shape.
        drawn = sum(encodings) - 15 - cached
        encoded = tmp_path / "True" / "latents" / "sums.npy"
        # An image that is twice in a batch is encoded twice.
        assert np.count_nonzero(np.load(encoded)) <= drawn < 12 * 8 - 20 if cached else drawn == 12 * 8
    assert len(losses[True]) == 12
    np.testing.assert_allclose(losses[True], losses[False], rtol=2e-3)
    assert np.load(tmp_path / "True" / "latents" / "moments.npy", mmap_mode="r").dtype == np.float16


def _batch(cache: ImageCache) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row = torch.arange(len(cache)).repeat_interleave(N_SYMMETRIES)
    symmetry_index = torch.arange(N_SYMMETRIES).repeat(len(cache))
    images = [symmetry(cache.image(int(r)), int(t)) for r, t in zip(row, symmetry_index, strict=True)]
    return to_signed(torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())), row, symmetry_index


def test_every_symmetry_is_the_encoding_of_the_turned_image(cohort, tmp_path, encodings):
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL))
    images, row, symmetry_index = _batch(ImageCache(cohort[0], 16))
    expected = codec.encode(images)
    names = cohort[0].table["image_file_name"].tolist()
    first = LatentCache(tmp_path / "latents", codec, names, 16)(images, row, symmetry_index)
    torch.testing.assert_close(first, expected, rtol=2e-3, atol=2e-3)
    encodings.clear()
    # Opened again, in another order, and from blank images: what comes back was kept.
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(0))
    again = LatentCache(tmp_path / "latents", codec, names, 16)(0 * images, row[order], symmetry_index[order])
    assert torch.equal(again, first[order])
    assert encodings == []
    # It would not do to turn the latent instead: an autoencoder doesn't commute with turning.
    turned = np.rot90(expected[0].numpy(), 1, axes=(1, 2))
    assert not np.allclose(turned, expected[1].numpy(), atol=2e-2)


def test_recoloured_images_are_encoded_each_time_and_not_kept(cohort, tmp_path, encodings):
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL))
    images, row, symmetry_index = _batch(ImageCache(cohort[0], 16))
    unchanged = torch.arange(len(row)) % 3 > 0
    cache = LatentCache(tmp_path / "latents", codec, cohort[0].table["image_file_name"].tolist(), 16)
    for colours in (images, images.flip(1)):
        encodings.clear()
        given = torch.where(unchanged.view(-1, 1, 1, 1), images, colours)
        found = cache(given, row, symmetry_index, unchanged=unchanged)
        torch.testing.assert_close(found, codec.encode(given), rtol=2e-3, atol=2e-3)
    # The second time those alone that were recoloured; and all of them for the comparison.
    assert encodings == [int((~unchanged).sum()), len(row)]
    kept = np.load(tmp_path / "latents" / "sums.npy")[row.numpy(), symmetry_index.numpy()] != 0
    assert np.array_equal(kept, unchanged.numpy())


@pytest.mark.parametrize("cached", [False, True])
def test_the_first_stage_runs_in_the_precision_of_the_training(cached, diffusion_config, cohort, tmp_path, monkeypatch):
    seen = []

    def encode(self, x, *arguments, _encode=AutoencoderKL.encode, **options):
        seen.append((torch.is_autocast_enabled("cpu"), self.encoder.conv_in(x).dtype))
        return _encode(self, x, *arguments, **options)

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    _autoencoder(AutoencoderKL).save_pretrained(tmp_path / "vae")
    config = diffusion_config(codec=AutoencoderCodecConfig(source=str(tmp_path / "vae")), steps=1)
    machine = MachineConfig(precision="bf16", cache_latents=cached)
    train_diffusion(config, *cohort, tmp_path / "run", image_px=16, machine=machine)
    # Measured in it, too. What tells the cache the number of channels needn't.
    is_in_training = [here for here, kind in seen if kind == torch.bfloat16]
    assert len(is_in_training) == len(seen) - cached
    assert all(is_in_training)


def test_a_cache_of_another_codec_or_of_other_images_is_made_anew(cohort, tmp_path):
    names = cohort[0].table["image_file_name"].tolist()
    images, row, symmetry_index = _batch(ImageCache(cohort[0], 16))
    one, other = (AutoencoderCodec(_autoencoder(AutoencoderKL, seed)) for seed in (0, 1))
    for codec, rows in ((one, names), (other, names), (other, names[::-1])):
        cache = LatentCache(tmp_path / "latents", codec, rows, 16)
        assert not np.load(tmp_path / "latents" / "sums.npy").any()
        torch.testing.assert_close(cache(images, row, symmetry_index), codec.encode(images), rtol=2e-3, atol=2e-3)
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    shape = list(np.load(tmp_path / "latents" / "moments.npy", mmap_mode="r").shape)
    assert index == {"autoencoder": other.fingerprint, "image_px": 16, "images": names[::-1], "shape": shape}


@pytest.mark.parametrize("name", ["moments.npy", "sums.npy", "index.json"])
def test_damaged_latents_are_encoded_again(cohort, tmp_path, name):
    names = cohort[0].table["image_file_name"].tolist()
    images, row, symmetry_index = _batch(ImageCache(cohort[0], 16))
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL))
    first = LatentCache(tmp_path / "latents", codec, names, 16)(images, row, symmetry_index)
    path = tmp_path / "latents" / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 64
    for damaged in (bytes(flipped), content[: len(content) // 2], b""):
        path.write_bytes(damaged)
        again = LatentCache(tmp_path / "latents", codec, names, 16)(images, row, symmetry_index)
        torch.testing.assert_close(again, first, rtol=2e-3, atol=2e-3)


def test_nothing_is_kept_where_pixels_change_or_nothing_is_encoded(diffusion_config, cohort, tmp_path):
    """The key belongs to the machine: on another one, or with another model, it must not stop a run."""
    machine = MachineConfig(cache_latents=True)
    train_diffusion(diffusion_config(steps=1), *cohort, tmp_path, image_px=16, machine=machine)
    assert not (tmp_path / "latents").exists()


def test_a_full_disk_is_one_line_and_no_broken_bus(tmp_path):
    """Memory that is mapped to a file for which there is no room ends the process without a word."""
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL))
    images, row = torch.zeros(1, 3, 16, 16), torch.tensor([1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = LatentCache(tmp_path / "latents", codec, ["a.png", "b.png"], 16)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(DiskError, match=r"latents/moments.npy: File too large; .* the same command again"):
            cache(images, row, torch.tensor([3]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not np.load(tmp_path / "latents/sums.npy").any()
    cache(images, row, torch.tensor([3]))
    assert np.argwhere(np.load(tmp_path / "latents/sums.npy")).tolist() == [[1, 3]]


@pytest.mark.parametrize(
    "damage", [b"\x93NUMPY\x01\x00v\x00{'descr': '<f2', 'shape': (", b"", b"\x93NUMPY\x01\x00\xff\xff"]
)
def test_a_cache_whose_header_is_damaged_is_made_anew(cohort, tmp_path, damage):
    names = cohort[0].table["image_file_name"].tolist()
    images, row, symmetry_index = _batch(ImageCache(cohort[0], 16))
    codec = AutoencoderCodec(_autoencoder(AutoencoderKL))
    LatentCache(tmp_path / "latents", codec, names, 16)(images, row, symmetry_index)
    (tmp_path / "latents" / "sums.npy").write_bytes(damage + bytes(200))
    again = LatentCache(tmp_path / "latents", codec, names, 16)(images, row, symmetry_index)
    torch.testing.assert_close(again, codec.encode(images), rtol=2e-3, atol=2e-3)
