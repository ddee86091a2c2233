"""Several cohorts in one report: patients of the same name stay apart, and cohorts are drawn anew for the interval."""

import json

import numpy as np
import pandas as pd
import pytest

import cohorts
from stedm.errors import StedmError
from stedm.evaluation.counts import counts_table, write_counts


def _cohort(folder, seed: int, gains: list[float]) -> None:
    tables = []
    before = np.linspace(0.4, 0.6, len(gains))
    for arm, scores in (("real+stain", before), ("real+stain+synthetic", before + gains)):
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
    printed = cohorts.write_cohorts(tmp_path, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["arms"]["real+stain"]["n_patients"] == 6
    [entry] = [c for c in summary["comparisons"] if c["b"] == "real+stain"]
    assert entry["delta_by_cohort"] == pytest.approx({"5": 0.1, "6": 0.0})
    low, high = entry["delta_ci_cohorts"]
    # Two cohorts: each of them alone is a quarter of the resamples.
    assert low < 0.01
    assert high > 0.09
    assert "+0.100, +0.000" in printed
