"""Recolouring: a training image gets more or less of each stain, for more styles than there are annotated patients.

With a few annotated patients the layout classes are tied to their colours: where every annotated tumour is brown, a
network learns "tumour is brown". If the stains are scaled by random factors the layout stays true, and the network must
find it by something else. How far the factors go is prior knowledge ("a tumour may be unstained"), so that all who
learn are told the same: segmenters of the arms with stain augmentation, and the diffusion model. There the style images
are scaled as their target, and still tell exactly how it looks, so that the network must take the colour from them.
"""

import torch
from torch import Tensor

from stedm.colour.stain import scale_stains
from stedm.config import RecolourConfig


def stain_factors(n: int, config: RecolourConfig, generator: torch.Generator) -> Tensor:
    """Draw `(n, 3)` factors of the stains of `n` samples; 1 where a sample keeps its colours."""
    chosen = torch.rand(n, 1, generator=generator) < config.probability
    low, high = torch.tensor([config.haematoxylin, config.eosin, config.dab]).T
    factors = (low + (high - low) * torch.rand(n, 3, generator=generator)).clamp_min(0.0)
    return torch.where(chosen, factors, 1.0)


def recolour(images: Tensor, config: RecolourConfig, generator: torch.Generator) -> Tensor:
    """Images `(n, 3, H, W)` in [0, 1], each with stains of its own; nothing is drawn where recolouring is off."""
    if config.probability == 0:
        return images
    return scale_stains(images, stain_factors(len(images), config, generator).to(images.device))


def recolour_together(image: Tensor, style: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 `(b, 3, H, W)` and its style images `(b, n, 3, h, w)` to floats in [-1, 1], by the factors `(b, 3)`."""
    b, n = style.shape[:2]
    new_image = scale_stains(image.float() / 255, factors)
    every = factors.repeat_interleave(n, dim=0)
    new_style = scale_stains(style.flatten(0, 1).float() / 255, every).unflatten(0, (b, n))
    return 2 * new_image - 1, 2 * new_style - 1
