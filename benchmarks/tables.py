"""Print the tables of a results page from its folder, so that no number is copied by hand.

python benchmarks/tables.py results/NAME     arms, comparisons; where known by category, group and distance of colours
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.evaluation.counts import read_counts
from stedm.evaluation.metrics import per_patient


def arms_table(arms: dict[str, dict[str, Any]]) -> list[str]:
    """A row an arm of `summary.json`."""
    titles = ["arm", "IoU mean (95 % interval)", "median", "SD", "worst decile", "SD over seeds", "seeds"]
    rows = [
        [
            arm,
            f"{entry['iou_mean']:.3f} ({_interval(entry['iou_mean_ci'], '.3f')})",
            # Summaries of the first runs have no median.
            *("–" if key not in entry else f"{entry[key]:.3f}" for key in ("iou_median", "iou_sd", "iou_worst_decile")),
            "–" if entry["seed_sd"] is None else f"{entry['seed_sd']:.3f}",
            str(len(entry["seeds"])),
        ]
        for arm, entry in arms.items()
    ]
    return _table(titles, rows)


def comparisons_table(comparisons: list[dict[str, Any]]) -> list[str]:
    """A row a comparison, by draw where there are several; without, how far one patient moves it."""
    drawn = any("delta_by_draw" in entry for entry in comparisons)
    more = ["by draw", "over draws too"] if drawn else ["without any one"]
    titles = ["comparison", "gain", *more, "p (Holm)", "SD ratio (95 %)", "worst decile", "better / worse"]
    rows = [
        [
            f"{entry['a']} - {entry['b']}",
            f"{entry['delta_mean']:+.3f} ({_interval(entry['delta_ci'])})",
            *(_draws(entry) if drawn else [_leave_one_out(entry)]),
            "< 0.001" if entry["p_holm"] < 0.001 else f"{entry['p_holm']:.2g}",
            f"{entry['sd_ratio']:.2f} ({_interval(entry['sd_ratio_ci'], '.2f')})",
            f"{entry['delta_worst_decile']:+.3f}",
            f"{entry['n_improved']} / {entry['n_worsened']}",
        ]
        for entry in comparisons
    ]
    return _table(titles, rows)


def category_table(patients: pd.DataFrame, arms: list[str]) -> list[str]:
    """Mean IoU of every arm by category; `patients` is per_patient.csv, or what it is computed from."""
    scores = patients.pivot_table(index="category", columns="arm", values="iou", observed=True)[arms]
    sizes = patients.groupby("category", observed=True)["patient_id"].nunique()
    rows = [[name, str(sizes[name]), *(f"{iou:.3f}" for iou in row)] for name, row in scores.iterrows()]
    return _table(["category", "patients", *scores.columns], rows)


def groups_table(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Mean IoU of every arm over the patients of each group; over draws a patient may be in both."""
    sizes = {name: max(entry["n_patients"] for entry in group["arms"].values()) for name, group in groups.items()}
    arms = next(iter(groups.values()))["arms"]
    rows = [[arm, *(f"{group['arms'][arm]['iou_mean']:.3f}" for group in groups.values())] for arm in arms]
    return _table(["arm", *(f"{name} ({size} patients)" for name, size in sizes.items())], rows)


def group_gains_table(groups: dict[str, dict[str, Any]]) -> list[str]:
    """Gains over the patients of each group."""
    columns = [
        [f"{entry['delta_mean']:+.3f} ({_interval(entry['delta_ci'])})" for entry in group["comparisons"]]
        for group in groups.values()
    ]
    names = [f"{entry['a']} - {entry['b']}" for entry in next(iter(groups.values()))["comparisons"]]
    return _table(["comparison", *groups], [list(row) for row in zip(names, *columns, strict=True)])


def distance_table(entries: list[dict[str, Any]]) -> list[str]:
    """Gains of the nearer and the farther half of the patients, by colours."""
    rows = [
        [
            f"{entry['a']} - {entry['b']}",
            f"{entry['delta_near']:+.3f}",
            f"{entry['delta_far']:+.3f}",
            f"{entry['spearman']:+.2f}",
            f"{entry['p_spearman']:.2g}",
        ]
        for entry in entries
    ]
    return _table(["comparison", "nearer half", "farther half", "rank correlation", "p"], rows)


def best_baseline_table(best: dict[str, dict[str, Any]]) -> list[str]:
    """Gains over the baseline that is best in each draw."""
    rows = [
        [
            arm,
            f"{entry['delta_mean']:+.3f}",
            _interval(entry["delta_ci_draws"]),
            ", ".join(
                f"{entry['delta_by_draw'][draw]:+.3f} {name}" for draw, name in entry["baseline_by_draw"].items()
            ),
        ]
        for arm, entry in best.items()
    ]
    return _table(["arm", "gain over the best baseline", "95 % over draws", "by draw"], rows)


def tables(folder: Path) -> str:
    """All tables that the folder has the numbers for."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    parts = [arms_table(summary["arms"]), comparisons_table(summary["comparisons"])]
    patients = None
    if (folder / "per_patient.csv").is_file():
        patients = pd.read_csv(folder / "per_patient.csv", dtype={"patient_id": str, "category": str})
    elif not any("delta_by_draw" in entry for entry in summary["comparisons"]):
        patients = per_patient(read_counts(folder / "counts.parquet"))
    if patients is not None:
        parts.append(category_table(patients, list(summary["arms"])))
    if groups := summary.get("groups"):
        parts += [groups_table(groups), group_gains_table(groups)]
    # Of two patients there is no correlation.
    if distances := [entry for entry in summary.get("stain_distance") or [] if entry["spearman"] is not None]:
        parts.append(distance_table(distances))
    if best := summary.get("best_baseline"):
        parts.append(best_baseline_table(best))
    return "\n\n".join("\n".join(part) for part in parts)


def _draws(entry: dict[str, Any]) -> list[str]:
    if "delta_by_draw" not in entry:
        return ["–", "–"]
    return [", ".join(f"{gain:+.3f}" for gain in entry["delta_by_draw"].values()), _interval(entry["delta_ci_draws"])]


def _leave_one_out(entry: dict[str, Any]) -> str:
    return _interval(entry["delta_leave_one_out"]) if "delta_leave_one_out" in entry else "–"


def _interval(bounds: Iterable[float], form: str = "+.3f") -> str:
    low, high = bounds
    return f"{low:{form}} to {high:{form}}"


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/tables.py results/NAME")
    if not (Path(sys.argv[1]) / "summary.json").is_file():
        sys.exit(f"{sys.argv[1]}: no summary.json in it; give the folder of a results page")
    print(tables(Path(sys.argv[1])))
