"""Guidance: the formulas by hand, on a stand-in whose prediction tells which conditions it saw."""

import pytest
import torch

from stedm.config import SynthesisConfig
from stedm.diffusion.guidance import Guidance, as_guidance, guided_prediction
from stedm.diffusion.objective import Objective, clean_image_weights
from stedm.errors import StedmError

UNKNOWN, NULL = 2, 100.0
OBJECTIVES = ["eps", "v", "flow"]


class _Denoiser:
    """Scales the noisy latent by the style, more so under a known layout; notes the batch size of each call."""

    unknown = UNKNOWN
    null_style = torch.tensor([NULL])

    def __init__(self):
        self.calls = []

    def denoise(self, noisy, timestep, layout, style):
        assert len(noisy) == len(timestep) == len(layout) == len(style)
        self.calls.append(len(noisy))
        known = (layout != UNKNOWN).float().mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return noisy * (1.0 + style.view(-1, 1, 1, 1) * (0.5 + known)) + 5.0 * known


NOISY = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LAYOUT, STYLE = torch.zeros(2, 4, 4, dtype=torch.long), torch.tensor([[1.0], [2.0]])
TIMESTEP = torch.tensor(600.0)


def _guided(objective="flow", **guidance):
    denoiser = _Denoiser()
    result = guided_prediction(denoiser, NOISY, TIMESTEP, LAYOUT, STYLE, Guidance(**guidance), objective=objective)
    return result, denoiser.calls


def _predicted(style, layout=LAYOUT):
    return _Denoiser().denoise(NOISY, TIMESTEP.expand(2), layout, style)


CONDITIONAL = _predicted(STYLE)
WITHOUT_STYLE = _predicted(torch.full((2, 1), NULL))
WITHOUT_LAYOUT = _predicted(STYLE, torch.full_like(LAYOUT, UNKNOWN))


@pytest.mark.parametrize(
    ("style", "layout", "expected", "calls"),
    [
        (1.0, 1.0, CONDITIONAL, 2),
        (0.0, 1.0, WITHOUT_STYLE, 4),
        (1.0, 0.0, WITHOUT_LAYOUT, 4),
        (1.5, 1.0, WITHOUT_STYLE + 1.5 * (CONDITIONAL - WITHOUT_STYLE), 4),
        (1.0, 3.0, WITHOUT_LAYOUT + 3.0 * (CONDITIONAL - WITHOUT_LAYOUT), 4),
        (1.5, 3.0, CONDITIONAL + 0.5 * (CONDITIONAL - WITHOUT_STYLE) + 2.0 * (CONDITIONAL - WITHOUT_LAYOUT), 6),
    ],
)
def test_the_formula_in_one_pass_that_holds_only_what_is_needed(style, layout, expected, calls):
    guided, seen = _guided(style=style, layout=layout)
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-3)
    assert seen == [calls]


def _clean(prediction, objective):
    of_noisy, of_prediction = clean_image_weights(objective, float(TIMESTEP))
    return of_noisy * NOISY + of_prediction * prediction


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_full_rescaling_gives_the_image_the_spread_of_the_conditional_one(objective):
    def spread(prediction):
        return _clean(prediction, objective).std(dim=(1, 2, 3))

    plain, half, full = (_guided(objective, style=4.0, layout=2.0, rescale=r)[0] for r in (0.0, 0.5, 1.0))
    assert ((spread(plain) / spread(CONDITIONAL) - 1).abs() > 0.1).all()
    torch.testing.assert_close(spread(full), spread(CONDITIONAL), rtol=1e-4, atol=1e-4)
    mixed = 0.5 * (_clean(plain, objective) + _clean(full, objective))
    torch.testing.assert_close(_clean(half, objective), mixed, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_clean_image_of_a_perfect_prediction_is_the_image(objective):
    image, noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), NOISY
    times = torch.tensor([0.3, 0.3])
    noisy, target, timestep = Objective(objective, "l2", "uniform").corrupt(image, noise, times)
    of_noisy, of_prediction = clean_image_weights(objective, float(timestep[0]))
    torch.testing.assert_close(of_noisy * noisy + of_prediction * target, image, rtol=1e-4, atol=1e-4)


def test_guidance_outside_the_interval_is_none():
    guidance = Guidance(style=2.0, layout=3.0, interval=(0.25, 0.75), rescale=0.7)
    inside = [guidance.at(step, 8) == guidance for step in range(8)]
    assert inside == [False] * 2 + [True] * 4 + [False] * 2
    assert guidance.at(0, 8) == Guidance(style=1.0)
    # Floating point must not lose a step: 0.29 * 100 is 28.999...
    assert Guidance(interval=(0.29, 1.0)).network_calls(100) == 29 + 2 * 71


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({}, 16),
        ({"steps": 12}, 24),
        ({"guidance": 1.0}, 8),
        ({"layout_guidance": 2.0}, 24),
        ({"guidance": 1.0, "layout_guidance": 0.0}, 16),
        ({"layout_guidance": 2.0, "guidance_interval": (0.25, 0.75)}, 16),
        ({"guidance_interval": (0.0, 0.0)}, 8),
        ({"guidance_rescale": 0.7}, 16),
        ({"sampler": "dpm++3m"}, 16),
        # Seven steps of two evaluations and a last one of one, each with and without the style.
        ({"sampler": "heun"}, 30),
        ({"sampler": "heun", "guidance_interval": (0.0, 0.5)}, 4 * 2 * 2 + 3 * 2 + 1),
    ],
)
def test_the_configuration_knows_the_network_calls(changes, calls):
    assert SynthesisConfig(**changes).network_calls == calls


def test_a_number_is_guidance_on_style_alone():
    assert as_guidance(2) == Guidance(style=2.0, layout=1.0, interval=(0.0, 1.0), rescale=0.0)
    assert SynthesisConfig().full_guidance == Guidance()
    with pytest.raises(StedmError, match="guidance: style"):
        as_guidance(-0.5)
    with pytest.raises(ValueError, match="ends before it begins"):
        SynthesisConfig(guidance_interval=(0.8, 0.2))
