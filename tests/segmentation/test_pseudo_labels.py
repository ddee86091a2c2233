import numpy as np
import pytest
import torch

from stedm.config import MachineConfig, SegmentationConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.segmentation.model import build_segmenter, save_segmenter
from stedm.segmentation.pseudo_labels import vote, write_pseudo_labels
from stedm.training.device import place

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


@pytest.fixture
def unlabeled(tiny_dataset):
    """Unannotated images whose masks can't be read: they are no masks."""
    dataset = DatasetFolder.open(tiny_dataset()).split("unlabeled")
    for name in dataset.table["mask_file_name"]:
        (dataset.root / name).write_bytes(b"not to be opened")
    return dataset


@pytest.fixture
def segmenters(tmp_path, unlabeled):
    return [
        save_segmenter(
            tmp_path / f"model-{seed}", build_segmenter(TINY, 2, seed=seed), TINY, unlabeled.info, image_px=32
        )
        for seed in (0, 1)
    ]


def test_labels_are_the_winning_class_where_the_vote_is_sure(tmp_path, unlabeled, segmenters):
    images = np.stack([unlabeled.read_image(row, 32) for row in range(len(unlabeled))])
    voters = [place(build_segmenter(TINY, 2, seed=seed), MachineConfig()) for seed in (0, 1)]
    probability, classes = vote(voters, images).max(dim=1)
    median = float(probability.median())
    every, some = (
        write_pseudo_labels(segmenters, unlabeled, tmp_path / str(c), image_px=32, confidence=c) for c in (0.0, median)
    )
    sure = (probability >= median).numpy()
    assert 0.4 < sure.mean() < 0.6
    for row in range(len(unlabeled)):
        assert np.array_equal(every.read_mask(row), classes[row].numpy())
        assert np.array_equal(some.read_mask(row) == unlabeled.info.ignore_index, ~sure[row])
        assert np.array_equal(every.read_image(row), images[row])
    assert every.table["patient_id"].tolist() == unlabeled.table["patient_id"].tolist()
    assert every.table["source_image_file_name"].tolist() == unlabeled.table["image_file_name"].tolist()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library
def test_hugging_face_reads_them(tmp_path, unlabeled, segmenters, hugging_face):
    write_pseudo_labels(segmenters[:1], unlabeled, tmp_path / "labels", image_px=32, confidence=0.0)
    read = hugging_face(tmp_path / "labels")
    assert read["source_of"] == unlabeled.table["image_file_name"].tolist()
    assert read[0]["mask"].size == (32, 32)


def test_patients_who_are_to_stay_unknown_have_no_labels(tmp_path, unlabeled, segmenters):
    hidden, *others = unlabeled.patients()
    labels = write_pseudo_labels(segmenters, unlabeled, tmp_path / "out", image_px=32, confidence=0, unknown=[hidden])
    for row, patient in enumerate(labels.table["patient_id"]):
        known = labels.read_mask(row) != unlabeled.info.ignore_index
        assert known.all() if patient in others else not known.any()


def test_the_vote_follows_a_mirrored_image(unlabeled):
    networks = [build_segmenter(TINY, 2, seed=0)]
    images = np.stack([unlabeled.read_image(row, 32) for row in range(2)])
    straight, mirrored = vote(networks, images), vote(networks, images[:, :, ::-1].copy())
    assert torch.allclose(straight, mirrored.flip(3), atol=1e-5)
    assert torch.allclose(straight.sum(dim=1), torch.ones(2, 32, 32), atol=1e-5)


def test_a_vote_that_overflows_is_an_error_and_no_sure_label(unlabeled):
    network = build_segmenter(TINY, 2, seed=0)
    with torch.no_grad():
        network.segmentation_head[0].weight.fill_(1e38)
    with pytest.raises(StedmError, match="that votes answered with NaN or infinity"):
        vote([build_segmenter(TINY, 2, seed=1), network], unlabeled.read_image(0, 32)[None])


def test_a_segmenter_of_other_classes_is_refused(tmp_path, unlabeled):
    model = save_segmenter(tmp_path / "model", build_segmenter(TINY, 3), TINY, unlabeled.info, image_px=32)
    config = (model / "config.json").read_text().replace('"disc"', '"disc", "third"')
    (model / "manifest.json").unlink()
    (model / "config.json").write_text(config)
    with pytest.raises(StedmError, match="are not those of the images"):
        write_pseudo_labels([model], unlabeled, tmp_path / "out", image_px=32, confidence=0.9)
    assert not (tmp_path / "out").exists()
