"""CIE L*a*b* of whole batches, as in scikit-image (D65, 2 degrees), on any device."""

import numpy as np
import torch
from skimage.color import xyz_tristimulus_values
from skimage.color.colorconv import rgb_from_xyz, xyz_from_rgb
from torch import Tensor

_KNEE = 6 / 29  # cube root above, a straight line below


def lab_from_rgb(images: Tensor) -> Tensor:
    """sRGB (n, 3, H, W) in [0, 1] -> L* in 0..100, a*, b* of about -100..100, in the same shape."""
    linear = torch.where(images > 0.04045, ((images.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92)
    xyz = _mix(linear, xyz_from_rgb) / _white(images)
    f = torch.where(xyz > _KNEE**3, xyz.clamp_min(_KNEE**3) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def rgb_from_lab(lab: Tensor) -> Tensor:
    """The inverse of `lab_from_rgb`; colours that no screen has are cut off to [0, 1]."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], dim=1)
    xyz = torch.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29)) * _white(lab)
    linear = _mix(xyz, rgb_from_xyz).clamp(0, 1)
    curved = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear)


def _mix(images: Tensor, matrix: np.ndarray) -> Tensor:
    weights = torch.as_tensor(matrix, dtype=images.dtype, device=images.device)
    return torch.einsum("nchw,dc->ndhw", images, weights)


def _white(like: Tensor) -> Tensor:
    white = xyz_tristimulus_values(illuminant="D65", observer="2")
    return torch.as_tensor(white, dtype=like.dtype, device=like.device)[:, None, None]
