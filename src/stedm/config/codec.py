"""First stages: pixels, or an autoencoder that is given or trained by the run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from stedm.config.base import Fraction, Part, Positive, TrainingConfig


class PixelCodecConfig(Part):
    """No first stage: pixels, folded so that each s x s square becomes one position with 3 s^2 channels."""

    kind: Literal["pixel"] = "pixel"
    space_to_depth: Positive = 2


class AutoencoderCodecConfig(Part):
    """A trained diffusers autoencoder (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC, ...), used as it is."""

    kind: Literal["autoencoder"]
    path: Path | None = None
    """Folder of the autoencoder: config.json and safetensors."""
    hub_id: str | None = None
    """Or its name on the Hugging Face hub, read from the local hub cache only: nothing is ever downloaded."""
    subfolder: str = ""
    """Folder of the autoencoder inside `hub_id`, for example `vae`."""

    @model_validator(mode="after")
    def _one_source(self) -> "AutoencoderCodecConfig":
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("give either path (a diffusers folder) or hub_id, not both")
        return self


class TrainedCodecConfig(TrainingConfig):
    """An autoencoder that the run trains first, on annotated and unannotated images together (RUN/codec)."""

    channels: list[Positive] = [32, 64, 128]
    """Widths of the levels, a multiple of `norm_groups` each; every level but the last halves the image."""
    latent_channels: Positive
    blocks_per_level: Positive = 1
    norm_groups: Positive = 16
    mid_attention: bool = True
    """Self-attention at the coarsest level."""
    initial_weights: Path | None = None
    """Start from a diffusers folder, or from a checkpoint of CompVis' latent-diffusion (.ckpt, .safetensors), which
    is converted; its architecture must be the one described here."""
    steps: Annotated[int, Field(ge=0)] = 4000
    """0 = `initial_weights` as they are."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema_decay: Fraction = 0.999
    """Largest decay of the averaged weights, which are the ones saved."""
    checkpoint_every_steps: Positive = 250
    seed: int = 0

    @property
    def factor(self) -> int:
        """Side of an image / side of its latent."""
        return 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _widths_and_weights(self) -> "TrainedCodecConfig":
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of norm_groups ({self.norm_groups})")
        if self.steps == 0 and self.initial_weights is None:
            raise ValueError("steps is 0: give initial_weights, or train for some steps")
        return self


class KLCodecConfig(TrainedCodecConfig):
    """Variational autoencoder (diffusers AutoencoderKL)."""

    kind: Literal["kl"]
    latent_channels: Positive = 4
    kl_weight: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of the Kullback-Leibler divergence of an image against the L1 error of an image, both as sums over the
    image (Rombach et al. 2022)."""


class VQCodecConfig(TrainedCodecConfig):
    """Vector-quantised autoencoder (diffusers VQModel)."""

    kind: Literal["vq"]
    latent_channels: Positive = 3
    num_vq_embeddings: Positive = 512
    """Codes."""
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the codebook and commitment terms against the mean L1 error."""


def _codec_kind(value: Any) -> str:
    return value.get("kind", "pixel") if isinstance(value, dict) else getattr(value, "kind", "pixel")


CodecConfig = Annotated[
    Annotated[PixelCodecConfig, Tag("pixel")]
    | Annotated[AutoencoderCodecConfig, Tag("autoencoder")]
    | Annotated[KLCodecConfig, Tag("kl")]
    | Annotated[VQCodecConfig, Tag("vq")],
    Discriminator(_codec_kind),
]
