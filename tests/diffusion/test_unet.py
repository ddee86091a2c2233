"""Where the style enters the U-Net is where the configuration says, and nowhere else."""

import pytest
import torch
from diffusers import UNet2DModel

from stedm.config import MachineConfig
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.train import make_denoiser, train_diffusion
from stedm.diffusion.unet import injection_per_level, make_unet, run_unet
from stedm.training import trainer

INJECTIONS = ["mid", "own-block", "all", "cross"]


def tiny_denoiser(**changes) -> StyleDenoiser:
    torch.manual_seed(0)
    values = {"channels": (16, 24), "norm_groups": 8, "layout_channels": 4, "style_dim": 16}
    return StyleDenoiser(n_classes=2, latent_channels=12, layout_factor=2, **{**values, **changes}).eval()


def changes_by_block(denoiser: StyleDenoiser) -> dict[str, bool]:
    """For each block of the U-Net, whether another style changes what it makes of the same features."""
    seen: dict[str, list] = {}
    for name, block in denoiser.unet.named_children():
        for index, part in enumerate(block) if isinstance(block, torch.nn.ModuleList) else [("", block)]:
            if name in ("down_blocks", "mid_block", "up_blocks"):
                part.register_forward_hook(
                    lambda module, args, kwargs, output, key=f"{name}{index}": seen.setdefault(key, []).append(
                        (module, args, kwargs)
                    ),
                    with_kwargs=True,
                )
    noisy, layout = torch.randn(1, 12, 8, 8), torch.zeros(1, 16, 16, dtype=torch.long)
    with torch.no_grad():
        for style in (torch.zeros(1, 16), torch.ones(1, 16)):
            denoiser.denoise(noisy, torch.tensor([500.0]), layout, style)
        result = {}
        for key, ((block, args, first), (_, _, second)) in list(seen.items()):
            both = [
                block.forward(
                    *args, **{**first, **{k: v for k, v in kw.items() if k in ("temb", "encoder_hidden_states")}}
                )
                for kw in (first, second)
            ]
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


def test_own_block_without_its_block_is_diffusers_mid_block():
    torch.manual_seed(1)
    unet = make_unet(6, 4, [16, 24], 1, 8, injection_per_level("own-block", 2), token_dim=8)
    torch.nn.init.zeros_(unet.style_block.conv2.weight)
    torch.nn.init.zeros_(unet.style_block.conv2.bias)
    sample, style = torch.randn(2, 6, 8, 8), torch.randn(2, 64)
    ours = run_unet(unet, sample, torch.tensor([3.0, 700.0]), style, None, injection_per_level("own-block", 2))
    torch.testing.assert_close(ours, unet(sample, torch.tensor([3.0, 700.0])).sample)


def test_scale_shift_everywhere_is_what_diffusers_computes_with_a_class_embedding():
    torch.manual_seed(1)
    ours = make_unet(6, 4, [16, 24], 1, 8, injection_per_level("all", 2), token_dim=8)
    theirs = UNet2DModel(**{**ours.config, "class_embed_type": "identity"})
    theirs.load_state_dict(ours.state_dict())
    sample, time, style = torch.randn(2, 6, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 64)
    with torch.no_grad():
        expected = theirs(sample, time, class_labels=style).sample
        torch.testing.assert_close(run_unet(ours, sample, time, style, None, ["scale-shift"] * 3), expected)


def test_cross_attention_everywhere_is_what_diffusers_computes():
    torch.manual_seed(1)
    unet = make_unet(6, 4, [16, 32], 1, 8, injection_per_level("cross", 2), token_dim=8)
    sample, time, tokens = torch.randn(2, 6, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = unet(sample, time, encoder_hidden_states=tokens).sample
        torch.testing.assert_close(run_unet(unet, sample, time, None, tokens, ["cross"] * 3), expected)


@pytest.mark.parametrize("injection", INJECTIONS, ids=str)
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


@pytest.mark.parametrize("changes", [{"injection": kind} for kind in INJECTIONS] + [{"style_backbone": "resnet18"}])
def test_checkpointed_activations_give_equal_gradients_and_keep_less(changes):
    noisy, times = torch.randn(2, 12, 8, 8), torch.tensor([1.0, 900.0])
    layout, style = torch.randint(0, 3, (2, 16, 16)), torch.rand(2, 2, 3, 32, 32)
    present, kept, gradients = torch.ones(2, 2, dtype=torch.bool), [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.nbytes
        return tensor

    for checkpointed in (False, True):
        denoiser = tiny_denoiser(**changes)
        if checkpointed:
            denoiser.checkpoint_activations()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = denoiser(noisy, times, layout, style, present).square().mean()
        loss.backward()
        gradients.append({name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert kept[1] < 0.75 * kept[0]


def test_activation_checkpointing_is_asked_for_by_the_configuration(diffusion_config, cohort, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(StyleDenoiser, "checkpoint_activations", lambda self: asked.append(self))
    for on in (False, True):
        machine = MachineConfig(activation_checkpointing=on)
        train_diffusion(diffusion_config(steps=1), *cohort, tmp_path / str(on), image_px=16, machine=machine)
        assert len(asked) == on
