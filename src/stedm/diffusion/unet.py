"""The U-Net of diffusers, with the style entering where it is asked to.

diffusers' own `forward` gives every block the same embedding. Here each level has its choice: `scale-shift` (the style
is added to the time embedding, which scales and shifts the features of the level's ResBlocks), `cross` (attention to
style tokens), `both` or `none`. The mid block may have `own-block` instead: one more ResBlock, which alone takes the
style, and takes it instead of the time (the released reference). The blocks, their order and their weights are
diffusers'.
"""

import math

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

UNet = UNet2DModel | UNet2DConditionModel


def injection_per_level(injection: str, levels: int) -> list[str]:
    """One of none, scale-shift, cross for each level, fine to coarse, and for the mid block (last), which may also
    have own-block."""
    return {
        "mid": ["none"] * levels + ["scale-shift"],
        "own-block": ["none"] * levels + ["own-block"],
        "all": ["scale-shift"] * (levels + 1),
        "cross": ["cross"] * (levels + 1),
    }[injection]


def make_unet(
    in_channels: int,
    out_channels: int,
    channels: list[int],
    blocks_per_level: int,
    norm_groups: int,
    injection: list[str],
    token_dim: int,
) -> UNet:
    """An untrained U-Net; with cross-attention at the levels whose injection says so.

    Args:
        injection: as from `injection_per_level`.
        token_dim: length of the style tokens.
    """
    cross = [kind == "cross" for kind in injection]
    head_dim = math.gcd(32, *channels)
    common = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": tuple(channels),
        "layers_per_block": blocks_per_level,
        "norm_num_groups": norm_groups,
        "resnet_time_scale_shift": "scale_shift",
    }
    kinds = ["CrossAttn" if c else "" for c in cross[:-1]]
    blocks = {
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    }
    if not any(cross):
        unet = UNet2DModel(**common, **blocks, attention_head_dim=head_dim)
        if injection[-1] == "own-block":
            unet.style_block = ResnetBlock2D(
                in_channels=channels[-1],
                temb_channels=4 * channels[0],
                groups=norm_groups,
                eps=unet.config.norm_eps,
                time_embedding_norm="scale_shift",
            )
        return unet
    return UNet2DConditionModel(
        **common,
        **blocks,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=token_dim,
        # In cross-attention blocks diffusers means the number of heads by this, in the others their width.
        attention_head_dim=tuple(c // head_dim if x else head_dim for c, x in zip(channels, cross, strict=False)),
        # Self-attention grows with the square of the positions: only in the mid block.
        only_cross_attention=True,
        mid_block_only_cross_attention=False,
    )


def run_unet(
    unet: UNet,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    style: torch.Tensor | None,
    tokens: torch.Tensor | None,
    injection: list[str],
) -> torch.Tensor:
    """The U-Net's prediction `(b, out_channels, h, w)`.

    Args:
        sample: `(b, in_channels, h, w)`.
        timestep: `(b,)`.
        style: `(b, 4 * channels[0])`, added to the time embedding where the injection is scale-shift, in its
            place where it is own-block; None where no level has either.
        tokens: `(b, n, token_dim)` for cross-attention; None where no level has it.
        injection: one kind a level, fine to coarse, the mid block's last.
    """
    time = unet.time_embedding(unet.time_proj(timestep).to(sample.dtype))
    styled = time if style is None else time + style

    def conditions(level: int) -> dict[str, torch.Tensor]:
        temb = styled if injection[level] == "scale-shift" else time
        return {"temb": temb, "encoder_hidden_states": tokens} if injection[level] == "cross" else {"temb": temb}

    levels = len(unet.down_blocks)
    features = unet.conv_in(sample)
    skips = [features]
    for level, block in enumerate(unet.down_blocks):
        features, passed = block(features, **conditions(level))
        skips.extend(passed)
    if injection[levels] == "own-block":
        features = _mid_with_own_block(unet, features, time, style)
    else:
        features = unet.mid_block(features, **conditions(levels))
    for level, block in zip(reversed(range(levels)), unet.up_blocks, strict=True):
        count = len(block.resnets)
        features = block(features, res_hidden_states_tuple=tuple(skips[-count:]), **conditions(level))
        del skips[-count:]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(features)))


def _mid_with_own_block(
    unet: UNet2DModel, features: torch.Tensor, time: torch.Tensor, style: torch.Tensor
) -> torch.Tensor:
    """The mid block of the released reference: ResBlock, style's own ResBlock, attention, ResBlock."""
    first, *others = unet.mid_block.resnets
    features = unet.style_block(first(features, time), style)
    for attention, block in zip(unet.mid_block.attentions, others, strict=True):
        features = block(attention(features), time)
    return features
