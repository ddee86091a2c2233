"""IoU and Dice per patient, per category and pooled, all computed from the table of counts.

A score of a class is NaN, never 0, where the class is absent from both truth and prediction; means leave NaN out.
The foreground mean takes all classes but the first (the background).
"""

import numpy as np
import pandas as pd

from stedm.evaluation.counts import CELLS, class_names


def iou(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Intersection over union, TP / (TP + FP + FN); NaN where all three are 0."""
    return _ratio(tp, np.asarray(tp) + fp + fn)


def dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Dice coefficient, 2 TP / (2 TP + FP + FN); NaN where all three are 0."""
    return _ratio(2 * np.asarray(tp), 2 * np.asarray(tp) + fp + fn)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    denominator = np.asarray(denominator, dtype=float)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def per_patient_and_seed(counts: pd.DataFrame) -> pd.DataFrame:
    """Scores over each patient's pooled pixels, for every arm and seed on its own.

    Returns arm, seed, patient_id, category, iou, dice (foreground means) and `iou_CLASS` for each foreground class.
    """
    scores = _class_scores(counts, ["arm", "seed", "patient_id", "category"])
    keys = ["arm", "seed", "patient_id", "category"]
    means = scores.groupby(keys, observed=True)[["iou", "dice"]].mean()
    classes = scores.pivot(index=keys, columns="class", values="iou")
    classes = classes.reindex(columns=class_names(counts)[1:])
    classes.columns = [f"iou_{name}" for name in classes.columns]
    return means.join(classes).reset_index()


def per_patient(counts: pd.DataFrame) -> pd.DataFrame:
    """Scores per arm and patient, averaged over seeds: the table behind all statistics (`per_patient.csv`).

    Returns arm, patient_id, category, n_seeds, n_images (where the counts have it), iou, iou_seed_sd (SD over seeds,
    NaN with one), dice, `iou_CLASS`.
    """
    seeds = per_patient_and_seed(counts)
    keys = ["arm", "patient_id", "category"]
    groups = seeds.groupby(keys)
    table = groups.mean(numeric_only=True).drop(columns="seed")
    table.insert(0, "n_seeds", groups["seed"].nunique())
    table.insert(table.columns.get_loc("iou") + 1, "iou_seed_sd", groups["iou"].std(ddof=1))
    if "n_pictures" in counts:
        table.insert(1, "n_pictures", counts.groupby(keys)["n_pictures"].max())
    return table.reset_index()


def per_category(patients: pd.DataFrame) -> pd.DataFrame:
    """Mean and SD (ddof 1) over the patients of each category: arm, category, n_patients, iou_mean, iou_sd.

    patients: the table of `per_patient`.
    """
    groups = patients.groupby(["arm", "category"])["iou"]
    return groups.agg(n_patients="count", iou_mean="mean", iou_sd="std").reset_index()


def pooled_iou(counts: pd.DataFrame) -> pd.Series:
    """Foreground IoU over the pixels of all patients together, averaged over seeds; indexed by arm."""
    scores = _class_scores(counts, ["arm", "seed"])
    return scores.groupby(["arm", "seed"])["iou"].mean().groupby("arm").mean()


def class_iou(counts: pd.DataFrame) -> pd.DataFrame:
    """IoU of each foreground class over the pixels of all patients, averaged over seeds; arms x classes."""
    scores = _class_scores(counts, ["arm", "seed"])
    return scores.groupby(["arm", "class"], observed=True)["iou"].mean().unstack("class")


def _class_scores(counts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Counts summed within `keys` and class, with iou and dice; foreground classes only."""
    background, *foreground = class_names(counts)
    kept = counts[counts["class"] != background].astype({"class": pd.CategoricalDtype(foreground, ordered=True)})
    scores = kept.groupby([*keys, "class"], observed=True)[CELLS].sum().reset_index()
    cells = scores["tp"].to_numpy(), scores["fp"].to_numpy(), scores["fn"].to_numpy()
    return scores.assign(iou=iou(*cells), dice=dice(*cells))
