"""Pages of results say what their folders hold, and the folders what their counts say."""

from pathlib import Path

import pytest

import tables
from stedm.config import EvaluationConfig
from stedm.evaluation.counts import read_counts
from stedm.evaluation.stats import summarise

RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ebhi_seg", "ebhi_seg"),
        ("draws_ebhi", "draws_ebhi"),
        ("phantom_her2", "phantom_her2"),
        ("few_ebhi", "few_ebhi/patients-1"),
        ("few_ebhi", "few_ebhi/patients-3"),
    ],
)
def test_arms_of_a_page_are_those_of_its_folder(name, folder):
    page = (RESULTS / f"{name}.md").read_text(encoding="utf-8").replace("**", "")
    printed = tables.tables(RESULTS / folder).splitlines()
    arms = printed[2 : printed.index("")]
    assert len(arms) > 3
    assert [line for line in arms if line not in page] == []


def test_a_summary_can_be_computed_again_from_the_counts():
    counts = read_counts(RESULTS / "ebhi_seg" / "counts.parquet")
    again = tables.arms_table(summarise(counts, EvaluationConfig())["arms"])
    assert again == tables.tables(RESULTS / "ebhi_seg").splitlines()[: len(again)]
