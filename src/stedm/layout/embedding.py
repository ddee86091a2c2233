"""The layout embedding: a class map becomes channels beside the noisy latent (paper, section 3)."""

import torch
from torch import nn
from torch.nn import functional as F


class LayoutEmbedding(nn.Module):
    """One-hot layout of any number of classes plus "unknown", brought to latent size without losing a pixel.

    The paper halves the one-hot layout bilinearly until it has latent size; thin structures fade. Here each
    factor x factor square of the layout becomes one position with all its pixels as channels, and a 1 x 1 convolution
    reads them.

    Args:
        n_classes: classes of the layout; index `n_classes` means that the layout is unknown there.
        channels: channels of the result.
        factor: image side divided by latent side.
    """

    def __init__(self, n_classes: int, channels: int, factor: int):
        super().__init__()
        self.n_classes, self.factor = n_classes, factor
        self.project = nn.Conv2d((n_classes + 1) * factor * factor, channels, kernel_size=1)

    @property
    def unknown(self) -> int:
        """Class index of "layout unknown"."""
        return self.n_classes

    def forward(self, layout: torch.Tensor) -> torch.Tensor:
        """Embed class indices `(b, height, width)` in 0..n_classes to `(b, channels, height/factor, width/factor)`."""
        one_hot = F.one_hot(layout, self.n_classes + 1).permute(0, 3, 1, 2).to(self.project.weight.dtype)
        return self.project(F.pixel_unshuffle(one_hot, self.factor))
