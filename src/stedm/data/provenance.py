"""Where a result comes from: versions, machine and data."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stedm.data.folder import DatasetFolder
from stedm.version import __version__

_PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "timm", "segmentation-models-pytorch", "numpy")


def provenance(dataset: DatasetFolder) -> dict[str, Any]:
    """Versions, machine and data of a run or a report."""
    return {
        **_software(),
        "machine": platform.platform(),
        "data": {"root": str(dataset.root), "fingerprint": dataset.fingerprint},
    }


def of_model(data: DatasetFolder, training: dict[str, Any], **parts: DatasetFolder | None) -> dict[str, Any]:
    """What a model folder says of where it is from, without paths and without ids of patients or images.

    Args:
        data: what it was trained on, whose licence and citation it inherits.
        training: settings of its training.
        parts: sets of images by the role that they had; None and empty ones are left out.
    """
    there = {name: part for name, part in parts.items() if part is not None and len(part)}
    counts = {name: {"patients": len(part.patients()), "images": part.n_files} for name, part in there.items()}
    return {**_software(), "data": source_of(data), "images": counts, "training": training}


def source_of(dataset: DatasetFolder) -> dict[str, str]:
    """Name, licence and citation of a data set, and the fingerprint of its table."""
    info = dataset.info
    told = {"name": info.name, "licence": info.licence, "citation": info.citation}
    return {**told, "fingerprint": dataset.fingerprint}


def _software() -> dict[str, Any]:
    return {
        "stedm": __version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


@cache
def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed package."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
