"""Samplers: exactly the promised network calls, a path that ends at sigma 0, the right answer where one is known."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from stedm.config import Guidance, Sampling
from stedm.diffusion.objective import BETAS, shifted
from stedm.diffusion.sampler import SAMPLERS, make_sampler
from stedm.errors import StedmError

PAIRS = [(objective, name) for objective, names in SAMPLERS.items() for name in names]
ALPHAS_CUMPROD = DDPMScheduler(**BETAS).alphas_cumprod


def _signal_and_noise(objective: str, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if objective == "flow":
        return 1 - timestep / 1000, timestep / 1000
    alpha_squared = ALPHAS_CUMPROD[int(timestep)]
    return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()


def _prediction(objective: str, noisy, timestep, mean: torch.Tensor | float, sd: float) -> torch.Tensor:
    """What a perfect network predicts where images are Gaussian: the posterior mean, exactly (sd 0 = one image)."""
    a, b = _signal_and_noise(objective, timestep)
    surplus = (noisy - a * mean) / (a**2 * sd**2 + b**2)
    clean, noise = mean + a * sd**2 * surplus, b * surplus
    return {"flow": noise - clean, "eps": noise, "v": a * noise - b * clean}[objective]


def _draw(
    objective: str, name: str, steps: int, noise: torch.Tensor, mean, sd: float, shift: float = 1.0, start: float = 1.0
) -> torch.Tensor:
    latents, scheduler = noise.clone(), make_sampler(name, objective, steps, shift, start)
    for timestep in scheduler.timesteps:
        predicted = _prediction(objective, latents, timestep, mean, sd)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


# 242 is a number at which diffusers' rounding gives one step too many; the released reference made 143 of 128.
@pytest.mark.parametrize("steps", [1, 2, 4, 12, 128, 242, 250])
@pytest.mark.parametrize(("objective", "name"), PAIRS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_network_calls_are_exactly_those_promised(objective, name, steps, shift):
    scheduler = make_sampler(name, objective, steps, shift)
    assert len(scheduler.timesteps) == Sampling(guidance=Guidance(style=1.0), steps=steps).nfe == steps
    assert scheduler.order == 1
    assert (scheduler.timesteps.diff() <= 0).all()
    assert scheduler.timesteps[0] >= 999
    assert scheduler.timesteps[-1] > 0 or objective != "flow"
    assert float(scheduler.sigmas[-1]) == 0.0


@pytest.mark.parametrize("steps", [4, 12, 125, 128, 242])
@pytest.mark.parametrize(("objective", "name"), PAIRS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_one_image_that_a_network_knows_is_found(objective, name, steps, shift):
    """Only a path that ends at sigma 0 leaves no noise in it."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 1, 3, 4, 4, generator=generator)
    drawn = _draw(objective, name, steps, noise, image, 0.0, shift)
    torch.testing.assert_close(drawn, image, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("objective", "name"), PAIRS)
def test_many_steps_take_noise_where_the_differential_equation_takes_it(objective, name):
    """Images N(mean, sd) are reached from noise z along mean + sd z, whatever the solver."""
    mean, sd, noise = 0.5, 0.3, torch.linspace(-2, 2, 9).view(9, 1, 1, 1)
    few, many = (_draw(objective, name, steps, noise, mean, sd) - (mean + sd * noise) for steps in (12, 250))
    # The error of the first order solvers falls with the number of steps, and from there on faster.
    assert many.abs().max() < {"euler": 0.006, "ddim": 0.04}.get(name, 0.0015 if objective == "flow" else 0.025)
    assert many.abs().max() < few.abs().max() / 5


def test_a_higher_order_needs_fewer_steps():
    mean, sd, noise = 0.5, 0.3, torch.linspace(-2, 2, 9).view(9, 1, 1, 1)
    error = {
        name: float((_draw("flow", name, 12, noise, mean, sd) - (mean + sd * noise)).abs().max())
        for name in SAMPLERS["flow"]
    }
    assert max(error["dpm++"], error["unipc"]) < 0.3 * error["euler"]


def test_ddim_is_diffusers_ddim_where_that_is_exact():
    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = _draw("eps", "ddim", 125, noise, 0.4, 0.6)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(125)
    latents = noise
    for timestep in scheduler.timesteps:
        predicted = _prediction("eps", latents, timestep, 0.4, 0.6)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    torch.testing.assert_close(ours, latents, atol=1e-4, rtol=1e-4)


def test_flow_is_told_the_time_it_is_at():
    """Not a whole number below it: near the image a thousandth is much."""
    for name in SAMPLERS["flow"]:
        scheduler = make_sampler(name, "flow", 60)
        torch.testing.assert_close(scheduler.timesteps[-1] / 1000, torch.tensor(1 / 60), rtol=0.06, atol=0)
        if name != "euler":
            torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])


@pytest.mark.parametrize("name", SAMPLERS["flow"])
def test_a_shift_multiplies_the_ratio_of_noise_to_image(name):
    even, moved = (make_sampler(name, "flow", 8, shift).sigmas[:-1].double() for shift in (1.0, 3.0))
    torch.testing.assert_close(moved[1:] / (1 - moved[1:]), 3 * even[1:] / (1 - even[1:]), rtol=2e-3, atol=0)


def test_a_shift_goes_to_its_place_in_the_noise_of_eps_and_v():
    even, moved = (make_sampler("dpm++", "v", 8, shift).timesteps for shift in (1.0, 3.0))
    torch.testing.assert_close((moved + 1) / 1000, shifted((even + 1) / 1000, 3.0), rtol=0, atol=0.0006)
    with pytest.raises(StedmError, match="fall together"):
        make_sampler("dpm++", "v", 250, 9.0)


def test_samplers_that_do_not_fit_are_refused():
    with pytest.raises(StedmError, match=r"flow is sampled with dpm\+\+"):
        make_sampler("ddim", "flow", 4)
    for name in ("euler", "nonsense"):
        with pytest.raises(StedmError, match=rf"sampler {name}: .* eps is sampled with ddim"):
            make_sampler(name, "eps", 4)


@pytest.mark.parametrize("name", SAMPLERS["flow"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_way_may_begin_at_a_image_with_some_noise(name, shift):
    image, other, noise = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler = make_sampler(name, "flow", 4, shift, start=0.6)
    assert float(scheduler.timesteps[0]) == pytest.approx(600, abs=1)
    assert float(scheduler.sigmas[-1]) == 0.0
    # The network knows one image; the way to it is found from another one with noise up to that time.
    drawn = _draw("flow", name, 4, torch.lerp(other, noise, 0.6), image, 0.0, shift, start=0.6)
    torch.testing.assert_close(drawn, image, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", ["eps", "v"])
def test_only_flow_begins_at_a_image(objective):
    with pytest.raises(StedmError, match="objective flow only"):
        make_sampler("dpm++", objective, 4, start=0.5)
