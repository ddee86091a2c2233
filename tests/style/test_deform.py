"""Deformed images keep the look and lose the arrangement."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from stedm.data.symmetry import N_SYMMETRIES, symmetry
from stedm.seeds import numpy_generator
from stedm.style.deform import deformed, random_patch, random_tissue_patch, tissue_fraction


def _blobs(i: int, side_px: int = 32) -> np.ndarray:
    """uint8 RGB of bright blobs, half of the area, on dark ground."""
    smooth = gaussian_filter(numpy_generator(0, "blobs", i).standard_normal((side_px, side_px)), 5, mode="wrap")
    return np.where((smooth > np.median(smooth))[..., None], (200, 160, 120), (100, 60, 20)).astype(np.uint8)


def _readable(views: list[np.ndarray], layouts: list[np.ndarray]) -> float:
    """Correlation, on held-out images, of the layout with what ridge regression reads of it from the view."""
    x, y = (np.stack([zoom(a[..., 0] / 255, 0.25, order=1).ravel() for a in arrays]) for arrays in (views, layouts))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    half = len(x) // 2
    weights = np.linalg.solve(x[:half].T @ x[:half] + 0.5 * np.eye(x.shape[1]), x[:half].T @ y[:half])
    return float(np.corrcoef((x[half:] @ weights).ravel(), y[half:].ravel())[0, 1])


def test_the_layout_cannot_be_read_from_a_deformed_image():
    images = [_blobs(i) for i in range(600)]
    views = [deformed(image, numpy_generator(1, i)) for i, image in enumerate(images)]
    assert _readable(images, images) > 0.95
    assert abs(_readable(views, images)) < 0.1


def test_a_deformed_image_has_the_colours_and_the_scale_of_the_image():
    images = [_blobs(i) for i in range(200)]
    views = [deformed(image, numpy_generator(1, i)) for i, image in enumerate(images)]
    assert all(view.dtype == np.uint8 and view.shape == image.shape for view, image in zip(views, images, strict=True))
    np.testing.assert_allclose(np.mean(views, axis=(0, 1, 2)), np.mean(images, axis=(0, 1, 2)), atol=6)
    np.testing.assert_allclose(np.std(views, axis=(0, 1, 2)), np.std(images, axis=(0, 1, 2)), rtol=0.1)
    # Texture scale: as many steps between bright and dark, within a factor, not half as many as in an enlarged piece.
    edges, edges_before = (np.abs(np.diff(np.float32(arrays), axis=2)).mean() for arrays in (views, images))
    assert 0.8 < edges / edges_before < 1.5


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (20, 33), (33, 20)])
def test_any_shape_and_nothing_from_outside_the_image(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for i in range(30):
        assert (deformed(image, numpy_generator(i)) == 200).all()


def test_draws_are_a_function_of_the_generator():
    image = _blobs(0)
    for draw in (deformed, random_patch):
        first, again, other = (draw(image, numpy_generator(seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("side", [9, 16])
def test_a_patch_is_a_piece_that_is_mirrored_and_turned(side):
    """It is turned while it is small; the other way round it is the same."""
    image, shown = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8), set()
    for number in range(100):
        patch, again = random_patch(image, numpy_generator(number)), numpy_generator(number)
        piece_side = round(side * again.uniform(0.5, 0.9))
        top, left, above, before = (again.integers(side - piece_side + 1) for _ in range(4))
        piece = image[top : top + piece_side, left : left + piece_side]
        margins = [(margin, side - piece_side - margin) for margin in (above, before)]
        index = int(again.integers(N_SYMMETRIES))
        assert np.array_equal(patch, symmetry(np.pad(piece, (*margins, (0, 0)), mode="symmetric"), index))
        shown.add(index)
    assert shown == set(range(N_SYMMETRIES))


def test_glass_is_not_tissue():
    glass = np.full((8, 8, 3), 240, np.uint8)
    assert tissue_fraction(glass) == 0.0
    assert tissue_fraction(np.full((8, 8, 3), (200, 150, 190), np.uint8)) == 1.0
    assert tissue_fraction(np.zeros((8, 8, 3), np.uint8)) == 1.0


def test_patches_that_are_mostly_background_are_skipped():
    half_glass = np.full((32, 32, 3), (200, 150, 190), np.uint8)
    half_glass[:, 11:] = 240
    glass = np.full((32, 32, 3), 240, np.uint8)
    rows = np.arange(2)
    plain = [tissue_fraction(random_patch(half_glass, numpy_generator(i))) for i in range(100)]
    chosen = [
        tissue_fraction(random_tissue_patch(lambda row: (half_glass, glass)[row], rows, numpy_generator(i)))
        for i in range(100)
    ]
    assert np.mean(plain) < 0.3 < np.mean(chosen)
    # Where everything is background, a patch is given nevertheless.
    assert tissue_fraction(random_tissue_patch(lambda row: glass, rows, numpy_generator(0))) == 0.0


@pytest.mark.parametrize("side", [5, 13, 32])
def test_of_several_patches_the_first_with_enough_tissue_is_shown(side):
    """Tissue is counted on the piece alone, before it is mirrored and turned: as if on the whole patch."""
    generator = np.random.default_rng(side)
    images = [np.clip(generator.normal(m, 15, (side, side, 3)), 0, 255).astype(np.uint8) for m in (150, 225, 240)]
    for number in range(20):
        shown = random_tissue_patch(images.__getitem__, np.arange(3), numpy_generator(number))
        again = numpy_generator(number)
        patches = [random_patch(images[int(again.choice(3))], again) for _ in range(5)]
        tissue = [tissue_fraction(patch) for patch in patches]
        first = next((i for i, part in enumerate(tissue) if part >= 0.5), int(np.argmax(tissue)))
        assert np.array_equal(shown, patches[first])


def test_glass_is_bright_and_has_next_to_no_colour():
    brightest, darkest = np.meshgrid(np.arange(256), np.arange(256))
    for turn in range(3):
        image = np.roll(np.stack([brightest, np.maximum(brightest, darkest), darkest], axis=-1), turn, -1)
        image = np.where(darkest[..., None] <= brightest[..., None], image, 0).astype(np.uint8)
        high, low = image.max(-1).astype(np.float32), image.min(-1).astype(np.float32)
        glass = (high - low < 0.05 * np.maximum(high, 1)) & (high > 255 * 0.85)
        assert tissue_fraction(image) == 1 - glass.mean()
