"""Losses and images of a training shown by a program of the user's choice: `machine.tracker`, through Accelerate.

Nothing depends on it: metrics.jsonl says the same. tensorboard and trackio keep what they show on this machine
(NETWORK/tensorboard; trackio's own folder), wandb sends it to its server unless WANDB_MODE says otherwise.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stedm.errors import StedmError

_PROJECT = "stedm"


def require_tracker(name: str) -> None:
    """Raises `StedmError` where the package of a tracker isn't installed."""
    if name != "none" and find_spec(name) is None:
        raise StedmError(f"machine.tracker {name}: not installed; run `pip install {name}`, or set it to none")


class Tracker:
    """Show the progress of one network; `none` does nothing.

    Args:
        name: `none`, `tensorboard`, `wandb` or `trackio`.
        folder: of the network in the run folder. Trained again from `step` on, it goes on in the same place.

    Raises:
        StedmError: the package isn't installed.
    """

    def __init__(self, name: str, folder: Path, step: int = 0):
        self._tracker: Any = None
        if name == "none":
            return
        require_tracker(name)
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        if kind.requires_logging_directory:
            # What was logged after the checkpoint will be logged again.
            self._tracker = kind(name, logging_dir=str(folder), purge_step=step + 1)
        else:
            place = folder.resolve()
            shown = {"name": "/".join(place.parts[-3:]), "resume": "allow"}
            if name == "wandb":
                shown |= {"id": hashlib.sha256(str(place).encode()).hexdigest()[:16], "dir": str(folder)}
            self._tracker = kind(_PROJECT, **shown)
        self._tracker.start()

    def log(self, values: dict[str, float], step: int) -> None:
        if self._tracker is not None:
            self._tracker.log(values, step=step)

    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """One uint8 RGB image `(H, W, 3)`, where the tracker shows images."""
        if self._tracker is None or not hasattr(self._tracker, "log_images"):
            return
        is_board = self._tracker.name == "tensorboard"
        images = {name: image[None]} if is_board else {name: [image]}
        self._tracker.log_images(images, step=step, **({"dataformats": "NHWC"} if is_board else {}))

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None
