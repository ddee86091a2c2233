"""Style sampling: the right patient, never the target itself, a pure function of the generator."""

import numpy as np
import pytest

from stedm.data.folder import DatasetFolder
from stedm.data.samples import PictureCache
from stedm.data.transforms import N_SYMMETRIES, symmetry
from stedm.seeds import numpy_generator
from stedm.style.sampling import StyleSampler


@pytest.fixture
def cache(tiny_dataset):
    return PictureCache(DatasetFolder.open(tiny_dataset(pictures=4)), 32)


def _is_turned_copy(picture: np.ndarray, of: np.ndarray) -> bool:
    return any(np.array_equal(symmetry(of, k), picture) for k in range(N_SYMMETRIES))


def test_cohort_shows_other_pictures_of_the_same_patient(cache):
    sampler = StyleSampler(cache, "cohort", n_pictures=3)
    patients = cache.dataset.table["patient_id"]
    for row in (0, 5, len(cache) - 1):
        shown, present = sampler(row, numpy_generator(0, row))
        assert present.all()
        others = [other for other in range(len(cache)) if patients[other] == patients[row] and other != row]
        for picture in shown:
            assert any(_is_turned_copy(picture, cache.picture(other)) for other in others)
            assert not _is_turned_copy(picture, cache.picture(row))


def test_missing_pictures_are_padding(cache):
    shown, present = StyleSampler(cache, "cohort", n_pictures=6)(0, numpy_generator(0))
    assert present.tolist() == [True] * 3 + [False] * 3
    assert (shown[3:] == 0).all()


def test_a_patient_with_one_picture_shows_pieces_of_it(tiny_dataset):
    cache = PictureCache(DatasetFolder.open(tiny_dataset(pictures=1)), 32)
    shown, present = StyleSampler(cache, "cohort", n_pictures=2)(0, numpy_generator(0))
    assert present.all()
    assert not any(_is_turned_copy(picture, cache.picture(0)) for picture in shown)
    # The colours are the target's own, the arrangement isn't.
    assert abs(shown.mean(axis=(0, 1, 2)) - cache.picture(0).mean(axis=(0, 1))).max() < 60


def test_none_shows_nothing_and_draws_are_reproducible(cache):
    assert not StyleSampler(cache, "none", 2)(0, numpy_generator(0))[1].any()
    sampler = StyleSampler(cache, "augmented", 2)
    first, again, other = (sampler(3, numpy_generator(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
