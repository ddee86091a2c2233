"""Pseudo-labels: layouts of unannotated pictures as trained segmenters see them, unknown where these are unsure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stedm.data.folder import DatasetFolder, write_metadata
from stedm.io.images import write_png
from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.segmentation.model import Mirrored, load_segmenter

_PICTURES_AT_ONCE = 64


def write_pseudo_labels(
    segmenters: Sequence[Path],
    pictures: DatasetFolder,
    folder: Path,
    *,
    picture_px: int,
    confidence: float,
    unknown: Collection[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetFolder:
    """Label pictures by the mean vote of segmenter folders; returns the dataset folder that holds them.

    The new folder has a row for each row of `pictures`, in the same order, all of split `train`: pictures and masks at
    `picture_px`, a mask pixel being `ignore_index` where the highest mean probability is below `confidence`, and
    everywhere in the pictures of the patients in `unknown`. Each segmenter sees each picture mirrored and turned as
    well (four views), which makes the vote less sure of itself. The masks that `pictures` may have are not read.

    Raises:
        StedmError: a segmenter's classes are not those of `pictures`.
    """
    info = pictures.info
    networks = [_checked(path, info.classes) for path in segmenters]
    hidden = pictures.table["patient_id"].isin(set(unknown)).to_numpy()
    for start in range(0, len(pictures), _PICTURES_AT_ONCE):
        rows = range(start, min(start + _PICTURES_AT_ONCE, len(pictures)))
        batch = np.stack([pictures.read_picture(row, picture_px) for row in rows])
        probability, classes = vote(networks, batch).max(dim=1)
        masks = torch.where(probability < confidence, info.ignore_index, classes).to(torch.uint8).numpy()
        masks[hidden[rows]] = info.ignore_index
        for row, picture, mask in zip(rows, batch, masks, strict=True):
            write_png(folder / _name("images", row), picture)
            write_png(folder / _name("masks", row), mask)
        if on_progress:
            on_progress(rows.stop, len(pictures))
    table = pictures.table.assign(
        source_image_file_name=pictures.table["image_file_name"],
        image_file_name=[_name("images", row) for row in range(len(pictures))],
        mask_file_name=[_name("masks", row) for row in range(len(pictures))],
        split="train",
    )
    # Written last: a folder with a table is complete.
    write_metadata(folder, replace(info, name=f"{info.name} (pseudo-labels)"), table)
    return DatasetFolder.open(folder, memory=pictures.memory)


@torch.inference_mode()
def vote(networks: Sequence[nn.Module], pictures: np.ndarray) -> Tensor:
    """Mean class probabilities (n, classes, px, px) of networks over four views of uint8 RGB (n, px, px, 3)."""
    signed = to_signed(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    voters = [(network if isinstance(network, Mirrored) else Mirrored(network)).eval() for network in networks]
    return torch.stack([voter(signed).exp() for voter in voters]).mean(dim=0)


def _checked(path: Path, classes: list[str]) -> nn.Module:
    network, info = load_segmenter(path)
    if list(info.classes) != list(classes):
        raise StedmError(f"{path}: its classes {info.classes} are not those of the pictures, {classes}")
    return network


def _name(kind: str, row: int) -> str:
    return f"{kind}/{row:06d}.png"
