"""Augmentation of segmentation batches: geometry for every arm, stain and colour for `+stain` and `ssl`.

Everything works on whole batches and draws from the generator it is given, so that a batch is a pure function of
the generator's state.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stedm.colour.recolour import recolour as recoloured
from stedm.colour.stain import scale_stains
from stedm.config import RecolourConfig, StainAugmentConfig

PROBABILITY = 0.9
"""Part of the samples whose colours are changed at all."""
BLUR_SIGMA_PX = 0.8
"""Largest Gaussian blur (half of those samples are blurred)."""
_HED_BIAS = 0.1
"""Largest amount that is added to or taken from a stain, in natural optical density, as a part of `hed_sigma`."""


def augment_geometry(
    images: Tensor, masks: Tensor, generator: torch.Generator, *, scale: tuple[float, float] = (0.8, 1.25)
) -> tuple[Tensor, Tensor]:
    """Flip, turn by quarters, and (half of the samples) zoom: the same for an image and its mask.

    images (n, C, H, W) float, masks (n, H, W) integer, H = W; both are returned in that form. Zooming in crops at a
    random place; zooming out continues image and mask by reflection. Masks take the nearest pixel, `ignore_index`
    included; samples that are not zoomed keep their pixels exactly.
    """
    n = len(images)
    flip, quarter, zoom, size, x, y = torch.rand(6, n, generator=generator)
    angle = (quarter * 4).floor() * (math.pi / 2)
    cos, sin = angle.cos().round(), angle.sin().round()
    mirror = torch.where(flip < 0.5, -1.0, 1.0)
    low, high = (math.log(limit) for limit in scale)
    factor = torch.where(zoom < 0.5, torch.exp(low + (high - low) * size), 1.0)
    # affine_grid maps places of the result to places of the source, both in [-1, 1]: a window of side 1 / factor,
    # moved by at most what keeps it inside the image (zoom in) or the image inside it (zoom out).
    reach = (1 - 1 / factor).abs()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0] = torch.stack([mirror * cos / factor, -mirror * sin / factor, reach * (2 * x - 1)], dim=1)
    theta[:, 1] = torch.stack([sin / factor, cos / factor, reach * (2 * y - 1)], dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.device)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return moved, labels[:, 0].to(masks.dtype)


def augment_colours(
    images: Tensor,
    generator: torch.Generator,
    stain: StainAugmentConfig,
    recolour: RecolourConfig,
    *,
    factor: float = 1.0,
) -> Tensor:
    """Stain augmentation of an arm: what is known about its stains, as the diffusion model is told, and then jitter.

    images (n, 3, H, W) in [0, 1]; `factor` multiplies the strengths of the jitter alone, since the other are limits.
    """
    return augment_stain(recoloured(images, recolour, generator), generator, stain, factor=factor)


def augment_stain(
    images: Tensor,
    generator: torch.Generator,
    config: StainAugmentConfig,
    *,
    factor: float = 1.0,
    probability: float = PROBABILITY,
    blur_sigma_px: float = BLUR_SIGMA_PX,
) -> Tensor:
    """Jitter of stains and colours and blur of images (n, 3, H, W) in [0, 1], every strength times `factor`.

    Each sample has its own strengths; it is left as it is with probability 1 - `probability`.
    """
    n = len(images)
    device = images.device
    chosen = torch.rand(n, generator=generator) < probability
    draws = (2 * torch.rand(11, n, generator=generator) - 1) * chosen
    hed_sigma = factor * config.hed_sigma
    scale, bias = hed_sigma * draws[0:3].T, _HED_BIAS * hed_sigma * draws[3:6].T
    images = scale_stains(images, (1 + scale).to(device), bias.to(device))
    brightness, contrast, saturation = (
        (1 + factor * strength * draw).to(device)
        for strength, draw in zip((config.brightness, config.contrast, config.saturation), draws[6:9], strict=True)
    )
    images = _jitter_colours(images, brightness, contrast, saturation, (factor * config.hue * draws[9]).to(device))
    # The upper half of the draws blurs, the lower half does not.
    return _blur(images, (factor * blur_sigma_px * draws[10].clamp_min(0)).to(device))


def _jitter_colours(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Four factors (n,) a sample: 1, 1, 1 and hue 0 change nothing; hue is a part of the colour circle.

    Hue and saturation turn and stretch the chroma plane of YIQ, which is one matrix a sample.
    """
    from skimage.color.colorconv import rgb_from_yiq, yiq_from_rgb

    turn = 2 * math.pi * hue
    cos, sin, zero, one = saturation * turn.cos(), saturation * turn.sin(), torch.zeros_like(hue), torch.ones_like(hue)
    chroma = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).reshape(-1, 3, 3)
    mixing = _matrix(rgb_from_yiq, images) @ chroma @ _matrix(yiq_from_rgb, images)
    images = torch.einsum("nchw,ndc->ndhw", images, mixing) * brightness[:, None, None, None]
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(grey, images, contrast[:, None, None, None]).clamp(0, 1)


def _blur(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur with a sigma (n,) a sample; 0 = none."""
    n, channels, height, width = images.shape
    radius = min(math.ceil(3 * float(sigma_px.max())), height - 1, width - 1)
    if radius < 1:
        return images
    taps = torch.arange(-radius, radius + 1, device=images.device)
    # At sigma 0 the clamp leaves a kernel of one tap, which is the identity.
    kernel = torch.exp(-0.5 * (taps / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(images, (radius,) * 4, mode="reflect").reshape(1, n * channels, height + 2 * radius, -1)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    return F.conv2d(planes, kernel[:, None, None, :], groups=n * channels).reshape(n, channels, height, width)


def _matrix(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
