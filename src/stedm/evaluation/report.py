"""The report of an experiment: counts, scores per patient, statistics, and one HTML file that works offline.

`write_report` makes the report of one run, `compare_reports` joins the counts of several. Both say in plain words
what the numbers allow to say, also when synthetic images did not help.
"""

from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from stedm.config import EvaluationConfig
from stedm.errors import StedmError
from stedm.evaluation import figures, stain_distance
from stedm.evaluation.counts import class_names, pool_units, write_counts
from stedm.evaluation.figures import Overlay, PatientExamples, StyleGrid, StyleStrip
from stedm.evaluation.metrics import per_category, per_patient
from stedm.evaluation.numbers import interval, p_value, percent, shown, signed
from stedm.evaluation.stats import summarise
from stedm.evaluation.verdict import LIKE_FOR_LIKE, Verdict, find, judge
from stedm.io.files import write_json, write_text
from stedm.io.manifest import write_manifest
from stedm.io.tables import write_csv


@dataclass(frozen=True)
class ReportPanels:
    """Images to show in a report; each list may be empty."""

    style_grids: list[StyleGrid] = field(default_factory=list)
    patient_examples: list[PatientExamples] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    style_strips: list[StyleStrip] = field(default_factory=list)


REPORT_MARKS = {
    "counts.parquet": "n_pictures",
    "per_patient.csv": "iou_seed_sd",
    "summary.json": '"iou_worst_decile"',
    "report.html": "stedm report",
    "manifest.json": '"made_by": "stedm"',
}
"""The files of a report, and by what each is known to be one of stedm (see stedm.io.ownership)."""


def write_report(
    folder: str | Path,
    counts: pd.DataFrame,
    *,
    title: str,
    notes: dict[str, str] | None = None,
    config_yaml: str = "",
    provenance: dict[str, object] | None = None,
    panels: ReportPanels | None = None,
    evaluation: EvaluationConfig | None = None,
    distances: pd.Series | None = None,
) -> dict:
    """Write counts.parquet, per_patient.csv, summary.json and report.html into `folder`; returns the summary.

    counts: the table of `stedm.evaluation.counts`, all arms and seeds. notes: short facts shown under the title.
    provenance: versions and fingerprints. distances: of each patient from the annotated ones (`stain_distance`),
    where the patient is the unit. report.html comes last: where it stands, the report is complete.
    """
    folder, evaluation = Path(folder), evaluation or EvaluationConfig()
    if counts.empty:
        raise StedmError(f"{folder}: nothing was scored, so there is nothing to report")
    summary = summarise(counts, evaluation)
    patients = per_patient(pool_units(counts, evaluation.unit))
    if distances is not None and evaluation.unit == "patient" and distances.notna().any():
        patients[stain_distance.COLUMN] = patients["patient_id"].map(distances)
        pairs = [(entry["a"], entry["b"]) for entry in summary["comparisons"]]
        summary[stain_distance.COLUMN] = stain_distance.gains_by_distance(patients, pairs)
    write_counts(folder / "counts.parquet", counts)
    write_csv(folder / "per_patient.csv", patients)
    write_json(folder / "summary.json", summary)
    write_manifest(folder, {name: folder / name for name in ("counts.parquet", "per_patient.csv", "summary.json")})
    facts = {"Split": evaluation.split} | (notes or {})
    html = render(counts, summary, evaluation, title, facts, config_yaml, provenance, panels, patients)
    write_text(folder / "report.html", html)
    return summary


def render(
    counts: pd.DataFrame,
    summary: dict,
    evaluation: EvaluationConfig,
    title: str,
    notes: dict[str, str] | None = None,
    config_yaml: str = "",
    provenance: dict[str, object] | None = None,
    panels: ReportPanels | None = None,
    patients: pd.DataFrame | None = None,
) -> str:
    """The HTML of a report; every text from outside is escaped by the template engine.

    patients: the table of `metrics.per_patient`, for its column `stain_distance`; computed where it isn't given.
    """
    images = int(counts.groupby("patient_id")["n_pictures"].max().sum()) if "n_pictures" in counts else None
    counts, panels = pool_units(counts, evaluation.unit), panels or ReportPanels()
    patients, unit = per_patient(counts) if patients is None else patients, evaluation.unit
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stedm.evaluation"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": shown, "signed": signed, "p": p_value, "interval": interval}
    verdict = judge(summary, evaluation)
    return environment.get_template("report.html.j2").render(
        title=title,
        verdict=verdict,
        unit=unit,
        units=evaluation.units,
        facts=_facts(counts, summary, evaluation.units, images) | (notes or {}),
        main=find(summary, *verdict.pair) if verdict.pair else None,
        arms=summary["arms"],
        comparisons=summary["comparisons"],
        classes=class_names(counts)[1:],
        categories=_category_rows(patients, summary),
        patients=_patient_rows(patients, summary, verdict),
        groups=summary.get("groups", {}),
        group_pairs=_arm_pairs(summary, verdict),
        arms_plot=_figure(
            figures.arms_figure(patients, unit), f"Every dot is a {unit}, the bar is the mean of the arm."
        ),
        pair_plots=_pair_plots(patients, _arm_pairs(summary, verdict), unit),
        distance_figures=_distance_figures(patients, summary, verdict),
        panels=_panel_figures(panels),
        class_colours=list(zip(class_names(counts), figures.CLASS_COLOURS, figures.OUTLINE_COLOURS, strict=False)),
        wrong_colour=figures.WRONG_COLOUR,
        confidence=percent(evaluation.confidence),
        bootstrap=evaluation.bootstrap,
        config_yaml=config_yaml,
        provenance=provenance or {},
    )


def worst_and_best(counts: pd.DataFrame, arm: str, n: int) -> tuple[list[str], list[str]]:
    """Patient ids with the lowest and the highest IoU of `arm`, worst first and best first; no patient in both."""
    scores = per_patient(counts).query("arm == @arm").dropna(subset="iou").sort_values(["iou", "patient_id"])
    ids = scores["patient_id"].tolist()
    worst = ids[: min(n, (len(ids) + 1) // 2)]
    return worst, [patient for patient in ids[::-1] if patient not in worst][:n]


def _facts(counts: pd.DataFrame, summary: dict, units: str, images: int | None) -> dict[str, str]:
    seeds = sorted({seed for entry in summary["arms"].values() for seed in entry["seeds"]})
    facts = {units.capitalize(): str(counts["patient_id"].nunique())}
    if images is not None:
        facts["Images"] = f"{images:,}"
    return facts | {"Seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})", "Arms": str(len(summary["arms"]))}


def _category_rows(patients: pd.DataFrame, summary: dict) -> list[dict]:
    """One row a category: name, number of patients, and per arm mean and SD."""
    table = per_category(patients).set_index(["category", "arm"])
    rows = []
    for category, group in patients.groupby("category"):
        cells = [table.loc[(category, arm)] if (category, arm) in table.index else None for arm in summary["arms"]]
        values = [(None, None) if cell is None else (cell["iou_mean"], cell["iou_sd"]) for cell in cells]
        rows.append({"name": category or "–", "n": group["patient_id"].nunique(), "cells": values})
    return rows


def _patient_rows(patients: pd.DataFrame, summary: dict, verdict: Verdict) -> list[dict]:
    """One row a patient: id, category, IoU per arm, gain of the headline pair; largest loss first."""
    table = patients.pivot(index="patient_id", columns="arm", values="iou").reindex(columns=list(summary["arms"]))
    categories = patients.groupby("patient_id")["category"].first()
    a, b = verdict.pair or (next(iter(summary["arms"])),) * 2
    gain = table[a] - table[b]
    order = gain.sort_values(na_position="last", kind="stable").index
    return [
        {"id": i, "category": categories[i], "cells": table.loc[i].tolist(), "gain": gain[i] if verdict.pair else None}
        for i in order
    ]


def _arm_pairs(summary: dict, verdict: Verdict) -> list[tuple[str, str]]:
    """The pairs that get plots."""
    return [pair for pair in LIKE_FOR_LIKE if find(summary, *pair)] or ([verdict.pair] if verdict.pair else [])


def _pair_plots(patients: pd.DataFrame, pairs: list[tuple[str, str]], unit: str) -> list[dict]:
    return [
        {
            "caption": f"{unit.capitalize()} by {unit}, from {b} to {a}.",
            "svgs": [
                Markup(figures.inline_svg(figures.paired_figure(patients, a, b, unit), f"IoU per {unit}, {b} and {a}")),
                Markup(
                    figures.inline_svg(figures.gain_figure(patients, a, b, unit), f"gain of {a} against IoU with {b}")
                ),
            ],
        }
        for a, b in pairs
    ]


def _distance_figures(patients: pd.DataFrame, summary: dict, verdict: Verdict) -> list[dict]:
    """A figure and a sentence for each pair that gets plots: gain against the distance from annotated patients."""
    found = {(entry["a"], entry["b"]): entry for entry in summary.get(stain_distance.COLUMN, [])}
    drawn = []
    for a, b in (pair for pair in _arm_pairs(summary, verdict) if pair in found):
        entry = found[a, b]
        text = (
            f"{a} - {b}: {signed(entry['delta_near'])} in the half of the patients that is nearer to the annotated "
            f"ones, {signed(entry['delta_far'])} in the other"
        )
        if entry["spearman"] is not None:
            p = p_value(entry["p_spearman"])
            text += f" (rank correlation of gain and distance {entry['spearman']:+.2f}, p {p})"
        drawn.append(_figure(figures.distance_figure(patients, a, b), f"{text}."))
    return drawn


def _panel_figures(panels: ReportPanels) -> list[dict]:
    """The image sections that have content: heading, explanation, figures."""
    sections = []
    if panels.style_grids:
        drawn = [_figure(figures.style_grid_figure(grid), grid.caption) for grid in panels.style_grids]
        text = "Every row is painted in the style of the images on its left, every column from the layout above it."
        sections.append({"heading": "Style × layout", "text": text, "figures": drawn, "key": "layout"})
    if panels.style_strips:
        drawn = [_figure(figures.style_strip_figure(strip), strip.caption) for strip in panels.style_strips]
        text = "The same layout and noise throughout; only the style vector moves, in even steps."
        sections.append({"heading": "From one style to another", "text": text, "figures": drawn, "key": "layout"})
    if panels.patient_examples:
        drawn = [_figure(figures.patient_examples_figure(panels.patient_examples), "")]
        text = "Real images of patients without annotations, and what was painted for them: layout, then image."
        sections.append({"heading": "Synthetic images per patient", "text": text, "figures": drawn, "key": "layout"})
    if panels.overlays:
        groups: dict[str, list[Overlay]] = {}
        for overlay in panels.overlays:
            groups.setdefault(overlay.group, []).append(overlay)
        drawn = [_figure(figures.overlays_figure(overlays), group) for group, overlays in groups.items()]
        text = "Outlined: the truth, then what each arm predicted; its wrong pixels are tinted. IoU is the patient's."
        sections.append({"heading": "Worst and best patients", "text": text, "figures": drawn, "key": "outline"})
    return sections


def _figure(figure: figures.Figure, caption: str) -> dict:
    return {"svg": Markup(figures.inline_svg(figure, caption)), "caption": caption}
