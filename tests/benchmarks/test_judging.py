"""What the drivers in benchmarks share: a fixed cohort, and intervals over seeds and patients."""

import numpy as np
import pytest

import controls
import judging
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.quality import ImageSet


def test_intervals_know_seeds_and_patients():
    seeds = np.array([[0.0], [1.0], [2.0]]) + np.zeros((3, 20))
    patients = np.linspace(0, 2, 20) + np.zeros((3, 1))
    assert judging.interval(np.ones((3, 20))) == (1.0, 1.0)
    for values in (seeds, patients):  # either alone widens the interval
        low, high = judging.interval(values)
        assert low < 0.8 < 1.2 < high
    assert judging.interval(np.array([[1.0], [2.0], [3.0]])) == pytest.approx((-0.484, 4.484), abs=1e-3)
    assert np.isnan(judging.interval(np.array([[1.0]]))).all()


def test_the_measured_patients_have_their_reference_images_apart(tiny_dataset):
    unlabeled = DatasetFolder.open(tiny_dataset(images=5)).split("unlabeled")
    cohort = judging.Cohort(patients=3, style_images=2, reference_images=2, least_images=5)
    pool, reference = judging.split_cohort(unlabeled, cohort)
    assert pool.patients() == reference.patients()
    assert set(pool.table.groupby("patient_id").size()) == set(reference.table.groupby("patient_id").size()) == {2}
    with pytest.raises(StedmError, match="least_images"):
        judging.split_cohort(unlabeled, cohort.model_copy(update={"least_images": 6}))


def test_shuffled_layouts_are_all_of_them_and_none_is_its_own():
    images, masks = np.zeros((9, 4, 4, 3), np.uint8), np.arange(9, dtype=np.uint8)[:, None, None].repeat(4, 1)
    shuffled = controls.with_shuffled_layouts(ImageSet(images, np.array(list("aabbbcccc")), masks))
    found = shuffled.masks[:, 0, 0].tolist()
    assert sorted(found) == list(range(9))
    assert all(own != other for own, other in enumerate(found))
    with pytest.raises(StedmError, match="two images"):
        controls.with_shuffled_layouts(ImageSet(images[:1], np.array(["a"]), masks[:1]))
