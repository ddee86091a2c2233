"""Recolouring: target and style images alike, each sample in its own way, only as often as asked."""

import pytest
import torch

from stedm.config import RecolourConfig
from stedm.data.symmetry import to_signed
from stedm.style.recolour import recolour_together


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(30, 226, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return image, image[:, None].repeat(1, 3, 1, 1, 1)


def test_style_images_change_exactly_as_their_target(images):
    config = RecolourConfig(probability=0.5, haematoxylin=(0.5, 1.5), eosin=(0.5, 1.5), dab=(0, 2))
    target, style = recolour_together(*images, config, torch.Generator().manual_seed(1))
    for i in range(3):
        torch.testing.assert_close(style[:, i], target)
    changed = (target - to_signed(images[0])).abs().amax(dim=(1, 2, 3)) > 0.02
    assert 0.3 < changed.float().mean() < 0.7
    assert target.abs().max() <= 1


def test_no_dab_means_no_brown(images):
    """A range that reaches 0 takes the stain away: unstained tumours must have their like in training."""
    from skimage.color import rgb2hed

    config = RecolourConfig(probability=1.0, haematoxylin=(1, 1), eosin=(1, 1), dab=(-0.5, 2))
    brown = torch.tensor([150, 90, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(200, 3, 4, 4)
    target, _ = recolour_together(brown, brown[:, None], config, torch.Generator().manual_seed(2))
    dab = [rgb2hed((image.permute(1, 2, 0).numpy() + 1) / 2)[..., 2].mean() for image in target]
    before = rgb2hed(brown[0].permute(1, 2, 0).numpy())[..., 2].mean()
    assert 0.1 < (torch.tensor(dab) < 0.05 * before).float().mean() < 0.3
    assert max(dab) > 1.7 * before


def test_off_means_untouched_and_the_generator_alone_decides(images):
    off, _ = recolour_together(*images, RecolourConfig(probability=0.0), torch.Generator().manual_seed(0))
    assert torch.equal(off, to_signed(images[0]))
    first, again = (recolour_together(*images, RecolourConfig(), torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, again)
