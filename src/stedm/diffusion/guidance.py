"""Classifier-free guidance on style (Ho & Salimans 2022), conditional and unconditional in one batched pass."""

import torch

from stedm.diffusion.denoiser import StyleDenoiser


def guided_prediction(
    denoiser: StyleDenoiser,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    layout: torch.Tensor,
    style: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Prediction moved away from the null style: null + guidance * (style - null).

    `guidance` 1 costs one network evaluation a picture, any other value two (one pass of twice the batch).
    """
    timestep = timestep.expand(len(noisy))
    if guidance == 1.0:
        return denoiser.denoise(noisy, timestep, layout, style)
    null = denoiser.null_style.expand_as(style)
    both = denoiser.denoise(
        torch.cat([noisy, noisy]), torch.cat([timestep] * 2), torch.cat([layout] * 2), torch.cat([style, null])
    )
    with_style, without = both.chunk(2)
    return without + guidance * (with_style - without)
