"""Guidance: the formulas by hand, on a stand-in whose prediction tells which conditions it saw."""

import pytest
import torch

from stedm.config import SynthesisConfig
from stedm.diffusion.guidance import Guidance, as_guidance, guided_prediction
from stedm.errors import StedmError

UNKNOWN, NULL = 2, 100.0


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


def _guided(**guidance):
    denoiser = _Denoiser()
    result = guided_prediction(denoiser, NOISY, TIMESTEP, LAYOUT, STYLE, Guidance(**guidance))
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


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({}, 16),
        ({"steps": 12}, 24),
        ({"guidance": {"style": 1.0}}, 8),
        ({"guidance": {"layout": 2.0}}, 24),
        ({"guidance": {"style": 1.0, "layout": 0.0}}, 16),
    ],
)
def test_the_configuration_knows_the_function_evaluations(changes, calls):
    assert SynthesisConfig(sampling=changes).sampling.nfe == calls


def test_a_number_is_guidance_on_style_alone():
    assert as_guidance(2) == Guidance(style=2.0, layout=1.0)
    assert SynthesisConfig().sampling.guidance == Guidance()
    with pytest.raises(StedmError, match="guidance: style"):
        as_guidance(-0.5)
