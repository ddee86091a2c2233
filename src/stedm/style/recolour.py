"""Recolouring a training image together with its style images: more styles than there are annotated patients.

With a few annotated patients the layout classes are tied to their colours: where every annotated tumour is brown, a
network learns "tumour is brown" and paints a little brown into the style of a patient whose tumour isn't stained. If
the stains of the target *and of its style images* are scaled by the same random factors, the layout stays true and
the style images still tell exactly how the target looks, so the network must take the colour from them.
"""

import torch
from torch import Tensor

from stedm.colour.stain import scale_stains
from stedm.config import RecolourConfig
from stedm.data.symmetry import to_signed


def recolour_together(
    image: Tensor, style: Tensor, config: RecolourConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """uint8 `(b, 3, H, W)` and its style images `(b, n, 3, h, w)` to floats in [-1, 1], recoloured alike.

    Each stain of a sample is scaled by a factor from its range; a sample keeps its colours with probability
    1 - `config.probability`. Draws come from `generator`, also where nothing is recoloured.
    """
    factors = stain_factors(len(image), config, generator)
    if (factors == 1.0).all():
        return to_signed(image), to_signed(style)
    return recoloured(image, style, factors.to(image.device))


def stain_factors(n: int, config: RecolourConfig, generator: torch.Generator) -> Tensor:
    """Draw `(n, 3)` factors of the stains of `n` samples; 1 where a sample keeps its colours."""
    chosen = torch.rand(n, 1, generator=generator) < config.probability
    low, high = torch.tensor([config.haematoxylin, config.eosin, config.dab]).T
    factors = (low + (high - low) * torch.rand(n, 3, generator=generator)).clamp_min(0.0)
    return torch.where(chosen, factors, 1.0)


def recoloured(image: Tensor, style: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """As `recolour_together`, by the given factors `(b, 3)`."""
    b, n = style.shape[:2]
    new_image = scale_stains(image.float() / 255, factors)
    every = factors.repeat_interleave(n, dim=0)
    new_style = scale_stains(style.flatten(0, 1).float() / 255, every).unflatten(0, (b, n))
    return 2 * new_image - 1, 2 * new_style - 1
