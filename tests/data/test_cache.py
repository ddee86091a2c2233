"""Images held in memory."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.data.memory import CacheBudget
from stedm.errors import StedmError


def test_cache_gives_what_the_folder_gives(tiny_dataset):
    train = DatasetFolder.open(tiny_dataset()).split("train")
    cache = ImageCache(train, image_px=16)
    assert len(cache) == 6
    for row in (0, 5, 0):
        np.testing.assert_array_equal(cache.image(row), train.read_image(row, 16))
        np.testing.assert_array_equal(cache.mask(row), train.read_mask(row, 16))


def test_each_file_is_decoded_once_and_only_when_used(tiny_dataset):
    root = tiny_dataset()
    train = DatasetFolder.open(root).split("train")
    cache = ImageCache(train, image_px=16)
    image, mask = cache.image(2), cache.mask(2)
    for kind in ("images", "masks"):
        for path in (root / kind).iterdir():
            path.unlink()
    np.testing.assert_array_equal(cache.image(2), image)
    np.testing.assert_array_equal(cache.mask(2), mask)
    with pytest.raises(StedmError, match="missing"):
        cache.image(3)


def test_forked_processes_fill_one_cache(tiny_dataset):
    """Workers of a training stream would otherwise each hold, and decode, all images."""
    root = tiny_dataset()
    cache = ImageCache(DatasetFolder.open(root).split("train"), image_px=16)
    expected = ImageCache(cache.dataset, image_px=16).image(4)
    process = multiprocessing.get_context("fork").Process(target=cache.image, args=(4,), daemon=True)
    process.start()
    process.join(timeout=600)  # far more than a busy machine needs
    assert process.exitcode == 0
    for path in (root / "images").iterdir():
        path.unlink()
    np.testing.assert_array_equal(cache.image(4), expected)


def test_changing_a_image_does_not_change_the_cache(tiny_dataset):
    cache = ImageCache(DatasetFolder.open(tiny_dataset()).split("train"), image_px=16)
    before = cache.image(0).copy()
    cache.image(0)[:] = 0
    np.testing.assert_array_equal(cache.image(0), before)


def test_masks_of_unlabeled_rows_stay_guarded(tiny_dataset):
    cache = ImageCache(DatasetFolder.open(tiny_dataset()).split("unlabeled"), image_px=16)
    assert cache.image(0).shape == (16, 16, 3)
    with pytest.raises(StedmError, match="allow_unlabeled_masks"):
        cache.mask(0)


def test_threads_may_share_the_cache(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    cache = ImageCache(dataset, image_px=32)
    rows = list(range(len(dataset))) * 4
    with ThreadPoolExecutor(4) as pool:
        for row, image in zip(rows, pool.map(cache.image, rows), strict=True):
            np.testing.assert_array_equal(image, dataset.read_image(row))


@pytest.mark.parametrize("rows_that_fit", [0, 1, 7, 26])
def test_with_less_memory_the_rest_is_read_each_time_with_equal_results(tiny_dataset, monkeypatch, rows_that_fit):
    root, px = tiny_dataset(), 16
    reads = []
    read = DatasetFolder.read_image
    monkeypatch.setattr(DatasetFolder, "read_image", lambda *a: reads.append(a[1]) or read(*a))
    budget = CacheBudget(rows_that_fit * 4 * px**2 / 1e6)
    dataset = DatasetFolder.open(root, allow_unlabeled_masks=True, memory=budget)
    small, whole = ImageCache(dataset, px), ImageCache(DatasetFolder.open(root, allow_unlabeled_masks=True), px)
    assert (small.n_held, whole.n_held) == (rows_that_fit, 27)
    for _ in range(3):
        for row in range(len(dataset)):
            np.testing.assert_array_equal(small.image(row), whole.image(row))
            np.testing.assert_array_equal(small.mask(row), whole.mask(row))
            small.image(row)[:] = 0  # a copy, whether held or read
    per_row = np.bincount(reads)
    # The whole cache reads each once; the small one the held rows once and the others every time.
    assert set(per_row) == ({2, 7} if rows_that_fit else {7})
    assert (per_row == 2).sum() == rows_that_fit


def test_what_is_held_is_spread_over_the_folder(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset(), memory=CacheBudget(9 * 4 * 16**2 / 1e6))
    held = np.flatnonzero(ImageCache(dataset, 16)._slots >= 0)
    assert held.tolist() == list(range(2, 27, 3))
