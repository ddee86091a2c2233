"""Style encoder, aggregation, style sampling and injection."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from stedm.config.base import Fraction, Part, Positive


class StyleConfig(Part):
    """Style encoder E_s, aggregation block, style sampling and injection."""

    encoder: str = "conv"
    """`conv` (small, convolutional), or the name of any timm backbone."""
    pooling: Literal["statistics", "head"] = "statistics"
    """How a timm backbone's features become a vector: `statistics` = mean and standard deviation of the channels of
    all levels; `head` = its pooled output and one linear layer (paper)."""
    weights: Path | None = None
    """Local .safetensors file with the backbone's weights as published by timm; null = from scratch."""
    trainable: bool = True
    """false = encoder and aggregation stay at their initial weights (what the released reference does)."""
    dim: Positive = 256
    """Length of the style vector."""
    aggregation: Literal["none", "mean", "max", "linear", "set-vit", "attention"] = "mean"
    """How the vectors of several style images become one (see stedm.style.aggregation); `linear` and `set-vit` take
    `n_images` at most, also at generation."""
    injection: Literal["mid", "own-block", "all", "cross"] = "all"
    """Where the style enters the U-Net: `all` = scale and shift of every ResBlock; `mid` = those of the mid block only;
    `own-block` = one more ResBlock in the mid block, for the style alone (released reference); `cross` =
    cross-attention to style tokens at every level."""
    sampling: Literal["none", "augmented", "nearby", "multi-patch", "cohort"] = "cohort"
    """Which images are the query styles in training: `augmented` = the image itself, strongly deformed; `nearby` =
    images of the same slide within one tile's distance; `multi-patch` = random tissue patches of other images of
    the same slide; `cohort` = other images of the same patient. With one image only all are as `augmented`."""
    n_images: Positive = 4
    """Style images per training sample."""
    dropout: Fraction = 0.25
    """Probability that a training sample sees the learned null style instead (classifier-free guidance)."""

    @model_validator(mode="after")
    def _weights_of_a_backbone(self) -> "StyleConfig":
        if self.weights is not None and (self.encoder == "conv" or self.aggregation == "set-vit"):
            raise ValueError("weights: only a timm encoder takes published weights; name it in `encoder`")
        return self
