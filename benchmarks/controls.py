"""Controls of synthetic data: sets that lack one thing on purpose, to see whether that thing is what helps.

- `shuffled-layouts`: the pictures of the set, each with the mask of another one. Do the masks matter?
- `copied-pictures`: annotated pictures again and again in place of generated ones. Or is it only the mixing?
- `annotated-styles`: drawn in the styles of the annotated patients. Are unannotated patients needed?

`benchmarks/downstream.py` makes them for variants with the key `control`.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from stedm.data.folder import DatasetFolder, write_metadata, write_png
from stedm.experiment import Experiment
from stedm.seeds import numpy_generator
from stedm.synthesis.quality import PictureSet, with_shuffled_layouts

Control = Literal["shuffled-layouts", "copied-pictures", "annotated-styles"]


class AnnotatedStyles(Experiment):
    """A run whose synthetic pictures are in the styles of its annotated patients."""

    @property
    def style_source(self) -> DatasetFolder:
        return self.annotated


def shuffle_layouts(synthetic: DatasetFolder, folder: Path, *, picture_px: int, seed: int) -> None:
    """The set with its masks dealt out anew, no picture with its own; written to `folder`."""
    shuffled = with_shuffled_layouts(PictureSet.read(synthetic, picture_px, with_masks=True), seed)
    _write(synthetic, np.arange(len(synthetic)), shuffled.pictures, shuffled.masks, folder)


def copy_pictures(annotated: DatasetFolder, n_pictures: int, folder: Path, *, picture_px: int, seed: int) -> None:
    """`n_pictures` copies of annotated pictures, each about as often as any other; written to `folder`."""
    generator = numpy_generator(seed, "copied pictures")
    rounds = [generator.permutation(len(annotated)) for _ in range(-(-n_pictures // len(annotated)))]
    rows = np.concatenate(rounds)[:n_pictures]
    pictures = np.stack([annotated.read_picture(row, picture_px) for row in rows.tolist()])
    masks = np.stack([annotated.read_mask(row, picture_px) for row in rows.tolist()])
    _write(annotated, rows, pictures, masks, folder)


def _write(source: DatasetFolder, rows: np.ndarray, pictures: np.ndarray, masks: np.ndarray, folder: Path) -> None:
    """A dataset folder of `pictures` and `masks`, whose patients are those of `rows` of `source`."""
    names = [f"{number:06d}.png" for number in range(len(rows))]
    for name, picture, mask in zip(names, pictures, masks, strict=True):
        write_png(folder / "images" / name, picture)
        write_png(folder / "masks" / name, mask)
    kept = source.table[["patient_id", "slide_id", "category"]].iloc[rows].reset_index(drop=True)
    files = pd.DataFrame(
        {
            "image_file_name": [f"images/{name}" for name in names],
            "mask_file_name": [f"masks/{name}" for name in names],
            "split": "train",
        }
    )
    write_metadata(folder, source.info, pd.concat([files, kept], axis=1))
