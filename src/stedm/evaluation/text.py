"""The summary as plain text, for the terminal."""

from typing import Any


def summary_text(summary: dict[str, Any]) -> str:
    """Tables of arms and comparisons in fixed-width columns."""
    units = "categories" if summary.get("unit") == "category" else "patients"
    arms = [["arm", "mean IoU", "SD", "worst decile", units, "seeds"]]
    for name, arm in summary["arms"].items():
        scores = [_shown(arm[key]) for key in ("iou_mean", "iou_sd", "iou_worst_decile")]
        arms.append([name, *scores, str(arm["n_patients"]), _seeds(arm["seeds"])])
    tables = [_table(arms)]
    if summary.get("groups"):
        groups = [["mean IoU", *summary["arms"]]]
        for name, group in summary["groups"].items():
            groups.append([name, *(_shown(arm["iou_mean"]) for arm in group["arms"].values())])
        tables.append(_table(groups))
    if summary["comparisons"]:
        rows = [["comparison", "gain", "95 % interval", "false claim", "p", "SD ratio", "95 % interval"]]
        for entry in summary["comparisons"]:
            rows.append(
                [
                    f"{entry['a']} - {entry['b']}",
                    _shown(entry["delta_mean"], "+.3f"),
                    _interval(entry["delta_ci"], "+.3f"),
                    _shown(entry["p_false_claim"], ".4f"),
                    _shown(entry["p_wilcoxon"], ".4f"),
                    _shown(entry["sd_ratio"]),
                    _interval(entry["sd_ratio_ci"]),
                ]
            )
        tables.append(_table(rows))
    return "\n\n".join(tables)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _shown(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _interval(bounds: list[float | None], form: str = ".3f") -> str:
    return "-" if None in bounds else f"{_shown(bounds[0], form)} to {_shown(bounds[1], form)}"


def _seeds(seeds: Any) -> str:
    return str(len(seeds)) if isinstance(seeds, list) else str(seeds)
