"""What the tables of the package have in common: CSV files read as text, and patients that stay in one split."""

import csv
import re
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stedm.errors import StedmError
from stedm.io.files import require_file, write_text

SPLITS = ("train", "unlabeled", "val", "test")


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with every cell as text, "" where empty; `StedmError` if it isn't one."""
    try:
        require_file(path)
        with open(path, encoding="utf-8-sig") as file:
            head = file.readline()
        for separator, name in (";", "a semicolon"), ("\t", "a tab"):
            if head.count(separator) > head.count(","):
                raise StedmError(f"{path}: the separator is {name}; save the table with commas")
        refuse_columns_twice(path, head)
        table = read_cells(path).rename(columns=str.strip)
        # Spreadsheets write rows of commas behind the last one that is filled.
        filled = np.flatnonzero((table != "").any(axis=1))
        return table.iloc[: filled[-1] + 1] if len(filled) else table
    except (OSError, ValueError, csv.Error, pd.errors.ParserWarning) as error:
        raise StedmError(
            f"{path}: not readable ({' '.join(str(error).split())}); save it as CSV with commas, in UTF-8"
        ) from error


def refuse_columns_twice(path: Path, head: str, separator: str = ",") -> None:
    """`StedmError` for a header that names a column twice, of which pandas would take the first."""
    names = [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise StedmError(f"{path}: column {', '.join(twice)} is there twice; keep one")


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of `csv_text` as text; whatever pandas raises where there are none, and for rows that are too long."""
    with warnings.catch_warnings():
        # Pandas only warns of rows longer than the header, and drops their end.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return plain(pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False))


def csv_text(table: pd.DataFrame, **options: Any) -> str:
    """The table as CSV in which no spreadsheet sees a formula: texts that would be one begin with an apostrophe.

    `read_csv` and `plain` take it off again. Options are those of `DataFrame.to_csv`.
    """
    harmless = table.rename(columns=_escaped)
    for number, (_, column) in enumerate(table.items()):
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
            cells = [_escaped(cell) for cell in column]
            harmless.isetitem(number, pd.Series(cells, column.index, object))
            if any(isinstance(cell, str) and "\r" in cell for cell in cells):
                options["quoting"] = csv.QUOTE_NONNUMERIC  # else it would end the row
    return harmless.to_csv(index=False, **options)


def write_csv(path: str | Path, table: pd.DataFrame, **options: Any) -> None:
    """Write `csv_text` atomically."""
    write_text(path, csv_text(table, **options))


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """A table of texts as it was before `csv_text`."""
    table = table.rename(columns=lambda name: _ESCAPED.sub("", name))
    return table.apply(lambda column: column.str.replace(_ESCAPED.pattern, "", regex=True))


_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_ESCAPED = re.compile(f"^'(?={_FORMULA.pattern})")


def _escaped(cell: Any) -> Any:
    if not isinstance(cell, str) or not _FORMULA.match(cell):
        return cell
    try:
        float(cell)  # -0.1 is a number
    except ValueError:
        return f"'{cell}"
    return cell


def patient_problems(table: pd.DataFrame, where: str) -> list[str]:
    """Rows without a patient, unknown splits, patients in several splits; `where` starts each line.

    Ids that look alike (see `alike`) count as one patient.
    """
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
        for names, splits in _patients(table):
            if len(splits) > 1 and len(names) == 1:
                problems.append(
                    f"{where}: patient {names[0]} is in several splits ({', '.join(splits)}); keep it in one"
                )
            elif len(splits) > 1:
                problems.append(
                    f"{where}: patients {_spelled(names)} look like one in several splits ({', '.join(splits)}); spell "
                    "it in one way and keep it in one split, or give other ids"
                )
    return problems


def patient_warnings(table: pd.DataFrame, where: str) -> list[str]:
    """Patients of one split whose ids look alike, and patients of several categories."""
    if not {"patient_id", "split"} <= set(table):
        return []
    warnings = [
        f"{where}: {_spelled(names)} look alike; one patient? they count as {len(names)}"
        for names, splits in _patients(table)
        if len(names) > 1 and len(splits) == 1
    ]
    if "category" in table:
        warnings += [
            f"{where}: categories {_spelled(names)} look alike; one category? they count as {len(names)}"
            for names in _alike_ones(table["category"].unique())
        ]
        categories = table[table["category"] != ""].groupby("patient_id")["category"].unique()
        mixed = [f"{patient} ({', '.join(sorted(names))})" for patient, names in categories.items() if len(names) > 1]
        if mixed:
            more = f" and {len(mixed) - 5} more" if len(mixed) > 5 else ""
            warnings.append(
                f"{where}: patients of several categories, each counted under its most frequent one: "
                f"{', '.join(mixed[:5])}{more}"
            )
    return warnings


def alike(name: str) -> tuple[str, ...]:
    """What is left of an id without what people spell in different ways: equal for ids that look alike.

    Unicode form and width, case, spaces of all kinds and hyphens (but between digits: 1-11 is not 11-1), leading zeros
    (007 is 7) and the .0 that spreadsheets append.
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(character for character in text if unicodedata.category(character) not in ("Cf", "Cc"))
    text = re.sub(r"^(\d+)\.0+$", r"\1", text.strip())
    text = "".join("-" if c.isspace() or c in "_\u2212" or unicodedata.category(c) == "Pd" else c for c in text)
    text = re.sub("-+", "-", text)
    text = re.sub(r"(?<=[^\d])-(?=.)|(?<=.)-(?=[^\d])", "", text)
    parts = re.findall(r"\d+|[^\d]+", text)
    return tuple(part.lstrip("0") or "0" if part.isdigit() else part for part in parts)


def _patients(table: pd.DataFrame) -> list[tuple[list[str], list[str]]]:
    """Ids that stand for one patient, and the splits that they are in."""
    named = table[(table["patient_id"] != "") & table["split"].isin(SPLITS)]
    key_of = {name: alike(name) for name in named["patient_id"].unique()}
    pairs = named[["patient_id", "split"]].drop_duplicates()
    found: dict[tuple[str, ...], tuple[set[str], set[str]]] = {}
    for patient, split in pairs.itertuples(index=False):
        names, splits = found.setdefault(key_of[patient], (set(), set()))
        names.add(patient), splits.add(split)
    return [(sorted(names), sorted(splits)) for names, splits in found.values()]


def _alike_ones(names: Iterable[str]) -> list[list[str]]:
    """Names that look alike, group by group."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in filter(None, names):
        found.setdefault(alike(name), []).append(name)
    return [sorted(group) for group in found.values() if len(group) > 1]


def _spelled(names: list[str]) -> str:
    """Ids as they differ: what can't be told apart on a screen is written as its code."""
    return " and ".join(map(ascii, names))
