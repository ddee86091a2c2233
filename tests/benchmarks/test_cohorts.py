"""Several cohorts in one report: patients of the same name stay apart, and cohorts are drawn anew for the interval."""

import json

import numpy as np
import pandas as pd
import pytest

import cohorts
from stedm.errors import StedmError
from stedm.evaluation.counts import counts_table, write_counts


def _cohort(folder, seed: int, gains: list[float], arms=("real+stain", "real+stain+synthetic")) -> None:
    tables = []
    before = np.linspace(0.4, 0.6, len(gains))
    for arm, scores in zip(arms, (before, before + gains), strict=True):
        cells = [[[0, 0, 0, 1000], [round(1000 * s), 1000 - round(1000 * s), 0, 0]] for s in scores]
        names = [f"P{i}" for i in range(len(gains))]
        tables.append(counts_table(arm, 0, names, ["0"] * len(gains), cells, ["background", "tumour"]))
    (folder / f"cohort-{seed}" / "report").mkdir(parents=True)
    write_counts(folder / f"cohort-{seed}" / "report" / "counts.parquet", pd.concat(tables, ignore_index=True))


def test_cohorts_are_pooled_and_their_gains_shown(tmp_path):
    with pytest.raises(StedmError, match="no cohort is done"):
        cohorts.pooled_counts(tmp_path)
    _cohort(tmp_path, 5, [0.10, 0.12, 0.08])
    _cohort(tmp_path, 6, [-0.02, 0.02, 0.0])
    printed = cohorts.write_cohorts([tmp_path], tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["arms"]["real+stain"]["n_patients"] == 6
    [entry] = [c for c in summary["comparisons"] if c["b"] == "real+stain"]
    assert entry["delta_by_cohort"] == pytest.approx({"5": 0.1, "6": 0.0})
    low, high = entry["delta_ci_cohorts"]
    # Two cohorts: each of them alone is a quarter of the resamples.
    assert low < 0.01
    assert high > 0.09
    assert "+0.100, +0.000" in printed


def test_arms_of_another_folder_join_a_table_that_was_written(tmp_path):
    _cohort(tmp_path / "a", 5, [0.10, 0.12, 0.08])
    _cohort(tmp_path / "b", 5, [0.01, 0.02, 0.03], arms=("real+stain", "ssl"))
    _cohort(tmp_path / "c", 6, [0.01, 0.02, 0.03], arms=("real+stain", "ssl"))
    cohorts.write_cohorts([tmp_path / "a"], tmp_path / "written")
    cohorts.write_cohorts([tmp_path / "written", tmp_path / "b"], tmp_path / "joined")
    summary = json.loads((tmp_path / "joined/summary.json").read_text())
    assert {arm: of["n_patients"] for arm, of in summary["arms"].items()} == {
        "real+stain": 3,
        "real+stain+synthetic": 3,
        "ssl": 3,
    }
    assert any({c["a"], c["b"]} == {"real+stain+synthetic", "ssl"} for c in summary["comparisons"])
    with pytest.raises(StedmError, match="synthetic lacks 3 patients"):
        cohorts.write_cohorts([tmp_path / "a", tmp_path / "c"], tmp_path / "no")


def test_cohorts_of_another_folder_join_a_table_that_was_written(tmp_path):
    _cohort(tmp_path / "a", 5, [0.10, 0.12, 0.08])
    _cohort(tmp_path / "b", 6, [0.01, 0.02, 0.03])
    cohorts.write_cohorts([tmp_path / "a"], tmp_path / "written")
    assert "+0.100, +0.020" in cohorts.write_cohorts([tmp_path / "written", tmp_path / "b"], tmp_path / "joined")
