"""Segmentation networks and the arms of the comparison."""

from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field, field_validator, model_validator

from stedm.config.base import Fraction, Part, Positive, TrainingConfig

Arm = Literal[
    "real",
    "real+stain",
    "ssl",
    "self-training",
    "real+synthetic",
    "real+stain+synthetic",
    "real+synthetic+ssl",
    "real+stain+synthetic+ssl",
    "real+synthetic+self-training",
    "real+stain+synthetic+self-training",
    "upper",
]


def uses_stain(arm: Arm) -> bool:
    """Whether the annotated images of an arm are colour-augmented.

    `ssl` and `self-training` alone mean on top of `real+stain`; a bound should be the best that masks can do, so
    `upper` is augmented too.
    """
    return arm in ("ssl", "self-training", "upper") or "stain" in arm.split("+")


def uses_synthetic(arm: Arm) -> bool:
    return "synthetic" in arm.split("+")


def uses_ssl(arm: Arm) -> bool:
    """Whether an arm is trained for consistency on images of the unlabeled patients, without their masks."""
    return "ssl" in arm.split("+")


def uses_self_training(arm: Arm) -> bool:
    """Whether an arm trains on images of the unlabeled patients under the labels of teachers."""
    return "self-training" in arm.split("+")


def first_teacher(arm: Arm) -> Arm:
    """The arm of the first teachers of a self-trained one: the same without self-training."""
    return "real+stain" if arm == "self-training" else cast(Arm, arm.removesuffix("+self-training"))


class StainAugmentConfig(Part):
    """Colour augmentation of the arms with stain augmentation, after recolouring (see stedm.segmentation.augment)."""

    hed_sigma: Annotated[float, Field(ge=0)] = 0.2
    """Strength of the haematoxylin-eosin-DAB jitter: each stain is scaled by 1 +- sigma, and up to a tenth of sigma, in
    natural optical density, is added to or taken from it (Tellez et al. 2018). 0 where colours are no stains."""
    brightness: Annotated[float, Field(ge=0)] = 0.15
    contrast: Annotated[float, Field(ge=0)] = 0.15
    saturation: Annotated[float, Field(ge=0)] = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    """Largest turn of the colours, as a part of the colour circle."""


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
    steps: Positive = 1200
    lr: Annotated[float, Field(gt=0)] = 3e-3
    dice_weight: Fraction = 0.9
    """Weight of the Dice loss; that of the cross-entropy is 1 - `dice_weight` (paper: 0.9 and 0.1)."""
    synthetic_fraction: Fraction = 0.5
    """Part of the training samples that are synthetic, in the `+synthetic` arms (paper: 0.8). Unannotated images in
    the `self-training` arms count as synthetic."""
    mirror: bool = True
    """Predict with the mean over each image and its three mirror images (test-time augmentation, as in nnU-Net),
    in four times the time. Noted in the segmenter's folder, so that it always does."""
    stain: StainAugmentConfig = StainAugmentConfig()
    arms: list[Arm] = ["real", "real+stain", "ssl", "self-training", "real+stain+synthetic"]
    seeds: list[int] = [0, 1]

    @field_validator("seeds", "arms")
    @classmethod
    def _each_once(cls, values: list) -> list:
        if len(set(values)) < len(values):
            raise ValueError("names one twice: it would be the same network again")
        if not values:
            raise ValueError("is empty: name at least one")
        return values

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
