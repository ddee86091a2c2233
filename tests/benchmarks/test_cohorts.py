"""Several cohorts in one report: patients of the same name stay apart, and cohorts are drawn anew for the interval."""

import json
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

import cohorts
from controls import AnnotatedStyles
from stedm.errors import StedmError
from stedm.evaluation.counts import counts_table, write_counts
from stedm.experiment.rounds import Round


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
    printed = cohorts.write_cohorts([(None, tmp_path)], tmp_path / "out")
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
    cohorts.write_cohorts([(None, tmp_path / "a")], tmp_path / "written")
    cohorts.write_cohorts([(None, tmp_path / "written"), (None, tmp_path / "b")], tmp_path / "joined")
    summary = json.loads((tmp_path / "joined/summary.json").read_text())
    assert {arm: of["n_patients"] for arm, of in summary["arms"].items()} == {
        "real+stain": 3,
        "real+stain+synthetic": 3,
        "ssl": 3,
    }
    assert any({c["a"], c["b"]} == {"real+stain+synthetic", "ssl"} for c in summary["comparisons"])
    with pytest.raises(StedmError, match="synthetic lacks 3 patients"):
        cohorts.write_cohorts([(None, tmp_path / "a"), (None, tmp_path / "c")], tmp_path / "no")


def test_cohorts_of_another_folder_join_a_table_that_was_written(tmp_path):
    _cohort(tmp_path / "a", 5, [0.10, 0.12, 0.08])
    _cohort(tmp_path / "b", 6, [0.01, 0.02, 0.03])
    cohorts.write_cohorts([(None, tmp_path / "a")], tmp_path / "written")
    assert "+0.100, +0.020" in cohorts.write_cohorts(
        [(None, tmp_path / "written"), (None, tmp_path / "b")], tmp_path / "joined"
    )


def test_a_control_has_its_own_name_and_the_design_is_compared_with_it(tmp_path):
    for seed, gains in {5: [0.10, 0.12, 0.08], 6: [0.2, 0.2, 0.2]}.items():
        _cohort(tmp_path / "design", seed, gains)
        _cohort(tmp_path / "control", seed, [gain / 2 for gain in gains])
    folders = [cohorts.named_folder(f"{tmp_path}/design"), cohorts.named_folder(f"no style={tmp_path}/control")]
    printed = cohorts.write_cohorts(folders, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert set(summary["arms"]) == {"real+stain", "real+stain+synthetic", "no style"}
    [entry] = [c for c in summary["comparisons"] if c["b"] == "no style"]
    assert entry["a"] == "real+stain+synthetic"
    assert entry["delta_by_cohort"] == pytest.approx({"5": 0.05, "6": 0.1})
    assert summary["arms"]["no style"]["iou_by_cohort"] == pytest.approx({"5": 0.55, "6": 0.6})
    assert "real+stain+synthetic - no style" in printed


def test_a_training_has_a_seed_of_its_own_where_one_is_set(tmp_path, monkeypatch):
    made = []

    class Recorded:
        def __init__(self, values, folder, reporter):
            self.folder = folder
            folder.mkdir(parents=True)
            made.append(values)

        def run(self):
            made.append(self.round_type)

    monkeypatch.setattr(cohorts, "Experiment", Recorded)
    demo = files("stedm") / "demo.yaml"
    cohorts.run_cohorts(demo, tmp_path / "a", [7], [])
    cohorts.run_cohorts(demo, tmp_path / "b", [7], ["seed=100"], "annotated-styles")
    plain, usual, again, control = made
    assert (plain.seed, plain.data.phantom.seed) == (7, 7)
    assert (again.seed, again.data.phantom.seed) == (100, 7)
    assert usual is Round
    assert control is AnnotatedStyles
