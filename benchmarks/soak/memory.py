"""Resident memory over many steps and images: it must not grow."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import child
from .trials import Outcome, Trial
from .workshop import TINY, Workshop

GOOD = ("flat",)
STEPS, IMAGES = 20_000, 5_000
MOST_MB_PER_1000 = 1.0
"""Growth in the second half from which on it is called that; a machine's allocator moves by less."""


def trials(seed: int) -> Sequence[Trial]:
    return [
        Trial("memory", f"train diffusion, {STEPS:,} steps", 0),
        Trial("memory", f"train segmenter (ssl), {STEPS:,} steps", 0),
        Trial("memory", f"synthesize, {IMAGES:,} images", 0),
    ]


def run(trial: Trial, workshop: Workshop) -> Outcome:
    room = workshop.work / "memory"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    work = next(make for begin, make in WORK.items() if trial.group.startswith(begin))
    ended = child.run(lambda: _write(work(workshop, room), room / "rss.json"), workshop.work / "log", limit_s=7200)
    if ended.status:
        raise RuntimeError(f"{trial}: {ended.err[-1000:]}")
    done, megabytes = np.array(json.loads((room / "rss.json").read_text()), float).T
    later = done >= done[-1] / 2
    slope = float(np.polyfit(done[later], megabytes[later], 1)[0] * 1000)
    outcome = Outcome(
        figures={"mb_at_a_tenth": float(megabytes[len(megabytes) // 10]), "mb_at_the_end": float(megabytes[-1])}
    )
    outcome.figures["mb_per_1000"] = round(slope, 3)
    outcome.add("flat" if slope < MOST_MB_PER_1000 else "grows")
    if slope >= MOST_MB_PER_1000:
        outcome.find(trial, "grows", trial.group, f"{slope:.2f} MB per 1,000")
    return outcome


class _Rss:
    """Pairs of (done, resident MB), taken two hundred times."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def __call__(self, done: int, total: int, *_: Any) -> None:
        if done % max(1, total // 200) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.rows.append((done, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))


def _write(rss: list, path: Path) -> None:
    path.write_text(json.dumps(rss))


def _cohort(workshop: Workshop) -> Any:
    from stedm.data.folder import DatasetFolder

    return DatasetFolder.open(workshop.at("cohort"))


def _train_diffusion(workshop: Workshop, room: Path) -> list:
    from stedm.config import DiffusionConfig, MachineConfig
    from stedm.diffusion.train import train_diffusion

    cohort, rss = _cohort(workshop), _Rss()
    config = DiffusionConfig(**{**TINY["diffusion"], "steps": STEPS, "batch": 2})
    machine = MachineConfig(checkpoint_every_steps=2000)
    sets = cohort.annotated, cohort.split("unlabeled")
    train_diffusion(config, *sets, room / "run", machine=machine, image_px=16, seed=0, on_progress=rss)
    return rss.rows


def _train_segmenter(workshop: Workshop, room: Path) -> list:
    from stedm.config import MachineConfig, SegmentationConfig
    from stedm.segmentation.train import train_segmenter

    cohort, rss = _cohort(workshop), _Rss()
    config = SegmentationConfig(**{**TINY["segmentation"], "steps": STEPS, "batch": 2})
    machine = MachineConfig(checkpoint_every_steps=2000)
    unlabeled = cohort.split("unlabeled")
    train_segmenter(
        config, cohort.annotated, room / "run", arm="ssl", image_px=16, unlabeled=unlabeled, machine=machine,
        on_progress=rss,
    )  # fmt: skip
    return rss.rows


def _synthesize(workshop: Workshop, room: Path) -> list:
    from stedm.config import SynthesisConfig
    from stedm.diffusion.pipeline import StyleDiffusion
    from stedm.synthesis.generate import synthesize
    from stedm.synthesis.plan import make_plan

    cohort, rss = _cohort(workshop), _Rss()
    config = SynthesisConfig(**{**TINY["synthesis"], "n_images": IMAGES, "batch": 25})
    plan = make_plan(config, cohort.annotated, cohort.split("unlabeled"), seed=0, image_px=32)
    synthesize(StyleDiffusion.from_pretrained(workshop.at("run/model")), plan, room / "synthetic", on_progress=rss)
    return rss.rows


WORK: dict[str, Callable[[Workshop, Path], list]] = {
    "train diffusion": _train_diffusion,
    "train segmenter": _train_segmenter,
    "synthesize": _synthesize,
}
