"""The diffusion model: U-Net, objective, training."""

from typing import Annotated, Literal

from pydantic import Field

from stedm.config.base import Fraction, Part, Positive, TrainingConfig
from stedm.config.codec import CodecConfig, PixelCodecConfig
from stedm.config.style import StyleConfig


class DenoiserConfig(Part):
    """The U-Net (diffusers' UNet2DModel; UNet2DConditionModel where the style enters by cross-attention)."""

    channels: list[Positive] = [48, 96, 128]
    """Widths of the levels; a multiple of `norm_groups` each."""
    blocks_per_level: Positive = 1
    norm_groups: Positive = 16
    layout_channels: Positive = 16
    """Channels that the layout embedding adds to the noisy latent."""


class DiffusionConfig(TrainingConfig):
    """Training of the style-extracting diffusion model."""

    codec: CodecConfig = PixelCodecConfig()
    style: StyleConfig = StyleConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: Literal["eps", "v", "flow"] = "flow"
    """What the network predicts: noise, velocity (Salimans & Ho 2022), or rectified flow (Liu et al. 2022). Training
    times are drawn uniformly for eps and v, logit-normally for flow (Esser et al. 2024)."""
    loss: Literal["l1", "l2"] = "l2"
    time_shift: Annotated[float, Field(gt=0)] = 3.0
    """More than 1 draws training times nearer to noise, as `synthesis.sampling.time_shift` does with the steps of the
    sampler; what those steps never come near needn't be learned."""
    layout_dropout: Fraction = 0.1
    """Probability that a sample is shown with its layout unknown."""
    unlabeled_fraction: Fraction = 0.5
    """Part of the samples that are unannotated images; with the layout that segmenters see in them (`rounds.labels`),
    or under "layout unknown"."""
    steps: Positive = 4000
    batch: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 1.5e-3
    ema_decay: Fraction = 0.999
    """Largest decay of the averaged weights (diffusers' EMAModel ramps up to it); sampling uses these weights."""
