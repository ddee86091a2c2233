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
    guidance, steps = sampling.guidance, sampling.steps
    scheduler = make_sampler(sampling.sampler, objective, steps, sampling.time_shift, sampling.start)
    latents = noise if clean is None else torch.lerp(clean, noise, sampling.start)
    last = len(scheduler.timesteps) - 1
    for evaluation, timestep in enumerate(scheduler.timesteps):
        now, step = timestep.to(noise.device), evaluation // scheduler.order
        predicted = guided_prediction(
            denoiser, latents, now, layout, style, guidance.at(step, steps), objective=objective
        )
        latents = scheduler.step(predicted.float(), timestep, latents).prev_sample
        if evaluation == last or (evaluation + 1) % scheduler.order == 0:
            yield latents
