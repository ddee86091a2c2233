"""`Segmenter`: from a dataset folder to masks of arrays, files, folders and slides."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stedm import Segmenter
from stedm.config import SegmentationConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.io.images import read_mask_file, write_png
from stedm.segmentation import segmenter as module
from stedm.segmentation.train import train_segmenter

TINY = SegmentationConfig(
    encoder="tu-test_resnet",
    encoder_depth=3,
    decoder_channels=[16, 8, 8],
    steps=4,
    batch=4,
)
PX = 32


@pytest.fixture
def root(tiny_dataset):
    """A cohort whose unlabeled patients have masks that nobody may open."""
    folder = tiny_dataset()
    for mask in (folder / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    return folder


@pytest.fixture
def segmenter(root, tmp_path):
    return Segmenter.train(root, tmp_path / "run", config=TINY, image_px=PX)


def _images(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


def test_it_is_what_the_trainer_makes_of_the_annotated_images(root, segmenter, tmp_path):
    real = DatasetFolder.open(root).split("train")
    model = train_segmenter(TINY, real, tmp_path / "by-hand", arm="real+stain", image_px=PX)
    assert (segmenter.folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (segmenter.classes, segmenter.image_px, segmenter.mpp) == (["background", "disc"], PX, None)
    assert segmenter.info.source_px == [32, 32]


@pytest.mark.parametrize("arm", ["ssl", "real+synthetic", "self-training", "upper"])
def test_every_kind_of_arm(root, tmp_path, tiny_dataset, monkeypatch, arm):
    seen = {}

    def note(config, annotated, folder, **sets):
        seen.update({name: sets[name] for name in ("synthetic", "unlabeled", "pseudo_labeled")}, annotated=annotated)
        return train_segmenter(config, annotated, folder, **sets)

    monkeypatch.setattr(module, "train_segmenter", note)
    others = tiny_dataset(name="others", patients={"train": 2}, seed=1)
    sets = {"real+synthetic": {"synthetic": others}, "self-training": {"pseudo_labeled": others}}.get(arm, {})
    dataset = tiny_dataset(name="annotated after all") if arm == "upper" else root
    trained = Segmenter.train(dataset, tmp_path / "run", arm=arm, config=TINY, image_px=PX, **sets)
    assert trained.predict(_images(1, PX, PX)).shape == (1, PX, PX)
    splits = {"train", "unlabeled"} if arm == "upper" else {"train"}
    assert set(seen["annotated"].table["split"]) == splits
    assert (seen["unlabeled"] is None) == (arm != "ssl")


def test_masks_that_were_opened_for_an_upper_bound_teach_no_other_arm(tiny_dataset, tmp_path, monkeypatch):
    opened = DatasetFolder.open(tiny_dataset(), allow_unlabeled_masks=True)
    monkeypatch.setattr(
        module, "train_segmenter", lambda config, annotated, *_, **__: pytest.fail(str(set(annotated.table["split"])))
    )
    with pytest.raises(pytest.fail.Exception, match=r"^\{'train'\}$"):
        Segmenter.train(opened, tmp_path / "run", config=TINY)


def test_a_saved_one_predicts_as_before_from_either_folder(segmenter, tmp_path):
    images = _images(3, PX, PX)
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        assert np.array_equal(Segmenter.from_pretrained(folder).predict(images), segmenter.predict(images))
    with pytest.raises(StedmError, match="not a segmenter folder"):
        Segmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(PX, PX), (50, 70)])
def test_masks_are_where_probabilities_are_highest(segmenter, height, width):
    images = _images(70, height, width)
    masks, probabilities = segmenter.predict(images), segmenter.probabilities(images)
    assert (masks.shape, masks.dtype) == ((70, height, width), np.uint8)
    assert (probabilities.shape, probabilities.dtype) == ((70, 2, height, width), np.float32)
    assert np.array_equal(probabilities.argmax(axis=1), masks)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(segmenter.predict(images[4]), masks[4])
    assert segmenter.probabilities(images[4]).shape == (2, height, width)


def test_no_images_give_no_masks(segmenter):
    assert segmenter.predict(_images(0, 8, 9)).shape == (0, 8, 9)
    assert segmenter.probabilities(_images(0, 8, 9)).shape == (0, 2, 8, 9)


def test_files_and_folders_are_predicted_as_arrays_are(segmenter, tmp_path):
    images = _images(2, 40, 50)
    for name, image in zip("ab", images, strict=True):
        write_png(tmp_path / "images" / f"{name}.png", image)
    masks = segmenter.predict(images)
    assert np.array_equal(segmenter.predict_file(tmp_path / "images" / "b.png"), masks[1])
    written = segmenter.predict_folder(tmp_path / "images", tmp_path / "masks")
    assert [path.name for path in written] == ["a.png", "b.png"]
    for path, mask in zip(written, masks, strict=True):
        assert np.array_equal(read_mask_file(path.parent, path.name), mask)


def test_what_is_no_usable_slide_is_one_clear_line(segmenter, tmp_path):
    pytest.importorskip("tiffslide")
    slide = tmp_path / "slide.tif"
    Image.fromarray(_images(1, 300, 400)[0]).save(slide, tile=(256, 256))
    with pytest.raises(StedmError, match="resolution"):
        segmenter.predict_slide(slide, tmp_path / "out.geojson")
    with pytest.raises(StedmError, match="predict_slide: overlaps: Extra"):
        segmenter.predict_slide(slide, tmp_path / "out.geojson", overlaps=0.5)
    folder = tmp_path / "images"
    write_png(folder / "a.png", _images(1, 8, 8)[0])
    with pytest.raises(StedmError, match="use predict_folder"):
        segmenter.predict_slide(folder, tmp_path / "out")


def make(n_classes: int) -> nn.Module:
    return nn.Conv2d(3, n_classes, 3, padding=1)


def test_an_own_network_goes_all_the_way(root, tmp_path):
    trained = Segmenter.train(root, tmp_path / "own", config=TINY, image_px=PX, network=make)
    images = _images(2, 21, 33)
    read = Segmenter.from_pretrained(tmp_path / "own", network=make)
    assert np.array_equal(read.predict(images), trained.predict(images))
    with pytest.raises(StedmError, match=r"Segmenter\.from_pretrained\(folder, network=\.\.\.\)"):
        Segmenter.from_pretrained(tmp_path / "own")


def test_bad_input_is_one_clear_line(segmenter, root, tmp_path):
    for images in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((1, 3, 8, 8), np.uint8)):
        with pytest.raises(StedmError, match=r"uint8 RGB \(H, W, 3\) or \(n, H, W, 3\) expected"):
            segmenter.predict(images)
    with pytest.raises(StedmError, match="needs a synthetic set"):
        Segmenter.train(root, tmp_path / "a", arm="real+synthetic", config=TINY)
    with pytest.raises(StedmError, match="pseudo_labeled"):
        Segmenter.train(root, tmp_path / "b", arm="self-training", config=TINY)


def test_moving_the_network_moves_where_it_computes(segmenter):
    assert segmenter.to("cpu") is segmenter
    assert next(segmenter.to(torch.device("cpu")).network.parameters()).device.type == "cpu"
