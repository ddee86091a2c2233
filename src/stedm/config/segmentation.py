"""Segmentation networks and the arms of the comparison."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stedm.config.base import Fraction, Part, Positive, TrainingConfig

Arm = Literal["real", "real+stain", "real+synthetic", "real+stain+synthetic", "upper"]


class StainAugmentConfig(Part):
    """Colour augmentation of the `+stain` arms."""

    hed_sigma: Annotated[float, Field(ge=0)] = 0.2
    """Strength of the haematoxylin-eosin-DAB jitter: each stain is scaled by 1 +- sigma (Tellez et al. 2018)."""
    hed_bias: Annotated[float, Field(ge=0)] = 0.02
    """Largest amount, in natural optical density, that is added to or taken from each stain."""
    brightness: Annotated[float, Field(ge=0)] = 0.15
    contrast: Annotated[float, Field(ge=0)] = 0.15
    saturation: Annotated[float, Field(ge=0)] = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    """Largest turn of the colours, as a part of the colour circle."""
    blur_sigma_px: Annotated[float, Field(ge=0)] = 0.8
    """Largest Gaussian blur in pixels (applied to half of the samples)."""
    probability: Fraction = 0.9
    """Part of the samples that are augmented at all."""


class SegmentationConfig(TrainingConfig):
    """Segmentation networks: one per arm and seed, all with the same steps."""

    architecture: str = "unet"
    """Any architecture name of segmentation_models_pytorch."""
    encoder: str = "tu-resnet10t"
    """Any encoder of segmentation_models_pytorch; `tu-NAME` for a timm backbone."""
    encoder_depth: Annotated[int, Field(ge=3, le=5)] = 4
    decoder_channels: list[Positive] = [64, 32, 16, 8]
    """One width per level of `encoder_depth`, coarse to fine; used by unet, unetplusplus and manet."""
    encoder_weights: Path | None = None
    """Local .safetensors file with encoder weights, as published by timm for `tu-` encoders and by
    segmentation_models_pytorch for the others; null = from scratch. Nothing is ever downloaded."""
    steps: Positive = 400
    lr: Annotated[float, Field(gt=0)] = 3e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 0.1
    dice_weight: Annotated[float, Field(ge=0)] = 0.9
    synthetic_fraction: Fraction = 0.8
    """Part of the training samples that are synthetic, in the `+synthetic` arms (paper: 0.8)."""
    stain: StainAugmentConfig = StainAugmentConfig()
    arms: list[Arm] = ["real", "real+stain", "real+synthetic", "real+stain+synthetic"]
    seeds: list[int] = [0, 1]
    checkpoint_every_steps: Positive = 400

    @property
    def takes_decoder_channels(self) -> bool:
        """Whether the decoder has one width per encoder level; the others keep their own widths."""
        return self.architecture.lower() in ("unet", "unetplusplus", "manet")

    @model_validator(mode="after")
    def _one_width_per_level(self) -> "SegmentationConfig":
        if self.takes_decoder_channels and len(self.decoder_channels) != self.encoder_depth:
            raise ValueError(
                f"decoder_channels has {len(self.decoder_channels)} widths for encoder_depth {self.encoder_depth}; "
                "give one per level"
            )
        return self
