"""Images of any size are seen at the resolution of the training images, and in their own aspect."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stedm.cli import main
from stedm.config import SegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.io.images import image_mpp, read_mask_file, resized, write_png
from stedm.segmentation.model import OWN_NETWORK, SegmenterInfo, build_segmenter, save_segmenter
from stedm.segmentation.predict import image_probabilities, predict_masks, segment_folder, segment_images
from stedm.segmentation.scale import scale_of

PX = 32
INFO = SegmenterInfo(architecture=OWN_NETWORK, classes=["glass", "tissue"], image_px=PX)
TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


class Dark(nn.Module):
    """Class 1 where it is dark; notes what it was shown."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        brightness = images.mean(dim=1)
        return torch.stack([brightness, -brightness], dim=1)


def _disc(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:height, :width]
    truth = ((y - 0.4 * height) ** 2 + (x - 0.6 * width) ** 2 < (0.3 * min(height, width)) ** 2).astype(np.uint8)
    return np.where(truth[..., None], 40, 220).astype(np.uint8).repeat(3, axis=2), truth


@pytest.mark.parametrize(
    ("known", "size_px", "mpp", "seen_px", "rule"),
    [
        # Resolutions known: from 0.5 to 2 microns per pixel, whatever else is known.
        ({"mpp": 2.0}, (775, 522), 0.5, (194, 130), "at 2 microns per pixel"),
        ({"mpp": 2.0, "source_px": [256, 256]}, (256, 256), 0.5, (64, 64), "at 2 microns per pixel"),
        ({"mpp": 2.0}, (40, 30), 4.0, (80, 60), "at 2 microns per pixel"),
        # Training images of 256 px reduced to 32: larger ones by the same factor.
        ({"source_px": [256, 256]}, (256, 256), None, (PX, PX), "reduced 8 times"),
        ({"source_px": [256, 256]}, (1024, 520), None, (128, 65), "reduced 8 times"),
        ({"source_px": [256, 256], "mpp": 2.0}, (1024, 520), None, (128, 65), "reduced 8 times"),
        ({"source_px": [252, 256]}, (252, 252), None, (PX, PX), "reduced 7.94 times"),
        ({"source_px": [PX, PX]}, (70, 50), None, (70, 50), "in the images' own pixels, as in training"),
        # Of 100 to 800 px, each reduced to 32.
        ({"source_px": [100, 800]}, (775, 522), None, (48, PX), "the shorter side brought to 32 px"),
        ({}, (70, 50), None, (70, 50), "in the images' own pixels"),
        ({}, (70, 50), 0.5, (70, 50), "in the images' own pixels"),
    ],
)
def test_the_rules_in_their_order(known, size_px, mpp, seen_px, rule):
    found = scale_of(size_px, replace(INFO, **known), mpp)
    assert found.size_px == seen_px
    assert rule in found.rule
    assert ("resolution unknown" in found.rule) == ("mpp" not in known or mpp is None)


def test_an_image_of_the_training_images_size_gives_what_they_gave():
    network = build_segmenter(TINY, 2, seed=0).eval()
    image = np.random.default_rng(0).integers(0, 256, (4 * PX, 4 * PX, 3), np.uint8)
    mask = segment_images(network, replace(INFO, source_px=[4 * PX, 4 * PX]), [image])[0]
    small = predict_masks(network, resized(image, PX)[None])[0]
    assert 0 < small.mean() < 1
    assert np.array_equal(mask, small.repeat(4, axis=0).repeat(4, axis=1))


@pytest.mark.parametrize("size", [(96, 300), (300, 96), (20, 90), (33, 32), (5, 3)])
@pytest.mark.parametrize("known", [{}, {"source_px": [64, 64]}, {"source_px": [40, 90]}])
def test_large_and_oblong_images_are_seen_in_tiles_and_keep_their_aspect(size, known):
    image, truth = _disc(*size)
    network, info = Dark(), replace(INFO, **known)
    mask = segment_images(network, info, [image])[0]
    assert {shape[1:] for shape in network.shapes} == {(3, PX, PX)}  # nothing but what it was trained on
    assert mask.shape == size
    # Reduced images lose a pixel or so of the outline.
    assert (mask == truth).mean() > (0.97 if min(size) > 20 else 0.75)
    if not known:
        assert np.array_equal(mask, truth)
    assert np.array_equal(image_probabilities(network, info, image).argmax(axis=0), mask)


def test_images_of_several_sizes_come_back_in_order():
    network, sizes = Dark(), [(PX, PX), (40, 80), (PX, PX), (PX, PX), (7, 9)]
    discs = [_disc(*size) for size in sizes]
    masks = segment_images(network, INFO, [image for image, _ in discs])
    for mask, (_, truth) in zip(masks, discs, strict=True):
        assert np.array_equal(mask, truth)


@pytest.fixture
def model(tmp_path):
    network = build_segmenter(TINY, 2, seed=0)
    folder, known = tmp_path / "model", DatasetInfo("x", ["a", "b"])
    return save_segmenter(folder, network, TINY, known, image_px=PX, mpp=2.0, source_px=[64, 64])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_the_resolution_is_the_files_own_where_a_microscope_can_have_written_it(tmp_path, suffix):
    image = Image.new("RGB", (8, 8))
    for dpi, mpp in ((25_400 / 0.5, 0.5), (72, None), (300, None), (1200, None), (7200, None), (600_000, None)):
        if dpi > 65_535 and suffix == "jpg":
            continue
        image.save(tmp_path / f"a.{suffix}", dpi=(dpi, dpi))
        assert image_mpp(tmp_path, f"a.{suffix}") == (mpp and pytest.approx(mpp, rel=1e-3)), dpi
    image.save(tmp_path / f"a.{suffix}", dpi=(50_800, 25_400))
    assert image_mpp(tmp_path, f"a.{suffix}") is None
    image.save(tmp_path / f"a.{suffix}")
    assert image_mpp(tmp_path, f"a.{suffix}") is None


def _segment(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["segment", *map(str, arguments)])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_command_takes_the_resolution_of_images_and_says_which_rule_it_took(tmp_path, model, capsys):
    image, _ = _disc(96, 160)
    write_png(tmp_path / "images" / "plain.png", image)
    Image.fromarray(image).save(tmp_path / "images" / "known.png", dpi=(25_400, 25_400))
    said = _segment(capsys, model, tmp_path / "images", "-o", tmp_path / "out")
    assert "2 masks" in said
    assert "1 of 2 images: at 2 microns per pixel, as in training" in said
    assert "1 of 2 images: resolution unknown (--mpp): reduced 2 times, as in training" in said
    said = _segment(capsys, model, tmp_path / "images", "-o", tmp_path / "other", "--mpp", 0.25)
    assert "2 of 2 images: at 2 microns per pixel" in said
    assert "masks are as coarse as what the network sees: up to 8 of an image's pixels" in said
    first, second = (read_mask_file(tmp_path / folder, "known.png") for folder in ("out", "other"))
    assert first.shape == second.shape == (96, 160)
    assert not np.array_equal(first, second)


def test_a_resolution_that_is_of_no_use_is_refused(tmp_path, model):
    write_png(tmp_path / "a.png", _disc(8, 8)[0])
    with pytest.raises(StedmError, match="above 0"):
        segment_folder(model, tmp_path / "a.png", tmp_path / "out", -1.0)
    network = build_segmenter(TINY, 2, seed=0)
    other = save_segmenter(tmp_path / "other", network, TINY, DatasetInfo("x", ["a", "b"]), image_px=PX)
    with pytest.raises(StedmError, match="doesn't know the resolution of its training images"):
        segment_folder(other, tmp_path / "a.png", tmp_path / "out", 0.5)
