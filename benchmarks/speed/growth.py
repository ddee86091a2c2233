"""Growth: time and memory against the sizes of a problem, each with a fitted exponent.

Exponents are slopes of log time (or bytes) against log size. That over all sizes is flattened by fixed costs; that over
the largest three tells what happens beyond them. `at_most` is what the work itself asks for.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stedm.config import SynthesisConfig
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.diffusion.objective import Objective
from stedm.diffusion.train import DiffusionSamples, make_denoiser
from stedm.seeds import numpy_generator
from stedm.segmentation.model import build_segmenter
from stedm.segmentation.predict import predict_masks
from stedm.synthesis.plan import make_plan
from stedm.training.precision import autocast

from .effort import Effort
from .machine import timed
from .measure import exponent, peak_bytes
from .setting import Setting

_BATCH = 4
_REPEATS = 3
_TAIL = 3
TOLERANCE = 0.2
"""How far a fitted exponent may lie above what the work asks for, given the scatter of times."""

Prepare = Callable[[int], Callable[[], object]]
"""Size to the call that is measured."""


def run(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Measure every curve; sizes of an axis in turns."""
    points: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for axis, curves in _curves(setting).items():
        sizes = effort.growth_sizes[axis]
        for what, (prepare, at_most) in curves.items():
            seconds, memory = _measure(prepare, sizes, setting.device, effort.growth_seconds)
            points += [
                {"axis": axis, "what": what, "size": size, "ms": 1e3 * s, "megabytes": b / 2**20}
                for size, s, b in zip(sizes, seconds, memory, strict=True)
            ]
            tail = exponent(sizes[-_TAIL:], seconds[-_TAIL:])
            memory_tail = exponent(sizes[-_TAIL:], memory[-_TAIL:])
            worst = max((e for e in (tail, memory_tail) if e is not None), default=None)
            summary.append(
                {
                    "axis": axis,
                    "what": what,
                    "sizes": f"{sizes[0]}..{sizes[-1]}",
                    "exponent_time": exponent(sizes, seconds),
                    "exponent_time_largest": tail,
                    "exponent_memory": exponent(sizes, memory),
                    "exponent_memory_largest": memory_tail,
                    "at_most": at_most,
                    "within": worst is None or worst <= at_most + TOLERANCE,
                }
            )
    notes = [
        f"largest: fitted to the largest {_TAIL} sizes. at most: the exponent that the work itself asks for; within: "
        f"no fitted one is more than {TOLERANCE} above it. Memory: tensors, NumPy and Python; no library workspaces."
    ]
    tables = {"exponents": summary, "points": points}
    return {"figures": {"curves": len(summary)}, "tables": tables, "notes": notes}


def _measure(
    prepare: Prepare, sizes: Sequence[int], device: torch.device, seconds: float
) -> tuple[list[float], list[int]]:
    """Median seconds and peak bytes of each size; sizes in turns, slow ones fewer times."""
    actions = [prepare(size) for size in sizes]
    memory = [peak_bytes(action, device) for action in actions]  # warms up, too
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(_REPEATS):
        for action, own in zip(actions, times, strict=True):
            if not own or sum(own) < seconds:
                own.append(timed(action, device))
    return [statistics.median(own) for own in times], memory


def _curves(setting: Setting) -> dict[str, dict[str, tuple[Prepare, float]]]:
    """Axis to what is measured along it, with the exponent that the work asks for."""
    px = setting.image_px
    return {
        "style images": {"training step": (lambda n: _training_step(setting, px, style_images=n), 1.0)},
        "planned images": {"make_plan": (lambda n: _plan(setting, n), 1.0)},
        "patients": {
            "open the folder": (lambda n: _open(setting, n), 1.0),
            "begin a stream, 32 samples": (lambda n: _stream(setting, n), 1.0),
        },
        "image size": {
            "training step": (lambda n: _training_step(setting, n), 2.0),
            "masks": (lambda n: _masks(setting, n), 2.0),
        },
    }


# ---- networks -----------------------------------------------------------------------------------------------------


def _training_step(setting: Setting, px: int, style_images: int | None = None) -> Callable[[], object]:
    """Forward and backward pass of one image."""
    config, k = setting.config.diffusion, len(setting.dataset.info.classes)
    n = style_images or config.style.n_images
    shown = config.style.model_copy(update={"n_images": n, "weights": None})
    denoiser = make_denoiser(config.model_copy(update={"style": shown}), setting.codec, k, 0, px)
    denoiser.to(setting.device, memory_format=torch.channels_last).train()
    side = px // setting.codec.factor
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, setting.codec.latent_channels, side, side, generator=generator).to(setting.device)
    layout = torch.randint(k, (1, px, px), generator=generator).to(setting.device)
    style = torch.rand(1, n, 3, px, px, generator=generator).to(setting.device)
    valid = torch.ones(1, n, dtype=torch.bool, device=setting.device)
    timestep = torch.full((1,), 500.0, device=setting.device)
    objective = Objective(config.objective, config.loss)

    def step() -> None:
        with autocast(setting.precision, setting.device):
            predicted = denoiser(noisy, timestep, layout, style, valid)
        objective(predicted.float(), noisy).backward()
        denoiser.zero_grad(set_to_none=True)

    return step


def _masks(setting: Setting, px: int) -> Callable[[], object]:
    network = build_segmenter(setting.config.segmentation, len(setting.dataset.info.classes)).to(setting.device).eval()
    images = np.zeros((_BATCH, px, px, 3), np.uint8)
    return lambda: predict_masks(network, images)


# ---- plans and cohorts --------------------------------------------------------------------------------------------


def _plan(setting: Setting, n: int) -> Callable[[], pd.DataFrame]:
    config = SynthesisConfig(n_images=n)
    return lambda: make_plan(config, setting.annotated, setting.unlabeled, image_px=setting.image_px)


def _open(setting: Setting, patients: int) -> Callable[[], object]:
    root = _cohort(setting.folder, patients)
    return lambda: DatasetFolder.open(root)


def _stream(setting: Setting, patients: int) -> Callable[[], object]:
    dataset = DatasetFolder.open(_cohort(setting.folder, patients))
    config = setting.config.diffusion
    config = config.model_copy(update={"style": config.style.model_copy(update={"sampling": "cohort"})})

    def stream() -> None:
        samples = DiffusionSamples(config, dataset.split("train"), dataset.split("unlabeled"), _COHORT_PX, seed=0)
        for i in range(32):
            samples[i]

    return stream


_COHORT_PX = 8
_COHORT_IMAGES = 3


def _cohort(folder: Path, patients: int) -> Path:
    """A dataset folder of so many patients, half of them annotated, whose images are all the same two files."""
    root = folder / f"cohort-{patients}"
    if not (root / "metadata.csv").is_file():
        generator = numpy_generator(0, "speed cohort")
        shape = (_COHORT_PX, _COHORT_PX)
        image, mask = generator.integers(0, 256, (*shape, 3), np.uint8), generator.integers(0, 2, shape, np.uint8)
        rows = []
        for patient in range(patients):
            for number in range(_COHORT_IMAGES):
                name = f"p{patient:04d}-{number}.png"
                write_png(root / "images" / name, image)
                if patient % 2:
                    write_png(root / "masks" / name, mask)
                rows.append(
                    {
                        "image_file_name": f"images/{name}",
                        "mask_file_name": f"masks/{name}" if patient % 2 else "",
                        "patient_id": f"p{patient:04d}",
                        "slide_id": f"p{patient:04d}",
                        "split": "train" if patient % 2 else "unlabeled",
                        "category": str(patient % 4),
                    }
                )
        write_metadata(root, DatasetInfo("cohort", ["background", "object"]), pd.DataFrame(rows))
    return root
