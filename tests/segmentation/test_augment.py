from typing import get_args

import pytest
import torch

from stedm.config import Arm, RecolourConfig, SegmentationConfig, StainAugmentConfig, uses_stain
from stedm.data.symmetry import to_signed
from stedm.segmentation.augment import augment_colours, augment_geometry, augment_stain
from stedm.segmentation.train import augment_batch

NOTHING = StainAugmentConfig(hed_sigma=0, brightness=0, contrast=0, saturation=0, hue=0)
ALWAYS, UNBLURRED = {"probability": 1.0}, {"blur_sigma_px": 0.0}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(n: int = 8, px: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, px, px), generator=_generator(9)) / 255


def _squares(n: int = 32, px: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Off-centre red rectangles (class 1) and a strip of ignored green on grey."""
    images = torch.full((n, 3, px, px), 0.5)
    masks = torch.zeros(n, px, px, dtype=torch.uint8)
    images[:, :, 4:20, 3:12] = torch.tensor([1.0, 0, 0])[:, None, None]
    masks[:, 4:20, 3:12] = 1
    images[:, :, 24:30, 8:28] = torch.tensor([0, 1.0, 0])[:, None, None]
    masks[:, 24:30, 8:28] = 255
    return images, masks


def test_mask_follows_the_image():
    images, masks = _squares()
    moved, labels = augment_geometry(images, masks, _generator())
    red = (moved[:, 0] > 0.75) & (moved[:, 1] < 0.25)
    green = (moved[:, 1] > 0.75) & (moved[:, 0] < 0.25)
    assert set(labels.unique().tolist()) == {0, 1, 255}
    # Bilinear and nearest may differ on the edges of a zoomed image, by less than a pixel.
    assert (red != (labels == 1)).float().mean() < 0.015
    assert (green != (labels == 255)).float().mean() < 0.015
    inner = torch.nn.functional.max_pool2d(-red.float(), 3, 1, 1) == -1
    assert inner.any()
    assert torch.all(labels[inner] == 1)


def test_unzoomed_samples_keep_their_pixels_and_all_eight_orientations_occur():
    images, masks = _noise(256, 8), torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).repeat(256, 1, 1)
    moved, labels = augment_geometry(images, masks, _generator(), scale=(1.0, 1.0))
    orientations = {tuple(label.flatten().tolist()) for label in labels}
    upright = masks[0]
    wanted = {
        tuple(torch.rot90(view, turns).flatten().tolist()) for view in (upright, upright.flip(0)) for turns in range(4)
    }
    assert orientations == wanted
    for image, result, label in zip(images, moved, labels, strict=True):
        source = image.reshape(3, -1)[:, label.long().flatten()].reshape(3, 8, 8)
        assert torch.allclose(result, source, atol=1e-5)


def test_zoom_goes_both_ways_and_leaves_half_of_the_samples():
    images, masks = _squares(400)
    masks[masks == 255] = 0
    _, labels = augment_geometry(images, masks, _generator())
    area = (labels == 1).float().sum(dim=(1, 2)) / (masks[0] == 1).sum()
    assert 0.4 < (area == 1).float().mean() < 0.65
    assert area.min() < 0.8
    assert area.max() > 1.2


@pytest.mark.parametrize("arm", ["real", "real+stain"])
def test_a_batch_is_a_function_of_the_generator(arm):
    images = (_noise() * 255).round().byte().permute(0, 2, 3, 1)
    masks = torch.randint(0, 2, (8, 32, 32), dtype=torch.uint8)
    torch.manual_seed(0)
    first = augment_batch(images, masks, _generator(3), SegmentationConfig(), RecolourConfig(), arm)
    torch.manual_seed(1)
    again = augment_batch(images, masks, _generator(3), SegmentationConfig(), RecolourConfig(), arm)
    other = augment_batch(images, masks, _generator(4), SegmentationConfig(), RecolourConfig(), arm)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].min() >= -1
    assert first[0].max() <= 1
    assert first[0].max() > 0.5


def test_stain_arm_changes_colours_and_not_masks():
    images = (_noise() * 255).round().byte().permute(0, 2, 3, 1)
    masks = torch.randint(0, 2, (8, 32, 32), dtype=torch.uint8)
    plain, plain_masks = augment_batch(images, masks, _generator(3), SegmentationConfig(), RecolourConfig(), "real")
    stained, stained_masks = augment_batch(
        images, masks, _generator(3), SegmentationConfig(), RecolourConfig(), "real+stain"
    )
    assert torch.equal(plain_masks, stained_masks)
    assert (plain - stained).abs().mean() > 0.02


def test_what_is_known_about_stains_reaches_every_arm_with_stain_augmentation():
    """Prior knowledge that only one arm had would be an unfair comparison: the diffusion model has the same."""
    brown = torch.tensor([150, 90, 50], dtype=torch.uint8).expand(4, 32, 32, 3)
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8)
    never_dab = RecolourConfig(probability=1, haematoxylin=(1, 1), eosin=(1, 1), dab=(0, 0))
    config = SegmentationConfig(stain=NOTHING)
    for arm in get_args(Arm):
        images, _ = augment_batch(brown, masks, _generator(), config, never_dab, arm)
        changed = bool(((images - to_signed(brown.permute(0, 3, 1, 2))).abs() > 0.2).any())
        assert changed == uses_stain(arm), arm


def test_nothing_is_drawn_where_recolouring_is_off():
    images = _noise()
    off = augment_colours(images, _generator(), StainAugmentConfig(), RecolourConfig(probability=0))
    assert torch.equal(off, augment_stain(images, _generator(), StainAugmentConfig()))


def test_strength_zero_is_the_identity():
    images = _noise()
    strongest = StainAugmentConfig()
    for config, how in (
        (NOTHING, {**ALWAYS, **UNBLURRED}),
        (strongest, {"probability": 0.0}),
        (strongest, {**ALWAYS, "factor": 0.0}),
    ):
        assert (augment_stain(images, _generator(), config, **how) - images).abs().max() < 0.6 / 255


def test_a_factor_multiplies_every_strength():
    images, plain = _noise(), StainAugmentConfig()
    doubled = StainAugmentConfig(**{key: 2 * value for key, value in plain})
    strong = augment_stain(images, _generator(), plain, factor=2.0)
    torch.testing.assert_close(strong, augment_stain(images, _generator(), doubled, blur_sigma_px=1.6))


def test_one_sample_in_ten_keeps_its_colours():
    images = _noise(1, 8).repeat(2000, 1, 1, 1)
    kept = (augment_stain(images, _generator(), StainAugmentConfig()) - images).abs().amax(dim=(1, 2, 3)) < 0.6 / 255
    assert kept.float().mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("knob", sorted(StainAugmentConfig.model_fields))
def test_each_knob_alone_changes_images_differently_per_sample(knob):
    image = _noise(1).repeat(6, 1, 1, 1)
    config = NOTHING.model_copy(update={knob: getattr(StainAugmentConfig(), knob)})
    changed = augment_stain(image, _generator(), config, **ALWAYS, **UNBLURRED)
    assert (changed - image).abs().amax(dim=(1, 2, 3)).max() > 2 / 255
    assert len({round(float(change), 5) for change in (changed - image).abs().mean(dim=(1, 2, 3))}) >= 3


def test_stain_jitter_agrees_with_scikit_image():
    from skimage.color import combine_stains, hed_from_rgb, rgb_from_hed, separate_stains

    from stedm.colour.stain import scale_stains

    # Colours that really are mixtures of the three stains: scikit-image cuts negative amounts off.
    amounts = torch.rand(16, 16, 3, generator=_generator()).double() * 0.04
    image = combine_stains(amounts.numpy(), rgb_from_hed)
    scale, bias = torch.tensor([[1.2, 0.9, 0.7]]).double(), torch.tensor([[0.02, -0.0, 0.05]]).double()
    unit = -torch.log(torch.tensor(1e-6).double())  # scikit-image measures density in this unit
    jittered = separate_stains(image, hed_from_rgb) * scale.numpy() + (bias / unit).numpy()
    expected = torch.from_numpy(combine_stains(jittered, rgb_from_hed))
    ours = scale_stains(torch.from_numpy(image).permute(2, 0, 1)[None], scale, bias)[0].permute(1, 2, 0)
    assert torch.allclose(ours, expected, atol=1e-6)


def test_blur_keeps_the_mean_and_removes_detail():
    image = _noise(4, 64)
    blurred = augment_stain(image, _generator(1), NOTHING, **ALWAYS, blur_sigma_px=2.0)
    assert (blurred.mean(dim=(1, 2, 3)) - image.mean(dim=(1, 2, 3))).abs().max() < 0.01
    assert blurred.std(dim=(1, 2, 3)).min() < 0.6 * image.std()
