"""What the denoiser learns: eps, v or flow, at which times, under which loss.

Times are in (0, 1), 0 = clean. The denoiser sees them times 1000.
"""

from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

TRAIN_TIMESTEPS = 1000

BETAS = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "beta_end": 0.0205,
}
"""The paper's schedule, spaced by square roots: `linear` of latent-diffusion is diffusers' `scaled_linear`."""


@dataclass(frozen=True)
class Objective:
    """Forward process and target.

    kind: `eps` (noise, Ho et al. 2020), `v` (velocity, Salimans & Ho 2022) or `flow` (rectified flow, Liu et al.
    2022: the straight path from image to noise). loss: `l1` (the paper's) or `l2`. time_shift: of the training times
    (see `shifted`).
    """

    kind: str
    loss: str
    time_shift: float = 1.0

    def sample_times(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `n` training times in (0, 1): logit-normal for flow (Esser et al. 2024), uniform for eps and v."""
        if self.kind == "flow":
            return shifted(torch.sigmoid(torch.randn(n, generator=generator)), self.time_shift)
        return shifted(torch.rand(n, generator=generator), self.time_shift)

    def corrupt(
        self, latent: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy latent, target of the prediction, and the timestep `(b,)` that the denoiser is told."""
        if self.kind == "flow":
            t = times.view(-1, 1, 1, 1)
            return (1.0 - t) * latent + t * noise, noise - latent, TRAIN_TIMESTEPS * times
        timestep = (TRAIN_TIMESTEPS * times).long().clamp(max=TRAIN_TIMESTEPS - 1)
        scheduler = _scheduler()
        noisy = scheduler.add_noise(latent, noise, timestep)
        target = noise if self.kind == "eps" else scheduler.get_velocity(latent, noise, timestep)
        return noisy, target, timestep

    def __call__(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss."""
        return (F.l1_loss if self.loss == "l1" else F.mse_loss)(predicted, target)


def shifted(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Times in [0, 1], 1 = noise, moved towards noise by shift > 1: noise to image in the ratio t / (1 - t) becomes
    `shift` times as much (Esser et al. 2024, section 5.3.2)."""
    return shift * times / (1.0 + (shift - 1.0) * times)


@cache
def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(**BETAS)
