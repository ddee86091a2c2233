"""The run folder: what it was begun with, and whether a later call may go on in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from stedm.config import RunConfig, to_yaml
from stedm.data.folder import DatasetFolder
from stedm.data.provenance import provenance
from stedm.errors import StedmError
from stedm.io.artefacts import read_json
from stedm.io.files import fingerprint, means_nothing, write_json, write_once, write_text
from stedm.io.ownership import is_marked
from stedm.io.yaml_text import parse_yaml, read_yaml

MAY_CHANGE = ("name", "data.path", "machine.", "evaluation.", "segmentation.arms", "segmentation.seeds")
"""Keys that a later call in the same folder may have other values of: what is there is kept and what is missing is
added; where a run is computed and where its data lie doesn't matter (whether they are the same data is looked at)."""
_BEFORE_ANYTHING = ("config.yaml", ".lock", ".data_facts", ".data_times")
"""What stands in a run folder before the data are found good."""
_MARK = "# The whole configuration of this run, written by stedm."


def claim(folder: Path, config: RunConfig) -> bool:
    """Write config.yaml into a new folder, or compare with the one that is there but for `MAY_CHANGE`; returns whether
    a run was begun there.

    A config.yaml that is there stays: another process may be at work by it (`write_config`).
    """
    path = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise StedmError(f"{folder}: is a file and a run is a folder; give another -o")
    if path.is_file() and not is_marked(path, _MARK) and not (folder / "provenance.json").is_file():
        raise StedmError(f"{path}: is there and stedm did not write it; give another -o")
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    begun = any(name not in ("config.yaml", ".lock") and not means_nothing(name) for name in names)
    # A run refused for its data has left nothing but its configuration: who mends that need not take another folder.
    if path.is_file() and begun:
        there = _flat(_read_config(path))
        asked = _flat(parse_yaml(to_yaml(config)))
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
    write_once(path, _text(config))
    return begun


def write_config(folder: Path, config: RunConfig) -> None:
    """Have config.yaml say what runs now; for who works in the folder alone."""
    if not is_configured(folder, config):
        write_text(folder / "config.yaml", _text(config))


def is_configured(folder: Path, config: RunConfig) -> bool:
    """Whether config.yaml says just this."""
    path = folder / "config.yaml"
    return path.is_file() and path.read_bytes() == _text(config).encode()


def _text(config: RunConfig) -> str:
    return f"{_MARK}\n{to_yaml(config)}"


@contextlib.contextmanager
def nothing_left_if_refused(folder: Path) -> Iterator[None]:
    """Remove a run folder again in which nothing was begun, where the block refuses the run."""
    try:
        yield
    except StedmError:
        left = [path for path in folder.iterdir() if not means_nothing(path.name)] if folder.is_dir() else []
        if left and all(path.name in _BEFORE_ANYTHING for path in left):
            for path in left:
                path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_unchanged(folder: Path, dataset: DatasetFolder) -> None:
    """Write provenance.json, or refuse to go on with a table that is not that of the run's beginning."""
    path = folder / "provenance.json"
    if not path.is_file():
        write_provenance(folder, provenance(dataset))
    elif read_provenance(folder)["data"]["fingerprint"] != dataset.fingerprint:
        raise StedmError(
            f"{dataset.root}: its table is another, or has changed since {folder} was begun; give another -o"
        )


_SUM = "sum"


class _Data(BaseModel):
    root: str
    fingerprint: str


class _Provenance(BaseModel):
    """What provenance.json says at least."""

    data: _Data
    seconds: dict[str, float] = {}


def read_provenance(folder: Path) -> dict[str, Any]:
    """RUN/provenance.json; `StedmError` with one line if it is damaged."""
    path, hint = folder / "provenance.json", "remove it and run again"
    read_json(path, _Provenance, hint=hint)
    values = read_json(path, dict[str, Any])
    wanted = values.pop(_SUM, None)
    if wanted not in (None, fingerprint(values)):
        raise StedmError(f"{path}: damaged or changed since it was written (its sum is another); {hint}")
    return values


def write_provenance(folder: Path, values: dict[str, Any]) -> None:
    """Write RUN/provenance.json with the sum of its content."""
    write_json(folder / "provenance.json", {**values, _SUM: fingerprint(values)})


def _read_config(path: Path) -> dict[str, Any]:
    hint = f"restore it from {path.parent / 'report' / 'report.html'}, or give another -o"
    try:
        values = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StedmError(f"{path}: damaged ({' '.join(str(error).split())[:200]}); {hint}") from error
    if not values or not isinstance(values, dict):
        raise StedmError(f"{path}: damaged (no mapping); {hint}")
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
