"""Pages of results say what their folders hold, and the folders what their counts say."""

import json
from pathlib import Path

import pytest

import ablation
import tables
from stedm.config import EvaluationConfig
from stedm.evaluation.counts import read_counts
from stedm.evaluation.stats import summarise

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ebhi_6_patients", "ebhi_6_patients"),
        ("ebhi_draws", "ebhi_draws"),
        ("ebhi_draws", "ebhi_draws/first_design"),
        ("ebhi_few_patients", "ebhi_few_patients/patients-1"),
        ("ebhi_few_patients", "ebhi_few_patients/patients-3"),
        ("flowers17", "flowers17"),
    ],
)
def test_arms_of_a_page_are_those_of_its_folder(name, folder):
    page = (RESULTS / name / "README.md").read_text(encoding="utf-8").replace("**", "")
    printed = tables.tables(RESULTS / folder).splitlines()
    arms = printed[2 : printed.index("")]
    assert len(arms) > 3
    assert [line for line in arms if line not in page] == []


@pytest.mark.parametrize(("name", "folder"), [("phantom", "phantom"), ("demo", "demo/chromogen")])
def test_scores_of_a_page_with_groups_are_those_of_its_folder(name, folder):
    """Their tables have columns of groups in place of median and seeds."""
    page = (RESULTS / name / "README.md").read_text(encoding="utf-8").replace("**", "")
    summary = json.loads((RESULTS / folder / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["arms"]) >= 3
    for arm, found in summary["arms"].items():
        [line] = [line for line in page.splitlines() if line.startswith((f"| {arm} |", f"| {arm} ("))]
        low, high = found["iou_mean_ci"]
        mean, *rest = (f"{found[key]:.3f}" for key in ("iou_mean", "iou_sd", "iou_worst_decile"))
        figures = [f"{mean} ({low:.3f} to {high:.3f})", *rest]
        assert [cell.strip() for cell in line.split("|")][2:5] == figures


def test_a_summary_can_be_computed_again_from_the_counts():
    counts = read_counts(RESULTS / "ebhi_6_patients" / "counts.parquet")
    again = tables.arms_table(summarise(counts, EvaluationConfig())["arms"])
    assert again == tables.tables(RESULTS / "ebhi_6_patients").splitlines()[: len(again)]


@pytest.mark.parametrize("name", ["ebhi", "phantom"])
def test_the_table_of_an_ablation_can_be_printed_again_from_its_measures(name):
    kept = (RESULTS / "ablation" / name / "table.md").read_text(encoding="utf-8")
    assert ablation.kept_table(RESULTS / "ablation" / name).splitlines()[1:] == kept.splitlines()[1:]


def test_every_folder_has_a_page_that_the_index_names():
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    findings = [path.parent.name for path in RESULTS.glob("*/README.md")]
    assert len(findings) > 10
    assert [name for name in findings if f"({name}/README.md)" not in index] == []
