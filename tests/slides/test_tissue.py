"""Tissue masks: pale and dark stains, slides without tissue, pen, holes and dust; areas exact to parts of a pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.config import PhantomConfig, TissueConfig
from stedm.phantom.slides import draw_phantom_slide, write_phantom_slide
from stedm.seeds import numpy_generator
from stedm.slides.slide import Slide
from stedm.slides.tissue import TissueMask, find_tissue

MPP = 8.0
GLASS = (243, 241, 240)
PURPLE, BROWN, PALE_BLUE, DARK_BLUE = (190, 110, 170), (150, 110, 80), (205, 205, 220), (95, 100, 150)


def _overview(*blobs: tuple, noise: float = 2.0, side: int = 200) -> np.ndarray:
    """Glass with discs (centre y, centre x, radius in px, colour), at 8 microns a pixel."""
    image = np.full((side, side, 3), GLASS, float)
    y, x = np.mgrid[:side, :side]
    for centre_y, centre_x, radius, colour in blobs:
        image[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = colour
    image += numpy_generator(0, "overview").normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def _disc(centre_y: int, centre_x: int, radius: float, side: int = 200) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("colour", [PURPLE, BROWN, PALE_BLUE, DARK_BLUE])
def test_tissue_of_any_stain(colour):
    found = find_tissue(_overview((100, 90, 60, colour)), MPP)
    assert _overlap(found, _disc(100, 90, 60)) > 0.95


def test_pale_tissue_beside_dark_tissue_is_tissue():
    """Otsu's own threshold lies between the two tissues."""
    found = find_tissue(_overview((100, 50, 40, (120, 40, 110)), (100, 150, 40, (215, 185, 205))), MPP)
    assert _overlap(found, _disc(100, 50, 40) | _disc(100, 150, 40)) > 0.93


@pytest.mark.parametrize("glass", [(255, 255, 255), GLASS, (240, 235, 222), (225, 228, 232)])
@pytest.mark.parametrize("noise", [0.0, 2.0, 6.0])
def test_glass_alone_is_no_tissue(glass, noise):
    image = _overview(noise=noise) + np.array(glass, int) - GLASS
    assert not find_tissue(np.clip(image, 0, 255).astype(np.uint8), MPP).any()


def test_tinted_glass_is_no_tissue():
    image = _overview((100, 90, 60, PURPLE)).astype(int) + np.array((-3, -6, -20))
    assert _overlap(find_tissue(np.clip(image, 0, 255).astype(np.uint8), MPP), _disc(100, 90, 60)) > 0.95


def test_a_slide_full_of_tissue_is_all_tissue():
    image = _overview((100, 100, 300, PURPLE), (60, 60, 30, (225, 170, 200)))
    assert find_tissue(image, MPP).mean() > 0.99


@pytest.mark.parametrize("pen", [(30, 60, 190), (40, 130, 70), (25, 22, 28)])
def test_pen_is_no_tissue(pen):
    stroke = (30, 150, 20, pen)
    tissue = _disc(120, 80, 50)
    image = _overview((120, 80, 50, PURPLE), stroke)
    found = find_tissue(image, MPP)
    assert not (found & _disc(30, 150, 21)).any()
    assert _overlap(found, tissue) > 0.95
    if pen != (25, 22, 28):  # black has no saturation anyway
        kept = find_tissue(image, MPP, TissueConfig(exclude_pen=False))
        assert (kept & _disc(30, 150, 18)).any()


def test_pen_alone_on_glass_is_no_tissue():
    assert not find_tissue(_overview((60, 60, 20, (30, 60, 190)), (150, 150, 20, (40, 130, 70))), MPP).any()


def test_pen_on_tissue_is_cut_out_of_it():
    found = find_tissue(_overview((100, 100, 80, PURPLE), (100, 100, 20, (30, 60, 190))), MPP)
    assert not (found & _disc(100, 100, 20)).any()
    assert found.sum() > 0.7 * _disc(100, 100, 80).sum()


def test_small_holes_are_filled_large_ones_stay_and_dust_goes():
    image = _overview(
        (100, 100, 70, PURPLE), (80, 80, 8, GLASS), (120, 120, 25, GLASS), (15, 15, 5, PURPLE), (170, 185, 14, PURPLE)
    )
    found = find_tissue(image, MPP)
    assert found[80, 80]
    assert not found[120, 120]
    assert not found[15, 15]
    assert found[170, 185]
    assert find_tissue(image, MPP, TissueConfig(smallest_piece_um2=0))[15, 15]
    assert not find_tissue(image, MPP, TissueConfig(largest_hole_um2=0))[80, 80]


@pytest.mark.parametrize("stain", ["her2", "he"])
def test_tissue_of_phantom_slides(tmp_path, stain):
    config = PhantomConfig(image_px=256, stain=stain)
    for number in range(3):  # of HER2: scores 0, 1, 2
        phantom = draw_phantom_slide(config, "train", number, (1536, 1024), unit_px=512)
        write_phantom_slide(phantom, tmp_path / "a.svs")
        found = TissueMask.of(Slide.open(tmp_path / "a.svs"))
        truth = phantom.tissue((np.arange(found.mask.shape[1]) + 0.5) * 16, (np.arange(found.mask.shape[0]) + 0.5) * 16)
        assert _overlap(found.mask, truth) > 0.9
        assert found.area == pytest.approx(truth.sum() * 256, rel=0.15)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(-30, 60), st.floats(-30, 60), st.floats(0.5, 50))
def test_fractions_are_exact_areas(seed, x, y, side):
    mask = numpy_generator(seed, "mask").random((9, 12)) < 0.5
    found = TissueMask(mask, downsample=3.0).fractions(np.array([x]), np.array([y]), side)[0]
    overlap = [
        np.clip(np.minimum(at + side, (np.arange(n) + 1) * 3.0) - np.maximum(at, np.arange(n) * 3.0), 0, None)
        for at, n in ((y, 9), (x, 12))
    ]
    assert found == pytest.approx((overlap[0][:, None] * overlap[1] * mask).sum() / side**2, abs=1e-9)
