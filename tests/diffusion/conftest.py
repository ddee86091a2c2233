"""The datasets that small diffusion models train on, and a first stage as latent-diffusion publishes it, in small."""

import pytest
import torch

from stedm.data.folder import DatasetFolder
from stedm.diffusion.ldm_checkpoint import VQ_F4


@pytest.fixture
def cohort(tiny_dataset):
    """(annotated, unlabeled) parts of a tiny dataset with 16 px images."""
    dataset = DatasetFolder.open(tiny_dataset(image_px=16))
    return dataset.split("train"), dataset.split("unlabeled")


def _ldm_shapes(ch=32, ch_mult=(1, 2, 2), blocks=1, z_channels=3, embed_dim=3, n_embed=20) -> dict[str, tuple]:
    """Key names and shapes of a VQ first stage of latent-diffusion; attn_resolutions [] as in VQ-f4."""
    shapes: dict[str, tuple] = {}

    def conv(name, inside, outside, size=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outside, inside, size, size), (outside,)

    def norm(name, channels):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def block(name, inside, outside):
        norm(f"{name}.norm1", inside)
        conv(f"{name}.conv1", inside, outside)
        norm(f"{name}.norm2", outside)
        conv(f"{name}.conv2", outside, outside)
        if inside != outside:
            conv(f"{name}.nin_shortcut", inside, outside, 1)

    def middle(name, channels):
        block(f"{name}.block_1", channels, channels)
        norm(f"{name}.attn_1.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.attn_1.{part}", channels, channels, 1)
        block(f"{name}.block_2", channels, channels)

    widths = [ch * factor for factor in ch_mult]
    conv("encoder.conv_in", 3, ch)
    inside = ch
    for level, width in enumerate(widths):
        for i in range(blocks):
            block(f"encoder.down.{level}.block.{i}", inside, width)
            inside = width
        if level < len(widths) - 1:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder.mid", inside)
    norm("encoder.norm_out", inside)
    conv("encoder.conv_out", inside, z_channels)
    conv("decoder.conv_in", z_channels, inside)
    middle("decoder.mid", inside)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(blocks + 1):
            block(f"decoder.up.{level}.block.{i}", inside, width)
            inside = width
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", inside)
    conv("decoder.conv_out", inside, 3)
    conv("quant_conv", z_channels, embed_dim, 1)
    conv("post_quant_conv", embed_dim, z_channels, 1)
    shapes["quantize.embedding.weight"] = (n_embed, embed_dim)
    return shapes


@pytest.fixture
def ldm_shapes():
    """Function: key names and shapes of a VQ first stage of latent-diffusion."""
    return _ldm_shapes


SMALL_VQ = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 3,
    "vq_embed_dim": 3,
    "num_vq_embeddings": 20,
    "norm_num_groups": 32,
    "scaling_factor": 1.0,
}


@pytest.fixture
def small_vq() -> dict:
    """Arguments of diffusers' VQModel for `ldm_state`."""
    return SMALL_VQ


@pytest.fixture
def small_vq_f4(monkeypatch):
    """Let the published VQ-f4 be one as small as `ldm_state`."""
    for key, value in SMALL_VQ.items():
        monkeypatch.setitem(VQ_F4, key, value)


@pytest.fixture
def ldm_state() -> dict[str, torch.Tensor]:
    """A small one with random numbers, large enough that every layer matters to the output."""
    generator = torch.Generator().manual_seed(0)
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in _ldm_shapes().items()}
