"""How the loss of the diffusion model fell and what it painted meanwhile: `metrics.jsonl` and `progress/` of a run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stedm.io.images import read_image_file

SHOWN_GRIDS = 4
SMOOTHED_PARTS = 30
"""A point of the curve is the mean of this part of the logged steps: single batches differ by far more than the loss
falls between them."""


@dataclass(frozen=True)
class TrainingCurve:
    """Of one training: images seen and loss at every logged step."""

    name: str
    images_seen: list[float]
    loss: list[float]
    seconds: float

    @property
    def smooth(self) -> list[float]:
        """The mean loss about every logged step."""
        n, values = max(1, len(self.loss) // SMOOTHED_PARTS), np.asarray(self.loss)
        edges = [(max(0, i - n), min(len(values), i + n + 1)) for i in range(len(values))]
        return [float(values[low:high].mean()) for low, high in edges]


def training_curves(run: Path) -> list[TrainingCurve]:
    """Of the diffusion models of a run folder, round by round."""
    found = (read_curve(folder / "metrics.jsonl", name) for name, folder in _trainings(run).items())
    return [curve for curve in found if curve is not None]


def painted_meanwhile(run: Path) -> list[tuple[str, np.ndarray]]:
    """Some of the grids (uint8 RGB) that a run's diffusion models painted in training, and when: round by round, from
    the first to the last."""
    shown = []
    for name, folder in _trainings(run).items():
        grids = sorted((folder / "progress").glob("step-*.png"))
        chosen = np.linspace(0, len(grids) - 1, min(len(grids), SHOWN_GRIDS)).round().astype(int)
        for path in (grids[number] for number in chosen):
            step = path.stem.removeprefix("step-")
            when = f"after {int(step):,} steps" if step.isdigit() else step
            shown.append((f"{name}, {when}", read_image_file(path.parent, path.name)))
    return shown


def _trainings(run: Path) -> dict[str, Path]:
    """Name and folder of each training of a diffusion model."""
    rounds = sorted((run / "rounds").glob("*"), key=lambda path: path.name.zfill(9))
    folders = [folder for folder in [*rounds, run] if (folder / "metrics.jsonl").is_file()]
    names = [f"round {number}" for number in range(1, len(folders) + 1)] if len(folders) > 1 else ["training"]
    return dict(zip(names, folders, strict=False))


def read_curve(path: Path, name: str) -> TrainingCurve | None:
    """The curve in a file of the trainer's; None where there is none, or it has fewer than two readable lines."""
    if not path.is_file():
        return None
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            numbers = [float(row[key]) for key in ("images_seen", "loss", "seconds")]
        except (ValueError, TypeError, KeyError):
            continue  # cut off by a kill or a full disk
        if all(map(math.isfinite, numbers)):
            rows.append(numbers)
    if len(rows) < 2:
        return None
    seen, loss, seconds = map(list, zip(*rows, strict=True))
    return TrainingCurve(name, seen, loss, seconds[-1])
