"""Where the style enters the U-Net is where the configuration says, and nowhere else."""

import inspect

import pytest
import torch
from diffusers import UNet2DModel

from stedm.config import DenoiserConfig, MachineConfig
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.train import make_denoiser, train_diffusion
from stedm.diffusion.unet import make_unet
from stedm.style.encoder import ConvStyleEncoder
from stedm.training import trainer

INJECTIONS = ["mid", "own-block", "all", "cross"]


def tiny_denoiser(**changes) -> StyleDenoiser:
    torch.manual_seed(0)
    unet = {"channels": [16, 24], "norm_groups": 8, "layout_channels": 4}
    style = {"dim": 16, **changes}
    encoder = ConvStyleEncoder([8], 16) if "encoder" not in changes else None
    return StyleDenoiser(2, 12, 2, denoiser=unet, style=style, style_encoder=encoder).eval()


def changes_by_block(denoiser: StyleDenoiser) -> dict[str, bool]:
    """For each block of the U-Net, whether another style changes what it makes of the same features."""
    seen: dict[str, list] = {}
    for name, block in denoiser.unet.named_children():
        for index, part in enumerate(block) if isinstance(block, torch.nn.ModuleList) else [("", block)]:
            if name in ("down_blocks", "mid_block", "up_blocks"):
                part.register_forward_hook(
                    lambda module, args, kwargs, output, key=f"{name}{index}": seen.setdefault(key, []).append(
                        (module, inspect.signature(module.forward).bind(*args, **kwargs).arguments)
                    ),
                    with_kwargs=True,
                )
    noisy, layout = torch.randn(1, 12, 8, 8), torch.zeros(1, 16, 16, dtype=torch.long)
    with torch.no_grad():
        for style in (torch.zeros(1, 16), torch.ones(1, 16)):
            denoiser.denoise(noisy, torch.tensor([500.0]), layout, style)
        result = {}
        for key, ((block, first), (_, second)) in list(seen.items()):
            given = {name: second[name] for name in ("temb", "encoder_hidden_states") if name in second}
            both = [block.forward(**first), block.forward(**{**first, **given})]
            a, b = (out[0] if isinstance(out, tuple) else out for out in both)
            result[key] = not torch.equal(a, b)
    return result


@pytest.mark.parametrize(
    ("injection", "styled"),
    [
        ("mid", {"mid_block"}),
        ("all", {"down_blocks0", "down_blocks1", "mid_block", "up_blocks0", "up_blocks1"}),
        ("cross", {"down_blocks0", "down_blocks1", "mid_block", "up_blocks0", "up_blocks1"}),
    ],
)
def test_the_style_reaches_the_asked_blocks_and_no_other(injection, styled):
    assert {key for key, changed in changes_by_block(tiny_denoiser(injection=injection)).items() if changed} == styled


def test_own_block_is_one_more_resblock_and_the_only_place_of_the_style():
    plain, denoiser = tiny_denoiser(injection="mid"), tiny_denoiser(injection="own-block")
    extra = set(dict(denoiser.unet.named_parameters())) - set(dict(plain.unet.named_parameters()))
    assert extra
    assert all(name.startswith("style_block.") for name in extra)
    noisy, layout = torch.randn(1, 12, 8, 8), torch.zeros(1, 16, 16, dtype=torch.long)

    def predictions() -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                denoiser.denoise(noisy, torch.tensor([500.0]), layout, style)
                for style in (torch.zeros(1, 16), torch.ones(1, 16))
            ]

    first, second = predictions()
    assert not torch.equal(first, second)
    # With the block's own contribution taken away, nothing is left of the style.
    torch.nn.init.zeros_(denoiser.unet.style_block.conv2.weight)
    torch.nn.init.zeros_(denoiser.unet.style_block.conv2.bias)
    third, fourth = predictions()
    assert torch.equal(third, fourth)
    assert not torch.equal(first, third)


def _fixed(unet: torch.nn.Module) -> torch.nn.Module:
    """Weights by order of their names, from one generator."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(unet.named_parameters()):
            spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.3
            centre = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
            value.copy_(centre + spread * torch.randn(value.shape, generator=generator))
    return unet.eval()


def _sizes(**changes: int) -> DenoiserConfig:
    return DenoiserConfig(channels=[16, 24], norm_groups=8, **changes)


def _wave(*shape: int, step: float) -> torch.Tensor:
    return torch.sin(step * torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).view(shape).float()


@pytest.mark.parametrize(
    ("injection", "expected"),
    [
        ("mid", [-0.4808, 0.9140, -0.6811, 0.6783, 0.2378, 0.4742, -1.6834, 0.4257]),
        ("own-block", [0.1303, 0.1951, -0.3833, 1.0301, 1.1579, 1.0365, 0.8051, 0.3668]),
        ("all", [0.0264, 0.9908, 0.0041, -0.3328, 0.7964, 0.8802, -1.2949, 0.5644]),
        ("cross", [0.8896, 0.9710, -1.1217, 0.6335, -0.1158, 0.7873, -0.3013, 1.0570]),
    ],
)
def test_equal_weights_predict_what_they_predicted_at_e8c8b0d(injection, expected):
    """There a loop of our own went through the blocks of diffusers for every injection."""
    unet = _fixed(make_unet(_sizes(), 6, 4, injection, token_dim=8))
    style = {"class_labels": _wave(2, 64, step=0.91)}
    if injection == "cross":
        style = {"encoder_hidden_states": _wave(2, 5, 8, step=0.53)}
    with torch.no_grad():
        predicted = unet(_wave(2, 6, 8, 8, step=0.37), torch.tensor([3.0, 700.0]), **style).sample
    torch.testing.assert_close(predicted[:, :, 3, 5].flatten(), torch.tensor(expected), atol=2e-4, rtol=0)


def test_without_style_every_injection_by_time_is_diffusers_own_u_net():
    """So are the weights: a U-Net of ours can be read by UNet2DModel."""
    sample, time, nothing = torch.randn(2, 6, 8, 8), torch.tensor([3.0, 700.0]), torch.zeros(2, 64)
    for injection in ("mid", "own-block", "all"):
        ours = _fixed(make_unet(_sizes(blocks_per_level=2), 6, 4, injection, token_dim=8))
        if injection == "own-block":
            torch.nn.init.zeros_(ours.style_block.conv2.weight)
            torch.nn.init.zeros_(ours.style_block.conv2.bias)
        theirs = UNet2DModel(**{**ours.config, "class_embed_type": None}).eval()
        theirs.load_state_dict(ours.state_dict(), strict=injection != "own-block")
        with torch.no_grad():
            torch.testing.assert_close(ours(sample, time, nothing).sample, theirs(sample, time).sample)


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("aggregation", ["mean", "linear", "set-vit", "attention"])
def test_every_combination_trains_whole_and_saves(
    diffusion_config, cohort, tmp_path, monkeypatch, injection, aggregation
):
    monkeypatch.setattr(trainer, "WEIGHT_DECAY", 0.0)
    base = diffusion_config()
    config = diffusion_config(
        steps=1,
        ema_decay=0.0,
        style=base.style.model_copy(update={"injection": injection, "aggregation": aggregation, "dropout": 0.5}),
    )
    before = make_denoiser(config, PixelCodec(2), 2, seed=3, image_px=16)
    model = train_diffusion(config, *cohort, tmp_path, image_px=16, seed=3)
    moved = dict(model.denoiser.named_parameters())
    stayed = [name for name, start in before.named_parameters() if torch.equal(start, moved[name])]
    assert stayed == []


def test_a_frozen_style_encoder_stays_and_the_rest_learns(diffusion_config, cohort, tmp_path):
    base = diffusion_config()
    config = diffusion_config(
        steps=2,
        ema_decay=0.0,
        style=base.style.model_copy(update={"trainable": False, "aggregation": "attention"}),
    )
    before = make_denoiser(config, PixelCodec(2), 2, seed=3, image_px=16)
    moved = dict(train_diffusion(config, *cohort, tmp_path, image_px=16, seed=3).denoiser.named_parameters())
    stayed = {name.split(".")[0] for name, start in before.named_parameters() if torch.equal(start, moved[name])}
    learned = {name.split(".")[0] for name, start in before.named_parameters() if not torch.equal(start, moved[name])}
    assert stayed == {"style_encoder", "aggregate"}
    assert {"unet", "style_to_time", "null_style", "layout_embedding"} <= learned


@pytest.mark.parametrize("changes", [{"injection": kind} for kind in INJECTIONS] + [{"encoder": "resnet18"}])
def test_checkpointed_activations_give_equal_gradients_and_keep_less(changes):
    noisy, times = torch.randn(2, 12, 8, 8), torch.tensor([1.0, 900.0])
    layout, style = torch.randint(0, 3, (2, 16, 16)), torch.rand(2, 2, 3, 32, 32)
    valid, kept, gradients = torch.ones(2, 2, dtype=torch.bool), [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.nbytes
        return tensor

    for checkpointed in (False, True):
        denoiser = tiny_denoiser(**changes)
        if checkpointed:
            denoiser.checkpoint_activations()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = denoiser(noisy, times, layout, style, valid).square().mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert kept[1] < 0.7 * kept[0]


def test_activation_checkpointing_is_asked_for_by_the_configuration(diffusion_config, cohort, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(StyleDenoiser, "checkpoint_activations", lambda self: asked.append(self))
    for on in (False, True):
        machine = MachineConfig(activation_checkpointing=on)
        train_diffusion(diffusion_config(steps=1), *cohort, tmp_path / str(on), image_px=16, machine=machine)
        assert len(asked) == on
