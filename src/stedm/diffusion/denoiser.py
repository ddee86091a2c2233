"""The denoiser: style encoder, aggregation, layout embedding and U-Net as one module.

One module, so that the optimizer, the averaged weights, data parallelism and the saved folder can't leave a part out
(the released reference never trained its style encoder because it lived beside the U-Net).
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from stedm.diffusion.unet import injection_per_level, make_unet, run_unet
from stedm.layout.embedding import LayoutEmbedding
from stedm.style.aggregation import AGGREGATIONS
from stedm.style.encoder import make_style_encoder

STYLE_TOKENS = 8
"""For cross-attention, all projected from the style vector."""


class StyleDenoiser(ModelMixin, ConfigMixin):
    """Predict noise, velocity or flow of a noisy latent, given a layout and style images.

    The style is one vector, which enters the U-Net at the levels and in the way that `injection` says (see
    stedm.diffusion.unet); the embedded layout is concatenated to the noisy latent.

    Args:
        n_classes: classes of the layout (without "unknown").
        latent_channels: channels of the latent.
        layout_factor: image side divided by latent side.
        channels: U-Net widths per level.
        style_backbone: `conv` or a timm name; `pooling` is for timm's.
        aggregation: a name in stedm.style.aggregation.AGGREGATIONS.
        injection: `mid`, `own-block`, `all` or `cross`.
        style_images: most style images that an aggregation of fixed size takes.
        style_image_px: side of the style images in training.
    """

    @register_to_config
    def __init__(
        self,
        n_classes: int,
        latent_channels: int,
        layout_factor: int,
        channels: tuple[int, ...] = (48, 96, 128),
        blocks_per_level: int = 1,
        norm_groups: int = 16,
        layout_channels: int = 16,
        style_dim: int = 256,
        style_backbone: str = "conv",
        pooling: str = "statistics",
        aggregation: str = "mean",
        injection: str = "all",
        style_images: int = 4,
        style_image_px: int = 64,
    ):
        super().__init__()
        self.injected = injection_per_level(injection, len(channels))
        self.aggregate = AGGREGATIONS[aggregation](style_dim, style_images, style_image_px)
        # Aggregations that read images take the encoder's place; an idle one would be trained by nothing.
        self.style_encoder = (
            None
            if self.aggregate.reads_images
            else make_style_encoder(style_backbone, style_dim, pooling, style_image_px)
        )
        self.null_style = nn.Parameter(torch.randn(style_dim))
        self.layout_embedding = LayoutEmbedding(n_classes, layout_channels, layout_factor)
        self.unet = make_unet(
            latent_channels + layout_channels,
            latent_channels,
            list(channels),
            blocks_per_level,
            norm_groups,
            self.injected,
            style_dim,
        )
        ways = set(self.injected)
        self.style_to_time = (
            nn.Linear(style_dim, 4 * channels[0]) if ways & {"scale-shift", "both", "own-block"} else None
        )
        self.style_to_tokens = nn.Linear(style_dim, STYLE_TOKENS * style_dim) if ways & {"cross", "both"} else None

    @property
    def unknown(self) -> int:
        """Class index of "layout unknown"."""
        return self.layout_embedding.unknown

    def measure(self, images: torch.Tensor) -> None:
        """Fit the normalisation of style images to images `(n, 3, height, width)` in [-1, 1]; before training."""
        if self.style_encoder is not None:
            self.style_encoder.measure(images)

    def checkpoint_activations(self) -> None:
        """Compute the activations of the U-Net's blocks and of a timm style encoder again in the backward pass."""
        self.unet.enable_gradient_checkpointing()
        backbone = getattr(self.style_encoder, "backbone", None)
        if hasattr(backbone, "set_grad_checkpointing"):
            backbone.set_grad_checkpointing()

    def compile(self, *args, **kwargs) -> None:
        """Compile `denoise` in place: names of the weights stay. The style encoder's part has as many images as are
        shown, another number in each batch, and is small."""
        self.denoise = torch.compile(self.denoise, *args, **kwargs)

    def forward(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        layout: torch.Tensor,
        style_images: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Predict from style images, in one call (what training and data parallelism need).

        Args:
            noisy: `(b, latent_channels, h, w)`.
            timestep: `(b,)` in 0..1000.
            layout: class indices `(b, height, width)` in 0..n_classes; n_classes = unknown.
            style_images: `(b, n, 3, height, width)` in [-1, 1].
            present: `(b, n)`, False at padding; a row without any present image gets the null style.
        """
        return self.denoise(noisy, timestep, layout, self.encode_style(style_images, present))

    def encode_style(self, style_images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Style vectors `(b, style_dim)`; the learned null style where no image is present."""
        if self.style_encoder is None:
            style = self.aggregate(style_images, present)
        else:
            style = self.aggregate(self._encode_present(style_images, present), present)
        return torch.where(present.any(dim=1, keepdim=True), style.float(), self.null_style)

    def _encode_present(self, style_images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Vectors `(b, n, style_dim)`, zeros at padding, which costs nothing and enters no batch statistics."""
        shown = present.clone()
        # At least one image always, so that every step uses every parameter (data parallelism counts on it).
        shown[0, 0] |= ~present.any()
        encoded = self.style_encoder(style_images[shown]).float()
        vectors = encoded.new_zeros(*present.shape, encoded.shape[-1])
        vectors[shown] = encoded
        return vectors

    def denoise(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        layout: torch.Tensor,
        style: torch.Tensor,
    ) -> torch.Tensor:
        """Predict from style vectors `(b, style_dim)`: sampling encodes the style once and steps many times."""
        conditioned = torch.cat([noisy, self.layout_embedding(layout)], dim=1)
        added = self.style_to_time(style) if self.style_to_time is not None else None
        tokens = (
            self.style_to_tokens(style).unflatten(1, (-1, style.shape[1])) if self.style_to_tokens is not None else None
        )
        return run_unet(self.unet, conditioned, timestep, added, tokens, self.injected)
