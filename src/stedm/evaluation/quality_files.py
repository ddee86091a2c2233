"""quality.json and quality_closest.png: what was measured of a synthetic set, remembered until the set is another."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stedm.config import MachineConfig
from stedm.data.folder import DatasetFolder
from stedm.data.squares import in_squares
from stedm.errors import StedmError
from stedm.evaluation.assessment import Parts, assess
from stedm.io.artefacts import read_json
from stedm.io.files import fingerprint, replacing, without_nan
from stedm.io.images import write_png
from stedm.io.manifest import NAME, sha256_of, verify_sum, write_sum
from stedm.io.ownership import PAINTED, check_outputs
from stedm.segmentation.model import load_segmenter

FILE, PICTURE = "quality.json", "quality_closest.png"
MEASURES = 1
"""Goes up when what is measured changes, so that it is measured again."""
_MARKS = {FILE: '"made_by": "stedm quality"', PICTURE: PAINTED}


@dataclass(frozen=True)
class _Quality:
    """What a quality.json says at least."""

    made_by: str
    of: str
    quality: dict[str, Any]


def measured(
    parts: Parts,
    image_px: int,
    segmenter: Path | None,
    folder: Path,
    machine: MachineConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a set and write both files into `folder`; raises `StedmError` as `assess` and `load_segmenter` do."""
    network = _network(segmenter, machine)
    quality, picture = assess(parts, image_px, network, on_progress)
    quality["segmenter"] = None if segmenter is None else "/".join(segmenter.resolve().parts[-3:])
    values = without_nan({"made_by": "stedm quality", "of": _identity(parts, image_px, segmenter), "quality": quality})
    # The picture first: quality.json says that all of it is there.
    if picture is not None:
        write_png(folder / PICTURE, picture, software=PAINTED)
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        write_sum(folder / FILE, temporary)
    return values["quality"]


def remembered(parts: Parts, image_px: int, segmenter: Path | None, folder: Path) -> dict[str, Any] | None:
    """What `measured` has found of the same set before; None = nothing, or of another one.

    Raises:
        StedmError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    verify_sum(path)
    found = read_json(path, _Quality, hint="remove it and run the same command again")
    return found.quality if found.of == _identity(parts, image_px, segmenter) else None


def measure_folder(
    synthetic: Path,
    against: Path,
    *,
    segmenter: Path | None = None,
    output: Path | None = None,
    machine: MachineConfig | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a dataset folder of synthetic images against the dataset whose patients it is about.

    Args:
        against: train images with masks count as annotated, those of `unlabeled` as unannotated, those of `val` as held
            out.
        segmenter: a model folder that has learned from real images alone.
        output: folder to write both files into; None = nothing is written.

    Raises:
        StedmError: as `measured`; a file of `output` is there and stedm did not write it.
    """
    dataset, made = DatasetFolder.open(against), DatasetFolder.open(synthetic)
    splits = [in_squares(part) for part in (dataset.annotated, dataset.split("unlabeled"), dataset.split("val"))]
    parts = Parts(made, *splits)
    if segmenter is None:
        image_px = min(made.image_size(0))
    else:
        _, info = load_segmenter(segmenter)
        image_px = info.image_px
        if list(info.classes) != list(dataset.info.classes):
            raise StedmError(
                f"{segmenter}: its classes {info.classes} are not those of {dataset.root}; "
                "give one that learned from it"
            )
    if output is None:
        return without_nan(assess(parts, image_px, _network(segmenter, machine), on_progress)[0])
    check_outputs({output / name: mark for name, mark in _MARKS.items()}, overwrite=overwrite)
    return measured(parts, image_px, segmenter, output, machine, on_progress)


def _network(segmenter: Path | None, machine: MachineConfig | None) -> nn.Module | None:
    return None if segmenter is None else load_segmenter(segmenter, machine=machine or MachineConfig())[0]


def _identity(parts: Parts, image_px: int, segmenter: Path | None) -> str:
    """Names what was measured against what: tables, and where there are any the sums of all files."""

    def of(dataset: DatasetFolder) -> str:
        manifest = dataset.root / NAME
        return dataset.fingerprint + (sha256_of(manifest) if manifest.is_file() else "")

    weights = None if segmenter is None else sha256_of(segmenter / "model.safetensors")
    real = [of(part) for part in (parts.annotated, parts.unannotated, parts.held_out)]
    return fingerprint(
        {"measures": MEASURES, "synthetic": of(parts.synthetic), "real": real, "px": image_px, "w": weights}
    )
