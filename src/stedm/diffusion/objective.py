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
_MIN_SNR_GAMMA = 5.0


@dataclass(frozen=True)
class Objective:
    """Forward process and target.

    kind: `eps` (noise, Ho et al. 2020), `v` (velocity, Salimans & Ho 2022) or `flow` (rectified flow, Liu et al.
    2022: the straight path from image to noise). loss: `l1` (the paper's) or `l2`. timesteps: `uniform` or
    `logit-normal` (Esser et al. 2024). weighting: of the times in the loss, `none` or `min-snr` (Hang et al. 2023,
    gamma 5: the error of the clean image that the prediction implies counts by the signal-to-noise ratio, 5 at most).
    time_shift: of the training times (see `shifted`).
    """

    kind: str
    loss: str
    timesteps: str
    weighting: str = "none"
    time_shift: float = 1.0

    def sample_times(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `n` training times in (0, 1)."""
        if self.timesteps == "logit-normal":
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

    def __call__(self, predicted: torch.Tensor, target: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Mean loss; timestep as `corrupt` gives it."""
        loss = F.l1_loss if self.loss == "l1" else F.mse_loss
        if self.weighting == "none":
            return loss(predicted, target)
        each = loss(predicted, target, reduction="none").flatten(1).mean(dim=1)
        return (self.weights(timestep) * each).mean()

    def weights(self, timestep: torch.Tensor) -> torch.Tensor:
        """Min-SNR weight of each time `(b,)`, for this objective's own error (squared)."""
        if self.kind == "flow":
            # The implied clean image is noisy - t * prediction, so that its error is t times the prediction's.
            t = (timestep / TRAIN_TIMESTEPS).clamp(1e-3, 1.0)
            return (((1.0 - t) / t) ** 2).clamp(max=_MIN_SNR_GAMMA) * t**2
        alpha_squared = _scheduler().alphas_cumprod.to(timestep.device)[timestep]
        ratio = alpha_squared / (1.0 - alpha_squared)
        return ratio.clamp(max=_MIN_SNR_GAMMA) / (ratio if self.kind == "eps" else ratio + 1.0)


def shifted(times: torch.Tensor, shift: float) -> torch.Tensor:
    """Times in [0, 1], 1 = noise, moved towards noise by shift > 1: noise to image in the ratio t / (1 - t) becomes
    `shift` times as much (Esser et al. 2024, section 5.3.2)."""
    return shift * times / (1.0 + (shift - 1.0) * times)


def clean_image_weights(kind: str, timestep: float) -> tuple[float, float]:
    """(a, b) such that a * noisy + b * prediction is the clean image that a prediction of objective `kind` implies.

    timestep: as the denoiser is told, 0..1000.
    """
    if kind == "flow":
        return 1.0, -timestep / TRAIN_TIMESTEPS
    alpha_squared = float(_scheduler().alphas_cumprod[int(timestep)])
    alpha, sigma = alpha_squared**0.5, (1.0 - alpha_squared) ** 0.5
    return (1.0 / alpha, -sigma / alpha) if kind == "eps" else (alpha, -sigma)


@cache
def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(**BETAS)
