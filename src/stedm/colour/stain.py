"""Stains by Beer-Lambert: amounts of haematoxylin, eosin and DAB, scaled without touching what lies where."""

import torch
from torch import Tensor


def scale_stains(images: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scale and shift the amounts of haematoxylin, eosin, DAB: a' = a * scale + bias, scale and bias (n, 3).

    Tellez et al. 2018 (doi 10.1109/TMI.2018.2820199), with the stain matrix of Ruifrok & Johnston as in scikit-image;
    amounts are in natural optical density. images: (n, 3, H, W) in [0, 1]; so is the result.
    """
    from skimage.color import hed_from_rgb, rgb_from_hed

    density = -torch.log(images.clamp_min(0.5 / 255))  # half a grey level: black stays black when rounded
    to_stains = torch.as_tensor(hed_from_rgb, dtype=images.dtype, device=images.device)
    to_density = torch.as_tensor(rgb_from_hed, dtype=images.dtype, device=images.device)
    # amounts = density @ to_stains; both changes of the amounts, brought back to densities:
    mixing = to_stains @ (scale[:, :, None] * to_density)
    density = torch.einsum("nchw,ncd->ndhw", density, mixing)
    if bias is not None:
        density = density + (bias @ to_density)[:, :, None, None]
    return torch.exp(-density).clamp(0, 1)
