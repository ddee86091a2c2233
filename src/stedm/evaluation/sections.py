"""What the tables of a report show, as plain rows for its templates."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from markupsafe import Markup

from stedm.config import DataConfig, PhantomConfig, RunConfig, to_yaml
from stedm.evaluation.metrics import per_category
from stedm.evaluation.plots import anchor
from stedm.evaluation.verdict import Verdict
from stedm.progress import duration

_PARTS = {"packages": "{0} {1}", "data": "{0}: {1}"}
"""How the entries of a mapping in the provenance are written on one line."""


def facts(counts: pd.DataFrame, summary: dict, units: str, images: int | None) -> dict[str, str]:
    """Short facts under the verdict."""
    seeds = sorted({seed for entry in summary["arms"].values() for seed in entry["seeds"]})
    shown = {units.capitalize(): str(counts["patient_id"].nunique())}
    if images is not None:
        shown["Images"] = f"{images:,}"
    return shown | {"Seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})", "Arms": str(len(summary["arms"]))}


def category_rows(patients: pd.DataFrame, summary: dict) -> list[dict]:
    """One row a category: name, number of patients, and per arm mean and SD."""
    table = per_category(patients).set_index(["category", "arm"])
    rows = []
    for category, group in patients.groupby("category"):
        cells = [table.loc[(category, arm)] if (category, arm) in table.index else None for arm in summary["arms"]]
        values = [(None, None) if cell is None else (cell["iou_mean"], cell["iou_sd"]) for cell in cells]
        rows.append({"name": category or "–", "n": group["patient_id"].nunique(), "cells": values})
    return rows


def patient_rows(patients: pd.DataFrame, summary: dict, verdict: Verdict) -> list[dict]:
    """One row a patient: id, anchor, category, IoU per arm, gain of the headline pair; largest loss first."""
    table = patients.pivot(index="patient_id", columns="arm", values="iou").reindex(columns=list(summary["arms"]))
    categories = patients.groupby("patient_id")["category"].first()
    a, b = verdict.pair or (next(iter(summary["arms"])),) * 2
    gain = table[a] - table[b]
    order = gain.sort_values(na_position="last", kind="stable").index
    return [
        {
            "id": i,
            "anchor": anchor(i),
            "category": categories[i],
            "cells": table.loc[i].tolist(),
            "gain": gain[i] if verdict.pair else None,
        }
        for i in order
    ]


def provenance_rows(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and words of every entry; times of stages are left to `durations`."""
    rows = []
    for name, value in provenance.items():
        if name == "seconds" or value in (None, "", {}, []):
            continue
        if isinstance(value, dict):
            form = _PARTS.get(name, "{0}: {1}")
            value = ", ".join(form.format(key, _words(part)) for key, part in value.items())
        rows.append((name.replace("_", " "), _words(value)))
    return rows


def durations(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """Stages and how long each took, and their sum."""
    seconds = provenance.get("seconds")
    if not isinstance(seconds, dict) or not seconds:
        return []
    rows = [(name, duration(value)) for name, value in seconds.items()]
    return [*rows, ("all stages", duration(sum(seconds.values())))] if len(rows) > 1 else rows


def changed_keys(config_yaml: str) -> list[tuple[str, str, str]]:
    """Key, value and default of every key of a configuration that isn't at its default; [] where it isn't one."""
    try:
        values = yaml.safe_load(config_yaml)
        phantom = (values.get("data") or {}).get("phantom")
        data = DataConfig(phantom=PhantomConfig()) if phantom else DataConfig(path=Path())
        defaults = _flat(yaml.safe_load(to_yaml(RunConfig(name="", data=data))))
    except (AttributeError, TypeError, ValueError, yaml.YAMLError):
        return []
    given = _flat(values)
    left_out = ("name", "data.path")
    return [
        (key, _words(value), _words(defaults.get(key)))
        for key, value in given.items()
        if key not in left_out and key in defaults and value != defaults[key]
    ]


def contents(body: str) -> list[tuple[str, Markup]]:
    """(id, title) of every heading of the page's body that has an id."""
    return [(found[1], Markup(found[2])) for found in re.finditer(r'<h2 id="([^"]+)">(.*?)</h2>', body)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return flat


def _words(value: Any) -> str:
    """A value as configurations write it, on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
