"""What the app was opened on: a run folder, the folder of a diffusion model, or that of a segmenter.

Nothing is trained, and nothing is written into the folder. Masks of unlabeled patients stay closed: images come through
the same `DatasetFolder` as in a run.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stedm.config import MachineConfig, Sampling, load_config
from stedm.config.run import RunConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.errors import StedmError
from stedm.experiment.context import RunContext
from stedm.experiment.folder import read_provenance
from stedm.progress import Reporter
from stedm.segmentation.segmenter import Segmenter

INDEPENDENT = ("real+stain", "real", "ssl", "self-training")
"""Arms that never saw a painted image, the best judge first."""
_T = TypeVar("_T")


@dataclass
class Opened:
    """A folder to look at; what it lacks is None or empty."""

    folder: Path
    name: str
    config: RunConfig | None = None
    model_folder: Path | None = None
    segmenters: dict[str, Path] = field(default_factory=dict)
    """Model folder of each arm, first seed."""
    sets: dict[str, ImageCache] = field(default_factory=dict)
    """`annotated`, `unlabeled` and `held_out`; nothing where the data aren't there."""
    synthetic: DatasetFolder | None = None
    machine: MachineConfig = field(default_factory=MachineConfig)
    """Where networks run."""
    data_problem: str = ""
    """Why there are no `sets` though the run had data."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._loaded: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], _T]) -> _T:
        """What `make` gives, made once, also where several threads ask."""
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = make()
            return self._loaded[key]

    @property
    def sampling(self) -> Sampling:
        """How images are drawn unless the page says otherwise."""
        return self.config.synthesis.sampling if self.config else Sampling()

    @property
    def judge(self) -> str | None:
        """The arm that says what is in a painted image; one that has not learned from painted ones."""
        return next((arm for arm in INDEPENDENT if arm in self.segmenters), None)

    def model(self) -> StyleDiffusion:
        """The diffusion model, read when it is first needed."""
        if self.model_folder is None:
            raise StedmError(f"{self.folder}: has no diffusion model; train one with `stedm run`")
        return self.once("model", lambda: StyleDiffusion.from_pretrained(self.model_folder).on(self.machine))

    def segmenter(self, arm: str) -> Segmenter:
        """The segmenter of an arm, read when it is first needed."""
        if arm not in self.segmenters:
            raise StedmError(f"{self.folder}: has no segmenter of arm {arm}; `stedm run` trains what is missing")
        return self.once(f"segmenter {arm}", lambda: Segmenter.from_pretrained(self.segmenters[arm]).on(self.machine))

    def images(self, name: str) -> ImageCache:
        """One of `sets`; `StedmError` where it isn't there."""
        if name not in self.sets:
            raise StedmError(self.data_problem or f"{self.folder}: no such images")
        return self.sets[name]


def open_folder(folder: str | Path | None, machine: MachineConfig | None = None) -> Opened:
    """Open a run, a model or a segmenter; None = the newest run below `runs`.

    machine: what networks run on; None = a GPU where there is one.

    Raises:
        StedmError: it is none of them, or its configuration can't be read.
    """
    opened = _opened(_newest_run() if folder is None else Path(folder))
    opened.machine = machine or MachineConfig()
    return opened


def _opened(folder: Path) -> Opened:
    name = folder.resolve().name
    if (folder / "model_index.json").is_file():
        return Opened(folder, name, model_folder=folder)
    for model in (folder, folder / "model"):
        if (model / "config.json").is_file():
            return Opened(folder, name, segmenters={name: model})
    if not (folder / "config.yaml").is_file():
        raise StedmError(f"{folder}: not a run, and no model; give a folder that `stedm run` has written")
    return _open_run(folder)


def _newest_run() -> Path:
    runs = [path.parent for path in Path("runs").glob("*/config.yaml")]
    if not runs:
        raise StedmError("no run below runs/; say which folder: stedm app RUN")
    return max(runs, key=lambda run: (run / "config.yaml").stat().st_mtime)


def _open_run(folder: Path) -> Opened:
    config = load_config(folder / "config.yaml")
    opened = Opened(folder, config.name, config)
    if (folder / "model" / "model_index.json").is_file():
        opened.model_folder = folder / "model"
    for arm in config.segmentation.arms:
        model = folder / "segmenters" / arm / f"seed-{config.segmentation.seeds[0]}" / "model"
        if (model / "config.json").is_file():
            opened.segmenters[arm] = model
    try:
        opened.sets = _sets(folder, config)
        if (folder / "synthetic" / "metadata.csv").is_file():
            opened.synthetic = DatasetFolder.open(folder / "synthetic")
    except StedmError as error:
        opened.data_problem = str(error).splitlines()[0]
    return opened


def _sets(folder: Path, config: RunConfig) -> dict[str, ImageCache]:
    if config.data.phantom is not None and not (folder / "data" / "metadata.csv").is_file():
        raise StedmError(f"{folder}: its phantom patients are not there yet; run `stedm run` again")
    context = RunContext(config, folder, Reporter(quiet=True))
    begun = (folder / "provenance.json").is_file()
    if begun and read_provenance(folder)["data"]["fingerprint"] != context.dataset.fingerprint:
        raise StedmError(
            f"{context.dataset.root}: its table has changed since the run, so its images are not shown; put it back"
        )
    parts = {name: getattr(context, name) for name in ("annotated", "unlabeled", "held_out")}
    return {name: ImageCache(part, config.data.side) for name, part in parts.items() if len(part)}
