"""Checkpoints of latent-diffusion: the converted VQModel computes what the original network computes.

The original network is written here once more, as functions of a state dict with its key names.
"""

import sys
import types

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file
from torch.nn import functional as F

from stedm.diffusion.ldm_checkpoint import convert_ldm_vq, load_ldm_vq
from stedm.errors import StedmError


class Original:
    """The first stage of latent-diffusion as functions of its state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **options):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], **{"padding": weight.shape[-1] // 2, **options})

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        return (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x) + h

    def middle(self, name, x):
        x = self.block(f"{name}.block_1", x)
        h = self.norm(f"{name}.attn_1.norm", x)
        q, k, v = (self.conv(f"{name}.attn_1.{part}", h).flatten(2) for part in "qkv")
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=2)
        h = (v @ weights.transpose(1, 2)).view_as(x)
        return self.block(f"{name}.block_2", x + self.conv(f"{name}.attn_1.proj_out", h))

    def blocks(self, prefix, x):
        i = 0
        while f"{prefix}.block.{i}.conv1.weight" in self.state:
            x, i = self.block(f"{prefix}.block.{i}", x), i + 1
        return x

    def encode(self, x):
        x, level = self.conv("encoder.conv_in", x), 0
        while f"encoder.down.{level}.block.0.conv1.weight" in self.state:
            x = self.blocks(f"encoder.down.{level}", x)
            if f"encoder.down.{level}.downsample.conv.weight" in self.state:
                x = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
            level += 1
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder.mid", x)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x))

    def decode(self, z):
        codes = self.state["quantize.embedding.weight"]
        distance = (z.unsqueeze(1) - codes[None, :, :, None, None]).square().sum(dim=2)
        z = codes[distance.argmin(dim=1)].permute(0, 3, 1, 2)
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", self.conv("post_quant_conv", z)))
        for level in (2, 1, 0):
            x = self.blocks(f"decoder.up.{level}", x)
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)))


def _same_outputs(model: VQModel, state) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images).latents
        torch.testing.assert_close(latents, Original(state).encode(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.decode(latents).sample, Original(state).decode(latents), rtol=1e-4, atol=1e-4)
        assert latents.shape == (2, 3, 4, 4)
        assert model.decode(latents).sample.std() > 0.05


def test_the_converted_model_computes_what_the_original_computes(ldm_state, small_vq, tmp_path):
    model = convert_ldm_vq(ldm_state, small_vq)
    _same_outputs(model, ldm_state)
    model.save_pretrained(tmp_path / "vq")
    _same_outputs(VQModel.from_pretrained(tmp_path / "vq"), ldm_state)


def test_every_tensor_of_the_original_is_in_the_converted_model_once(ldm_state, small_vq):
    values = convert_ldm_vq(ldm_state, small_vq).state_dict().values()
    assert len(values) == len(ldm_state)
    assert sorted(float(v.sum()) for v in values) == pytest.approx(sorted(float(v.sum()) for v in ldm_state.values()))


def test_the_published_vq_f4_has_the_keys_and_shapes_that_the_full_size_model_expects(ldm_shapes):
    shapes = ldm_shapes(ch=128, ch_mult=(1, 2, 4), blocks=2, z_channels=3, embed_dim=3, n_embed=8192)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    model = convert_ldm_vq(state)
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in model.parameters())
    # 55.3 M, as counted in the authors' network.
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 55.3


class _Callback:
    """Something of a training library that stands in a checkpoint."""

    ran = False

    def __setstate__(self, values):
        type(self).ran = True


def test_files_as_they_are_published(ldm_state, small_vq, tmp_path, monkeypatch):
    """A Lightning checkpoint with loss networks, counters and callbacks; a whole latent diffusion; safetensors."""
    module = types.ModuleType("lightning_stub")
    _Callback.__module__, _Callback.__qualname__, module._Callback = "lightning_stub", "_Callback", _Callback
    monkeypatch.setitem(sys.modules, "lightning_stub", module)
    callback = _Callback()
    callback.best = 0.5
    with_loss = ldm_state | {"loss.discriminator.main.0.weight": torch.zeros(4), "model_ema.decay": torch.tensor(0.9)}
    torch.save({"state_dict": with_loss, "epoch": 3, "callbacks": {_Callback: callback}}, tmp_path / "vq-f4.ckpt")
    whole = {f"first_stage_model.{key}": value for key, value in ldm_state.items()}
    torch.save({"state_dict": whole | {"model.diffusion_model.out.weight": torch.zeros(1)}}, tmp_path / "ldm.pt")
    save_file(ldm_state, tmp_path / "vq.safetensors")
    for name in ("vq-f4.ckpt", "ldm.pt", "vq.safetensors"):
        _same_outputs(load_ldm_vq(tmp_path / name, small_vq), ldm_state)
    assert not _Callback.ran, "code of the checkpoint ran"


def test_what_is_no_vq_first_stage_is_refused(ldm_state, small_vq, tmp_path):
    with pytest.raises(StedmError, match=r"none\.ckpt: no such checkpoint"):
        load_ldm_vq(tmp_path / "none.ckpt")
    for name in ("broken.ckpt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(StedmError, match="broken"):
            load_ldm_vq(tmp_path / name)
    incomplete = {key: value for key, value in ldm_state.items() if key != "decoder.mid.attn_1.q.weight"}
    with pytest.raises(StedmError, match="architecture"):
        convert_ldm_vq(incomplete, small_vq)
    with pytest.raises(StedmError, match="architecture"):
        convert_ldm_vq(ldm_state | {"encoder.down.2.attn.0.q.weight": torch.zeros(64, 64, 1, 1)}, small_vq)
    with pytest.raises(StedmError, match="architecture"):
        convert_ldm_vq(ldm_state)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StedmError, match=r"other\.safetensors: no VQ first stage"):
        load_ldm_vq(tmp_path / "other.safetensors")
