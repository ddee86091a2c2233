"""Scores of segmenter folders on the images of a dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stedm.config import EvaluationConfig, MachineConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.data.provenance import provenance
from stedm.data.pseudonyms import Pseudonyms, without_paths
from stedm.data.squares import files_of, in_squares, without_others_part
from stedm.errors import StedmError
from stedm.evaluation.counts import count, counts_table
from stedm.io.files import alone_in
from stedm.io.ownership import check_outputs
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks

_IMAGES_AT_ONCE = 256
"""Of those that are scored: a cohort of tiles may be larger than the memory."""


def count_dataset(
    segmenter: Path, images: ImageCache, *, arm: str, seed: int, machine: MachineConfig | None = None
) -> pd.DataFrame:
    """Pixel counts per patient and class of a segmenter folder, run on `machine`, on the images of a dataset.

    Raises:
        StedmError: the segmenter's classes are not the dataset's.
    """
    network, info = load_segmenter(segmenter, machine=machine or MachineConfig())
    dataset = images.dataset
    if list(info.classes) != list(dataset.info.classes):
        raise StedmError(
            f"{segmenter}: its classes {info.classes} are not those of {dataset.root}; give one that learned from it"
        )
    cells, files = [], files_of(dataset)
    for start in range(0, len(dataset), _IMAGES_AT_ONCE):
        rows = range(start, min(start + _IMAGES_AT_ONCE, len(dataset)))
        predicted = predict_masks(network, np.stack([images.image(row) for row in rows]))
        for row, mask in zip(rows, predicted, strict=True):
            truth = without_others_part(dataset, row, images.mask(row))
            cells.append(count(mask, truth, len(info.classes), dataset.info.ignore_index))
    # Squares of one image are one image.
    summed = np.zeros((files.nunique(), *np.shape(cells)[1:]), np.int64)
    np.add.at(summed, pd.factorize(files)[0], np.asarray(cells))
    table = dataset.table[~files.duplicated().to_numpy()]
    return counts_table(
        arm, seed, table["patient_id"].tolist(), table["category"].tolist(), summed, dataset.info.classes
    )


def evaluate_segmenter(
    segmenter: Path,
    root: Path,
    split: str,
    report: Path,
    *,
    machine: MachineConfig | None = None,
    overwrite: bool = False,
    pseudonymise: bool = False,
) -> dict[str, Any]:
    """Score a segmenter folder on a split of a dataset and write a report; the arm is named after the folder.

    Raises `StedmError` where the report would replace files that stedm did not write, unless `overwrite`.
    With `pseudonymise` the report is without ids of patients and without paths.
    """
    from stedm.evaluation.report import REPORT_MARKS, write_report

    if split not in ("val", "test"):
        raise StedmError(f"--split {split}: use val or test")
    check_outputs({report / name: mark for name, mark in REPORT_MARKS.items()}, overwrite=overwrite)
    _, info = load_segmenter(segmenter)
    dataset = DatasetFolder.open(root)
    held_out = in_squares(dataset.split(split))
    if len(held_out) == 0:
        raise StedmError(f"{root}: no image in split {split}; give another --split, or write it into the table")
    name = _arm_of(segmenter)
    counts = count_dataset(segmenter, ImageCache(held_out, info.image_px), arm=name, seed=0, machine=machine)
    notes = {"Data": f"{dataset.info.name}, split {split}, {held_out.size}", "Segmenter": str(segmenter)}
    title, origin = f"{name} on {dataset.info.name}", provenance(dataset)
    if pseudonymise:
        counts = Pseudonyms(dataset).table(counts)
        notes, origin = notes | {"Segmenter": segmenter.name}, without_paths(origin)
    with alone_in(report):
        evaluation = EvaluationConfig(split=split)
        return write_report(report, counts, title=title, notes=notes, provenance=origin, evaluation=evaluation)


def _arm_of(segmenter: Path) -> str:
    """Arm of a segmenter in a run folder (ARM/seed-K/model), else the folder's own name."""
    parts = segmenter.resolve().parts
    return parts[-3] if len(parts) > 3 and parts[-1] == "model" and parts[-2].startswith("seed-") else parts[-1]
