"""The run folder: what it was begun with, and whether a later call may go on in it."""

import json
from pathlib import Path
from typing import Any

import yaml

from stedm.config import RunConfig, to_yaml
from stedm.data.folder import DatasetFolder
from stedm.data.provenance import provenance
from stedm.errors import StedmError
from stedm.io.files import is_temporary, write_json, write_text

MAY_CHANGE = ("name", "machine.", "evaluation.", "segmentation.arms", "segmentation.seeds")
"""Keys that a later call in the same folder may have other values of: what is there is kept and what is missing is
added; where a run is computed doesn't matter."""


def claim(folder: Path, config: RunConfig) -> None:
    """Write config.yaml, or compare with the one that is there but for `MAY_CHANGE`."""
    path = folder / "config.yaml"
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    begun = any(name not in ("config.yaml", ".lock") and not is_temporary(name) for name in names)
    # A run refused for its data has left nothing but its configuration: who mends that need not take another folder.
    if path.is_file() and begun:
        there = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
        asked = _flat(yaml.safe_load(to_yaml(config)))
        differing = [
            f"{key}: {there.get(key)} there, {asked.get(key)} asked"
            for key in sorted(there.keys() | asked.keys())
            if there.get(key) != asked.get(key) and not key.startswith(MAY_CHANGE)
        ]
        if differing:
            raise StedmError(
                f"{folder}: holds a run of another configuration ({'; '.join(differing)}); give another -o"
            )
    elif begun:
        raise StedmError(f"{folder}: not empty and not a run folder; give another -o")
    text = to_yaml(config)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # a complete run may lie in a read-only folder
        write_text(path, text)


def check_unchanged(folder: Path, dataset: DatasetFolder) -> None:
    """Write provenance.json, or refuse to go on with data that are not those of the run's beginning."""
    path = folder / "provenance.json"
    if not path.is_file():
        write_json(path, provenance(dataset))
        return
    before = json.loads(path.read_text(encoding="utf-8"))["data"]["fingerprint"]
    if before != dataset.fingerprint:
        raise StedmError(f"{dataset.root}: its table has changed since {folder} was begun; give another -o")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
