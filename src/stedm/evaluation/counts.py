"""True and false positives and negatives, kept per patient, class, seed and arm, so that any metric can be recomputed.

The table (`counts.parquet`) is tidy, one row per arm, seed, patient and class:

    arm, seed, patient_id, category, class, tp, fp, fn, tn, n_images

summed over the patient's images, ignored pixels left out. `class` is an ordered categorical in the order of the
dataset's classes; its first category is the background. Where some of the categories scored were never annotated, a
column `group` tells annotated from unseen ones.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.errors import StedmError
from stedm.io.artefacts import Column, read_parquet, write_parquet

KEYS = ["arm", "seed", "patient_id", "category", "class"]
CELLS = ["tp", "fp", "fn", "tn"]
_CELL = Column("int", low=0, high=2**53)
_COLUMNS = {
    **{name: Column("text") for name in KEYS},
    "class": Column("text"),
    "seed": Column("int", low=-(2**63), high=2**63),
    **dict.fromkeys(CELLS, _CELL),
    "n_pictures": replace(_CELL, optional=True),
    "group": Column("text", optional=True),
}
_COUNT_AGAIN = "remove it and run the same command again"
SEEN, UNSEEN = "annotated categories", "unseen categories"


def count(prediction: np.ndarray, truth: np.ndarray, n_classes: int, ignore_index: int | None = 255) -> np.ndarray:
    """Count pixels of one image, each class against the rest.

    prediction, truth: class indices 0..n_classes-1, same shape; pixels where truth is `ignore_index` do not count.
    Returns int64 (n_classes, 4): TP, FP, FN, TN. Raises `StedmError` for other shapes or indices out of range.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise StedmError(f"prediction {prediction.shape} and truth {truth.shape} differ in size")
    counted = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
    p, t = prediction[counted].astype(np.int64), truth[counted].astype(np.int64)
    for name, values in (("prediction", p), ("truth", t)):
        if values.size and not 0 <= values.min() <= values.max() < n_classes:
            raise StedmError(f"{name} has class index {values.min()}..{values.max()}, expected 0..{n_classes - 1}")
    confusion = np.bincount(n_classes * t + p, minlength=n_classes**2).reshape(n_classes, n_classes)
    tp = np.diag(confusion)
    fp, fn = confusion.sum(axis=0) - tp, confusion.sum(axis=1) - tp
    return np.stack([tp, fp, fn, t.size - tp - fp - fn], axis=1).astype(np.int64)


def counts_table(
    arm: str,
    seed: int,
    patient_ids: Sequence[str],
    categories: Sequence[str],
    counts: np.ndarray,
    classes: Sequence[str],
) -> pd.DataFrame:
    """Sum the counts of n images per patient, for one arm and one seed; `pandas.concat` joins several.

    patient_ids, categories: one per image. counts: (n, n_classes, 4) from `count`. classes: names, background first.
    A patient whose images carry several categories gets the most frequent one (ties: first in the alphabet), so
    that a patient stays one unit of the statistics.
    """
    counts = np.asarray(counts, dtype=np.int64).reshape(-1, len(classes), len(CELLS))
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise StedmError(
            f"classes {list(classes)}: need a background and at least one other class, names all different"
        )
    if not len(patient_ids) == len(categories) == len(counts):
        raise StedmError(f"{len(patient_ids)} patients, {len(categories)} categories, {len(counts)} images: not equal")
    images = pd.DataFrame({"patient_id": list(map(str, patient_ids)), "category": list(map(str, categories))})
    rows = []
    for patient_id, group in images.groupby("patient_id"):
        category = group["category"].mode().iloc[0]
        total = counts[group.index.to_numpy()].sum(axis=0)
        for name, cells in zip(classes, total.tolist(), strict=True):
            rows.append([arm, int(seed), patient_id, category, name, *cells, len(group)])
    table = pd.DataFrame(rows, columns=[*KEYS, *CELLS, "n_pictures"])
    return table.astype({"class": pd.CategoricalDtype(list(classes), ordered=True)})


def with_groups(counts: pd.DataFrame, annotated_categories: set[str]) -> pd.DataFrame:
    """The counts with the column `group`; unchanged where there is only one group."""
    seen = counts["category"].isin(annotated_categories)
    return counts.assign(group=seen.map({True: SEEN, False: UNSEEN})) if seen.any() and not seen.all() else counts


def pool_units(counts: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The counts of the units of the statistics, in the column `patient_id`: `patient` = as they are.

    `category`: summed over the patients of each category. Counts already pooled stay as they are. Raises `StedmError`
    where patients have no category.
    """
    if unit == "patient":
        return counts
    if (counts["category"] == "").any():
        raise StedmError("evaluation.unit category: some images scored have no category; use unit patient")
    keys = [*(name for name in KEYS if name != "patient_id"), *(["group"] if "group" in counts else [])]
    sums = [*CELLS, *(["n_pictures"] if "n_pictures" in counts else [])]
    pooled = counts.groupby(keys, observed=True, as_index=False)[sums].sum()
    return pooled.assign(patient_id=pooled["category"])[list(counts.columns)]


def class_names(counts: pd.DataFrame) -> list[str]:
    """Class names in order, background first (order of appearance where the column is plain text)."""
    column = counts["class"]
    return list(column.cat.categories) if isinstance(column.dtype, pd.CategoricalDtype) else list(column.unique())


def write_counts(path: str | Path, counts: pd.DataFrame) -> None:
    """Write the table as parquet, atomically."""
    write_parquet(counts, path)


def read_counts(path: str | Path) -> pd.DataFrame:
    """Read `counts.parquet`; raises `StedmError` where it is missing, damaged or no such table."""
    path = Path(path)
    if not path.is_file():
        raise StedmError(f"{path}: no such file; a report folder holds counts.parquet")
    counts = read_parquet(path, _COLUMNS, what="a table of counts", hint=_COUNT_AGAIN)
    counts = counts.astype({"class": pd.CategoricalDtype(class_names(counts), ordered=True)})
    if counts.duplicated(KEYS).any():
        raise StedmError(f"{path}: counts a patient twice; {_COUNT_AGAIN}")
    return counts
