"""The way from noise to a latent image that a sampler and guidance take."""

from collections.abc import Iterator

import torch

from stedm.config import Sampling
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.guidance import guided_prediction
from stedm.diffusion.sampler import make_sampler


def guided_path(
    denoiser: StyleDenoiser,
    noise: torch.Tensor,
    layout: torch.Tensor,
    style: torch.Tensor,
    sampling: Sampling,
    *,
    objective: str,
    clean: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the latent `(b, latent_channels, h, w)` after each of `sampling.steps` steps; the last one is the image.

    Args:
        noise: standard normal `(b, latent_channels, h, w)`: all samplers start from unit noise and leave the network's
            input unscaled.
        layout: class indices `(b, height, width)`; `denoiser.unknown` = unknown.
        style: `(b, style_dim)`.
        objective: `eps`, `v` or `flow`.
        clean: like `noise`; latents of the images that the way begins at where `sampling.start` is below 1.
    """
    scheduler = make_sampler(sampling.sampler, objective, sampling.steps, sampling.time_shift, sampling.start)
    latents = noise if clean is None else torch.lerp(clean, noise, sampling.start)
    for timestep in scheduler.timesteps:
        predicted = guided_prediction(denoiser, latents, timestep.to(noise.device), layout, style, sampling.guidance)
        latents = scheduler.step(predicted.float(), timestep, latents).prev_sample
        yield latents
