import numpy as np
import pandas as pd
import pytest

from stedm.evaluation.counts import counts_table
from stedm.evaluation.metrics import class_iou, dice, iou, per_category, per_patient, per_patient_and_seed, pooled_iou

CLASSES = ["background", "gland", "stroma"]
BACKGROUND = [0, 0, 0, 10]
NEITHER = [0, 0, 0, 20]


def one(patient, gland, stroma, seed=0, category="x"):
    return counts_table("real", seed, [patient], [category], [[BACKGROUND, gland, stroma]], CLASSES)


def test_iou_and_dice_by_hand_and_nan_where_absent():
    np.testing.assert_allclose(iou(np.array([3, 0, 0]), np.array([1, 0, 2]), np.array([2, 0, 0])), [0.5, np.nan, 0.0])
    np.testing.assert_allclose(dice(np.array([3, 0, 0]), np.array([1, 0, 2]), np.array([2, 0, 0])), [6 / 9, np.nan, 0])


def test_foreground_mean_leaves_out_the_background_and_absent_classes():
    counts = pd.concat([one("a", [3, 1, 2, 14], NEITHER), one("b", [3, 1, 2, 14], [1, 0, 0, 19])])
    scores = per_patient(counts).set_index("patient_id")
    assert scores.loc["a", "iou"] == pytest.approx(0.5)
    assert np.isnan(scores.loc["a", "iou_stroma"])
    assert scores.loc["b", "iou"] == pytest.approx((0.5 + 1) / 2)
    assert scores.loc["b", "dice"] == pytest.approx((6 / 9 + 1) / 2)
    assert "iou_background" not in scores


def test_a_patient_without_foreground_scores_nan_unless_something_is_predicted():
    counts = pd.concat([one("none", NEITHER, NEITHER), one("wrong", [0, 4, 0, 16], NEITHER)])
    scores = per_patient(counts).set_index("patient_id")["iou"]
    assert np.isnan(scores["none"])
    assert scores["wrong"] == 0


def test_pixels_of_a_patient_are_pooled_before_the_ratio():
    cells = [[BACKGROUND, [1, 0, 0, 9], NEITHER], [BACKGROUND, [0, 3, 0, 7], NEITHER]]
    scores = per_patient(counts_table("real", 0, ["a", "a"], ["x", "x"], cells, CLASSES))
    assert scores["iou"].item() == pytest.approx(1 / 4)  # and not (1 + 0) / 2
    assert scores["n_pictures"].item() == 2


def test_seeds_are_averaged_per_patient_and_their_spread_kept():
    counts = pd.concat([one("a", [1, 1, 0, 0], NEITHER, seed=0), one("a", [1, 0, 0, 1], NEITHER, seed=1)])
    assert per_patient_and_seed(counts)["iou"].tolist() == [0.5, 1.0]
    scores = per_patient(counts).iloc[0]
    assert scores["iou"] == pytest.approx(0.75)
    assert scores["iou_seed_sd"] == pytest.approx(np.std([0.5, 1], ddof=1))
    assert scores["n_seeds"] == 2
    assert pooled_iou(counts)["real"] == pytest.approx(0.75)


def test_pooled_and_per_category():
    counts = pd.concat(
        [
            one("a", [9, 0, 1, 0], NEITHER, category="x"),
            one("b", [0, 0, 90, 0], NEITHER, category="x"),
            one("c", [5, 5, 0, 0], NEITHER, category="y"),
        ]
    )
    assert pooled_iou(counts)["real"] == pytest.approx(14 / 110)
    assert class_iou(counts).loc["real", "gland"] == pytest.approx(14 / 110)
    table = per_category(per_patient(counts)).set_index("category")
    assert table.loc["x", "iou_mean"] == pytest.approx(0.45)
    assert table.loc["x", "iou_sd"] == pytest.approx(np.std([0.9, 0.0], ddof=1))
    assert table.loc["y", "n_patients"] == 1
