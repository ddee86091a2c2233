"""The denoiser: style encoder, aggregation, layout embedding and U-Net as one module.

One module, so that the optimizer, the averaged weights, data parallelism and the saved folder can't leave a part out
(the released reference never trained its style encoder because it lived beside the U-Net).
"""

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from stedm.config import DenoiserConfig, StyleConfig
from stedm.diffusion.parts import read_part, read_part_config
from stedm.diffusion.unet import make_unet
from stedm.errors import StedmError
from stedm.io.weights import load_weights, read_weights
from stedm.layout.embedding import LayoutEmbedding
from stedm.style.aggregation import AGGREGATIONS
from stedm.style.encoder import OWN, make_style_encoder

STYLE_TOKENS = 8
"""For cross-attention, all projected from the style vector."""


class StyleDenoiser(ModelMixin, ConfigMixin):
    """Predict noise, velocity or flow of a noisy latent, given a layout and style images.

    The style is one vector, which enters the U-Net where `injection` says (see stedm.diffusion.unet); the embedded
    layout is concatenated to the noisy latent.

    Args:
        n_classes: classes of the layout (without "unknown").
        latent_channels: channels of the latent.
        layout_factor: image side divided by latent side.
        image_px: side of the style images in training.
        denoiser: keys of `DenoiserConfig`, the others at their defaults.
        style: keys of `StyleConfig`, the others at their defaults.
        style_encoder: a module of your own, of which a copy on the CPU takes the place of `style.encoder`: from images
            `(n, 3, height, width)` in [-1, 1] to vectors `(n, style.dim)`.

    Raises:
        StedmError: a style encoder is given that nothing would use or whose vectors have another length, or none is
            given to a model that was trained with one.
    """

    ignore_for_config: ClassVar[list[str]] = ["style_encoder"]

    @register_to_config
    def __init__(
        self,
        n_classes: int,
        latent_channels: int,
        layout_factor: int,
        image_px: int = 64,
        denoiser: dict[str, Any] | None = None,
        style: dict[str, Any] | None = None,
        style_encoder: nn.Module | None = None,
    ):
        super().__init__()
        unet, styles = DenoiserConfig.model_validate(denoiser or {}), StyleConfig.model_validate(style or {})
        self.style_dim = styles.dim
        self.aggregate = AGGREGATIONS[styles.aggregation](styles.dim, styles.n_images, image_px)
        if style_encoder is not None:
            self.register_to_config(style={**(style or {}), "encoder": OWN})
            self.style_encoder = _copy(style_encoder, styles, image_px)
        elif self.aggregate.reads_images:
            # It takes the encoder's place; an idle one would be trained by nothing.
            self.style_encoder = None
        else:
            self.style_encoder = make_style_encoder(styles.encoder, styles.dim, styles.pooling, image_px)
        self.null_style = nn.Parameter(torch.randn(styles.dim))
        self.layout_embedding = LayoutEmbedding(n_classes, unet.layout_channels, layout_factor)
        channels_in = latent_channels + unet.layout_channels
        self.unet = make_unet(unet, channels_in, latent_channels, styles.injection, token_dim=styles.dim)
        cross = styles.injection == "cross"
        self.style_to_time = None if cross else nn.Linear(styles.dim, 4 * unet.channels[0])
        self.style_to_tokens = nn.Linear(styles.dim, STYLE_TOKENS * styles.dim) if cross else None

    @property
    def unknown(self) -> int:
        """Class index of "layout unknown"."""
        return self.layout_embedding.unknown

    def measure(self, images: torch.Tensor) -> None:
        """Fit the normalisation of style images to images `(n, 3, height, width)` in [-1, 1]; before training."""
        if hasattr(self.style_encoder, "measure"):
            self.style_encoder.measure(images)

    def checkpoint_activations(self, is_on: bool = True) -> None:
        """Compute the activations of the U-Net's blocks and of a timm style encoder again in the backward pass."""
        (self.unet.enable_gradient_checkpointing if is_on else self.unet.disable_gradient_checkpointing)()
        backbone = getattr(self.style_encoder, "backbone", None)
        if hasattr(backbone, "set_grad_checkpointing"):
            backbone.set_grad_checkpointing(is_on)

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
        valid: torch.Tensor,
    ) -> torch.Tensor:
        """Predict from style images, in one call (what training and data parallelism need).

        Args:
            noisy: `(b, latent_channels, h, w)`.
            timestep: `(b,)` in 0..1000.
            layout: class indices `(b, height, width)` in 0..n_classes; n_classes = unknown.
            style_images: `(b, n, 3, height, width)` in [-1, 1].
            valid: `(b, n)`, False at padding; a row without any valid image gets the null style.
        """
        return self.denoise(noisy, timestep, layout, self.encode_style(style_images, valid))

    def encode_style(self, style_images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Style vectors `(b, style_dim)`; the learned null style where no image is valid."""
        read = style_images if self.style_encoder is None else self._encode_valid(style_images, valid)
        style = self.aggregate(read, valid)
        return torch.where(valid.any(dim=1, keepdim=True), style.float(), self.null_style)

    def _encode_valid(self, style_images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Vectors `(b, n, style_dim)`, zeros at padding, which costs nothing and enters no batch statistics."""
        shown = valid.clone()
        # At least one image always, so that every step uses every parameter (data parallelism counts on it).
        shown[0, 0] |= ~valid.any()
        encoded = self.style_encoder(style_images[shown]).float()
        vectors = encoded.new_zeros(*valid.shape, encoded.shape[-1])
        vectors[shown] = encoded
        return vectors

    def denoise(
        self, noisy: torch.Tensor, timestep: torch.Tensor, layout: torch.Tensor, style: torch.Tensor
    ) -> torch.Tensor:
        """Predict from style vectors `(b, style_dim)`: sampling encodes the style once and steps many times."""
        conditioned = torch.cat([noisy, self.layout_embedding(layout)], dim=1)
        if self.style_to_tokens is None:
            return self.unet(conditioned, timestep, class_labels=self.style_to_time(style)).sample
        tokens = self.style_to_tokens(style).unflatten(1, (STYLE_TOKENS, -1))
        return self.unet(conditioned, timestep, encoder_hidden_states=tokens).sample


def load_denoiser(folder: Path, style_encoder: nn.Module | None = None) -> StyleDenoiser:
    """Read what `save_pretrained` has written, with the architecture of a style encoder of one's own if it has one.

    Raises:
        StedmError: the folder can't be read, or the style encoder is missing or another one.
    """
    if style_encoder is None:
        return read_part(StyleDenoiser, folder)
    config = {key: value for key, value in read_part_config(folder).items() if key[0] != "_"}
    if (encoder := (config.get("style") or {}).get("encoder")) != OWN:
        raise StedmError(f"{folder}: has style encoder {encoder}; leave style_encoder out")
    # Layers draw their initial weights from the global generator; fork it so that nobody else notices.
    with torch.random.fork_rng(devices=[]):
        denoiser = StyleDenoiser(**config, style_encoder=style_encoder)
    path = folder / "diffusion_pytorch_model.safetensors"
    load_weights(denoiser, read_weights(path), path)
    return denoiser.eval()


def _copy(own: nn.Module, style: StyleConfig, image_px: int) -> nn.Module:
    """A copy of a style encoder of one's own, if it can be used with the rest of the configuration."""
    if AGGREGATIONS[style.aggregation].reads_images:
        raise StedmError(f"style_encoder: aggregation {style.aggregation} reads the images itself; use another one")
    if style.weights is not None:
        raise StedmError("style_encoder: diffusion.style.weights are for the encoder of the configuration; remove them")
    copied = copy.deepcopy(own).cpu()
    with torch.no_grad():
        shape = tuple(copied.eval()(torch.zeros(2, 3, image_px, image_px)).shape)
    if shape != (2, style.dim):
        raise StedmError(f"style_encoder: gives {shape} for 2 images; (2, {style.dim}) expected (diffusion.style.dim)")
    return copied.train()
