"""How much memory caches of images may take."""

import gc
import pickle

import pytest

from stedm.data import memory
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.data.memory import CacheBudget, common_budget, default_bytes
from stedm.errors import StedmError

MB_A_ROW = 4 * 32**2 / 1e6


def test_a_budget_gives_what_fits_and_takes_it_back():
    budget = CacheBudget(1)
    assert [budget.take(3, 300_000), budget.take(3, 300_000), budget.take(1, 100_000)] == [3, 0, 1]
    budget.give_back(300_000)
    assert budget.take(5, 150_000) == 2
    assert CacheBudget(0).take(1, 1) == 0
    assert pickle.loads(pickle.dumps(budget)).free_bytes == budget.free_bytes
    with pytest.raises(StedmError, match="cache_mb"):
        CacheBudget(-1)


def test_the_caches_of_a_folder_share_its_budget_and_leave_it_when_they_go(tiny_dataset):
    folder = DatasetFolder.open(tiny_dataset(), memory=CacheBudget(8.5 * MB_A_ROW))
    train, test = (ImageCache(folder.split(name), 32) for name in ("train", "test"))
    assert (train.n_held, test.n_held) == (6, 2)
    del train
    gc.collect()
    assert ImageCache(folder.split("val"), 32).n_held == 6
    # Images of unlabeled patients have no masks to hold.
    assert ImageCache(folder.split("unlabeled"), 32).n_held == 8
    del test
    gc.collect()
    assert folder.memory.free_bytes == 8.5 * MB_A_ROW * 1e6


def test_without_a_number_it_is_half_of_the_machine_or_container(monkeypatch, tmp_path, tiny_dataset):
    monkeypatch.setattr(memory, "_everywhere", None)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (tmp_path / "none", limit))
    limit.write_text("max\n")
    machine = default_bytes()
    assert machine > 10**8
    limit.write_text("2000000\n")
    assert CacheBudget().free_bytes == 1_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_bytes() == 250_000
    one, two = (DatasetFolder.open(tiny_dataset(name=name)) for name in "ab")
    assert one.memory is two.memory is common_budget()
