"""The report of an experiment: counts, scores per patient, statistics, and one HTML file that works offline.

`write_report` makes the report of one run, `compare_reports` joins the counts of several. Both say in plain words
what the numbers allow to say, also when synthetic images did not help.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from stedm.config import EvaluationConfig
from stedm.errors import StedmError
from stedm.evaluation import figures, stain_distance
from stedm.evaluation.counts import class_names, pool_units, read_counts, write_counts
from stedm.evaluation.figures import Overlay, PatientExamples, StyleGrid, StyleStrip
from stedm.evaluation.metrics import per_category, per_patient
from stedm.evaluation.stats import BASELINES, default_pairs, ordered_arms, summarise
from stedm.io.files import replacing, write_json, write_text

# Arms that differ in the synthetic images alone: the comparisons the verdict speaks of.
LIKE_FOR_LIKE = {
    ("real+synthetic", "real"): "synthetic images",
    ("real+stain+synthetic", "real+stain"): "synthetic images on top of stain augmentation",
    ("real+stain+synthetic+ssl", "ssl"): "synthetic images on top of consistency training",
    ("real+stain+synthetic+self-training", "self-training"): "synthetic images on top of self-training",
}
# Only arms that differ in one thing alone allow to say that this thing did it.
CAUSAL_PHRASES = {
    "better": "{subject} raised {mean}",
    "worse": "{subject} hurt: {mean} fell",
    "unclear": "no evidence that {subject} changed {mean}:",
}
PHRASES = {
    "better": "{subject}: {mean} is higher,",
    "worse": "{subject}: {mean} is lower,",
    "unclear": "{subject}: no evidence of a difference in {mean},",
}
FEW_PATIENTS = 10


@dataclass(frozen=True)
class ReportPanels:
    """Images to show in a report; each list may be empty."""

    style_grids: list[StyleGrid] = field(default_factory=list)
    patient_examples: list[PatientExamples] = field(default_factory=list)
    overlays: list[Overlay] = field(default_factory=list)
    style_strips: list[StyleStrip] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """What a run shows: `tone` is better, worse or unclear; `pair` the (new, baseline) arms of the headline."""

    tone: str
    headline: str
    sentences: list[str]
    pair: tuple[str, str] | None = None


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
    with replacing(folder / "per_patient.csv") as temporary:
        patients.to_csv(temporary, index=False)
    write_json(folder / "summary.json", summary)
    facts = {"Split": evaluation.split} | (notes or {})
    html = render(counts, summary, evaluation, title, facts, config_yaml, provenance, panels, patients)
    write_text(folder / "report.html", html)
    return summary


def compare_reports(reports: Sequence[Path], out: Path, evaluation: EvaluationConfig | None = None) -> dict:
    """Join report folders on their common patients; write the HTML `out` and summary.json beside it.

    Arms that several reports have are named REPORT/ARM and compared with those of the first report. Raises
    `StedmError` for fewer than two reports, other classes, no common patient, or an `out` inside one of the folders.
    """
    out = Path(out)
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in reports]
    if len(folders) < 2:
        raise StedmError("give at least two report folders to compare")
    if any(folder.resolve() == out.resolve().parent for folder in folders):
        raise StedmError(f"{out}: lies in one of the reports and would replace its files; choose another folder")
    names = _report_names(folders)
    tables = {name: read_counts(folder / "counts.parquet") for name, folder in zip(names, folders, strict=True)}
    evaluation = evaluation or EvaluationConfig(unit=_common_unit(folders))
    joined, notes = _join(tables)
    pairs = _joined_pairs(joined, names)
    summary = summarise(joined, evaluation, pairs)
    write_json(out.parent / "summary.json", summary)
    write_text(out, render(joined, summary, evaluation, "Comparison: " + ", ".join(names), notes))
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
    environment.filters |= {"number": _shown, "signed": _signed, "p": _p_value, "interval": _interval}
    verdict = judge(summary, evaluation)
    return environment.get_template("report.html.j2").render(
        title=title,
        verdict=verdict,
        unit=unit,
        units=evaluation.units,
        facts=_facts(counts, summary, evaluation.units, images) | (notes or {}),
        main=_find(summary, *verdict.pair) if verdict.pair else None,
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
        confidence=_percent(evaluation.confidence),
        bootstrap=evaluation.bootstrap,
        config_yaml=config_yaml,
        provenance=provenance or {},
    )


def judge(summary: dict, evaluation: EvaluationConfig) -> Verdict:
    """Say in plain words what the comparisons show.

    The headline pair is fixed beforehand (synthetic images against the same arm without), not picked by result.
    """
    arms, comparisons = summary["arms"], summary["comparisons"]
    if not comparisons:
        told = [
            f"{arm}: mean IoU {_shown(x['iou_mean'])} over {x['n_patients']} {evaluation.units}."
            for arm, x in arms.items()
        ]
        return Verdict("unclear", "There is nothing to compare in this report.", told)
    told = [entry for pair in LIKE_FOR_LIKE if (entry := _find(summary, *pair))] or comparisons[:1]
    main = told[0]
    baselines = [arm for arm in BASELINES if arm in arms and arms[arm]["iou_mean"] is not None]
    strongest = max(baselines, key=lambda arm: arms[arm]["iou_mean"], default=None)
    for entry in comparisons:
        if "+synthetic" in entry["a"] and entry["b"] == strongest and entry not in told:
            told.append(entry)
    sentences = [_sentence(entry, evaluation) for entry in told]
    return Verdict(
        _tone(main, evaluation),
        sentences[0],
        sentences[1:] + _caveats(main, summary, evaluation),
        (main["a"], main["b"]),
    )


def worst_and_best(counts: pd.DataFrame, arm: str, n: int) -> tuple[list[str], list[str]]:
    """Patient ids with the lowest and the highest IoU of `arm`, worst first and best first; no patient in both."""
    scores = per_patient(counts).query("arm == @arm").dropna(subset="iou").sort_values(["iou", "patient_id"])
    ids = scores["patient_id"].tolist()
    worst = ids[: min(n, (len(ids) + 1) // 2)]
    return worst, [patient for patient in ids[::-1] if patient not in worst][:n]


def _sentence(entry: dict, evaluation: EvaluationConfig) -> str:
    subject = LIKE_FOR_LIKE.get((entry["a"], entry["b"]), f"{entry['a']} against {entry['b']}")
    n, delta = entry["n_patients"], entry["delta_mean"]
    if delta is None:
        return f"{_capital(subject)}: no {evaluation.unit} has a score in both arms."
    change = f"from {_shown(entry['iou_mean_b'])} to {_shown(entry['iou_mean_a'])}"
    if entry["delta_ci"][0] is None:
        return f"{_capital(subject)}: mean IoU went {change} on one {evaluation.unit}; one is no evidence."
    size = f"({_signed(delta)}, {_percent(evaluation.confidence)} interval {_interval(entry['delta_ci'])})"
    phrases = CAUSAL_PHRASES if (entry["a"], entry["b"]) in LIKE_FOR_LIKE else PHRASES
    phrase = phrases[_tone(entry, evaluation)].format(subject=subject, mean=f"mean IoU over {n} {evaluation.units}")
    text = f"{_capital(phrase)} {change} {size}"
    return text + (_spread(entry, evaluation.units) if n >= _patients_needed(evaluation) else "") + "."


def _spread(entry: dict, units: str) -> str:
    low, high = entry["sd_ratio_ci"]
    if entry["sd_ratio"] is None or low is None:
        return ""
    ratio = f"(SD ratio {_shown(entry['sd_ratio'], 2)}, {_interval([low, high], 2)})"
    if high < 1:
        return f", and the spread between {units} fell {ratio}"
    if low > 1:
        return f", and the spread between {units} grew {ratio}"
    return f"; the spread between {units} did not clearly change {ratio}"


def _caveats(main: dict, summary: dict, evaluation: EvaluationConfig) -> list[str]:
    caveats = []
    tone, needed = _tone(main, evaluation), _patients_needed(evaluation)
    p, k = main["p_holm"], sum(entry["p_wilcoxon"] is not None for entry in summary["comparisons"])
    if tone != "unclear" and p is not None and p > 1 - evaluation.confidence:
        caveats.append(f"The signed-rank test, corrected for {k} comparisons, does not confirm it (p = {_p_value(p)}).")
    if 1 < main["n_patients"] < needed:
        chance = f"by chance all of them do better, or all worse, once in {2 ** (main['n_patients'] - 1)} times"
        caveats.append(f"Only {main['n_patients']} {evaluation.units}: {chance}; evidence begins with {needed}.")
    elif needed <= main["n_patients"] < FEW_PATIENTS:
        caveats.append(f"Only {main['n_patients']} {evaluation.units}: the intervals are rough.")
    delta, left = main["delta_mean"], [value for value in main["delta_leave_one_out"] if value is not None]
    # Of a difference about zero anyone decides much.
    if left and main["n_patients"] >= FEW_PATIENTS and tone != "unclear":
        without = max(left, key=lambda value: abs(value - delta))
        if abs(without - delta) > abs(delta) / 2:
            one = f"One {evaluation.unit} decides much of it"
            caveats.append(f"{one}: without it the difference is {_signed(without)}.")
    if min(len(summary["arms"][arm]["seeds"]) for arm in (main["a"], main["b"])) == 1:
        caveats.append("Each network was trained once (one seed): chance in training is not measured.")
    elif main["delta_seed_sd"] is not None and main["delta_seed_sd"] > abs(main["delta_mean"] or 0):
        caveats.append(
            f"The gain differs between trainings by more than its size (SD over seeds {_shown(main['delta_seed_sd'])})."
        )
    return caveats


def _patients_needed(evaluation: EvaluationConfig) -> int:
    """How many patients it takes that a difference of one sign in all of them is evidence: the smallest n for which
    the signed-rank test can reach the level (2 / 2^n). Bootstrap intervals of fewer exclude 0 far too often."""
    return math.ceil(1 - math.log2(1 - evaluation.confidence))


def _tone(entry: dict, evaluation: EvaluationConfig) -> str:
    low, high = entry["delta_ci"]
    if low is None or low <= 0 <= high or entry["n_patients"] < _patients_needed(evaluation):
        return "unclear"
    return "better" if low > 0 else "worse"


def _find(summary: dict, a: str, b: str) -> dict | None:
    return next((entry for entry in summary["comparisons"] if (entry["a"], entry["b"]) == (a, b)), None)


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
    return [pair for pair in LIKE_FOR_LIKE if _find(summary, *pair)] or ([verdict.pair] if verdict.pair else [])


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
            f"{a} - {b}: {_signed(entry['delta_near'])} in the half of the patients that is nearer to the annotated "
            f"ones, {_signed(entry['delta_far'])} in the other"
        )
        if entry["spearman"] is not None:
            p = _p_value(entry["p_spearman"])
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
            raise StedmError(f"{name}: classes {class_names(table)} differ from {class_names(first)}; not comparable")
    common = set.intersection(*(set(table["patient_id"]) for table in tables.values()))
    if not common:
        raise StedmError("the reports have no patient in common, so there is nothing to compare")
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
    files = [folder / "summary.json" for folder in folders]
    found = {json.loads(path.read_text(encoding="utf-8")).get("unit", "patient") for path in files if path.is_file()}
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


def _shown(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:+.{digits}f}".replace("-", "−")


def _interval(bounds: list[float | None], digits: int = 3) -> str:
    return "–" if bounds[0] is None else f"{_shown(bounds[0], digits)} to {_shown(bounds[1], digits)}"


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _capital(text: str) -> str:
    return text if text.startswith(("real", "ssl", "self-training", "upper")) else text[:1].upper() + text[1:]
