"""The style encoder E_s: a style picture becomes a style vector (paper, section 3)."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvStyleEncoder(nn.Module):
    """Convolutional encoder whose output is made of channel statistics over the picture.

    Each level halves the picture. The mean and standard deviation over positions are taken of the RGB input and of
    every level, then projected to the style vector. Statistics over positions carry colour and texture but not where
    things are, so that the layout of a style picture can't be read from its vector (the observation behind AdaIN,
    Huang & Belongie 2017). No normalisation layers inside: absolute colour is what style is about.

    Pictures of one cohort look alike beside the range of all pictures, so colours and their statistics are brought to
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
    def measure(self, pictures: torch.Tensor) -> None:
        """Take the cohort's colours from some of its pictures `(n, 3, height, width)` in [-1, 1]; before training."""
        self.colour_mean.copy_(pictures.mean(dim=(0, 2, 3), keepdim=True))
        self.colour_std.copy_(pictures.std(dim=(0, 2, 3), keepdim=True).clamp(min=0.05))
        statistics = _mean_and_deviation((pictures - self.colour_mean) / self.colour_std)
        self.statistics_mean.copy_(statistics.mean(dim=0, keepdim=True))
        self.statistics_std.copy_(statistics.std(dim=0, keepdim=True).clamp(min=0.05))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Style vectors `(m, dim)` of pictures `(m, 3, height, width)` in [-1, 1]."""
        features = (pictures - self.colour_mean) / self.colour_std
        statistics = [(_mean_and_deviation(features) - self.statistics_mean) / self.statistics_std]
        for level in self.levels:
            features = F.silu(level(features))
            statistics.append(_mean_and_deviation(features))
        return self.project(torch.cat(statistics, dim=1))


def _mean_and_deviation(features: torch.Tensor) -> torch.Tensor:
    """Channel means and standard deviations over positions, `(m, 2 c)`."""
    # In float32 also under autocast; from the mean of squares, which is several times as fast as `var` on CPUs.
    features = features.float()
    mean = features.mean(dim=(2, 3))
    variance = (features.square().mean(dim=(2, 3)) - mean.square()).clamp(min=0.0)
    # The small constant keeps the gradient of the root finite on flat pictures.
    deviation = (variance + 1e-5).sqrt()
    return torch.cat([mean, deviation], dim=1)
