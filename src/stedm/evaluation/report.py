"""The report of an experiment: counts, scores per patient, statistics, and one HTML file that works offline.

`write_report` makes the report of one run, `compare_reports` joins the counts of several. Both say in plain words
what the numbers allow to say, also when synthetic images did not help.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from stedm.config import EvaluationConfig
from stedm.errors import StedmError
from stedm.evaluation import cards, figures, plots, sections, stain_distance
from stedm.evaluation.cards import data_url
from stedm.evaluation.counts import class_names, pool_units, write_counts
from stedm.evaluation.figures import Overlay, PatientExamples, StyleGrid, StyleStrip
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.next_steps import next_steps
from stedm.evaluation.numbers import interval, p_value, percent, shown, signed
from stedm.evaluation.quality_text import png_url
from stedm.evaluation.stats import summarise
from stedm.evaluation.training_log import TrainingCurve
from stedm.evaluation.verdict import LIKE_FOR_LIKE, Verdict, find, judge
from stedm.io.files import write_json, write_text
from stedm.io.manifest import write_manifest
from stedm.io.tables import write_csv
from stedm.progress import duration
from stedm.version import __version__


@dataclass(frozen=True)
class Doubted:
    """An unannotated patient, how far segmenters agree about it (0 to 1) and whether that is too little; some images,
    uint8 RGB (H, W, 3)."""

    patient_id: str
    category: str
    agreement: float
    contradicted: bool
    images: list[np.ndarray]


@dataclass(frozen=True)
class ReportPanels:
    """Images to show in a report; each list may be empty.

    `curves` are trainings of the diffusion model, `progress` what it painted meanwhile, each with its name,
    in order. `whom`: unannotated patients, those about whom segmenters agree least first.
    """

    style_grids: list[StyleGrid] = field(default_factory=list)
    patient_examples: list[PatientExamples] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    style_strips: list[StyleStrip] = field(default_factory=list)
    curves: list[TrainingCurve] = field(default_factory=list)
    progress: list[tuple[str, np.ndarray]] = field(default_factory=list)
    whom: list[Doubted] = field(default_factory=list)
    contradicted: list[str] = field(default_factory=list)
    """All of the unannotated patients about whom segmenters contradict each other."""


LARGEST_GRID_PX = 640
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
    run: str | None = None,
    quality: dict | None = None,
    closest_pairs: Path | None = None,
    short_training: str | None = None,
) -> dict:
    """Write counts.parquet, per_patient.csv, summary.json and report.html into `folder`; returns the summary.

    counts: the table of `stedm.evaluation.counts`, all arms and seeds. notes: short facts shown under the title.
    provenance: versions and fingerprints. distances: of each patient from the annotated ones (`stain_distance`),
    where the patient is the unit. run: the run folder as commands name it, for what to do next. quality: of the
    synthetic images, with the picture of its closest pairs (docs/quality.md). short_training: in a sentence, how far
    the diffusion model's training is below the recommended one (`verdict.short_training`).
    report.html comes last: where it stands, the report is complete.
    """
    folder, evaluation = Path(folder), evaluation or EvaluationConfig()
    if counts.empty:
        raise StedmError(f"{folder}: nothing was scored, so there is nothing to report; give images with masks")
    summary = summarise(counts, evaluation)
    if quality is not None:
        summary["quality"] = quality
    if short_training:
        summary["short_training"] = short_training
    patients = per_patient(pool_units(counts, evaluation.unit))
    if distances is not None and evaluation.unit == "patient" and distances.notna().any():
        patients[stain_distance.COLUMN] = patients["patient_id"].map(distances)
        pairs = [(entry["a"], entry["b"]) for entry in summary["comparisons"]]
        summary[stain_distance.COLUMN] = stain_distance.gains_by_distance(patients, pairs)
    if panels is not None and panels.whom:
        summary["contradicted"] = panels.contradicted
    write_counts(folder / "counts.parquet", counts)
    write_csv(folder / "per_patient.csv", patients)
    write_json(folder / "summary.json", summary)
    write_manifest(folder, {name: folder / name for name in ("counts.parquet", "per_patient.csv", "summary.json")})
    facts = {"Split": evaluation.split} | (notes or {})
    how = (config_yaml, provenance, panels, patients, run, closest_pairs)
    html = render(counts, summary, evaluation, title, facts, *how)
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
    run: str | None = None,
    closest_pairs: Path | None = None,
) -> str:
    """The HTML of a report; every text from outside is escaped by the template engine.

    patients: the table of `metrics.per_patient`, for its column `stain_distance`; computed where it isn't given.
    run: the run folder as commands name it; None = there is none, and no next steps.
    """
    images = int(counts.groupby("patient_id")["n_pictures"].max().sum()) if "n_pictures" in counts else None
    counts, panels = pool_units(counts, evaluation.unit), panels or ReportPanels()
    patients, unit = per_patient(counts) if patients is None else patients, evaluation.unit
    verdict, shown_cards = judge(summary, evaluation), cards.cards(panels.overlays)
    values = {
        "title": title,
        "version": __version__,
        "date": f"{datetime.now().day} {datetime.now():%B %Y}",
        "verdict": verdict,
        "steps": next_steps(summary, run) if run is not None else [],
        "summary": summary,
        "closest_pairs": png_url(closest_pairs),
        "unit": unit,
        "units": evaluation.units,
        "facts": sections.facts(counts, summary, evaluation.units, images) | (notes or {}),
        "main": find(summary, *verdict.pair) if verdict.pair else None,
        "arms": summary["arms"],
        "comparisons": summary["comparisons"],
        "classes": class_names(counts)[1:],
        "categories": sections.category_rows(patients, summary),
        "category_key": plots.category_key(patients, unit),
        "patients": sections.patient_rows(patients, summary, verdict),
        "cards": shown_cards,
        "carded": {card.anchor for card in shown_cards},
        "groups": summary.get("groups", {}),
        "group_pairs": _arm_pairs(summary, verdict),
        "arms_plot": plots.arms_plot(patients, unit),
        "pair_plots": _pair_plots(patients, _arm_pairs(summary, verdict), unit),
        "distance_plots": _distance_plots(patients, summary, verdict),
        "panels": _panel_figures(panels),
        "training": _training(panels),
        "whom": _whom(panels),
        "class_colours": list(zip(class_names(counts), figures.CLASS_COLOURS, figures.OUTLINE_COLOURS, strict=False)),
        "wrong_colour": figures.WRONG_COLOUR,
        "unknown_colours": (figures.UNKNOWN_COLOUR, cards.UNKNOWN_COLOUR),
        "confidence": percent(evaluation.confidence),
        "bootstrap": evaluation.bootstrap,
        "config_yaml": config_yaml,
        "changed_keys": sections.changed_keys(config_yaml) if config_yaml else [],
        "provenance": sections.provenance_rows(provenance or {}),
        "durations": sections.durations(provenance or {}),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stedm.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": shown,
        "signed": signed,
        "p": p_value,
        "interval": interval,
        "breakable": plots.breakable,
    }
    body = Markup(environment.get_template("body.html.j2").render(values))
    page = environment.get_template("report.html.j2")
    return page.render(values, body=body, contents=sections.contents(body))


def worst_and_best(counts: pd.DataFrame, arm: str, n: int) -> tuple[list[str], list[str]]:
    """Patient ids with the lowest and the highest IoU of `arm`, worst first and best first; no patient in both."""
    scores = per_patient(counts).query("arm == @arm").dropna(subset="iou").sort_values(["iou", "patient_id"])
    ids = scores["patient_id"].tolist()
    worst = ids[: min(n, (len(ids) + 1) // 2)]
    return worst, [patient for patient in ids[::-1] if patient not in worst][:n]


def _arm_pairs(summary: dict, verdict: Verdict) -> list[tuple[str, str]]:
    """The pairs that get plots."""
    return [pair for pair in LIKE_FOR_LIKE if find(summary, *pair)] or ([verdict.pair] if verdict.pair else [])


def _pair_plots(patients: pd.DataFrame, pairs: list[tuple[str, str]], unit: str) -> list[dict]:
    """Two plots for each pair: from arm to arm, and gain against what the baseline had."""
    return [
        {
            "caption": f"{unit.capitalize()} by {unit}, from {b} to {a}.",
            "plots": [plots.pair_plot(patients, a, b, unit), plots.gain_plot(patients, a, b, unit)],
        }
        for a, b in pairs
    ]


def _distance_plots(patients: pd.DataFrame, summary: dict, verdict: Verdict) -> list[dict]:
    """A plot and a sentence for each pair that gets plots: gain against the distance from annotated patients."""
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
        distance = patients.groupby("patient_id")[stain_distance.COLUMN].first()
        name = "colours: SD from the nearest annotated patient"
        drawn.append({"caption": f"{text}.", "plots": [plots.gain_plot(patients, a, b, "patient", distance, name)]})
    return drawn


def _panel_figures(panels: ReportPanels) -> list[dict]:
    """The image sections that have content: id, heading, explanation, figures."""
    sections = []
    if panels.style_grids:
        drawn = [_figure(figures.style_grid_figure(grid), grid.caption) for grid in panels.style_grids]
        text = "Every row is painted in the style of the images on its left, every column from the layout above it."
        sections.append({"id": "grid", "heading": "Style × layout", "text": text, "figures": drawn})
    if panels.style_strips:
        drawn = [_figure(figures.style_strip_figure(strip), strip.caption) for strip in panels.style_strips]
        text = "The same layout and noise throughout; only the style vector moves, in even steps."
        sections.append({"id": "strip", "heading": "From one style to another", "text": text, "figures": drawn})
    if panels.patient_examples:
        drawn = [_figure(figures.patient_examples_figure(panels.patient_examples), "")]
        text = "Real images of patients without annotations, and what was painted for them: layout, then image."
        sections.append({"id": "painted", "heading": "Synthetic images per patient", "text": text, "figures": drawn})
    return sections


def _training(panels: ReportPanels) -> dict | None:
    """The loss of each training of the diffusion model, and images painted meanwhile; None where there is neither."""
    if not panels.curves and not panels.progress:
        return None
    plot = key = None
    if panels.curves:
        lines = {curve.name: (curve.images_seen, curve.smooth) for curve in panels.curves}
        plot = plots.line_plot(lines, "images seen", "loss, smoothed")
        key = plots.line_key([_curve_text(curve) for curve in panels.curves])
    shown = [(name, data_url(image, LARGEST_GRID_PX)) for name, image in panels.progress]
    return {"plot": plot, "key": key, "progress": shown}


def _curve_text(curve: TrainingCurve) -> str:
    rate = f", {curve.images_seen[-1] / curve.seconds:,.1f} images/s" if curve.seconds else ""
    return f"{curve.name}: {curve.smooth[0]:.3f} → {curve.smooth[-1]:.3f} in {duration(curve.seconds)}{rate}"


def _whom(panels: ReportPanels) -> list[dict]:
    """The unannotated patients about whom segmenters agree least."""
    return [
        {**vars(patient), "images": [data_url(image) for image in patient.images], "patient": patient.patient_id}
        for patient in panels.whom
    ]


def _figure(figure: figures.Figure, caption: str) -> dict:
    return {"svg": Markup(figures.inline_svg(figure, caption)), "caption": caption}
