"""The summary as plain text, for the terminal."""

import shutil
import textwrap
from typing import Any

from stedm.columns import aligned, fitted
from stedm.config import EvaluationConfig
from stedm.evaluation.next_steps import next_steps
from stedm.evaluation.verdict import judge

_NARROWEST, _WIDEST, _LONGEST_ARMS, _TOLD = 60, 120, 72, 4


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
    tables += [_wrapped(f"warning: {line}") for line in summary.get("quality", {}).get("warnings", [])]
    return "\n\n".join(tables)


def closing_text(summary: dict[str, Any], run: str) -> str:
    """What a run ends with in a terminal: its verdict, and what to do next; `run` as commands name the run folder."""
    verdict = judge(summary, EvaluationConfig(unit=summary.get("unit", "patient")))
    parts = [_wrapped(f"{verdict.word}. {verdict.headline}" if verdict.pair else verdict.headline)]
    parts += [_wrapped(f"- {sentence}") for sentence in verdict.sentences[:_TOLD]]
    for step in next_steps(summary, run):
        parts.append(_wrapped(f"next: {step.text}{':' if step.command else '.'}"))
        parts += [f"  {step.command}"] if step.command else []  # whole, to be copied
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    columns = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
    return textwrap.fill(text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _table(rows: list[list[str]]) -> str:
    named = [[fitted(row[0], _LONGEST_ARMS), *row[1:]] for row in rows]
    return aligned([[fitted(cell) for cell in named[0]], *named[1:]], rule=True)


def _shown(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _interval(bounds: list[float | None], form: str = ".3f") -> str:
    return "-" if None in bounds else f"{_shown(bounds[0], form)} to {_shown(bounds[1], form)}"


def _seeds(seeds: Any) -> str:
    return str(len(seeds)) if isinstance(seeds, list) else str(seeds)
