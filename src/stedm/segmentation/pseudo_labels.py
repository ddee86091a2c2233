"""Pseudo-labels: layouts of unannotated images as trained segmenters see them, unknown where these are unsure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stedm.config import MachineConfig
from stedm.data.folder import DatasetFolder, write_metadata
from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.io.images import class_palette, write_png
from stedm.segmentation.model import Mirrored, Network, load_segmenter
from stedm.training.precision import checked_numbers

_IMAGES_AT_ONCE = 64


def write_pseudo_labels(
    segmenters: Sequence[Path],
    images: DatasetFolder,
    folder: Path,
    *,
    image_px: int,
    confidence: float,
    unknown: Collection[str] = (),
    network: Network | None = None,
    machine: MachineConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetFolder:
    """Label images by the mean vote of segmenter folders; returns the dataset folder that holds them.

    The new folder has a row for each row of `images`, in the same order, all of split `train`: images and masks at
    `image_px`, a mask pixel being `ignore_index` where the highest mean probability is below `confidence`, and
    everywhere in the images of the patients in `unknown`. Each segmenter sees each image mirrored and turned as
    well (four views), which makes the vote less sure of itself. The masks that `images` may have are not read.
    `network` makes the network of segmenters of one's own, `machine` is what they run on (None = the defaults).

    Raises:
        StedmError: a segmenter's classes are not those of `images`.
    """
    info = images.info
    networks = [_checked(path, info.classes, network, machine or MachineConfig()) for path in segmenters]
    palette = class_palette(info.ignore_index)
    hidden = images.table["patient_id"].isin(set(unknown)).to_numpy()
    if on_progress:
        on_progress(0, len(images))
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        rows = range(start, min(start + _IMAGES_AT_ONCE, len(images)))
        batch = np.stack([images.read_image(row, image_px) for row in rows])
        probability, classes = vote(networks, batch).cpu().max(dim=1)
        masks = torch.where(probability < confidence, info.ignore_index, classes).to(torch.uint8).numpy()
        masks[hidden[rows]] = info.ignore_index
        for row, image, mask in zip(rows, batch, masks, strict=True):
            write_png(folder / _name("images", row), image)
            write_png(folder / _name("masks", row), mask, palette=palette)
        if on_progress:
            on_progress(rows.stop, len(images))
    table = images.table.assign(
        source_image_file_name=images.table["image_file_name"],
        image_file_name=[_name("images", row) for row in range(len(images))],
        mask_file_name=[_name("masks", row) for row in range(len(images))],
        split="train",
    )
    # Written last: a folder with a table is complete.
    write_metadata(folder, replace(info, name=f"{info.name} (pseudo-labels)"), table, sealed=True)
    return DatasetFolder.open(folder, memory=images.memory)


@torch.inference_mode()
def vote(networks: Sequence[nn.Module], images: np.ndarray) -> Tensor:
    """Mean class probabilities (n, classes, px, px) of networks over four views of uint8 RGB (n, px, px, 3)."""
    device = next(networks[0].parameters()).device
    signed = to_signed(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
    voters = [(network if isinstance(network, Mirrored) else Mirrored(network)).eval() for network in networks]
    probabilities = torch.stack([voter(signed).exp() for voter in voters]).mean(dim=0)
    return checked_numbers(probabilities, "a segmentation network that votes")


def _checked(path: Path, classes: list[str], network: Network | None, machine: MachineConfig) -> nn.Module:
    loaded, info = load_segmenter(path, network, machine)
    if list(info.classes) != list(classes):
        raise StedmError(
            f"{path}: its classes {info.classes} are not those of the images, {classes}; "
            "give segmenters of this dataset"
        )
    return loaded


def _name(kind: str, row: int) -> str:
    return f"{kind}/{row:06d}.png"
