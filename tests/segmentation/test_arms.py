"""What each arm learns from: change one of its inputs, and the weights change where the arm uses it, and only there."""

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from stedm import Segmenter
from stedm.config import Arm, SegmentationConfig, StainAugmentConfig
from stedm.data.folder import DatasetFolder
from stedm.io.images import write_png
from stedm.segmentation import consistency

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8], steps=3, batch=8)
UNSTAINED = StainAugmentConfig(hed_sigma=0, brightness=0, contrast=0, saturation=0, hue=0)

STAIN = {"real+stain", "real+stain+synthetic", "real+stain+synthetic+self-training"}
SSL = {"ssl", "real+synthetic+ssl", "real+stain+synthetic+ssl"}
SELF_TRAINING = {"self-training", "real+synthetic+self-training", "real+stain+synthetic+self-training"}
SYNTHETIC = {arm for arm in get_args(Arm) if "synthetic" in arm}
USED_BY = {
    "masks of annotated patients": set(get_args(Arm)),
    "images of unlabeled patients": SSL | {"upper"},
    "masks of unlabeled patients": {"upper"},
    "labels of teachers": SELF_TRAINING,
    "synthetic images": SYNTHETIC,
    "synthetic masks": SYNTHETIC,
    # The strong views of consistency training are stained, whatever becomes of the annotated images.
    "stain augmentation": STAIN | SSL | {"self-training", "upper"},
}


@pytest.fixture(autouse=True)
def _sure_at_once(monkeypatch):
    """Networks of three steps are sure of nothing, and a weight that rises never does in so few."""
    for name, value in {"CONFIDENCE": 0.5, "RAMP_UP": 0.0}.items():
        monkeypatch.setattr(consistency, name, value)


@pytest.fixture
def cohorts(tiny_dataset, predicted_ones, tmp_path) -> Path:
    """A folder of three: a cohort, synthetic images, and labels that teachers gave the unlabeled images."""
    root = tiny_dataset("sets/cohort", image_px=16)
    tiny_dataset("sets/synthetic", patients={"train": 2}, image_px=16, seed=1)
    predicted_ones(DatasetFolder.open(root).split("unlabeled"), tmp_path / "sets" / "labels")
    return tmp_path / "sets"


def _changed(cohorts: Path, folder: Path, what: str) -> Path:
    """A copy of all sets in which `what` is the opposite."""
    shutil.copytree(cohorts, folder)
    files = {
        "masks of annotated patients": "cohort/masks/train*",
        "images of unlabeled patients": "cohort/images/unlabeled*",
        "masks of unlabeled patients": "cohort/masks/unlabeled*",
        "labels of teachers": "labels/masks/*",
        "synthetic images": "synthetic/images/*",
        "synthetic masks": "synthetic/masks/*",
    }
    for path in folder.glob(files[what]) if what in files else ():
        values = np.array(Image.open(path))
        write_png(path, 255 - values if values.ndim == 3 else 1 - values)
    return folder


def _weights(cohorts: Path, folder: Path, arm: Arm, config: SegmentationConfig = TINY) -> dict[str, bytes]:
    Segmenter.train(
        cohorts / "cohort",
        folder,
        arm=arm,
        synthetic=cohorts / "synthetic",
        pseudo_labeled=cohorts / "labels",
        config=config,
        image_px=16,
    )
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model/model.safetensors").items()}


@pytest.mark.parametrize("arm", get_args(Arm))
def test_an_arm_learns_from_what_it_names_and_from_nothing_else(cohorts, tmp_path, arm):
    before, moved = _weights(cohorts, tmp_path / "before", arm), set()
    for what in USED_BY:
        config = TINY.model_copy(update={"stain": UNSTAINED}) if what == "stain augmentation" else TINY
        after = _weights(_changed(cohorts, tmp_path / f"{what} data", what), tmp_path / what, arm, config)
        if after != before:
            moved.add(what)
    assert moved == {what for what, arms in USED_BY.items() if arm in arms}
