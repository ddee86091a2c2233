"""The U-Net of diffusers, with the style entering where it is asked to.

- `all`: added to the time embedding, which scales and shifts the features of every ResBlock: diffusers' class
  embedding.
- `mid`: the same, in the mid block alone.
- `own-block`: one more ResBlock in the mid block, which takes the style instead of the time (the released reference).
- `cross`: cross-attention to style tokens in every block: diffusers' encoder states.

The blocks, their order and their weights are diffusers' in all of them.
"""

import math

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput

from stedm.config import DenoiserConfig

UNet = UNet2DModel | UNet2DConditionModel


class MidStyleUNet(UNet2DModel):
    """UNet2DModel whose class embedding, the style `(b, 4 * channels[0])`, is for the mid block alone.

    style_block: takes the style in the mid block, after its first ResBlock; None = all ResBlocks there take it.
    """

    style_block: ResnetBlock2D | None

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> UNet2DOutput:
        """As UNet2DModel.forward, whose mid block would get the embedding that all blocks get."""
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        features = self.conv_in(sample)
        skips = [features]
        for block in self.down_blocks:
            features, passed = block(features, time)
            skips.extend(passed)
        features = self._mid(features, time, class_labels)
        for block in self.up_blocks:
            count = len(block.resnets)
            features = block(features, tuple(skips[-count:]), time)
            del skips[-count:]
        return UNet2DOutput(self.conv_out(self.conv_act(self.conv_norm_out(features))))

    def _mid(self, features: torch.Tensor, time: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        if self.style_block is None:
            return self.mid_block(features, time + style)
        first, last = self.mid_block.resnets
        features = self.style_block(first(features, time), style)
        return last(self.mid_block.attentions[0](features), time)


def make_unet(config: DenoiserConfig, in_channels: int, out_channels: int, injection: str, token_dim: int) -> UNet:
    """An untrained U-Net; self-attention, which grows with the square of the positions, is in the mid block alone.

    Its forward takes sample `(b, in_channels, h, w)`, timestep `(b,)`, and the style as `encoder_hidden_states
    (b, n, token_dim)` where the injection is cross, as `class_labels (b, 4 * channels[0])` elsewhere.
    """
    channels, cross = config.channels, "CrossAttn" if injection == "cross" else ""
    common = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": tuple(channels),
        "layers_per_block": config.blocks_per_level,
        "norm_num_groups": config.norm_groups,
        "resnet_time_scale_shift": "scale_shift",
        "down_block_types": (f"{cross}DownBlock2D",) * len(channels),
        "up_block_types": (f"{cross}UpBlock2D",) * len(channels),
    }
    head_dim = math.gcd(32, *channels)
    if cross:
        # By attention_head_dim diffusers means the number of heads here, elsewhere their width.
        heads = tuple(width // head_dim for width in channels)
        only_cross = {"only_cross_attention": True, "mid_block_only_cross_attention": False}
        return UNet2DConditionModel(**common, **only_cross, cross_attention_dim=token_dim, attention_head_dim=heads)
    if injection == "all":
        return UNet2DModel(**common, attention_head_dim=head_dim, class_embed_type="identity")
    unet = MidStyleUNet(**common, attention_head_dim=head_dim)
    unet.style_block = None
    if injection == "own-block":
        sizes = {"in_channels": channels[-1], "temb_channels": 4 * channels[0], "groups": config.norm_groups}
        unet.style_block = ResnetBlock2D(**sizes, eps=unet.config.norm_eps, time_embedding_norm="scale_shift")
    return unet
