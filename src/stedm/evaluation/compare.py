"""Reports of several runs joined into one, on the patients that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from stedm.config import EvaluationConfig
from stedm.errors import StedmError
from stedm.evaluation.counts import class_names, read_counts
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.report import REPORT_MARKS, render
from stedm.evaluation.stats import default_pairs, ordered_arms, summarise
from stedm.io.artefacts import read_json
from stedm.io.files import write_json, write_text
from stedm.io.manifest import verify_present
from stedm.io.ownership import check_outputs


@dataclass(frozen=True)
class _Summary:
    """What of a summary.json counts here."""

    unit: Literal["patient", "category"] = "patient"


def compare_reports(
    reports: Sequence[Path], out: Path, evaluation: EvaluationConfig | None = None, *, overwrite: bool = False
) -> dict:
    """Join report folders on their common patients; write the HTML `out` and summary.json beside it.

    Arms that several reports have are named REPORT/ARM and compared with those of the first report. Raises
    `StedmError` for fewer than two reports, other classes, no common patient, an `out` inside one of the folders, or
    without `overwrite` one of the two files that is there and not of stedm.
    """
    out = Path(out)
    folders = [_report_folder(Path(path)) for path in reports]
    if len(folders) < 2:
        raise StedmError("give at least two report folders to compare")
    if any(folder.resolve() == out.resolve().parent for folder in folders):
        raise StedmError(f"{out}: lies in one of the reports and would replace its files; choose another folder")
    marks = {out: REPORT_MARKS["report.html"], out.parent / "summary.json": REPORT_MARKS["summary.json"]}
    check_outputs(marks, [file for folder in folders for file in folder.iterdir()], overwrite=overwrite)
    names = _report_names(folders)
    tables = {name: read_counts(folder / "counts.parquet") for name, folder in zip(names, folders, strict=True)}
    evaluation = evaluation or EvaluationConfig(unit=_common_unit(folders))
    joined, notes = _join(tables)
    pairs = _joined_pairs(joined, names)
    summary = summarise(joined, evaluation, pairs)
    write_json(out.parent / "summary.json", summary)
    write_text(out, render(joined, summary, evaluation, "Comparison: " + ", ".join(names), notes))
    return summary


def _report_folder(path: Path) -> Path:
    """The folder of a report that a user named: itself, a file in it or its run."""
    if not path.exists():
        raise StedmError(f"{path}: no such report folder; correct its path")
    folder = path if path.is_dir() else path.parent
    of_run = folder / "report"
    return of_run if (of_run / "counts.parquet").is_file() and not (folder / "counts.parquet").exists() else folder


def _report_names(folders: list[Path]) -> list[str]:
    """A short name for each report: its folder, or the run's folder where that is just called `report`."""
    names: list[str] = []
    for folder in folders:
        resolved = folder.resolve()
        name = resolved.parent.name if resolved.name == "report" else resolved.name
        names.append(name if name not in names else f"{name}#{len(names) + 1}")
    return names


def _join(tables: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, str]]:
    """One table of the patients that all reports have, colliding arms prefixed, and notes on what was left out."""
    first = next(iter(tables.values()))
    for name, table in tables.items():
        if class_names(table) != class_names(first):
            raise StedmError(
                f"{name}: classes {class_names(table)} differ from {class_names(first)}; give reports on one dataset"
            )
    common = set.intersection(*(set(table["patient_id"]) for table in tables.values()))
    if not common:
        raise StedmError(
            "the reports have no patient in common, so there is nothing to compare; give reports on one dataset"
        )
    notes = {}
    for name, table in tables.items():
        dropped = table["patient_id"].nunique() - len(common)
        notes[name] = f"{len(common)} common patients, {dropped} dropped because another report lacks them"
        if (changed := _other_pixels(table, first, common)) > 0:
            notes[name] += f"; {changed} scored on other pixels than in {next(iter(tables))}, compare with care"
    arms = [arm for table in tables.values() for arm in table["arm"].unique()]
    categories = first.groupby("patient_id")["category"].first()
    parts = []
    for name, table in tables.items():
        kept = table[table["patient_id"].isin(common)]
        renamed = kept["arm"].map(lambda arm, name=name: f"{name}/{arm}" if arms.count(arm) > 1 else arm)
        parts.append(kept.assign(arm=renamed, category=kept["patient_id"].map(categories)))
    joined = pd.concat(parts, ignore_index=True)
    # Reports that had other categories annotated have no groups in common.
    if "group" in joined and joined.groupby("patient_id")["group"].nunique(dropna=False).max() > 1:
        joined = joined.drop(columns="group")
    return joined, notes


def _common_unit(folders: list[Path]) -> str:
    """The unit of the reports' statistics where they agree, else the patient."""
    found = set()
    for folder in folders:
        verify_present(folder, "summary.json")
        if (path := folder / "summary.json").is_file():
            found.add(read_json(path, _Summary, hint="make the report again").unit)
    return found.pop() if len(found) == 1 else "patient"


def _other_pixels(table: pd.DataFrame, first: pd.DataFrame, common: set[str]) -> int:
    """Common patients whose truth (pixels per class) is not the one of the first report."""

    def truth(counts: pd.DataFrame) -> pd.DataFrame:
        pixels = (counts["tp"] + counts["fn"]).groupby([counts["patient_id"], counts["class"]], observed=True).max()
        return pixels.unstack("class").loc[sorted(common)]

    return int((truth(table) != truth(first)).any(axis=1).sum())


def _joined_pairs(joined: pd.DataFrame, names: list[str]) -> list[tuple[str, str]]:
    """Arms of later reports against the same arm of the first that has it, then the comparisons of one report."""
    arms = ordered_arms(joined["arm"].unique())
    pairs = []
    for arm in dict.fromkeys(arm.removeprefix(f"{name}/") for name in names for arm in arms):
        same = [f"{name}/{arm}" for name in names if f"{name}/{arm}" in arms]
        pairs += [(later, same[0]) for later in same[1:]]
    means = per_patient(joined).groupby("arm")["iou"].mean().dropna().to_dict()
    pairs += [pair for pair in default_pairs(arms, means) if pair not in pairs]
    # Arms without known roles (two models evaluated on their own): each against the first.
    return pairs or [(arm, arms[0]) for arm in arms[1:]]
