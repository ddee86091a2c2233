"""Style sampling: which images show the network the style of a training image (paper, section 3).

| kind | style images | where there are none |
|---|---|---|
| `none` | nothing: the null style | |
| `augmented` | the image itself, strongly deformed (see stedm.style.deform) | |
| `nearby` | images of the same slide within one tile's distance of the target | same slide, then `augmented` |
| `multi-patch` | random tissue patches of other images of the same slide (paper: 10) | `augmented` |
| `cohort` | other images of the same patient | `augmented` |

The style must not tell the layout of the target, so that no kind but `augmented` shows pixels of it: the target is left
out, and with it every image that overlaps it on the slide, where positions are known (`x`, `y`; see
stedm.data.positions). `nearby` falls back to the whole slide where the target's position is not known or nothing
lies near it. Images of a patient without `slide_id` count as one slide. Slides of different patients are different
slides, whatever their ids. Where a slide or patient is annotated in part, its other images are shown as well (see
`unannotated_tissue`). `cohort` and `nearby` give fewer images than asked for where there are fewer (the rest
is padding); `augmented` and `multi-patch` always give as many as asked for.
"""

import functools
from collections.abc import Callable

import numpy as np
import pandas as pd

from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.data.positions import SlidePositions
from stedm.data.squares import files_of
from stedm.data.symmetry import N_SYMMETRIES, symmetry
from stedm.errors import StedmError
from stedm.style.deform import deformed, random_tissue_patch


class StyleSampler:
    """Draw the query styles of a training image.

    Args:
        cache: the images; style images come from nowhere else.
        kind: a key of `SAMPLINGS`.
        n_images: style images a sample.
    """

    def __init__(self, cache: ImageCache, kind: str, n_images: int):
        self.cache, self.n_images = cache, n_images
        self._draw = SAMPLINGS[kind]
        table = cache.dataset.table
        self._of_patient = _groups(table["patient_id"])
        self._of_slide = _groups(slide_keys(table))
        self._file = pd.factorize(files_of(cache.dataset))[0]
        self._positions = SlidePositions(cache.dataset)

    def __call__(self, row: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Style images uint8 `(n, px, px, 3)` of the image `row`, and valid `(n,)`, False at padding."""
        side = self.cache.image_px
        # Channels lie first in memory, as networks want them: images are turned as they are put down, not once more.
        images = np.moveaxis(np.zeros((self.n_images, 3, side, side), np.uint8), 1, -1)
        shown = self._draw(self, row, generator)
        for i, image in enumerate(shown):
            images[i] = image
        return images, np.arange(self.n_images) < len(shown)

    def others_of_patient(self, row: int) -> np.ndarray:
        """Rows of the same patient that share no area with `row`, as far as positions are known."""
        rows = self._of_patient[row]
        same_slide = np.isin(rows, self.others_of_slide(row))
        return rows[same_slide | ~np.isin(rows, self._of_slide[row])]

    def others_of_slide(self, row: int) -> np.ndarray:
        """Rows of the same slide that share no area with `row`, as far as positions are known."""
        rows = self._of_slide[row]
        # Squares of one image overlap, and where it lies on the slide may not be known.
        rows = rows[self._file[rows] != self._file[row]]
        return rows[~self._positions.overlapping(row, rows)]

    def neighbours(self, row: int) -> np.ndarray:
        """Rows of the same slide within one tile's distance of `row`; empty where its position is unknown."""
        rows = self.others_of_slide(row)
        return rows[self._positions.near(row, rows)]

    def turned(self, rows: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """At most `n_images` of the images `rows`, in random order, each mirrored or turned."""
        chosen = generator.permutation(rows)[: self.n_images]
        return [symmetry(self.cache.image(int(i)), int(generator.integers(N_SYMMETRIES))) for i in chosen]


def _none(sampler: StyleSampler, row: int, generator: np.random.Generator) -> list[np.ndarray]:
    return []


def _augmented(sampler: StyleSampler, row: int, generator: np.random.Generator) -> list[np.ndarray]:
    return style_views(sampler.cache.image(row), sampler.n_images, generator)


def _nearby(sampler: StyleSampler, row: int, generator: np.random.Generator) -> list[np.ndarray]:
    for rows in (sampler.neighbours(row), sampler.others_of_slide(row)):
        if len(rows):
            return sampler.turned(rows, generator)
    return _augmented(sampler, row, generator)


def _multi_patch(sampler: StyleSampler, row: int, generator: np.random.Generator) -> list[np.ndarray]:
    rows = sampler.others_of_slide(row)
    if len(rows) == 0:
        return _augmented(sampler, row, generator)
    # Where there are few images, some are drawn more than once.
    read = functools.cache(sampler.cache.image)
    return [random_tissue_patch(read, rows, generator) for _ in range(sampler.n_images)]


def _cohort(sampler: StyleSampler, row: int, generator: np.random.Generator) -> list[np.ndarray]:
    rows = sampler.others_of_patient(row)
    return sampler.turned(rows, generator) if len(rows) else _augmented(sampler, row, generator)


SAMPLINGS: dict[str, Callable[[StyleSampler, int, np.random.Generator], list[np.ndarray]]] = {
    "none": _none,
    "augmented": _augmented,
    "nearby": _nearby,
    "multi-patch": _multi_patch,
    "cohort": _cohort,
}
"""Each gives at most `n_images` style images, uint8 `(px, px, 3)`, of a row; an empty list = the null style."""


def style_views(image: np.ndarray, n: int, generator: np.random.Generator) -> list[np.ndarray]:
    """`n` style images, uint8 `(h, w, 3)`, of one image: what a model trained with `augmented` saw as style."""
    return [deformed(image, generator) for _ in range(n)]


def refuse_impossible_sampling(kind: str, *datasets: DatasetFolder) -> None:
    """`StedmError` if `kind` needs other images of a slide and the metadata of no dataset can name any.

    That is where there is neither a `slide_id` nor a patient with two images: every sample would silently be
    `augmented`. Single images without others, among such that have some, are no error.
    """
    tables = [dataset.table[~files_of(dataset).duplicated()] for dataset in datasets]
    if kind not in ("nearby", "multi-patch") or any((table["slide_id"] != "").any() for table in tables):
        return
    if all(table["patient_id"].is_unique for table in tables):
        raise StedmError(
            f"{datasets[0].root}: style.sampling {kind} needs several images of a slide, but there is no slide_id "
            "and each patient has one image; add slide_id or set diffusion.style.sampling=augmented"
        )


def unannotated_tissue(dataset: DatasetFolder, annotated: DatasetFolder) -> DatasetFolder:
    """What else there is of the patients of `annotated`: their images in split `train` that have no mask.

    They are no training images, but their styles are those of the annotated ones. On a slide with a few annotated
    regions they are the rest of its tissue. Images with masks that a label budget leaves out stay out.
    """
    table = dataset.table
    bare = (table["split"] == "train") & (table["mask_file_name"] == "")
    return dataset.select((bare & table["patient_id"].isin(set(annotated.table["patient_id"]))).to_numpy())


def slide_keys(table: pd.DataFrame) -> pd.Series:
    """What names the slide of each row: patient and slide, so that ids need to be unique within a patient only."""
    return pd.Series(list(zip(table["patient_id"], table["slide_id"], strict=True)), index=table.index)


def _groups(keys: pd.Series) -> list[np.ndarray]:
    """For each row the numbers of all rows with the same key."""
    codes = pd.factorize(keys)[0]
    groups = pd.Series(codes).groupby(codes).indices
    return [groups[code] for code in codes]
