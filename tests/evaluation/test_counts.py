import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stedm.errors import StedmError
from stedm.evaluation.counts import (
    SEEN,
    UNSEEN,
    class_names,
    count,
    counts_table,
    pool_units,
    read_counts,
    with_groups,
    write_counts,
)


def count_by_loop(prediction, truth, n_classes, ignore_index):
    table = np.zeros((n_classes, 4), np.int64)
    for p, t in zip(prediction.ravel(), truth.ravel(), strict=True):
        if t == ignore_index:
            continue
        for c in range(n_classes):
            column = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[(p == c, t == c)]
            table[c, column] += 1
    return table


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_count_equals_a_brute_force_loop(n_classes, height, width, seed):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(n_classes, size=(height, width)).astype(np.uint8)
    truth = rng.integers(n_classes, size=(height, width)).astype(np.uint8)
    truth[rng.random((height, width)) < 0.2] = 255
    counted = count(prediction, truth, n_classes, 255)
    assert counted.dtype == np.int64
    np.testing.assert_array_equal(counted, count_by_loop(prediction, truth, n_classes, 255))


def test_ignored_pixels_do_not_count_whatever_is_predicted_there():
    truth = np.array([[1, 255], [0, 255]], np.uint8)
    counted = count(np.array([[1, 1], [0, 7]], np.uint8), truth, 2, 255)
    assert counted.tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]


def test_no_ignore_index_and_a_large_image_do_not_overflow_small_integers():
    mask = np.ones((300, 300), np.uint8)
    assert count(mask, mask, 2, None).tolist() == [[0, 0, 0, 90000], [90000, 0, 0, 0]]


def test_wrong_input_is_one_clear_line():
    with pytest.raises(StedmError, match="differ in size"):
        count(np.zeros((2, 2)), np.zeros((2, 3)), 2, 255)
    with pytest.raises(StedmError, match="prediction has class index"):
        count(np.full((2, 2), 2), np.zeros((2, 2)), 2, 255)
    with pytest.raises(StedmError, match="truth has class index"):
        count(np.zeros((2, 2)), np.full((2, 2), 255), 2, None)


def table(**changes):
    counts = np.array([[[1, 2, 3, 4], [5, 6, 7, 8]], [[10, 0, 0, 0], [0, 1, 0, 9]], [[1, 1, 1, 1], [2, 2, 2, 2]]])
    arguments = {"patient_ids": ["b", "a", "b"], "categories": ["x", "y", "x"], "counts": counts}
    return counts_table("real", 3, classes=["background", "gland"], **(arguments | changes))


def test_table_sums_over_the_images_of_a_patient():
    rows = table().astype({"class": str}).to_dict("records")
    assert len(rows) == 4
    assert rows[3] == {
        "arm": "real",
        "seed": 3,
        "patient_id": "b",
        "category": "x",
        "class": "gland",
        "tp": 7,
        "fp": 8,
        "fn": 9,
        "tn": 10,
        "n_pictures": 2,
    }


def test_a_patient_with_several_categories_stays_one_patient():
    several = table(patient_ids=["a", "a", "a"], categories=["x", "y", "y"])
    assert several[["patient_id", "category"]].drop_duplicates().values.tolist() == [["a", "y"]]


def test_table_refuses_what_does_not_fit():
    with pytest.raises(StedmError, match="not equal"):
        table(patient_ids=["a"])
    with pytest.raises(StedmError, match="at least one other class"):
        counts_table("real", 0, [], [], np.zeros((0, 1, 4)), ["background"])


def test_parquet_round_trip_keeps_values_and_class_order(tmp_path):
    both = pd.concat([table(), table().assign(arm="upper")], ignore_index=True)
    write_counts(tmp_path / "counts.parquet", both)
    again = read_counts(tmp_path / "counts.parquet")
    pd.testing.assert_frame_equal(again, both)
    # The background is known even when the rows are shuffled.
    write_counts(tmp_path / "counts.parquet", both.iloc[::-1].reset_index(drop=True))
    assert class_names(read_counts(tmp_path / "counts.parquet")) == ["background", "gland"]


def test_reading_trouble_names_the_file(tmp_path):
    path = tmp_path / "counts.parquet"
    with pytest.raises(StedmError, match="no such file"):
        read_counts(path)
    path.write_text("not parquet")
    with pytest.raises(StedmError, match="not a readable parquet"):
        read_counts(path)
    table().drop(columns="tp").to_parquet(path)
    with pytest.raises(StedmError, match="columns missing: tp"):
        read_counts(path)


def test_counts_of_a_category_are_summed_over_its_patients():
    counts = table(patient_ids=["p", "q", "r"], categories=["x", "y", "x"]).assign(group="seen")
    pooled = pool_units(counts, "category")
    assert list(pooled.columns) == list(counts.columns)
    assert class_names(pooled) == ["background", "gland"]
    rows = pooled[pooled["class"] == "gland"].set_index("patient_id")
    assert rows.loc["x", ["category", "tp", "fp", "fn", "tn", "n_pictures"]].tolist() == ["x", 7, 8, 9, 10, 2]
    assert rows.loc["y", "n_pictures"] == 1
    pd.testing.assert_frame_equal(pool_units(pooled, "category"), pooled)
    pd.testing.assert_frame_equal(pool_units(counts, "patient"), counts)
    with pytest.raises(StedmError, match="have no category"):
        pool_units(table(categories=["x", "", "x"]), "category")


def test_groups_tell_annotated_from_unseen_categories():
    grouped = with_groups(table(), {"x", "z"})
    assert grouped.groupby("category")["group"].first().to_dict() == {"x": SEEN, "y": UNSEEN}
    for one_group in ({"x", "y"}, {"z"}):
        assert "group" not in with_groups(table(), one_group)


def test_counts_that_no_report_has_are_one_line(tmp_path):
    path = tmp_path / "counts.parquet"
    for changed in ({"tp": -1}, {"tp": 0.5}, {"patient_id": 7}, {"seed": "a"}, {"n_pictures": None}):
        table().assign(**changed).to_parquet(path)
        with pytest.raises(StedmError, match=f"column {next(iter(changed))} ") as error:
            read_counts(path)
        assert "\n" not in str(error.value)
    pd.concat([table(), table()]).to_parquet(path)
    with pytest.raises(StedmError, match="counts a patient twice"):
        read_counts(path)
