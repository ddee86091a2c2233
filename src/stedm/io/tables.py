"""What the tables of the package have in common: CSV files read as text, and patients that stay in one split."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.errors import StedmError

SPLITS = ("train", "unlabeled", "val", "test")


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with every cell as text, "" where empty; `StedmError` if it isn't one."""
    try:
        with warnings.catch_warnings():
            # Pandas only warns of rows longer than the header, and drops their end.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise StedmError(f"{path}: not readable ({' '.join(str(error).split())})") from error


def patient_problems(table: pd.DataFrame, where: str) -> list[str]:
    """Rows without a patient, unknown splits, patients in several splits; `where` starts each line."""
    problems: list[str] = []
    if "patient_id" in table:
        empty = np.flatnonzero(table["patient_id"] == "")
        problems += [f"{where}: row {row + 1} has no patient_id; fill it" for row in empty]
    if "split" in table:
        for split, rows in table[~table["split"].isin(SPLITS)].groupby("split"):
            problems.append(
                f"{where}: unknown split {split!r} in {len(rows)} rows, first row {rows.index[0] + 1}; "
                f"use one of {', '.join(SPLITS)}"
            )
    if {"patient_id", "split"} <= set(table):
        named = (table["patient_id"] != "") & table["split"].isin(SPLITS)
        for patient, splits in table[named].groupby("patient_id")["split"]:
            if splits.nunique() > 1:
                where = ", ".join(sorted(set(splits)))
                problems.append(f"{where}: patient {patient} is in several splits ({where}); keep it in one")
    return problems
