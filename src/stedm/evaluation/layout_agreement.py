"""Do synthetic images show the layouts that they were painted to?

Two looks. A segmenter that learned from real images alone finds classes, which are held against the layout (`iou`). It
may fail on patients who look like none it has seen; so the other look needs no network: how much of the colour in an
image is explained by where its layout has which class (`contrast`). Both are read between two ends: the same images
under layouts of others, and real images with their masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.counts import class_names, count, counts_table
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.quality import Measure, over_patients
from stedm.evaluation.seen import batches, without_mirror
from stedm.io.images import resized
from stedm.seeds import numpy_generator
from stedm.segmentation.predict import predict_masks

IGNORED, WEAK = 0.25, 0.6
"""Of what real images reach above chance: below the first layouts are ignored, from the second on followed."""
LEAST_ABOVE_CHANCE = {"iou": 0.1, "contrast": 0.02}
"""Where real images don't reach that much above layouts of others, the look tells nothing."""
_CONTRAST_PX = 32


@dataclass(frozen=True)
class Look:
    """What was found in a set of images with masks, and under the masks of other images of the set."""

    n: int
    iou: Measure | None
    iou_of_others: float | None
    per_class: dict[str, float]
    contrast: float
    contrast_of_others: float

    def above_chance(self, measure: str) -> float | None:
        value, chance = (self.iou and self.iou.value, self.iou_of_others)
        if measure == "contrast":
            value, chance = self.contrast, self.contrast_of_others
        return None if value is None or chance is None or np.isnan(value - chance) else value - chance


def look_for_layouts(
    dataset: DatasetFolder, rows: Sequence[int] | np.ndarray, image_px: int, network: nn.Module | None
) -> Look:
    """Look at images of a dataset that have masks.

    network: a segmenter of the dataset's classes; None = the look without one.
    """
    masks, found, colours = [], [], []
    bare = without_mirror(network)
    for batch in batches(len(rows), image_px):
        images = np.stack([dataset.read_image(int(rows[i]), image_px) for i in batch])
        masks += [dataset.read_mask(int(rows[i]), image_px) for i in batch]
        colours += [_optical_density(resized(image, min(image_px, _CONTRAST_PX))) for image in images]
        if bare is not None:
            found += list(predict_masks(bare, images))
    other = _others(len(rows))
    info, table = dataset.info, dataset.table.iloc[rows]

    def scores(asked: list[np.ndarray]) -> Any:
        cells = [count(a, b, len(info.classes), info.ignore_index) for a, b in zip(found, asked, strict=True)]
        counts = counts_table("layouts", 0, table["patient_id"].tolist(), [""] * len(cells), cells, info.classes)
        return per_patient(counts).set_index("patient_id"), class_names(counts)

    def contrasts(asked: list[np.ndarray]) -> float:
        values = [explained(colour, mask, info.ignore_index) for colour, mask in zip(colours, asked, strict=True)]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else float("nan")

    swapped = [masks[row] for row in other]
    iou, chance, per_class = None, None, {}
    if found:
        own, names = scores(masks)
        iou, chance = over_patients(own["iou"]), over_patients(scores(swapped)[0]["iou"]).value
        per_class = {name: float(own[f"iou_{name}"].mean()) for name in names[1:]}
    return Look(len(rows), iou, chance, per_class, contrasts(masks), contrasts(swapped))


def explained(colour: np.ndarray, mask: np.ndarray, ignore_index: int) -> float | None:
    """Part of the variance of colours (h, w, 3) that lies between the classes of a mask (H, W); None of one class."""
    rows, columns = (np.arange(small) * large // small for small, large in zip(colour.shape, mask.shape, strict=False))
    classes = mask[np.ix_(rows, columns)]
    known = classes != ignore_index
    values, (_, number) = colour[known], np.unique(classes[known], return_inverse=True)
    sizes = np.bincount(number)
    if len(sizes) < 2:
        return None
    centred = values - values.mean(axis=0)
    sums = np.stack([np.bincount(number, weights=channel) for channel in centred.T], axis=1)
    total = float((centred**2).sum())
    return float((sums**2 / sizes[:, None]).sum() / total) if total > 0 else 0.0


def layout_result(synthetic: Look, real: Look | None, real_are: str) -> dict[str, Any]:
    """What docs/quality.md says of `layout`; `real_are`: which images are the reference."""
    shares = {measure: _share(synthetic, real, measure) for measure in LEAST_ABOVE_CHANCE}
    return {
        "verdict": _verdict(shares["iou"], shares["contrast"]),
        "share": shares["iou"],
        "share_contrast": shares["contrast"],
        "synthetic": _values(synthetic),
        "real": None if real is None else {"images": real_are, **_values(real)},
        "per_patient": synthetic.iou.per_patient if synthetic.iou else {},
    }


def _values(look: Look) -> dict[str, Any]:
    return {
        "n_images": look.n,
        "iou": look.iou and look.iou.value,
        "ci": look.iou.ci if look.iou else [None, None],
        "per_class": look.per_class,
        "iou_of_other_layouts": look.iou_of_others,
        "contrast": look.contrast,
        "contrast_of_other_layouts": look.contrast_of_others,
    }


def _share(synthetic: Look, real: Look | None, measure: str) -> float | None:
    """What is above chance, of what real images have above it; None where real images have next to nothing."""
    reached, possible = synthetic.above_chance(measure), real and real.above_chance(measure)
    if reached is None or possible is None or possible < LEAST_ABOVE_CHANCE[measure]:
        return None
    return reached / possible


def _verdict(segmenter: float | None, contrast: float | None) -> str:
    """`ignored` only where no look sees the layouts: a segmenter fails on some styles, and classes may have one
    colour."""
    known = [share for share in (segmenter, contrast) if share is not None]
    if not known:
        return "unknown"
    if max(known) < IGNORED:
        return "ignored"
    decisive = contrast if segmenter is None else segmenter
    return "followed" if decisive is not None and decisive >= WEAK else "weak"


def _others(n: int) -> np.ndarray:
    """Of each of n rows another one."""
    if n < 2:
        raise StedmError("quality: layouts need two images with masks or more")
    order = numpy_generator(0, "quality", "other layouts").permutation(n)
    other = np.empty(n, int)
    other[order] = np.roll(order, 1)
    return other


def _optical_density(image: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(image.astype(np.float32) / 255, 0.5 / 255))
