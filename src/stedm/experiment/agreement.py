"""Whether two votes on the same unannotated images agree, patient by patient.

Nobody knows the truth there. But where segmenters that have seen annotated images alone are sure of something, and
others that have learned from synthetic images as well see something else, at least one of the two is wrong about the
patient, and painting to either's layouts would teach the error (results/agreement).
"""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.counts import count, counts_table
from stedm.evaluation.metrics import per_patient_and_seed
from stedm.io.artefacts import Column, check_table, read_csv_table
from stedm.io.files import replacing
from stedm.io.manifest import verify_sum, write_sum
from stedm.io.tables import csv_text

_SCORE = Column("float", low=0.0, high=1.0, may_be_nan=True)
_COLUMNS = {
    "patient_id": Column("text"),
    "category": Column("text"),
    "agreement": _SCORE,
    "sure_fraction": Column("float", low=0.0, high=1.0),
}
_AGAIN = "remove it and run again"


def agreement(sure: DatasetFolder, seen: DatasetFolder) -> pd.DataFrame:
    """IoU between the labels of two folders of `stedm.segmentation.pseudo_labels` for the same images.

    Counted over the pixels that `sure` has labels for (not `ignore_index`), all images of a patient together.

    Returns:
        patient_id, category, agreement (mean over the foreground classes that either sees; NaN where neither sees
        any), `iou_CLASS`, and sure_fraction (the part of the pixels that was compared).
    """
    info, patients = sure.info, sure.table["patient_id"].tolist()
    cells, compared = [], []
    for row in range(len(sure)):
        known = sure.read_mask(row)
        cells.append(count(seen.read_mask(row), known, len(info.classes), info.ignore_index))
        compared.append((known != info.ignore_index).mean())
    counts = counts_table("labels", 0, patients, sure.table["category"].tolist(), cells, info.classes)
    scores = per_patient_and_seed(counts).drop(columns=["arm", "seed", "dice"]).rename(columns={"iou": "agreement"})
    sure_fraction = pd.Series(compared).groupby(patients).mean()
    return scores.assign(sure_fraction=scores["patient_id"].map(sure_fraction))


def write_agreement(table: pd.DataFrame, path: Path) -> None:
    """Write `agreement.csv` atomically, and its sum before it."""
    with replacing(path) as temporary:
        temporary.write_text(csv_text(table, float_format="%.4f"), encoding="utf-8")
        write_sum(path, temporary)


def read_agreement(path: Path, patients: Collection[str]) -> pd.DataFrame:
    """The table of `agreement` from a file.

    Raises:
        StedmError: it is damaged, or isn't about `patients`.
    """
    verify_sum(path)
    table = read_csv_table(path, _COLUMNS, hint=_AGAIN)
    check_table(table, {name: _SCORE for name in table if name.startswith("iou_")}, str(path), _AGAIN)
    if sorted(table["patient_id"]) != sorted(patients):
        raise StedmError(f"{path}: has other patients than the unannotated ones; {_AGAIN}")
    return table


def contradicted(table: pd.DataFrame, least: float) -> list[str]:
    """Patients whose agreement is below `least`; one without any foreground in both votes isn't among them."""
    return sorted(table["patient_id"][table["agreement"] < least])
