"""Seconds per training step in float32 and bfloat16, diffusion model and segmenter, and their ratio in one run.

python benchmarks/precision.py        on an otherwise idle machine
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stedm.config import DiffusionConfig, MachineConfig, PhantomConfig, SegmentationConfig
from stedm.data.folder import DatasetFolder
from stedm.diffusion.train import train_diffusion
from stedm.phantom.cohort import make_phantom
from stedm.segmentation.train import train_segmenter

STEPS = 24
PRECISIONS = ("fp32", "bf16")


def seconds_per_step(train: Callable[..., object]) -> float:
    """Median time between two steps of a training that reports each step; the first ones warm up."""
    times: list[float] = []
    train(on_progress=lambda done, total, loss: times.append(time.perf_counter()))
    return statistics.median(after - before for before, after in itertools.pairwise(times[4:]))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patients = {"train": 2, "unlabeled": 4, "val": 0, "test": 0}
        make_phantom(PhantomConfig(patients=patients, images_per_patient=4), folder / "data")
        dataset = DatasetFolder.open(folder / "data")
        annotated, unlabeled = dataset.split("train"), dataset.split("unlabeled")
        for part in ("diffusion model", "segmenter"):
            seconds = {}
            for precision in PRECISIONS:
                options = {"image_px": 64, "machine": MachineConfig(precision=precision)}
                run = folder / part / precision
                if part == "segmenter":
                    train = partial(train_segmenter, SegmentationConfig(steps=STEPS), annotated, run, arm="real+stain")
                else:
                    train = partial(train_diffusion, DiffusionConfig(steps=STEPS), annotated, unlabeled, run)
                seconds[precision] = seconds_per_step(partial(train, **options))
            ratio = seconds["fp32"] / seconds["bf16"]
            print(f"{part}: fp32 {seconds['fp32']:.3f} s, bf16 {seconds['bf16']:.3f} s a step, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
