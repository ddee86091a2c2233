"""The denoiser: style encoder, aggregation, layout embedding and U-Net as one module.

One module, so that the optimizer, the averaged weights, data parallelism and the saved folder can't leave a part out
(the released reference never trained its style encoder because it lived beside the U-Net).
"""

import math

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import nn

from stedm.layout.embedding import LayoutEmbedding
from stedm.style.aggregation import AGGREGATIONS
from stedm.style.encoder import ConvStyleEncoder


class StyleDenoiser(ModelMixin, ConfigMixin):
    """Predict noise, velocity or flow of a noisy latent, given a layout and style pictures.

    The style vector is added to the time embedding and so scales and shifts the features of every ResBlock; the
    embedded layout is concatenated to the noisy latent.

    Args:
        n_classes: classes of the layout (without "unknown").
        latent_channels: channels of the latent.
        layout_factor: picture side divided by latent side.
        channels: U-Net widths per level.
        attention: self-attention per level (the mid block always has it).
    """

    @register_to_config
    def __init__(
        self,
        n_classes: int,
        latent_channels: int,
        layout_factor: int,
        channels: tuple[int, ...] = (48, 96, 128),
        blocks_per_level: int = 1,
        attention: tuple[bool, ...] | None = None,
        norm_groups: int = 16,
        layout_channels: int = 16,
        style_dim: int = 256,
        style_channels: tuple[int, ...] = (24, 48, 96),
        aggregation: str = "mean",
    ):
        super().__init__()
        attention = tuple(attention or [False] * len(channels))
        self.style_encoder = ConvStyleEncoder(list(style_channels), style_dim)
        self.aggregate = AGGREGATIONS[aggregation]()
        self.null_style = nn.Parameter(torch.randn(style_dim))
        self.layout_embedding = LayoutEmbedding(n_classes, layout_channels, layout_factor)
        self.unet = UNet2DModel(
            in_channels=latent_channels + layout_channels,
            out_channels=latent_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            block_out_channels=tuple(channels),
            layers_per_block=blocks_per_level,
            norm_num_groups=norm_groups,
            attention_head_dim=math.gcd(32, *channels),
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        self.style_to_time = nn.Linear(style_dim, 4 * channels[0])

    @property
    def unknown(self) -> int:
        """Class index that means "layout unknown"."""
        return self.layout_embedding.unknown

    def forward(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        layout: torch.Tensor,
        style_pictures: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Predict from style pictures, in one call (what training and data parallelism need).

        Args:
            noisy: `(b, latent_channels, h, w)`.
            timestep: `(b,)` in 0..1000.
            layout: class indices `(b, height, width)` in 0..n_classes; n_classes = unknown.
            style_pictures: `(b, n, 3, height, width)` in [-1, 1].
            present: `(b, n)`, False at padding; a row without any present picture gets the null style.
        """
        return self.denoise(noisy, timestep, layout, self.encode_style(style_pictures, present))

    def encode_style(self, style_pictures: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Style vectors `(b, style_dim)`; the learned null style where no picture is present."""
        vectors = self.style_encoder(style_pictures.flatten(0, 1)).float().unflatten(0, present.shape)
        style = self.aggregate(vectors, present)
        return torch.where(present.any(dim=1, keepdim=True), style, self.null_style)

    def denoise(
        self, noisy: torch.Tensor, timestep: torch.Tensor, layout: torch.Tensor, style: torch.Tensor
    ) -> torch.Tensor:
        """Predict from style vectors `(b, style_dim)`: sampling encodes the style once and steps many times."""
        conditioned = torch.cat([noisy, self.layout_embedding(layout)], dim=1)
        return self.unet(conditioned, timestep, class_labels=self.style_to_time(style)).sample
