"""Segmentation networks and the arms of the comparison."""

from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field, model_validator

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
    """Colour augmentation of the `+stain` and `ssl` arms."""

    kind: Literal["hed", "randstainna", "both"] = "hed"
    """`hed`: jitter of the stains; `randstainna`: colours of a random virtual template, drawn from the statistics of
    annotated and unannotated images (Shen et al. 2022); `both`: the template, then the jitter."""
    template_sd: Annotated[float, Field(ge=0)] = 1.0
    """Spread of the virtual templates, in standard deviations between the images of the cohort."""
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


class SslConfig(Part):
    """How the `ssl` arms learn from images without masks: a teacher labels weak views for strong ones while both are
    trained (stedm.segmentation.consistency)."""

    confidence: Fraction = 0.95
    """Pixels whose most probable class has a lower probability, by the teacher, teach nothing."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss on unannotated images, that on annotated ones being 1."""
    ramp_up: Fraction = 0.25
    """The weight rises from almost 0 in this part of the steps."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Largest decay of the teacher's weights."""
    strong_factor: Annotated[float, Field(ge=0)] = 1.5
    """The strong views' colour changes and blur, in strengths of `stain`."""
    cutmix: Fraction = 0.5
    """Part of the strong views that get a rectangle of another image."""
    feature_dropout: Fraction = 0.5
    """Part of the unannotated images of which each strong view loses one half of the encoder's channels."""


class SelfTrainingConfig(Part):
    """How the `self-training` arms learn from images without masks: trained teachers label them, every pixel its most
    probable class, and a new network learns from them as from annotated ones."""

    rounds: Positive = 2
    """The first teachers are of the same arm without self-training, those of `self-training` alone of real+stain; later
    ones have learned from the labels of the round before."""
    teachers: Positive = 3
    """Networks that vote for the labels of a round."""


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
    """Part of the training samples that are synthetic, in the `+synthetic` arms (paper: 0.8). Unannotated images in
    the `self-training` arms count as synthetic."""
    mirror: bool = False
    """Predict with the mean over each image and its three mirror images (test-time augmentation, as in nnU-Net),
    in four times the time. Noted in the segmenter's folder, so that it always does."""
    stain: StainAugmentConfig = StainAugmentConfig()
    ssl: SslConfig = SslConfig()
    self_training: SelfTrainingConfig = SelfTrainingConfig()
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
