"""Controls and gates of synthetic data: sets that lack one thing on purpose, to see whether that thing is what helps.

- `shuffled-layouts`: the images of the set, each with the mask of another one. Do the masks matter?
- `copied-images`: annotated images again and again in place of generated ones. Or is it only the mixing?
- `annotated-styles`: drawn in the styles of the annotated patients. Are unannotated patients needed?
- `unpainted-images`: of a set of predicted layouts the images that they were predicted in, as they are. Is painting
  needed, or is it self-training?
- `shuffled-styles`: each image in the style of another patient than its own. Is it the patient's style that helps, or
  any?

Gates, by the voters of the first round (so that no mask is used that the model didn't use):

- `agreed-images`, `disputed-images`: of each style patient's images the half in which the voters find the
  layout best, or worst. Are faithful images worth more, or difficult ones?
- `agreed-pixels`: pixels in which the voters are sure of another class are ignored (after Yang et al. 2023,
  FreeMask).

`benchmarks/downstream.py` makes them for variants with the key `control`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from stedm.data.folder import DatasetFolder, write_metadata, write_png
from stedm.data.symmetry import symmetry
from stedm.errors import StedmError
from stedm.evaluation.quality import ImageSet
from stedm.experiment.rounds import Round
from stedm.layout.recipe import PREDICTED
from stedm.seeds import numpy_generator
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.pseudo_labels import vote

Gate = Literal["agreed-images", "disputed-images", "agreed-pixels"]
Control = Literal["shuffled-layouts", "copied-images", "unpainted-images", "annotated-styles", "shuffled-styles", Gate]
SURE = 0.9
"""Mean probability of a class from which the voters are sure of it."""


class AnnotatedStyles(Round):
    """Synthetic images in the styles of the annotated patients."""

    @property
    def style_source(self) -> DatasetFolder:
        return self.context.annotated


class ShuffledStyles(Round):
    """Synthetic images that are each in the style of another unannotated patient than planned. A predicted layout still
    begins at the pixels of the image that it was predicted in."""

    def plan(self) -> pd.DataFrame:
        return shuffle_styles(super().plan(), self.config.seed)


def shuffle_styles(plan: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The plan with each row's style images taken from a row of another patient.

    Raises:
        StedmError: all images are in the style of one patient.
    """
    patients = plan["style_patient_id"].to_numpy()
    if len(set(patients)) < 2:
        raise StedmError("control shuffled-styles: needs two unannotated patients")
    taken = [
        numpy_generator(seed, "shuffled style", row).choice(np.flatnonzero(patients != patients[row]))
        for row in range(len(plan))
    ]
    return plan.assign(style_image_file_names=plan["style_image_file_names"].to_numpy()[taken])


class Unpainted(Round):
    """In rounds after the first the images that the layouts were predicted in, as they are. Patients about whom
    segmenters contradict each other have none."""

    def synthetic(self) -> DatasetFolder:
        if self.is_drawn or self.before is None:
            return super().synthetic()
        plan, px, folder = self.plan(), self.config.data.side, self.folder / "synthetic"
        plan = plan[plan["layout_kind"] == PREDICTED]
        if plan.empty:
            raise StedmError(
                f"{self.folder}: control unpainted-images: segmenters contradict each other about everyone"
            )
        unlabeled, layouts = self.context.unlabeled, self.predicted_layouts()
        row_of = {name: row for row, name in enumerate(unlabeled.table["image_file_name"])}
        rows = [row_of[name] for name in plan["layout_image_file_name"]]
        turns = plan["layout_symmetry"].tolist()
        images, masks = (
            np.stack([symmetry(read(row, px), turn) for row, turn in zip(rows, turns, strict=True)])
            for read in (unlabeled.read_image, layouts.read_mask)
        )
        _write(unlabeled, np.array(rows), images, masks, folder)
        return DatasetFolder.open(folder)


DRAWN: dict[Control, type[Round]] = {
    "annotated-styles": AnnotatedStyles,
    "shuffled-styles": ShuffledStyles,
    "unpainted-images": Unpainted,
}
"""Controls whose images are made by a run of their own."""
NEEDED: dict[Control, Callable[[Round], object]] = {
    "annotated-styles": Round.model,
    "shuffled-styles": Round.model,
    "unpainted-images": Round.predicted_layouts,
}
"""What such a run takes over from the whole set's; the other controls take the set itself."""


def with_shuffled_layouts(images: ImageSet, seed: int = 0) -> ImageSet:
    """The same images, each with the mask of another one: the floor of `layout_iou`."""
    if images.masks is None or len(images.masks) < 2:
        raise StedmError("quality: shuffling layouts needs two images with masks")
    order = numpy_generator(seed, "shuffled layouts").permutation(len(images.masks))
    masks = np.empty_like(images.masks)
    masks[order] = images.masks[np.roll(order, 1)]  # along one cycle, so that none keeps its own
    return ImageSet(images.images, images.patients, masks)


def shuffle_layouts(synthetic: DatasetFolder, folder: Path, *, image_px: int, seed: int) -> None:
    """The set with its masks dealt out anew, no image with its own; written to `folder`."""
    shuffled = with_shuffled_layouts(ImageSet.read(synthetic, image_px, with_masks=True), seed)
    _write(synthetic, np.arange(len(synthetic)), shuffled.images, shuffled.masks, folder)


def copy_images(annotated: DatasetFolder, n_images: int, folder: Path, *, image_px: int, seed: int) -> None:
    """`n_images` copies of annotated images, each about as often as any other; written to `folder`."""
    generator = numpy_generator(seed, "copied pictures")
    rounds = [generator.permutation(len(annotated)) for _ in range(-(-n_images // len(annotated)))]
    rows = np.concatenate(rounds)[:n_images]
    images = np.stack([annotated.read_image(row, image_px) for row in rows.tolist()])
    masks = np.stack([annotated.read_mask(row, image_px) for row in rows.tolist()])
    _write(annotated, rows, images, masks, folder)


def gate(synthetic: DatasetFolder, voters: Sequence[Path], kind: Gate, folder: Path, *, image_px: int) -> None:
    """What a gate leaves of the set, written to `folder`."""
    whole = ImageSet.read(synthetic, image_px, with_masks=True)
    networks = [load_segmenter(path)[0] for path in voters]
    starts = range(0, len(whole.images), 64)
    votes = torch.cat([vote(networks, whole.images[start : start + 64]) for start in starts]).numpy()
    if kind == "agreed-pixels":
        disputed = (votes.argmax(1) != whole.masks) & (votes.max(1) >= SURE)
        masks = np.where(disputed, synthetic.info.ignore_index, whole.masks).astype(np.uint8)
        return _write(synthetic, np.arange(len(synthetic)), whole.images, masks, folder)
    asked = np.take_along_axis(votes, whole.masks[:, None].astype(np.int64), axis=1)[:, 0].mean((1, 2))
    rows = half_of_each(whole.patients, asked if kind == "disputed-images" else -asked)
    return _write(synthetic, rows, whole.images[rows], whole.masks[rows], folder)


def half_of_each(patients: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rows of the half of each patient's images with the lowest score, in order; of an odd number the larger half."""
    ordered = pd.Series(patients).iloc[np.argsort(score, kind="stable")]
    groups = ordered.groupby(ordered)
    kept = groups.cumcount() < (groups.transform("size") + 1) // 2
    return np.sort(ordered.index[kept].to_numpy())


def _write(source: DatasetFolder, rows: np.ndarray, images: np.ndarray, masks: np.ndarray, folder: Path) -> None:
    """A dataset folder of `images` and `masks`, whose patients are those of `rows` of `source`."""
    names = [f"{number:06d}.png" for number in range(len(rows))]
    for name, image, mask in zip(names, images, masks, strict=True):
        write_png(folder / "images" / name, image)
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
