"""Where a result comes from: versions, machine and data."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stedm.data.folder import DatasetFolder
from stedm.version import __version__


def provenance(dataset: DatasetFolder) -> dict[str, Any]:
    """Versions, machine and data of a run or a report."""
    packages = ("torch", "torchvision", "diffusers", "accelerate", "timm", "segmentation-models-pytorch", "numpy")
    return {
        "stedm": __version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "data": {"root": str(dataset.root), "fingerprint": dataset.fingerprint},
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed package."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
