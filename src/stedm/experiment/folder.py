"""The run folder: what it was begun with, whether a later call may go on in it, and where its rounds are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stedm.config import RunConfig, parse_config, to_yaml
from stedm.data.folder import DatasetFolder
from stedm.data.provenance import provenance
from stedm.errors import StedmError
from stedm.io.files import write_json, write_text


def claim(folder: Path, config: RunConfig) -> None:
    """Write config.yaml, or compare with the one that is there.

    Arms, seeds, evaluation and the student may change between calls: what is there is kept and what is missing is
    added. So may the machine that it is computed on, and with it workers, memory, compilation and activation
    checkpointing.
    """
    path = folder / "config.yaml"
    begun = folder.is_dir() and any(file.name not in ("config.yaml", ".lock") for file in folder.iterdir())
    # A run refused for its data has left nothing but its configuration: who mends that need not take another folder.
    if path.is_file() and begun:
        there = _flat(_with_defaults(yaml.safe_load(path.read_text(encoding="utf-8"))))
        asked = _flat(yaml.safe_load(to_yaml(config)))
        # A student says itself what it was trained with, and a run may be given one later.
        free = ("evaluation.", "segmentation.arms", "segmentation.seeds", "name", "diffusion.student.")
        # How it is computed, not what.
        free_ends = (".workers", ".compile", ".activation_checkpointing", ".cache_mb")
        differing = [
            f"{key}: {there.get(key)} there, {asked.get(key)} asked"
            for key in sorted(there.keys() | asked.keys())
            if there.get(key) != asked.get(key) and not key.startswith(free) and not key.endswith(free_ends)
        ]
        if differing:
            raise StedmError(
                f"{folder}: holds a run of another configuration ({'; '.join(differing)}); give another -o"
            )
    elif begun:
        raise StedmError(f"{folder}: not empty and not a run folder; give another -o")
    write_text(path, to_yaml(config))


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The values of an older run with keys that have come since at their defaults, which mean what was before."""
    # The steps of samplers were evenly spaced before there was a shift, whose default is another.
    if isinstance(values.get("synthesis"), dict):
        values["synthesis"].setdefault("time_shift", 1.0)
        # The first round had the layouts of all, and nobody asked whether segmenters contradict each other.
        if values["synthesis"].get("rounds", 1) > 1:
            values["synthesis"].setdefault("first_layouts", values["synthesis"].get("layouts"))
            values["synthesis"].setdefault("agreement", 0.0)
    try:
        return yaml.safe_load(to_yaml(parse_config(values, "config.yaml")))
    except StedmError:
        # Keys have gone or changed their meaning: compared as they are, the difference is named.
        return values


@dataclass(frozen=True)
class Rounds:
    """Where the rounds of a run are (`synthesis.rounds`): RUN itself is the last one, RUN/rounds/R are those before."""

    root: Path
    config: RunConfig

    @property
    def last(self) -> int:
        """The number of the last round; the first is 1."""
        return self.config.synthesis.rounds

    def folder(self, number: int) -> Path:
        """Folder of a round's plan and images."""
        return self.root if number == self.last else self.root / "rounds" / str(number)

    def suffix(self, number: int) -> str:
        """What tells the stages of a round from those of another."""
        return f", round {number}" if self.last > 1 else ""

    def of_model(self, number: int | None = None) -> int:
        """The round whose diffusion model a round uses (None = the last)."""
        return (number or self.last) if self.config.retrains else 1

    def model_home(self, number: int | None = None) -> Path:
        """Folder in which the diffusion model of a round (None = the last) is trained."""
        return self.folder(number or self.last) if self.config.retrains else self.root

    def model_suffix(self, number: int | None = None) -> str:
        """`suffix` for the stages of that model."""
        return self.suffix(number or self.last) if self.config.retrains else ""


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
