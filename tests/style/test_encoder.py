"""The style encoder sees how a picture looks, hardly where things are."""

import torch

from stedm.style.encoder import ConvStyleEncoder


def test_turned_pictures_keep_their_style_and_other_colours_change_it():
    torch.manual_seed(0)
    encoder = ConvStyleEncoder([8, 16], dim=32).eval()
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    # A rearrangement of the same pieces against the same pieces in another colour.
    rearranged = torch.roll(picture, shifts=(16, 16), dims=(2, 3))
    recoloured = (picture * torch.tensor([1.0, 0.4, 0.7]).view(1, 3, 1, 1) - 0.3).clamp(-1, 1)
    with torch.no_grad():
        style, same, other = encoder(picture), encoder(rearranged), encoder(recoloured)
    assert (style - same).norm() < 0.25 * (style - other).norm()


def test_any_picture_size_gives_a_vector():
    encoder = ConvStyleEncoder([8, 16], dim=32)
    assert encoder(torch.zeros(2, 3, 48, 20)).shape == (2, 32)


def test_measuring_the_cohort_brings_out_what_differs_between_its_patients():
    """Pictures that are nearly alike on the absolute scale must not get nearly the same vector."""
    torch.manual_seed(0)
    tints = 0.6 + 0.04 * torch.randn(16, 3, 1, 1)
    cohort = (tints + 0.02 * torch.randn(16, 3, 16, 16)).clamp(-1, 1)
    encoder = ConvStyleEncoder([8], dim=16).eval()
    with torch.no_grad():
        before = encoder(cohort).std(dim=0).mean()
        encoder.measure(cohort)
        after = encoder(cohort).std(dim=0).mean()
    assert after > 3 * before
    assert "colour_mean" in encoder.state_dict(), "the measured values must be saved with the weights"
