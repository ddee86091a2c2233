"""Statistics of downstream comparisons: tables, gains by draw of annotated patients, and the curve over label budgets.

`benchmarks/downstream.py` trains and scores the runs and calls this.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stedm.config import EvaluationConfig
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts, write_counts
from stedm.evaluation.figures import arms_figure, save_png
from stedm.evaluation.metrics import per_patient, per_patient_and_seed
from stedm.evaluation.report import write_report
from stedm.evaluation.stats import BASELINES, default_pairs, summarise
from stedm.io.files import replacing, write_json
from stedm.seeds import numpy_generator

if TYPE_CHECKING:
    from downstream import Comparison, Spec

BASE = "base"
"""The variant that others are compared with."""
SEEDS_A_DRAW = 1000
"""Seed K of draw D is called D * 1000 + K where draws are pooled."""


def scored(comparison: "Comparison", kept: Path | None = None) -> dict[int, pd.DataFrame]:
    """For each budget that has a scored run, its pooled counts; `StedmError` where there is none.

    Of runs that are no longer there, the counts of an earlier table in `kept` are taken.
    """
    found = {budget: pooled_counts(comparison, budget, kept) for budget in comparison.spec.budgets}
    if all(counts is None for counts in found.values()):
        raise StedmError(f"{comparison.folder}: nothing is scored yet; run `downstream.py run` first")
    return {budget: counts for budget, counts in found.items() if counts is not None}


def pooled_counts(comparison: "Comparison", budget: int, kept: Path | None = None) -> pd.DataFrame | None:
    """Counts of all runs of a budget: arms are VARIANT/ARM, seeds of all draws side by side."""
    tables = []
    for cell in comparison.cells:
        path = cell.folder(comparison.folder) / "report" / "counts.parquet"
        if cell.budget == budget and path.is_file():
            counts = read_counts(path)
            seeds = cell.draw * SEEDS_A_DRAW + counts["seed"]
            tables.append(counts.assign(arm=cell.variant + "/" + counts["arm"].astype(str), seed=seeds))
    earlier = kept and kept / f"patients-{budget}" / "counts.parquet"
    if earlier and earlier.is_file():
        tables.append(_without_cells(read_counts(earlier), tables))
    if not tables:
        return None
    variants, counts = list(comparison.spec.variants), pd.concat(tables, ignore_index=True)
    variant, draw = _cell_of(counts)
    # As if all runs were there: draw by draw, variants in the order of the specification; those it has no more are out.
    order = pd.DataFrame({"draw": draw, "variant": variant.map({name: n for n, name in enumerate(variants)})})
    order = order.dropna().sort_values(["draw", "variant"], kind="stable")
    return counts.loc[order.index].reset_index(drop=True)


def _cell_of(counts: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Variant and draw of each row of pooled counts."""
    return counts["arm"].astype(str).str.split("/", n=1).str[0], counts["seed"] // SEEDS_A_DRAW


def _without_cells(counts: pd.DataFrame, newer: list[pd.DataFrame]) -> pd.DataFrame:
    """`counts` without the runs that `newer` tables have."""
    runs = {run for table in newer for run in set(zip(*_cell_of(table), strict=True))}
    return counts[[run not in runs for run in zip(*_cell_of(counts), strict=True)]]


def pairs(arms: list[str], baseline: str) -> Iterator[tuple[str, str]]:
    """Arms of `base` against its baseline; arms of variants against the same arm of `base` and its baseline."""
    reference = f"{BASE}/{baseline}"
    for arm in arms:
        variant, kind = arm.split("/", 1)
        if arm != reference:
            yield arm, reference
        if variant != BASE and f"{BASE}/{kind}" in arms and kind != baseline:
            yield arm, f"{BASE}/{kind}"


def summary_of(spec: "Spec", budget: int, counts: pd.DataFrame) -> dict[str, Any]:
    """`summary.json` of a budget; of several draws of annotated patients with what `add_draws` adds."""
    evaluation = spec.config(BASE, budget, spec.draws[0]).evaluation
    arms = list(dict.fromkeys(counts["arm"]))
    scores = per_draw(counts)
    draws = {arm: set(scores[arm].dropna().index.get_level_values("draw")) for arm in arms}
    wanted = dict.fromkeys([*pairs(arms, spec.baseline), *spec.compare])
    # Annotated patients differ between draws: arms are only compared on the same ones.
    same = [(a, b) for a, b in wanted if {a, b} <= set(arms) and draws[a] == draws[b]]
    summary = summarise(counts, evaluation, same)
    add_draws(summary, scores, evaluation)
    add_best_baselines(summary, scores, evaluation)
    return summary


def add_draws(summary: dict[str, Any], scores: pd.DataFrame, evaluation: EvaluationConfig) -> None:
    """Add to the comparisons of several draws of annotated patients `delta_by_draw`, {draw: mean difference},
    `sd_ratio_by_draw`, and `delta_ci_draws`, an interval over patients and draws (both resampled; of three draws it is
    rough, and tells more of patients than of draws).

    scores: of `per_draw`.
    """
    for entry in summary["comparisons"]:
        a, b = (scores[entry[arm]].unstack("draw").dropna(axis="columns", how="all") for arm in "ab")
        difference = a - b
        if len(difference.columns) > 1:
            entry["delta_by_draw"] = {str(draw): float(mean) for draw, mean in difference.mean().items()}
            entry["sd_ratio_by_draw"] = {str(draw): float(ratio) for draw, ratio in (a.std() / b.std()).items()}
            entry["delta_ci_draws"] = interval_over_draws(difference.dropna().to_numpy(), evaluation)


def add_best_baselines(summary: dict[str, Any], scores: pd.DataFrame, evaluation: EvaluationConfig) -> None:
    """Add `best_baseline`: for each arm with synthetic images its gain over the best baseline of each draw.

    The best one is picked by the very scores it is compared on, draw by draw: the hardest opponent there can be.
    scores: of `per_draw`, whose columns may have the names VARIANT/ARM.
    """
    kinds = {arm: arm.rsplit("/", 1)[-1] for arm in scores}
    baselines = [arm for arm, kind in kinds.items() if kind in BASELINES]
    found = {}
    for arm in (arm for arm, kind in kinds.items() if "+synthetic" in kind):
        ours = scores[arm].unstack("draw").dropna(axis="columns", how="all")
        theirs = scores[baselines].groupby("draw").mean().reindex(ours.columns).dropna(how="all")
        if theirs.empty:
            continue
        best = theirs.idxmax(axis=1)
        gains = pd.DataFrame({draw: ours[draw] - scores[name].unstack("draw")[draw] for draw, name in best.items()})
        found[arm] = {
            "baseline_by_draw": {str(draw): name for draw, name in best.items()},
            "delta_by_draw": {str(draw): float(mean) for draw, mean in gains.mean().items()},
            "delta_mean": float(gains.mean().mean()),
            "delta_ci_draws": interval_over_draws(gains.dropna().to_numpy(), evaluation),
        }
    if found:
        summary["best_baseline"] = found


def per_draw(counts: pd.DataFrame) -> pd.DataFrame:
    """IoU by (patient_id, draw), a column an arm, averaged over the seeds of the draw; NaN where an arm is missing."""
    table = per_patient_and_seed(counts)
    return (
        table.assign(draw=table["seed"] // SEEDS_A_DRAW)
        .groupby(["patient_id", "draw", "arm"])["iou"]
        .mean()
        .unstack("arm")
    )


def interval_over_draws(difference: np.ndarray, config: EvaluationConfig) -> list[float]:
    """Percentile bootstrap of the mean of differences (patients, draws), resampling patients and draws."""
    patients, draws = difference.shape
    generator = numpy_generator(config.seed, "bootstrap over draws", patients, draws)
    rows = generator.integers(patients, size=(config.bootstrap, patients, 1))
    columns = generator.integers(draws, size=(config.bootstrap, 1, draws))
    tail = (1 - config.confidence) / 2
    return np.quantile(difference[rows, columns].mean(axis=(1, 2)), [tail, 1 - tail]).tolist()


def write_table(comparison: "Comparison", target: Path, kept: Path | None = None) -> str:
    """TARGET/patients-B/{counts.parquet, summary.json}; returns tables of all budgets. `kept` as in `scored`."""
    spec, text = comparison.spec, [f"## {comparison.spec.name}", ""]
    for budget, counts in scored(comparison, kept).items():
        evaluation = spec.config(BASE, budget, spec.draws[0]).evaluation
        summary = summary_of(spec, budget, counts)
        folder = target / f"patients-{budget}"
        write_counts(folder / "counts.parquet", counts)
        write_json(folder / "summary.json", summary)
        text += [
            f"### {budget} annotated patients, split {evaluation.split}",
            "",
            *markdown(summary, spec.baseline),
            "",
            *further(summary, spec.compare),
        ]
    return "\n".join(text)


def write_headline(comparison: "Comparison", target: Path, kept: Path | None = None) -> None:
    """TARGET/{counts.parquet, per_patient.csv, summary.json, report.html, arms.png}: all draws in a report, arms under
    their plain names. `kept` as in `scored`.

    Raises:
        StedmError: an arm is in several variants, so that its plain name says too little, or there are several budgets.
    """
    if len(comparison.spec.budgets) > 1:
        raise StedmError("headline: one budget only; make a table of several")
    [(budget, counts)] = scored(comparison, kept).items()
    spec, config = comparison.spec, comparison.spec.config(BASE, budget, comparison.spec.draws[0])
    plain = {arm: spec.names.get(arm, arm.split("/", 1)[1]) for arm in counts["arm"].unique()}
    if len(set(plain.values())) < len(plain):
        raise StedmError("headline: an arm is in several variants; give it a name of its own in `names`")
    counts = counts.assign(arm=counts["arm"].map(plain))
    notes = {"Annotated": f"{budget} patients, {len(set(counts['seed'] // SEEDS_A_DRAW))} draws of them"}
    write_report(target, counts, title=spec.name, notes=notes, evaluation=config.evaluation)
    wanted = [(plain[a], plain[b]) for a, b in spec.compare if {a, b} <= set(plain)]
    means = summarise(counts, config.evaluation, pairs=[])["arms"]
    compared = dict.fromkeys([*default_pairs(means, {arm: entry["iou_mean"] for arm, entry in means.items()}), *wanted])
    summary = summarise(counts, config.evaluation, list(compared))
    add_draws(summary, per_draw(counts), config.evaluation)
    add_best_baselines(summary, per_draw(counts), config.evaluation)
    write_json(target / "summary.json", summary)
    figure = arms_figure(per_patient(counts), config.evaluation.unit)
    save_png(target / "arms.png", figure, dpi=110)


def write_curve(comparison: "Comparison", target: Path, kept: Path | None = None) -> None:
    """TARGET/curve.csv and TARGET/curve.png: every arm over the budgets, and how many patients it is worth.

    `kept` as in `scored`.
    """
    rows = []
    for budget, counts in scored(comparison, kept).items():
        evaluation = comparison.spec.config(BASE, budget, comparison.spec.draws[0]).evaluation
        summary = summarise(counts, evaluation, pairs=[])
        for arm, entry in summary["arms"].items():
            low, high = entry["iou_mean_ci"]
            draws = len({seed // SEEDS_A_DRAW for seed in entry["seeds"]})
            rows.append((arm, budget, entry["iou_mean"], low, high, entry["iou_sd"], draws, len(entry["seeds"])))
    columns = ["arm", "annotated_patients", "iou_mean", "ci_low", "ci_high", "iou_sd", "draws", "seeds"]
    table = pd.DataFrame(rows, columns=columns)
    baseline = table[table["arm"] == f"{BASE}/{comparison.spec.baseline}"]
    table["worth_of_baseline_patients"] = [
        worth(row.iou_mean, baseline["annotated_patients"].tolist(), baseline["iou_mean"].tolist())
        for row in table.itertuples()
    ]
    with replacing(target / "curve.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")
    save_png(target / "curve.png", curve_figure(table, comparison.spec.budgets), dpi=110)


def worth(iou: float, budgets: list[int], ious: list[float]) -> float | None:
    """Annotated patients with which the baseline reaches `iou`; None outside of what was measured.

    Between two budgets the baseline's IoU is taken as linear in the logarithm of the number of patients.
    """
    for (few, low), (many, high) in pairwise(zip(budgets, ious, strict=True)):
        if low <= iou <= high and high > low:
            return float(few * (many / few) ** ((iou - low) / (high - low)))
    return None


def curve_figure(table: pd.DataFrame, budgets: list[int]) -> Figure:
    """IoU against annotated patients, an arm a line, with intervals over patients."""
    labels = arm_labels(table["arm"].unique().tolist())
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.add_subplot()
    for number, (arm, rows) in enumerate(table.groupby("arm", sort=False)):
        x = rows["annotated_patients"] * 1.025 ** (number - 1)  # so that intervals don't hide each other
        errors = [rows["iou_mean"] - rows["ci_low"], rows["ci_high"] - rows["iou_mean"]]
        ax.errorbar(x, rows["iou_mean"], errors, marker="o", ms=5, lw=1.6, elinewidth=0.9, label=labels[arm])
    ax.set_xscale("log")
    ax.set_xticks(budgets, [str(budget) for budget in budgets])
    ax.minorticks_off()
    ax.set_xlabel("annotated patients")
    ax.set_ylabel("IoU, mean over patients (95 % interval)")
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def arm_labels(arms: list[str]) -> dict[str, str]:
    """VARIANT/ARM as ARM; with the variant where another variant than the arm's own shows it too.

    An arm's own variant is `base` or the one that is called like a part of it.
    """
    labels = {}
    for arm in arms:
        variant, kind = arm.split("/", 1)
        several = sum(other.endswith(f"/{kind}") for other in arms) > 1
        labels[arm] = f"{kind}, {variant}" if several and variant not in (BASE, *kind.split("+")) else kind
    return labels


def markdown(summary: dict[str, Any], baseline: str) -> list[str]:
    """A row an arm: mean, spread, worst decile, gain over the baseline and over the same arm of `base`."""
    against = {(entry["a"], entry["b"]): entry for entry in summary["comparisons"]}
    lines = [
        f"| variant | arm | IoU mean | SD | worst decile | seeds | gain over {BASE}, {baseline} | SD ratio | gain over "
        f"{BASE}, same arm |",
        "|---" * 9 + "|",
    ]
    for arm, entry in summary["arms"].items():
        variant, kind = arm.split("/", 1)
        over_baseline = against.get((arm, f"{BASE}/{baseline}"))
        ratio = over_baseline and over_baseline["sd_ratio"]
        cells = [
            variant,
            kind,
            *(_decimal(entry[key]) for key in ("iou_mean", "iou_sd", "iou_worst_decile")),
            str(len(entry["seeds"])),
            _gain(over_baseline),
            _decimal(ratio, 2),
            _gain(against.get((arm, f"{BASE}/{kind}")) if kind != baseline else None),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def further(summary: dict[str, Any], wanted: list[tuple[str, str]]) -> list[str]:
    """The further comparisons of a specification, and every one by draw where there are several."""
    lines = ["| comparison | gain | SD ratio | better / worse | by draw | over draws too |", "|---" * 6 + "|"]
    for entry in summary["comparisons"]:
        if (entry["a"], entry["b"]) not in wanted and "delta_by_draw" not in entry:
            continue
        low, high = entry.get("delta_ci_draws", (None, None))
        cells = [
            f"{entry['a']} - {entry['b']}",
            _gain(entry),
            _decimal(entry["sd_ratio"], 2),
            f"{entry['n_improved']} / {entry['n_worsened']}",
            ", ".join(f"{delta:+.3f}" for delta in entry.get("delta_by_draw", {}).values()) or "–",
            "–" if low is None else f"{low:+.3f} to {high:+.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def _gain(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["delta_mean"] is None:
        return "–"
    low, high = entry["delta_ci"]
    return f"{entry['delta_mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _decimal(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
