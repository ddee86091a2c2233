"""The driver that sets stedm's loops beside loops by hand, on tiny networks and a tiny slide: each pair runs."""

import re

import pytest

import plain_loops
from stedm.config import parse_config
from stedm.experiment.resolve import resolve


@pytest.fixture
def tiny(tiny_run, monkeypatch):
    patients = {"train": 2, "unlabeled": 2, "val": 0, "test": 1}
    values = tiny_run({"phantom": {"image_px": 32, "patients": patients, "images_per_patient": 2}})
    config = resolve(parse_config(values, "test"))
    monkeypatch.setattr(plain_loops, "small_run", lambda: config)
    for name, value in (("SLIDE_PX", 192), ("TILE_PX", 64)):
        monkeypatch.setattr(plain_loops, name, value)


@pytest.mark.parametrize(("pair", "others"), [("training", 2), ("segmenter", 1), ("tiling", 1), ("inference", 1)])
def test_each_pair_prints_its_ratio(tiny, tmp_path, capsys, pair, others):
    getattr(plain_loops, pair)(tmp_path, 1)
    lines = capsys.readouterr().out.splitlines()
    found = [re.match(rf"{pair} +/ .* (\d+\.\d{{3}})  \(", line) for line in lines]
    ratios = [float(match[1]) for match in found if match]
    assert len(ratios) == others
    assert all(ratio > 0 for ratio in ratios)
    if pair == "tiling":
        assert re.search(r"tiles kept: [1-9]\d* and [1-9]", lines[-1])
