"""Objectives: the forward process by hand, and the times at which it is trained."""

import pytest
import torch

from stedm.diffusion.objective import BETAS, Objective, _scheduler, clean_image_weights


def test_the_schedule_is_the_papers_square_root_spacing():
    from diffusers import DDPMScheduler

    betas = DDPMScheduler(**BETAS).betas
    torch.testing.assert_close(betas, torch.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)


def test_flow_goes_straight_from_image_to_noise():
    latent, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), -1.0)
    noisy, target, timestep = Objective("flow", "l2", "uniform").corrupt(latent, noise, torch.tensor([0.0, 0.25]))
    assert noisy.flatten().tolist() == [3.0, 2.0]
    assert target.flatten().tolist() == [-4.0, -4.0]
    assert timestep.tolist() == [0.0, 250.0]


@pytest.mark.parametrize("timesteps", ["uniform", "logit-normal"])
def test_times_lie_between_image_and_noise(timesteps):
    times = Objective("flow", "l2", timesteps).sample_times(2000, torch.Generator().manual_seed(0))
    assert 0 < times.min() < times.max() < 1
    assert abs(times.mean() - 0.5) < 0.03


def test_a_time_shift_multiplies_the_ratio_of_noise_to_image():
    even, moved = (
        Objective("flow", "l2", "uniform", time_shift=shift).sample_times(9, torch.Generator().manual_seed(0))
        for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(moved / (1 - moved), 3 * even / (1 - even), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_min_snr_weighs_the_error_of_the_clean_image(kind):
    """Weight times squared error of the prediction = min(SNR, 5) times squared error of the image that it implies."""
    objective = Objective(kind, "l2", "uniform", "min-snr")
    latent, noise = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), -1.0)
    for time in (0.1, 0.4, 0.9):
        noisy, target, timestep = objective.corrupt(latent, noise, torch.tensor([time]))
        predicted = target + 0.01
        keep, weight = clean_image_weights(kind, float(timestep))
        error = (keep * noisy + weight * predicted - latent).square().mean()
        signal = 1 - time if kind == "flow" else _scheduler().alphas_cumprod[int(timestep)] ** 0.5
        spread = time if kind == "flow" else (1 - signal**2) ** 0.5
        expected = min((signal / spread) ** 2, 5.0) * error
        torch.testing.assert_close(objective(predicted, target, timestep), expected, rtol=1e-3, atol=0)
