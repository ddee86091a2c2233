"""From noise to latents: samplers by name, which are diffusers' schedulers set up for an objective.

Every one of them starts from unit noise, takes the network's input unscaled and ends at sigma 0. `scheduler.timesteps`
has one entry a step.
"""

from collections.abc import Iterator

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from stedm.config import Sampling
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.guidance import guided_prediction
from stedm.diffusion.objective import BETAS, TRAIN_TIMESTEPS, shifted
from stedm.errors import StedmError

_MULTISTEP = {
    # DPM-Solver++ of order 1 is DDIM (Lu et al. 2022). diffusers' own DDIMScheduler goes down by 1000 // steps
    # timesteps whatever their distance, so that it ends above sigma 0 unless `steps` divides 1000.
    "ddim": (DPMSolverMultistepScheduler, {"solver_order": 1}),
    "dpm++": (DPMSolverMultistepScheduler, {"solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {}),
}
SAMPLERS = {
    "flow": ("dpm++", "unipc", "euler"),
    "eps": ("ddim", "dpm++", "unipc"),
    "v": ("ddim", "dpm++", "unipc"),
}
"""Names of the samplers of each objective."""


def guided_trajectory(
    denoiser: StyleDenoiser,
    noise: torch.Tensor,
    layout: torch.Tensor,
    style: torch.Tensor,
    sampling: Sampling,
    *,
    objective: str,
    clean: torch.Tensor | None = None,
    start: float = 1.0,
) -> Iterator[torch.Tensor]:
    """Yield the latent `(b, latent_channels, h, w)` after each of `sampling.steps` steps; the last one is the image.

    Args:
        noise: standard normal `(b, latent_channels, h, w)`: all samplers start from unit noise and leave the network's
            input unscaled.
        layout: class indices `(b, height, width)`; `denoiser.unknown` = unknown.
        style: `(b, style_dim)`.
        objective: `eps`, `v` or `flow`.
        clean: like `noise`; latents of the images that the trajectory begins at where `start` is below 1.
        start: time at which the first step begins: 1 = pure noise; below, `clean` with so much noise (flow only).
    """
    scheduler = make_sampler(sampling.sampler, objective, sampling.steps, sampling.time_shift, start)
    latents = noise if clean is None else torch.lerp(clean, noise, start)
    for timestep in scheduler.timesteps:
        predicted = guided_prediction(denoiser, latents, timestep.to(noise.device), layout, style, sampling.guidance)
        latents = scheduler.step(predicted.float(), timestep, latents).prev_sample
        yield latents


def make_sampler(name: str, objective: str, steps: int, shift: float = 1.0, start: float = 1.0) -> SchedulerMixin:
    """A scheduler set up for exactly `steps` steps.

    Args:
        name: `dpm++` (DPM-Solver++ of order 2, Lu et al. 2022), `unipc` (Zhao et al. 2023); `ddim`
            (Song et al. 2021) for eps and v; `euler` for flow.
        objective: `eps`, `v` or `flow`.
        shift: 1 = steps evenly spaced in time; more puts more of them near noise (`objective.shifted`).
        start: time at which the first step begins, 1 = pure noise; all times are scaled by it.

    Raises:
        StedmError: the sampler doesn't go with the objective, or is unknown; some of its steps fall together; or
            `start` is below 1 for another objective than flow.
    """
    if name not in SAMPLERS[objective]:
        known = SAMPLERS[objective]
        raise StedmError(
            f"sampler {name}: a model of objective {objective} is sampled with {', '.join(known[:-1])} or {known[-1]}"
        )
    if objective == "flow":
        scheduler = _flow_sampler(name, steps, shift)
        if start != 1.0:
            # In flow a time is a sigma.
            scheduler.sigmas, scheduler.timesteps = start * scheduler.sigmas, start * scheduler.timesteps
        return scheduler
    if start != 1.0:
        raise StedmError(f"start {start}: drawing can begin at an image for the objective flow only; set it to 1")
    return _noise_sampler(name, objective, steps, shift)


def _flow_sampler(name: str, steps: int, shift: float) -> SchedulerMixin:
    if name == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=shift)
        # Steps of equal length (before the shift), the last one from 1 / steps to 0. diffusers spaces them from 1 to
        # 1 / 1000 and goes from there to 0 in one more, which is an evaluation for nothing.
        scheduler.sigma_min = 1.0 / steps
        scheduler.set_timesteps(steps)
        return scheduler
    kind, options = _MULTISTEP[name]
    scheduler = kind(
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        **options,
    )
    scheduler.set_timesteps(steps)
    # diffusers cuts them to whole numbers; the network has learned the times between.
    scheduler.timesteps = TRAIN_TIMESTEPS * scheduler.sigmas[:-1]
    return scheduler


def _noise_sampler(name: str, objective: str, steps: int, shift: float) -> SchedulerMixin:
    kind, options = _MULTISTEP[name]
    prediction = {"eps": "epsilon", "v": "v_prediction"}[objective]
    # Trailing spacing starts at the last timestep, as in Lin et al. 2024.
    scheduler = kind(**BETAS, prediction_type=prediction, timestep_spacing="trailing", **options)
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) > steps:
        # At some numbers (242 is the first) rounding leaves diffusers one more, at timestep -1.
        scheduler.timesteps = scheduler.timesteps[:steps]
        scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
        scheduler.num_inference_steps = steps
    if shift != 1.0:
        _shift_timesteps(scheduler, shift)
    return scheduler


def _shift_timesteps(scheduler: SchedulerMixin, shift: float) -> None:
    """Bring the timesteps of a scheduler, whole numbers of 0..999, nearer to noise."""
    times = shifted((scheduler.timesteps + 1.0) / TRAIN_TIMESTEPS, shift)
    timesteps = (TRAIN_TIMESTEPS * times).round().long() - 1
    if len(timesteps.unique()) < len(timesteps):
        raise StedmError(
            f"time_shift {shift}: {len(timesteps)} steps of {TRAIN_TIMESTEPS} fall together; lower it or the steps"
        )
    kept = scheduler.alphas_cumprod[timesteps]
    scheduler.timesteps = timesteps
    scheduler.sigmas = torch.cat([((1.0 - kept) / kept).sqrt(), scheduler.sigmas[-1:]])
