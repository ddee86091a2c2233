"""A cohort of flat discs on a ground of another colour: the smallest thing a segmenter can learn."""

import math
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from torch import nn

from stedm.config import MachineConfig, SegmentationConfig
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata
from stedm.errors import StedmError
from stedm.io.images import write_png
from stedm.seeds import numpy_generator
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks
from stedm.segmentation.samples import MixedSamples
from stedm.segmentation.train import train_segmenter

PX = 32
TINY = SegmentationConfig(
    encoder="tu-test_resnet",
    encoder_depth=3,
    decoder_channels=[16, 8, 8],
    steps=6,
    batch=4,
    lr=3e-3,
)
OFTEN = MachineConfig(checkpoint_every_steps=2)


def _discs(root: Path, *, images: dict[str, int], blue: int, seed: int, classes: tuple[str, ...] = ("ground", "disc")):
    """Blue-channel value `blue` marks the set an image comes from; a patient's name is in its green channel."""
    generator = numpy_generator(seed, "discs")
    rows = []
    places = np.indices((PX, PX))
    for number, (patient, count) in enumerate(images.items()):
        for index in range(count):
            centre = generator.integers(10, 22, size=(2, 1, 1))
            mask = (((places - centre) ** 2).sum(axis=0) < generator.integers(6, 9) ** 2).astype(np.uint8)
            image = np.full((PX, PX, 3), (60, 40 * number, blue), np.uint8)
            image[mask == 1, 0] = 200
            image[..., 0] += generator.integers(0, 30, (PX, PX), dtype=np.uint8)
            mask[0, 0] = 255
            name = f"{patient}-{index}.png"
            write_png(root / "images" / name, image)
            write_png(root / "masks" / name, mask)
            rows.append({"image_file_name": f"images/{name}", "mask_file_name": f"masks/{name}", "patient_id": patient})
    write_metadata(root, DatasetInfo("discs", list(classes)), pd.DataFrame(rows).assign(split="train"))
    return DatasetFolder.open(root)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return _discs(tmp_path_factory.mktemp("real"), images={"a": 9, "b": 1, "c": 2}, blue=10, seed=0)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    return _discs(tmp_path_factory.mktemp("synthetic"), images={"x": 4, "y": 4}, blue=200, seed=1)


def _mixed(real: DatasetFolder, seed: int, **sets) -> MixedSamples:
    return MixedSamples(real, image_px=PX, seed=seed, **sets)


def _train(real: DatasetFolder, folder: Path, arm: str, *, config=TINY, image_px=PX, **sets) -> Path:
    return train_segmenter(config, real, folder, arm=arm, image_px=image_px, machine=OFTEN, **sets)


def _origins(samples: MixedSamples, n: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([samples[i]["image"][0, 0] for i in range(n)])
    return images[:, 2] == 200, images[:, 1] // 40


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.8, 1.0])
def test_mixing_ratio_is_honoured(real, synthetic, fraction):
    is_synthetic, _ = _origins(_mixed(real, 0, synthetic=synthetic, synthetic_fraction=fraction), 1000)
    assert is_synthetic.mean() == pytest.approx(fraction, abs=0.04)


def test_every_patient_weighs_the_same(real):
    is_synthetic, patient = _origins(_mixed(real, 0, synthetic_fraction=0.8), 900)
    assert not is_synthetic.any()
    assert np.bincount(patient) / 900 == pytest.approx([1 / 3] * 3, abs=0.05)


def test_sample_i_is_a_function_of_the_seed_and_i(real, synthetic):
    first = _mixed(real, 3, synthetic=synthetic, synthetic_fraction=0.5)
    again = _mixed(real, 3, synthetic=synthetic, synthetic_fraction=0.5)
    later = [again[i]["image"] for i in reversed(range(20))][::-1]
    assert all(np.array_equal(first[i]["image"], later[i]) for i in range(20))
    other = _mixed(real, 4, synthetic=synthetic, synthetic_fraction=0.5)
    assert any(not np.array_equal(first[i]["image"], other[i]["image"]) for i in range(20))


def test_discs_are_learned(real, tmp_path):
    config = TINY.model_copy(update={"steps": 80, "batch": 8})
    network, info = load_segmenter(_train(real, tmp_path, "real", config=config))
    truth = np.stack([real.read_mask(i) for i in range(len(real))])
    predicted = predict_masks(network, np.stack([real.read_image(i) for i in range(len(real))]))
    counted = truth != 255
    both = ((predicted == 1) & (truth == 1)).sum()
    assert both / (((predicted == 1) & counted) | (truth == 1)).sum() > 0.8
    assert (info.classes, info.image_px, info.ignore_index) == (["ground", "disc"], PX, 255)


def test_the_model_knows_the_resolution_of_its_images(real, tmp_path):
    assert load_segmenter(_train(real, tmp_path / "a", "real"))[1].mpp is None
    known = replace(real, table=real.table.assign(mpp=0.5))
    assert load_segmenter(_train(known, tmp_path / "b", "real", image_px=PX // 2))[1].mpp == 1.0


def test_arms_differ_by_what_they_name(real, synthetic, tmp_path):
    arms = ("real", "real+stain", "real+synthetic", "real+stain+synthetic")
    weights = {
        arm: load_file(_train(real, tmp_path / arm, arm, synthetic=synthetic) / "model.safetensors") for arm in arms
    }
    heads = {arm: weights[arm]["segmentation_head.0.weight"].numpy().tobytes() for arm in arms}
    assert len(set(heads.values())) == len(arms)
    upper = _train(real, tmp_path / "upper", "upper", synthetic=synthetic)
    assert load_file(upper / "model.safetensors")["segmentation_head.0.weight"].numpy().tobytes() == heads["real+stain"]


def _train_and_die(root: Path, folder: Path, arm: str, dies_at: int) -> None:
    def die(step: int, steps: int, loss: float) -> None:
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    _train(DatasetFolder.open(root), folder, arm, synthetic=DatasetFolder.open(root), on_progress=die)


def test_killed_and_resumed_ends_in_the_same_weights(real, tmp_path):
    arm = "real+stain+synthetic"
    whole = _train(real, tmp_path / "whole", arm, synthetic=real)
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_die, args=(real.root, tmp_path / "killed", arm, 5)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    told = []
    resumed = _train(real, tmp_path / "killed", arm, synthetic=real, on_progress=lambda *now: told.append(now))
    (there, _, loss), (step, *_) = told[:2]
    assert step == there + 1 > 1
    assert math.isnan(loss)
    expected, weights = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all((expected[key] == weights[key]).all() for key in expected)


def test_unusable_sets_are_one_clear_line(real, tmp_path):
    with pytest.raises(StedmError, match="needs a synthetic set"):
        _train(real, tmp_path / "run", "real+synthetic")
    other = _discs(tmp_path / "other", images={"x": 1}, blue=0, seed=2, classes=("disc", "ground"))
    with pytest.raises(StedmError, match="has classes"):
        _train(real, tmp_path / "run", "real+synthetic", synthetic=other)
    ignored = DatasetFolder(real.root, replace(real.info, ignore_index=9), real.table)
    with pytest.raises(StedmError, match="has ignore_index"):
        _train(real, tmp_path / "run", "real+synthetic", synthetic=ignored)
    for split in ("val", "test"):
        held_out = DatasetFolder(real.root, real.info, real.table.assign(split=split))
        with pytest.raises(StedmError, match="not for training"):
            _train(held_out, tmp_path / "run", "real")
    bare = DatasetFolder(real.root, real.info, real.table.assign(mask_file_name=""))
    with pytest.raises(StedmError, match="no annotated image"):
        _train(bare, tmp_path / "run", "real")


def test_images_that_teachers_labelled_take_half_the_place_of_synthetic_ones(real, synthetic, tmp_path):
    labels = _discs(tmp_path / "labels", images={"u": 2, "v": 3}, blue=100, seed=2)
    samples = _mixed(real, 0, synthetic=synthetic, pseudo_labeled=labels, synthetic_fraction=0.5)
    blue = np.array([samples[index]["image"][0, -1, 2] for index in range(2000)])
    shares = [(blue == value).mean() for value in (10, 200, 100)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.04)
    # Without synthetic images they take all of it, and without them nothing changes.
    alone = _mixed(real, 0, pseudo_labeled=labels, synthetic_fraction=0.5)
    assert np.mean([alone[index]["image"][0, -1, 2] == 100 for index in range(200)]) == pytest.approx(0.5, abs=0.1)


def test_self_training_needs_labels(real, tmp_path):
    with pytest.raises(StedmError, match="labels of teachers"):
        _train(real, tmp_path / "run", "self-training")
    model = _train(real, tmp_path / "run", "self-training", pseudo_labeled=real)
    assert load_segmenter(model)[1].classes == ["ground", "disc"]


class Own(nn.Module):
    """A network as users write them: nothing is known of it but what goes in and comes out."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, n_classes, 1))

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("arm", ["real", "real+stain+synthetic", "ssl"])
def test_an_own_network_is_trained_saved_and_loaded_by_who_makes_it(real, synthetic, tmp_path, arm):
    sets = {"synthetic": synthetic, "unlabeled": real}
    model = _train(real, tmp_path / "run", arm, network=Own, **sets)
    weights = load_file(model / "model.safetensors")
    assert set(weights) == set(Own(2).state_dict())
    again = load_file(_train(real, tmp_path / "again", arm, network=Own, **sets) / "model.safetensors")
    assert all((weights[key] == again[key]).all() for key in weights)
    network, info = load_segmenter(model, Own)
    assert (info.architecture, info.classes) == ("own network", ["ground", "disc"])
    assert predict_masks(network, np.zeros((2, 33, 21, 3), np.uint8)).shape == (2, 33, 21)
    with pytest.raises(StedmError, match="load it in Python with the function that makes the network") as error:
        load_segmenter(model)
    assert "\n" not in str(error.value)


def test_unusable_networks_are_one_clear_line(real, tmp_path):
    with pytest.raises(StedmError, match=r"network: logits \(2, 2, 32, 32\) expected"):
        _train(real, tmp_path / "run", "real", network=lambda n_classes: nn.Conv2d(3, n_classes, 3))
    model = _train(real, tmp_path / "plain", "real")
    with pytest.raises(StedmError, match="leave `network` out"):
        load_segmenter(model, Own)
    own = _train(real, tmp_path / "own", "real", network=Own)
    with pytest.raises(StedmError, match="not weights of this network"):
        load_segmenter(own, lambda n_classes: nn.Conv2d(3, n_classes, 1))
