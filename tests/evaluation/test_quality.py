"""Measures of synthetic images: each is at its best for the real thing, and falls when the thing itself is spoilt."""

import numpy as np
import pandas as pd
import pytest
import torch

from stedm.colour.stain import scale_stains
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation import quality
from stedm.evaluation.quality import ImageSet, Measure
from stedm.seeds import numpy_generator


def colour_encoder(images: np.ndarray) -> np.ndarray:
    """Mean and SD of each colour channel."""
    values = images.astype(np.float64)
    return np.concatenate([values.mean(axis=(1, 2)), values.std(axis=(1, 2))], axis=1)


@pytest.fixture
def cohort():
    """8 patients, each with a colour of its own, 6 noisy images, discs as masks."""
    images, patients, masks = [], [], []
    y, x = np.mgrid[:16, :16]
    for patient in range(8):
        colours = numpy_generator(0, "colours", patient).integers(60, 220, (2, 3))
        for index in range(6):
            generator = numpy_generator(0, "image", patient, index)
            centre = generator.uniform(4, 12, 2)
            mask = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 25).astype(np.uint8)
            images.append(np.clip(colours[mask] + generator.normal(0, 5, (16, 16, 3)), 0, 255).astype(np.uint8))
            patients.append(f"P{patient}")
            masks.append(mask)
    return ImageSet(np.stack(images), np.array(patients), np.stack(masks))


def _part(images: ImageSet, chosen: np.ndarray) -> ImageSet:
    return ImageSet(images.images[chosen], images.patients[chosen], images.masks[chosen])


@pytest.fixture
def halves(cohort):
    """Images 0..2 of each patient as synthetic ones, 3..5 as reference."""
    first = np.arange(len(cohort.patients)) % 6 < 3
    return _part(cohort, first), _part(cohort, ~first)


def _retrieval(queries: ImageSet, patients: np.ndarray, reference: ImageSet) -> tuple[float, float]:
    top1, mrr = quality.own_patient_retrieval(
        colour_encoder(queries.images), patients, colour_encoder(reference.images), reference.patients
    )
    return top1.value, mrr.value


def test_images_of_the_own_patient_retrieve_it(halves):
    assert _retrieval(halves[0], halves[0].patients, halves[1]) == (1.0, 1.0)
    # Of every patient its own interval: all are 1.
    measured = quality.measure_appearance(
        halves[0], halves[1], style_encoder=colour_encoder, content_encoder=colour_encoder
    )
    assert measured["retrieval_top1"].ci == [1.0, 1.0]
    assert list(measured["retrieval_top1"].per_patient) == [f"P{i}" for i in range(8)]


def test_images_in_the_wrong_style_retrieve_as_chance_does(halves):
    chance = quality.retrieval_chance(8)
    scores = [
        _retrieval(
            halves[0], np.repeat(numpy_generator(seed, "x").permutation([f"P{i}" for i in range(8)]), 3), halves[1]
        )
        for seed in range(100)
    ]
    assert np.allclose(np.mean(scores, axis=0), list(chance.values()), atol=0.05)
    assert chance == {"retrieval_top1": 1 / 8, "retrieval_mrr": pytest.approx(0.3397, abs=1e-4)}


def test_features_that_say_nothing_do_not_retrieve(halves):
    nothing = np.zeros((24, 3))
    top1, mrr = quality.own_patient_retrieval(nothing, halves[0].patients, nothing, halves[1].patients)
    assert top1.value == 0.0
    assert mrr.value == pytest.approx(1 / 4.5)  # all eight share the ranks 1 to 8


def test_a_patient_without_reference_images_is_named(halves):
    with pytest.raises(StedmError, match="P3 has no reference image"):
        _retrieval(halves[0], halves[0].patients, _part(halves[1], halves[1].patients != "P3"))


@pytest.mark.parametrize("space", ["hed", "lab"])
def test_colour_distance_is_small_for_the_same_and_large_for_recoloured(halves, space):
    same = quality.colour_distance(halves[1], halves[1], space)
    half = quality.colour_distance(halves[0], halves[1], space)
    as_floats = torch.from_numpy(halves[0].images).permute(0, 3, 1, 2) / 255
    recoloured = scale_stains(as_floats, torch.tensor([[0.4, 1.0, 2.0]])).permute(0, 2, 3, 1) * 255
    far = quality.colour_distance(ImageSet(recoloured.numpy().astype(np.uint8), halves[0].patients), halves[1], space)
    assert same.value == 0.0
    assert half.value < 0.1 < 0.5 < far.value
    assert far.ci[0] < far.value < far.ci[1]


def test_stain_amounts_are_those_of_the_images():
    white, brown = np.full((1, 2, 2, 3), 255, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)
    brown[:] = np.round(255 * np.exp(-np.array([0.27, 0.57, 0.78])))  # one unit of DAB, Ruifrok & Johnston
    assert np.allclose(quality.colour_amounts(white, "hed"), 0)
    assert np.allclose(quality.colour_amounts(brown, "hed")[0, 0, 0], [0, 0, 1], atol=0.02)


def test_layout_iou_of_a_judge_that_sees_and_of_shuffled_layouts(cohort):
    """The stub finds what was asked for by name: it knows each image's mask."""
    mask_of = {image.tobytes(): mask for image, mask in zip(cohort.images, cohort.masks, strict=True)}

    def sees(images: np.ndarray) -> np.ndarray:
        return np.stack([mask_of[image.tobytes()] for image in images])

    classes = ["background", "disc"]
    assert quality.layout_iou(sees, cohort, classes).value == 1.0
    shuffled = ImageSet(cohort.images, cohort.patients, np.roll(cohort.masks, 1, axis=0))
    assert quality.layout_iou(sees, shuffled, classes).value < 0.6
    blind = quality.layout_iou(lambda images: np.zeros(images.shape[:3], np.uint8), cohort, classes)
    assert blind.value == 0.0
    with pytest.raises(StedmError, match="no masks"):
        quality.layout_iou(sees, ImageSet(cohort.images, cohort.patients), classes)


def test_kid_is_about_zero_for_one_distribution_and_grows_with_noise():
    features = numpy_generator(0, "features").normal(size=(200, 12)).astype(np.float32)
    noise = numpy_generator(0, "noise").normal(size=(100, 12)).astype(np.float32)
    same = quality.kernel_distance(features[:100], features[100:])
    some = quality.kernel_distance(features[:100] + noise, features[100:])
    much = quality.kernel_distance(features[:100] + 3 * noise, features[100:])
    assert abs(same.value) < 0.25 * some.value
    assert 2 * some.value < much.value
    before = torch.random.get_rng_state()
    assert quality.kernel_distance(features[:100], features[100:]) == same
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(StedmError, match="four images"):
        quality.kernel_distance(features[:3], features)


def test_unknown_values_of_patients_are_left_out():
    assert quality.over_patients(pd.Series({"a": 1.0, "b": np.nan})).per_patient == {"a": 1.0}
    assert np.isnan(quality.over_patients(pd.Series({"a": np.nan})).value)
    assert Measure(1.0).as_dict() == {"value": 1.0, "ci": [None, None], "per_patient": {}}


def test_a_dataset_folder_is_read_without_masks_of_unlabeled_patients(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    unlabeled = ImageSet.read(dataset.split("unlabeled"), 16)
    assert unlabeled.images.shape[1:] == (16, 16, 3)
    assert unlabeled.masks is None
    with pytest.raises(StedmError, match="unlabeled"):
        ImageSet.read(dataset.split("unlabeled"), 16, with_masks=True)
