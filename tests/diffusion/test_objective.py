"""Objectives and samplers: the forward process by hand, and samplers that undo it in exactly the steps asked for."""

import pytest
import torch

from stedm.diffusion.objective import BETAS, Objective
from stedm.diffusion.sampler import make_sampler
from stedm.errors import StedmError


def test_the_schedule_is_the_papers_square_root_spacing():
    from diffusers import DDPMScheduler

    betas = DDPMScheduler(**BETAS).betas
    torch.testing.assert_close(betas, torch.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)


def test_flow_goes_straight_from_picture_to_noise():
    latent, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), -1.0)
    noisy, target, timestep = Objective("flow", "l2", "uniform").corrupt(latent, noise, torch.tensor([0.0, 0.25]))
    assert noisy.flatten().tolist() == [3.0, 2.0]
    assert target.flatten().tolist() == [-4.0, -4.0]
    assert timestep.tolist() == [0.0, 250.0]


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [(o, s) for o in ("eps", "v") for s in ("ddim", "dpm++", "unipc")]
    + [("flow", s) for s in ("euler", "dpm++", "unipc")],
)
# For DDIM diffusers spaces timesteps exactly only where their number divides 1000: 125, not the paper's 128.
@pytest.mark.parametrize("steps", [4, 12, 125])
def test_every_sampler_finds_the_picture_of_a_perfect_network_in_exactly_the_steps_asked_for(objective, sampler, steps):
    """A network that knows the one picture there is predicts perfectly; sampling must then return the picture."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 3, 4, 4, generator=generator)
    latents = torch.randn(1, 3, 4, 4, generator=generator)
    scheduler = make_sampler(sampler, objective, steps)
    assert len(scheduler.timesteps) == steps
    for timestep in scheduler.timesteps:
        latents = scheduler.step(_perfect(objective, latents, picture, timestep), timestep, latents).prev_sample
    torch.testing.assert_close(latents, picture, atol=0.03, rtol=0.03)


def test_the_papers_128_steps_are_128():
    """The released reference made 143."""
    assert len(make_sampler("ddim", "eps", 128).timesteps) == 128


def _perfect(objective: str, noisy: torch.Tensor, picture: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    from diffusers import DDPMScheduler

    if objective == "flow":
        return (noisy - picture) / (timestep / 1000).clamp(min=1e-3)
    scheduler = DDPMScheduler(**BETAS)
    alpha = scheduler.alphas_cumprod[int(timestep)]
    noise = (noisy - alpha.sqrt() * picture) / (1 - alpha).sqrt()
    return noise if objective == "eps" else alpha.sqrt() * noise - (1 - alpha).sqrt() * picture


def test_samplers_that_do_not_fit_are_refused():
    with pytest.raises(StedmError, match="flow"):
        make_sampler("ddim", "flow", 4)
    with pytest.raises(StedmError, match="euler"):
        make_sampler("euler", "eps", 4)


@pytest.mark.parametrize("timesteps", ["uniform", "logit-normal"])
def test_times_lie_between_picture_and_noise(timesteps):
    times = Objective("flow", "l2", timesteps).sample_times(2000, torch.Generator().manual_seed(0))
    assert 0 < times.min() < times.max() < 1
    assert abs(times.mean() - 0.5) < 0.03
