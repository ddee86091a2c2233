"""Recolouring: target and style images alike, each sample in its own way, only as often as asked."""

import pytest
import torch

from stedm.colour.recolour import recolour, recolour_together, stain_factors
from stedm.config import RecolourConfig
from stedm.data.symmetry import to_signed


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(30, 226, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_style_images_change_exactly_as_their_target(images):
    config = RecolourConfig(probability=0.5, haematoxylin=(0.5, 1.5), eosin=(0.5, 1.5), dab=(0, 2))
    factors = stain_factors(len(images), config, torch.Generator().manual_seed(1))
    target, style = recolour_together(images, images[:, None].repeat(1, 3, 1, 1, 1), factors)
    for i in range(3):
        torch.testing.assert_close(style[:, i], target)
    changed = (target - to_signed(images)).abs().amax(dim=(1, 2, 3)) > 0.02
    assert 0.3 < changed.float().mean() < 0.7
    assert target.abs().max() <= 1
    # A segmenter's images are recoloured as a diffusion model's are.
    alone = recolour(images.float() / 255, config, torch.Generator().manual_seed(1))
    torch.testing.assert_close(2 * alone - 1, target)


def test_no_dab_means_no_brown():
    """A range that reaches 0 takes the stain away: unstained tumours must have their like in training."""
    from skimage.color import rgb2hed

    config = RecolourConfig(probability=1.0, haematoxylin=(1, 1), eosin=(1, 1), dab=(-0.5, 2))
    brown = torch.tensor([150, 90, 50]).view(1, 3, 1, 1).expand(200, 3, 4, 4) / 255
    dab = [
        rgb2hed(image.permute(1, 2, 0).numpy())[..., 2].mean()
        for image in recolour(brown, config, torch.Generator().manual_seed(2))
    ]
    before = rgb2hed(brown[0].permute(1, 2, 0).numpy())[..., 2].mean()
    assert 0.1 < (torch.tensor(dab) < 0.05 * before).float().mean() < 0.3
    assert max(dab) > 1.7 * before


def test_off_means_untouched_and_the_generator_alone_decides(images):
    floats, off = images.float() / 255, RecolourConfig(probability=0.0)
    assert torch.equal(recolour(floats, off, torch.Generator().manual_seed(0)), floats)
    assert (stain_factors(8, off, torch.Generator().manual_seed(0)) == 1).all()
    first, again = (recolour(floats, RecolourConfig(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
