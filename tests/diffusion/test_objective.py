"""Objectives: the forward process by hand, and the times at which it is trained."""

import pytest
import torch

from stedm.diffusion.objective import BETAS, Objective


def test_the_schedule_is_the_papers_square_root_spacing():
    from diffusers import DDPMScheduler

    betas = DDPMScheduler(**BETAS).betas
    torch.testing.assert_close(betas, torch.linspace(0.0015**0.5, 0.0205**0.5, 1000) ** 2)


def test_flow_goes_straight_from_image_to_noise():
    latent, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), -1.0)
    noisy, target, timestep = Objective("flow", "l2").corrupt(latent, noise, torch.tensor([0.0, 0.25]))
    assert noisy.flatten().tolist() == [3.0, 2.0]
    assert target.flatten().tolist() == [-4.0, -4.0]
    assert timestep.tolist() == [0.0, 250.0]


@pytest.mark.parametrize(("kind", "near_the_middle"), [("eps", 0.2), ("v", 0.2), ("flow", 0.316)])
def test_times_are_uniform_for_eps_and_v_and_logit_normal_for_flow(kind, near_the_middle):
    times = Objective(kind, "l2").sample_times(4000, torch.Generator().manual_seed(0))
    assert 0 < times.min() < times.max() < 1
    assert abs(times.mean() - 0.5) < 0.02
    # Of a logit-normal time the probability is 2 Phi(logit(0.6)) - 1.
    assert ((times > 0.4) & (times < 0.6)).float().mean() == pytest.approx(near_the_middle, abs=0.03)


def test_a_time_shift_multiplies_the_ratio_of_noise_to_image():
    even, moved = (
        Objective("flow", "l2", time_shift=shift).sample_times(9, torch.Generator().manual_seed(0))
        for shift in (1.0, 3.0)
    )
    torch.testing.assert_close(moved / (1 - moved), 3 * even / (1 - even), rtol=1e-4, atol=0)
