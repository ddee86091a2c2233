"""Images painted while the diffusion model trains, so that anyone sees it go right: RUN/progress/step-S.png.

Every grid of a training has the same layouts (rows, shown on the left), the same patients (columns, one of their style
images on top) and the same noise. The first patient is annotated, the others are not, where there are any. All are
of the training data. Nothing is drawn from, nor left in, what training draws from: losses and weights are the same with
and without.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from stedm.config import MachineConfig
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.io.images import class_palette, write_png
from stedm.seeds import seed_for
from stedm.training.trainer import Trainer

LAYOUTS, PATIENTS = 3, 4
_GRIDS, _LEAST_STEPS = 3, 500
_LARGEST_CELL_PX, _GAP_PX = 256, 2


def steps_between(every: int | None, steps: int) -> int:
    """Steps from one grid to the next, 0 = none is painted: `every`, or (None) a third of all, 500 at least."""
    return max(math.ceil(steps / _GRIDS), _LEAST_STEPS) if every is None else every


class Examples(Protocol):
    """What `DiffusionSamples` gives to look at."""

    def some_layouts(self, n: int) -> np.ndarray:
        """uint8 `(m, H, W)`, m <= n."""

    def some_styles(self, n: int) -> list[list[np.ndarray]]:
        """Style images, uint8 RGB `(H, W, 3)`, of n patients at most."""


class ProgressGrid:
    """Paint the grid of a training where it is due.

    Args:
        samples: of the training, from whose images layouts and styles are taken when the first grid is due.
        machine: how often, and in which precision.
        seed: of the noise, one for each layout.
        at_once: images painted at once.
        model: keywords of `StyleDiffusion` but the network.
    """

    def __init__(self, samples: Examples, machine: MachineConfig, *, seed: int, at_once: int, **model: Any):
        self.samples, self.machine, self.seed, self.at_once, self.model = samples, machine, seed, at_once, model

    @cached_property
    def layouts(self) -> np.ndarray:
        return self.samples.some_layouts(LAYOUTS)

    @cached_property
    def styles(self) -> list[list[np.ndarray]]:
        return self.samples.some_styles(PATIENTS)

    def is_due(self, trainer: Trainer) -> bool:
        """After every so many steps, and after the last one of a training that is long enough for one."""
        done, steps = trainer.step_done, trainer.config.steps
        between = steps_between(self.machine.grid_every_steps, steps)
        if trainer.part or not between or not trainer.accelerator.is_main_process:
            return False
        return done % between == 0 or (done == steps and steps >= between)

    def paint(self, trainer: Trainer) -> Path:
        """With the averaged weights; the network goes on training as it was."""
        with trainer.averaged_weights() as network:
            model = StyleDiffusion(network, **self.model)
            model.precision = self.machine.precision
            most = model.largest_style_set
            styles = [images[:most] for images in self.styles]
            n, m = len(self.layouts), len(styles)
            seeds = [seed_for(self.seed, "progress", row) for row in range(n) for _ in range(m)]
            layouts = np.repeat(self.layouts, m, axis=0)
            painted = model.generate(layouts, styles * n, seed=seeds, batch=self.at_once)
        trainer.network.train()
        path = trainer.folder / "progress" / f"step-{trainer.step_done:08d}.png"
        grid = self._grid(painted.reshape(n, m, *painted.shape[1:]))
        path.parent.mkdir(exist_ok=True)
        write_png(path, grid)
        trainer.tracker.log_image("progress", grid, trainer.step_done)
        return path

    def _grid(self, painted: np.ndarray) -> np.ndarray:
        """One image of the painted ones (layouts, patients, H, W, 3), with styles on top and layouts on the left."""
        palette = np.frombuffer(class_palette(), np.uint8).reshape(256, 3)
        top = [np.full_like(painted[0, 0], 255), *(images[0] for images in self.styles)]
        rows = [[palette[layout], *images] for layout, images in zip(self.layouts, painted, strict=True)]
        return np.vstack([np.hstack([_cell(image) for image in row]) for row in [top, *rows]])


def _cell(image: np.ndarray) -> np.ndarray:
    side = min(len(image), _LARGEST_CELL_PX)
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
    return np.pad(small, ((0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255)
