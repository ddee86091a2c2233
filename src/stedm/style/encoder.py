"""The style encoder E_s: a style image becomes a style vector (paper, section 3).

`conv` is our small encoder; every other name is a timm backbone. Both normalise images by measured colours, have
`measure`, and map `(m, 3, height, width)` in [-1, 1] to `(m, dim)`.
"""

from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F

from stedm.errors import StedmError
from stedm.io.weights import load_backbone_weights

OWN = "own"
"""Name, in a saved model, of a style encoder that was given as a module."""
WIDTHS = [24, 48, 96]
"""Of the levels of the `conv` encoder."""


class ConvStyleEncoder(nn.Module):
    """Convolutional encoder whose output is made of channel statistics over the image.

    Each level halves the image. The mean and standard deviation over positions are taken of the RGB input and of
    every level, then projected to the style vector. Statistics over positions carry colour and texture but not where
    things are, so that the layout of a style image can't be read from its vector (the observation behind AdaIN,
    Huang & Belongie 2017). No normalisation layers inside: absolute colour is what style is about.

    Images of one cohort look alike beside the range of all images, so colours and their statistics are brought to
    zero mean and unit variance over the cohort (`measure`): what differs between patients is then what the network
    sees from the first step on.

    Args:
        channels: widths of the levels.
        dim: length of the style vector.
    """

    def __init__(self, channels: list[int], dim: int):
        super().__init__()
        self.register_buffer("colour_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("colour_std", torch.ones(1, 3, 1, 1))
        self.register_buffer("statistics_mean", torch.zeros(1, 6))
        self.register_buffer("statistics_std", torch.ones(1, 6))
        self.levels = nn.ModuleList()
        previous = 3
        for width in channels:
            self.levels.append(nn.Conv2d(previous, width, kernel_size=3, stride=2, padding=1))
            previous = width
        self.project = nn.Sequential(
            nn.Linear(2 * (3 + sum(channels)), 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
        )

    @torch.no_grad()
    def measure(self, images: torch.Tensor) -> None:
        """Take the cohort's colours from some of its images `(n, 3, height, width)` in [-1, 1]; before training."""
        self.colour_mean.copy_(images.mean(dim=(0, 2, 3), keepdim=True))
        self.colour_std.copy_(images.std(dim=(0, 2, 3), keepdim=True).clamp(min=0.05))
        statistics = _mean_and_deviation((images - self.colour_mean) / self.colour_std)
        self.statistics_mean.copy_(statistics.mean(dim=0, keepdim=True))
        self.statistics_std.copy_(statistics.std(dim=0, keepdim=True).clamp(min=0.05))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Style vectors `(m, dim)` of images `(m, 3, height, width)` in [-1, 1]."""
        features = (images - self.colour_mean) / self.colour_std
        statistics = [(_mean_and_deviation(features) - self.statistics_mean) / self.statistics_std]
        for level in self.levels:
            features = F.silu(level(features))
            statistics.append(_mean_and_deviation(features))
        return self.project(torch.cat(statistics, dim=1))


class TimmStyleEncoder(nn.Module):
    """Any timm backbone as style encoder.

    Args:
        name: timm's name of the backbone, such as `resnet18` or `swinv2_tiny_window8_256` (the paper's Swin-V2-T).
        dim: length of the style vector.
        pooling: `statistics` = mean and standard deviation of the channels of every level, as in `ConvStyleEncoder`;
            `head` = the backbone's own pooled features and one linear layer, as in the paper.
        image_px: side of the images; backbones of fixed input size get images resized to it.

    Raises:
        StedmError: timm has no such backbone, or it has no feature levels.
    """

    def __init__(self, name: str, dim: int, pooling: str = "statistics", image_px: int = 64):
        super().__init__()
        self.name, self.pooling = name, pooling
        self.has_published_colours = False
        self.register_buffer("colour_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("colour_std", torch.ones(1, 3, 1, 1))
        if not timm.is_model(name):
            raise StedmError(f"diffusion.style.encoder: timm has no backbone {name!r}; use conv or one of timm's names")
        fixed_size = {"img_size": image_px} if timm.get_pretrained_cfg(name).fixed_input_size else {}
        self.fixed_px = image_px if fixed_size else None
        how = {"features_only": True} if pooling == "statistics" else {"num_classes": 0}
        try:
            # pretrained=False: nothing is downloaded; weights come from a local file (`load_weights`).
            self.backbone = timm.create_model(name, pretrained=False, **how, **fixed_size)
        except (RuntimeError, AttributeError, AssertionError, ValueError, TypeError) as error:
            raise StedmError(
                f"diffusion.style.encoder {name}: {' '.join(str(error).split())[:200]}; use conv or another one"
            ) from error
        if pooling == "statistics":
            self.widths = self.backbone.feature_info.channels()
            self.project = nn.Sequential(
                nn.Linear(2 * (3 + sum(self.widths)), 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim), nn.LayerNorm(dim)
            )
        else:
            self.project = nn.Linear(self.backbone.num_features, dim)

    @torch.no_grad()
    def measure(self, images: torch.Tensor) -> None:
        """Take the cohort's colours from some of its images `(n, 3, height, width)` in [-1, 1]; before training.

        Published weights keep the colours that they were trained with.
        """
        if not self.has_published_colours:
            self.colour_mean.copy_(images.mean(dim=(0, 2, 3), keepdim=True))
            self.colour_std.copy_(images.std(dim=(0, 2, 3), keepdim=True).clamp(min=0.05))

    @torch.no_grad()
    def load_weights(self, path: Path) -> None:
        """Initialise the backbone from a local .safetensors file as published by timm, with its colour normalisation.

        Raises:
            StedmError: the file can't be read or belongs to another network.
        """
        load_backbone_weights(self.backbone, path)
        self.has_published_colours = True
        published = timm.get_pretrained_cfg(self.name)
        self.colour_mean.copy_(2 * torch.tensor(published.mean).view(1, 3, 1, 1) - 1)
        self.colour_std.copy_(2 * torch.tensor(published.std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Style vectors `(m, dim)` of images `(m, 3, height, width)` in [-1, 1]."""
        if self.fixed_px and images.shape[-2:] != (self.fixed_px, self.fixed_px):
            images = F.interpolate(images, (self.fixed_px, self.fixed_px), mode="bilinear", antialias=True)
        images = (images - self.colour_mean) / self.colour_std
        if self.pooling == "head":
            return self.project(self.backbone(images))
        statistics = [_mean_and_deviation(images)]
        for features, width in zip(self.backbone(images), self.widths, strict=True):
            # Transformers put channels last.
            statistics.append(_mean_and_deviation(features if features.shape[1] == width else features.movedim(-1, 1)))
        return self.project(torch.cat(statistics, dim=1))


def make_style_encoder(name: str, dim: int, pooling: str, image_px: int) -> nn.Module:
    """`conv`, or a timm backbone by name; `own` is the name of an encoder of which only its owner has the code."""
    if name == OWN:
        raise StedmError("style_encoder: this model's style encoder is a module of your own; give it by that keyword")
    if name == "conv":
        return ConvStyleEncoder(WIDTHS, dim)
    return TimmStyleEncoder(name, dim, pooling, image_px)


def _mean_and_deviation(features: torch.Tensor) -> torch.Tensor:
    """Channel means and standard deviations over positions, `(m, 2 c)`."""
    # In float32 also under autocast; from the mean of squares, which is several times as fast as `var` on CPUs.
    features = features.float()
    mean = features.mean(dim=(2, 3))
    variance = (features.square().mean(dim=(2, 3)) - mean.square()).clamp(min=0.0)
    # The small constant keeps the gradient of the root finite on flat images.
    deviation = (variance + 1e-5).sqrt()
    return torch.cat([mean, deviation], dim=1)
