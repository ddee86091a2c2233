"""`slides.csv`: a row a slide, in words a pathologist can edit.

Columns: slide_id, patient_id, split, image; optionally annotation, mpp, category; others are kept. File names are
relative to the table. A patient is in one split.
"""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.errors import StedmError
from stedm.io.images import leaves_folder
from stedm.io.tables import patient_problems, read_csv

REQUIRED_COLUMNS = ("slide_id", "patient_id", "split", "image")
OPTIONAL_COLUMNS = ("annotation", "mpp", "category")
_FINEST_MPP, _COARSEST_MPP = 0.02, 10.0


def read_slides(path: str | Path) -> pd.DataFrame:
    """The table with every cell as text but `mpp` (float, NaN = as the slide's file says), file names made absolute.

    Raises `StedmError` with a line for each problem. Whether the files are there is not looked at: one missing slide
    shall not stop the others.
    """
    path = Path(path)
    if not path.is_file():
        raise StedmError(f"{path}: no such table of slides; docs/slides.md says what is in one")
    table = read_csv(path)
    table = table.apply(lambda column: column.str.strip())
    for column in OPTIONAL_COLUMNS:
        if column not in table:
            table[column] = ""
    if problems := slide_problems(table):
        raise StedmError.of([f"{path}: {problem}" for problem in problems])
    for column in ("image", "annotation"):
        table[column] = [os.path.abspath(path.parent / name) if name else "" for name in table[column]]
    if twice := sorted(set(table["image"][table["image"].duplicated()])):
        raise StedmError.of([f"{path}: {name} is the image of two slides; keep one" for name in twice])
    table["mpp"] = [float(text) if text else math.nan for text in table["mpp"]]
    return table


def slide_problems(table: pd.DataFrame) -> list[str]:
    """What is wrong in a table of texts, one line each."""
    if missing := [name for name in REQUIRED_COLUMNS if name not in table]:
        return [f"column {name} is missing; add it" for name in missing]
    if table.empty:
        return ["no rows; add a slide"]
    problems = [
        f"row {row + 1} has no {column}; fill it"
        for column in ("slide_id", "image")
        for row in np.flatnonzero(table[column] == "")
    ]
    names = table["slide_id"]
    problems += [
        f"slide {name}: is in several rows; keep one" for name in sorted(set(names[names.duplicated()]) - {""})
    ]
    problems += [
        f"slide {name}: the name becomes a folder's; don't start it with a dot nor use any of / \\ : ; * ? \" < > |"
        for name in names
        if name.startswith(".") or set(name) & set('/\\:;*?"<>|') or leaves_folder(name)
    ]
    for name, text in zip(names, table["mpp"], strict=True):
        if text and not _is_positive(text):
            problems.append(
                f"slide {name}: mpp {text!r} is not a positive number; give microns per pixel or leave it empty"
            )
        elif text and not _FINEST_MPP <= float(text) < _COARSEST_MPP:
            problems.append(
                f"slide {name}: mpp {text} is no slide's; give microns per pixel (0.25 at 40x), no magnification"
            )
    return problems + patient_problems(table, "slides")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
