"""What must not be seen is replaced, and every artefact but those that score is the same to the bit."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from stedm.seeds import numpy_generator

from . import child
from .compare import contents, differences
from .trials import SEED, Outcome, Trial
from .workshop import TINY, Workshop

GOOD = ("same",)
CANARIES = {
    "images of val and test are noise": ("images/V*", "images/T*"),
    "masks of val and test are the opposite": ("masks/V*", "masks/T*"),
    "masks of unlabeled are the opposite": ("masks/U*",),
    "all of them": ("images/V*", "images/T*", "masks/V*", "masks/T*", "masks/U*"),
}
CODECS = ("pixels", "autoencoder")
ARMS = [
    "real", "real+stain", "ssl", "self-training", "real+synthetic", "real+stain+synthetic", "real+stain+synthetic+ssl",
    "real+stain+synthetic+self-training",
]  # fmt: skip
SCORES = ("counts-test.parquet", "report/", "provenance.json", "data_files", ".data_times", ".data_facts")
"""Files that are made of held-out patients, or name the content of the data."""
SHOWS_VAL = ("model/reconstruction", "model/manifest")
"""Where there is an autoencoder: how well it shows images of val."""


def trials(seed: int) -> Sequence[Trial]:
    return [Trial("leakage", name, number) for number in range(len(CODECS)) for name in CANARIES]


def run(trial: Trial, workshop: Workshop) -> Outcome:
    outcome, codec = Outcome(), CODECS[trial.number]
    before = _files_of_a_run(workshop, codec, None)
    after = _files_of_a_run(workshop, codec, trial.group)
    differing = differences(before, after)
    named = (*SCORES, *SHOWS_VAL) if codec == "autoencoder" else SCORES
    leaked = [line for line in differing if not any(part in line for part in named)]
    outcome.figures = {"files": len(before), "differing": len(differing)}
    if leaked:
        outcome.add("leaked")
        outcome.find(trial, "leaked", f"{trial.group} ({codec})", "; ".join(leaked[:5]))
    elif not differing:
        # Held-out patients are scored, so that something must have changed.
        outcome.add("same" if "unlabeled" in trial.group else "changed nothing")
    else:
        outcome.add("same")
    return outcome


_kept: dict[str, dict[str, bytes]] = {}


def _files_of_a_run(workshop: Workshop, codec: str, canary: str | None) -> dict[str, bytes]:
    """A run on the cohort, or on one with a canary in it; both lie in the same folders."""
    if canary is None and codec in _kept:
        return _kept[codec]
    folder = workshop.work / "leakage"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workshop.at("cohort"), folder / "cohort")
    for pattern in CANARIES[canary] if canary else ():
        for path in sorted((folder / "cohort").glob(pattern)):
            _replace(path)
    values = yaml.safe_load(workshop.at("run.yaml").read_text())
    values["data"]["path"] = str(folder / "cohort")
    values["segmentation"]["arms"] = ARMS
    if codec == "autoencoder":
        values["diffusion"]["codec"] = {"kind": "autoencoder", "source": str(workshop.at("autoencoder"))}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    ended = child.run(child.stedm("run", folder / "run.yaml", "-o", folder / "run"), workshop.work / "log")
    if ended.status:
        raise RuntimeError(f"leakage: {ended.err[-1000:]}")
    files = contents(folder / "run")
    if canary is None:
        _kept[codec] = files
    return files


def _replace(path: Path) -> None:
    """Noise for an image, the opposite for a mask: each class becomes the next, ignored pixels stay."""
    values = np.array(Image.open(path))
    if values.ndim == 3:
        values = numpy_generator(SEED, "soak", path.name).integers(0, 256, values.shape).astype(np.uint8)
    else:
        values[values != 255] = 1 - np.minimum(values[values != 255], 1)
    Image.fromarray(values).save(path)


assert set(TINY["segmentation"]["arms"]) <= set(ARMS)
