"""The composition prior: layouts whose class fractions are those of a category.

Which layouts are plausible for a patient is known from its category (diagnosis, score) without pixel annotation
(paper, section 3). The paper reuses annotated layouts; here they can also be warped. A layout is decided first
(`LayoutRecipe`: everything random about it) and built afterwards, so that a plan holds the decision in a row and any
machine builds the same layout from it.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from stedm.config import LayoutKind
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import N_SYMMETRIES
from stedm.errors import StedmError
from stedm.layout.recipe import LayoutRecipe, build_layout
from stedm.seeds import seed_for

Limits = Mapping[str, Mapping[str, tuple[float, float]]]
"""By category and class name: lowest and highest fraction of the image."""

_TRIES = 100


class LayoutPrior:
    """Layouts by category, of annotated images of split train.

    Masks are read, at `image_px`, when they are first needed; resampling without limits needs none, and then
    `image_px` may be None.

    Args:
        limits: what the user knows: `{category: {class_name: (low, high)}}`, fractions of the image. A category
            that is in here gets only layouts that fit.

    Attributes:
        names: `image_file_name` of the annotated images (n).

    Raises:
        StedmError: an image is not of split train, there is none, or a class of `limits` is unknown.
    """

    def __init__(self, annotated: DatasetFolder, image_px: int | None, limits: Limits | None = None):
        held_out = sorted(set(annotated.table["split"]) - {"train"})
        if held_out:
            raise StedmError(
                f"{annotated.root}: layouts may not come from split {', '.join(held_out)}; give images of train"
            )
        if len(annotated) == 0:
            raise StedmError(
                f"{annotated.root}: a layout prior needs annotated images; add masks to images of split train"
            )
        self.annotated, self.image_px = annotated, image_px
        self.names = annotated.table["image_file_name"].tolist()
        self.n_classes = len(annotated.info.classes)
        self.limits = {name: self._limits(name, ranges) for name, ranges in (limits or {}).items()}
        by_category = annotated.table.groupby("category").indices
        self._rows_of: dict[str | None, np.ndarray] = {
            str(name): np.asarray(rows) for name, rows in by_category.items()
        }
        self._row_of = {name: row for row, name in enumerate(self.names)}

    def recipe(self, kind: LayoutKind, category: str | None, generator: np.random.Generator) -> LayoutRecipe:
        """Decide on a layout of `kind` for a category; all layouts are used for one that has none (or None).

        Raises:
            StedmError: no annotated layout is within the limits of the category, or none of its warped ones.
        """
        rows, limits = self._rows_of.get(category, np.arange(len(self.names))), self.limits.get(category or "")
        if limits is not None:
            rows = rows[_within(self.fractions[rows], limits)]
            if rows.size == 0:
                raise StedmError(
                    f"{self.annotated.root}: no annotated layout is within category_fractions of {category!r}; "
                    "widen the range"
                )
        row, turn = int(generator.choice(rows)), int(generator.integers(N_SYMMETRIES))
        if kind == "resample":
            return LayoutRecipe(kind, self.names[row], turn)
        for _ in range(_TRIES):
            recipe = LayoutRecipe(kind, self.names[row], turn, seed_for(int(generator.integers(2**62)), "layout"))
            if limits is None or _within(class_fractions(self.build(recipe)[None], self.n_classes), limits)[0]:
                return recipe
        raise StedmError(
            f"{self.annotated.root}: no {kind} layout within category_fractions of {category!r} in {_TRIES} tries; "
            "widen the range"
        )

    def build(self, recipe: LayoutRecipe) -> np.ndarray:
        """Build a recipe of this prior, uint8 (image_px, image_px)."""
        return build_layout(recipe, lambda name: self.layouts[self._row_of[name]])

    @cached_property
    def layouts(self) -> np.ndarray:
        """All annotated layouts, uint8 (n, image_px, image_px), ignored pixels kept."""
        if self.image_px is None:
            raise ValueError("image_px is needed to read layouts")
        return np.stack([self.annotated.read_mask(row, self.image_px) for row in range(len(self.annotated))])

    @cached_property
    def fractions(self) -> np.ndarray:
        """Class fractions of the annotated layouts, (n, n_classes); NaN where nothing is known of a layout."""
        return class_fractions(self.layouts, self.n_classes)

    def _limits(self, category: str, ranges: Mapping[str, tuple[float, float]]) -> np.ndarray:
        """Lowest and highest fraction of each class, (n_classes, 2)."""
        classes = self.annotated.info.classes
        limits = np.tile([0.0, 1.0], (len(classes), 1))
        for name, (low, high) in ranges.items():
            if name not in classes:
                raise StedmError(f"category_fractions of {category!r}: no class {name!r}; use {', '.join(classes)}")
            limits[classes.index(name)] = low, high
        if limits[:, 0].sum() > 1.0 or limits[:, 1].sum() < 1.0:
            raise StedmError(
                f"category_fractions of {category!r}: fractions in these ranges can't sum to 1; widen them"
            )
        return limits


def class_fractions(layouts: np.ndarray, n_classes: int) -> np.ndarray:
    """Part of the known pixels of each class, (n, n_classes), of layouts (n, H, W); NaN where no pixel is known."""
    counts = np.stack([(layouts == index).sum(axis=(1, 2)) for index in range(n_classes)], axis=1).astype(float)
    known = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, known, out=np.full_like(counts, np.nan), where=known > 0)


def _within(fractions: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which rows of fractions (n, n_classes) are within limits (n_classes, 2); NaN is not."""
    return ((fractions >= limits[:, 0] - 1e-6) & (fractions <= limits[:, 1] + 1e-6)).all(axis=1)
