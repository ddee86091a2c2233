"""Augmentation of segmentation batches: geometry for every arm, stain and colour for `+stain` and `ssl`.

Everything works on whole batches and draws from the generator it is given, so that a batch is a pure function of
the generator's state.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color.colorconv import rgb_from_yiq, yiq_from_rgb
from torch import Tensor

from stedm.config import StainAugmentConfig
from stedm.colour.stain import scale_stains
from stedm.segmentation.randstainna import Cohort, normalise_to_templates


def augment_geometry(
    pictures: Tensor, masks: Tensor, generator: torch.Generator, *, scale: tuple[float, float] = (0.8, 1.25)
) -> tuple[Tensor, Tensor]:
    """Flip, turn by quarters, and (half of the samples) zoom: the same for a picture and its mask.

    pictures (n, C, H, W) float, masks (n, H, W) integer, H = W; both are returned in that form. Zooming in crops at a
    random place; zooming out continues picture and mask by reflection. Masks take the nearest pixel, `ignore_index`
    included; samples that are not zoomed keep their pixels exactly.
    """
    n = len(pictures)
    flip, quarter, zoom, size, x, y = torch.rand(6, n, generator=generator)
    angle = (quarter * 4).floor() * (math.pi / 2)
    cos, sin = angle.cos().round(), angle.sin().round()
    mirror = torch.where(flip < 0.5, -1.0, 1.0)
    low, high = (math.log(limit) for limit in scale)
    factor = torch.where(zoom < 0.5, torch.exp(low + (high - low) * size), 1.0)
    # affine_grid maps places of the result to places of the source, both in [-1, 1]: a window of side 1 / factor,
    # moved by at most what keeps it inside the picture (zoom in) or the picture inside it (zoom out).
    reach = (1 - 1 / factor).abs()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0] = torch.stack([mirror * cos / factor, -mirror * sin / factor, reach * (2 * x - 1)], dim=1)
    theta[:, 1] = torch.stack([sin / factor, cos / factor, reach * (2 * y - 1)], dim=1)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False).to(pictures.device)
    moved = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return moved, labels[:, 0].to(masks.dtype)


def augment_stain(
    pictures: Tensor, generator: torch.Generator, config: StainAugmentConfig, cohort: Cohort | None = None
) -> Tensor:
    """Changes of stain (`config.kind`), colour jitter and blur of pictures (n, 3, H, W) in [0, 1].

    Each sample has its own strengths; it is left as it is with probability 1 - `config.probability`. The virtual
    templates of `randstainna` and `both` are drawn from `cohort`, which they need.
    """
    n = len(pictures)
    device = pictures.device
    chosen = torch.rand(n, generator=generator) < config.probability
    draws = (2 * torch.rand(11, n, generator=generator) - 1) * chosen
    if config.kind != "hed":
        assert cohort is not None
        templates = torch.randn(n, 6, generator=generator)
        moved = normalise_to_templates(pictures, templates, cohort, config.template_sd)
        pictures = torch.where(chosen[:, None, None, None].to(device), moved, pictures)
    if config.kind != "randstainna":
        scale, bias = config.hed_sigma * draws[0:3].T, config.hed_bias * draws[3:6].T
        pictures = scale_stains(pictures, (1 + scale).to(device), bias.to(device))
    brightness, contrast, saturation = (
        (1 + strength * draw).to(device)
        for strength, draw in zip((config.brightness, config.contrast, config.saturation), draws[6:9], strict=True)
    )
    pictures = _jitter_colours(pictures, brightness, contrast, saturation, (config.hue * draws[9]).to(device))
    # The upper half of the draws blurs, the lower half does not.
    return _blur(pictures, (config.blur_sigma_px * draws[10].clamp_min(0)).to(device))


def _jitter_colours(pictures: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Four factors (n,) a sample: 1, 1, 1 and hue 0 change nothing; hue is a part of the colour circle.

    Hue and saturation turn and stretch the chroma plane of YIQ, which is one matrix a sample.
    """
    turn = 2 * math.pi * hue
    cos, sin, zero, one = saturation * turn.cos(), saturation * turn.sin(), torch.zeros_like(hue), torch.ones_like(hue)
    chroma = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).reshape(-1, 3, 3)
    mixing = _matrix(rgb_from_yiq, pictures) @ chroma @ _matrix(yiq_from_rgb, pictures)
    pictures = torch.einsum("nchw,ndc->ndhw", pictures, mixing) * brightness[:, None, None, None]
    grey = pictures.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(grey, pictures, contrast[:, None, None, None]).clamp(0, 1)


def _blur(pictures: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur with a sigma (n,) a sample; 0 = none."""
    n, channels, height, width = pictures.shape
    radius = min(math.ceil(3 * float(sigma_px.max())), height - 1, width - 1)
    if radius < 1:
        return pictures
    taps = torch.arange(-radius, radius + 1, device=pictures.device)
    # At sigma 0 the clamp leaves a kernel of one tap, which is the identity.
    kernel = torch.exp(-0.5 * (taps / sigma_px.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(pictures, (radius,) * 4, mode="reflect").reshape(1, n * channels, height + 2 * radius, -1)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    return F.conv2d(planes, kernel[:, None, None, :], groups=n * channels).reshape(n, channels, height, width)


def _matrix(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
