"""The composition prior: new layouts whose class fractions and structure sizes are those of a category.

Which layouts are plausible for a patient is known from its category (diagnosis, score) without pixel annotation
(paper, section 3). The paper reuses annotated layouts; here they can also be warped, joined, or drawn from random
fields. A layout is decided first (`LayoutRecipe`: everything random about it) and built afterwards, so that a plan
holds the decision in a row and any machine builds the same layout from it.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from stedm.config import LayoutKind
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import N_SYMMETRIES
from stedm.errors import StedmError
from stedm.layout.measures import class_fractions, contacts_of
from stedm.layout.recipe import LayoutRecipe, Texture, build_layout
from stedm.layout.texture_fit import class_tree, fitted_field
from stedm.seeds import numpy_generator, seed_for

Limits = Mapping[str, Mapping[str, tuple[float, float]]]
"""By category and class name: lowest and highest fraction of the image."""

_TRIES = 100
_MEASURE_PX = 64  # layouts are thinned to at most this side for the fit


class LayoutPrior:
    """Layouts by category, and what is common to the layouts of a category.

    Attributes:
        names: `image_file_name` of the annotated images (n).
    """

    def __init__(self, annotated: DatasetFolder, image_px: int | None, limits: Limits | None = None):
        held_out = sorted(set(annotated.table["split"]) - {"train"})
        if held_out:
            raise StedmError(f"{annotated.root}: layouts may not come from split {', '.join(held_out)}")
        if len(annotated) == 0:
            raise StedmError(f"{annotated.root}: a layout prior needs annotated images")
        self.annotated, self.image_px = annotated, image_px
        self.names = annotated.table["image_file_name"].tolist()
        self.n_classes = len(annotated.info.classes)
        self.limits = {name: self._limits(name, ranges) for name, ranges in (limits or {}).items()}
        by_category = annotated.table.groupby("category").indices
        self._rows_of = {str(name): np.asarray(rows) for name, rows in by_category.items()}
        self._row_of = {name: row for row, name in enumerate(self.names)}
        self._composition_of: dict[str | None, _Composition] = {}

    @classmethod
    def fit(cls, annotated: DatasetFolder, image_px: int | None, limits: Limits | None = None) -> "LayoutPrior":
        """Fit on annotated images of split train.

        Masks are read, at `image_px`, and a category is measured when it is first needed; resampling without limits
        needs neither, and then `image_px` may be None.

        Args:
            limits: what the user knows: `{category: {class_name: (low, high)}}`, fractions of the image. A category
                that is in here gets only layouts that fit.

        Raises:
            StedmError: an image is not of split train, there is none, or a class of `limits` is unknown.
        """
        return cls(annotated, image_px, limits)

    def recipe(self, kind: LayoutKind, category: str | None, generator: np.random.Generator) -> LayoutRecipe:
        """Decide on a layout of `kind` for a category; all layouts are used for one that has none (or None).

        Raises:
            StedmError: no annotated layout is within the limits of the category.
        """
        limits = self.limits.get(category or "")
        rows = self._rows(category)
        if limits is not None and kind != "procedural":
            rows = rows[_within(self.fractions[rows], limits)]
            if rows.size == 0:
                raise StedmError(
                    f"{self.annotated.root}: no annotated layout is within category_fractions of {category!r}; "
                    "widen the range or use synthesis.layouts=procedural"
                )
        row, turn = int(generator.choice(rows)), int(generator.integers(N_SYMMETRIES))
        if kind == "resample":
            return LayoutRecipe(kind, self.names[row], turn)
        for _ in range(_TRIES):
            recipe = self._vary(kind, category, rows, row, turn, generator)
            # A procedural layout has its fractions to a pixel, and they were drawn within the limits.
            if limits is None or kind == "procedural":
                return recipe
            if _within(class_fractions(self.build(recipe)[None], self.n_classes), limits)[0]:
                return recipe
        raise StedmError(
            f"{self.annotated.root}: no {kind} layout within category_fractions of {category!r} in {_TRIES} tries; "
            "widen the range"
        )

    def build(self, recipe: LayoutRecipe) -> np.ndarray:
        """Build a recipe of this prior, uint8 (image_px, image_px)."""
        return build_layout(recipe, lambda name: self.layouts[self._row_of[name]], self.layouts.shape[1])

    def draw(self, kind: LayoutKind, category: str | None, generator: np.random.Generator) -> np.ndarray:
        """Decide on a layout and build it: uint8 (image_px, image_px) of class indices."""
        return self.build(self.recipe(kind, category, generator))

    def draw_many(self, kind: LayoutKind, category: str | None, n: int, seed: int) -> np.ndarray:
        """`n` layouts (n, image_px, image_px); layout i is a pure function of (seed, i)."""
        return np.stack([self.draw(kind, category, numpy_generator(seed, "layout", i)) for i in range(n)])

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

    def composition(self, category: str | None) -> "_Composition":
        """What the layouts of a category have in common."""
        key = category if category in self._rows_of else None
        if key not in self._composition_of:
            self._composition_of[key] = _Composition(self, self._rows(category))
        return self._composition_of[key]

    def _rows(self, category: str | None) -> np.ndarray:
        rows = self._rows_of.get(category) if category is not None else None
        return np.arange(len(self.names)) if rows is None else rows

    def _vary(
        self,
        kind: LayoutKind,
        category: str | None,
        rows: np.ndarray,
        row: int,
        turn: int,
        generator: np.random.Generator,
    ) -> LayoutRecipe:
        seed = seed_for(int(generator.integers(2**62)), "layout")
        if kind == "warp":
            return LayoutRecipe(kind, self.names[row], turn, seed)
        if kind == "recombine":
            return LayoutRecipe(kind, self.names[row], turn, seed, self.names[self._partner(rows, row, generator)])
        composition, limits = self.composition(category), self.limits.get(category or "")
        fractions, row = composition.draw_fractions(generator, limits)
        texture = Texture(tuple(fractions.tolist()), composition.scales, composition.cells, composition.parents)
        return LayoutRecipe(kind, self.names[row], turn, seed, "", texture)

    def _partner(self, rows: np.ndarray, row: int, generator: np.random.Generator) -> int:
        """Another layout of about the same composition: joining two at random would halve the spread of fractions."""
        others = rows[rows != row]
        if others.size == 0:
            return row
        distance = np.abs(self.fractions[others] - self.fractions[row]).sum(axis=1)
        return int(generator.choice(others[np.argsort(distance, kind="stable")][: max(2, others.size // 5)]))

    def _limits(self, category: str, ranges: Mapping[str, tuple[float, float]]) -> np.ndarray:
        """Lowest and highest fraction of each class, (n_classes, 2)."""
        classes = self.annotated.info.classes
        limits = np.tile([0.0, 1.0], (len(classes), 1))
        for name, (low, high) in ranges.items():
            if name not in classes:
                raise StedmError(f"category_fractions of {category!r}: no class {name!r}; use {', '.join(classes)}")
            limits[classes.index(name)] = low, high
        if limits[:, 0].sum() > 1.0 or limits[:, 1].sum() < 1.0:
            raise StedmError(f"category_fractions of {category!r}: fractions in these ranges can't sum to 1")
        return limits


class _Composition:
    """Fractions, structure sizes and neighbourhood of the classes in the layouts of a category."""

    def __init__(self, prior: LayoutPrior, rows: np.ndarray):
        known = rows[np.isfinite(prior.fractions[rows]).all(axis=1)]
        if known.size == 0:
            raise StedmError(f"{prior.annotated.root}: the annotated layouts of a category are ignored pixels only")
        self.rows, self.fractions = known, prior.fractions[known]
        step = -(-prior.layouts.shape[1] // _MEASURE_PX)
        layouts, everywhere = prior.layouts[known, ::step, ::step], prior.layouts[:, ::step, ::step]
        self.parents = class_tree(self.fractions.mean(axis=0), contacts_of(layouts, prior.n_classes))
        fields = [fitted_field(layouts, everywhere, self.parents, index) for index in range(prior.n_classes)]
        self.scales, self.cells = (tuple(numbers) for numbers in zip(*fields, strict=True))

    def draw_fractions(self, generator: np.random.Generator, limits: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Fractions (n_classes) and the row of the layout that they follow.

        A smoothed bootstrap with the variance kept (Silverman & Young 1987): the fractions of a layout plus a part of
        the difference between two others, drawn towards the mean. A class that the layout hasn't stays away. If no
        draw is within the limits, fractions uniform in the limits are taken.
        """
        n = len(self.rows)
        width = 0.5 * n**-0.2
        for _ in range(_TRIES):
            index, plus, minus = generator.integers(n, size=3)
            step = width * (self.fractions[plus] - self.fractions[minus])
            mean = self.fractions.mean(axis=0)
            drawn = mean + (self.fractions[index] + step - mean) / np.sqrt(1.0 + 2.0 * width**2)
            drawn = np.where(self.fractions[index] > 0, np.maximum(drawn, 0.0), 0.0)
            drawn = drawn / drawn.sum()
            if limits is None or _within(drawn[None], limits)[0]:
                return drawn.round(6), int(self.rows[index])
        return _inside(drawn, limits, generator).round(6), int(self.rows[index])


def _inside(fractions: np.ndarray, limits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Fractions within limits: uniform for the limited classes, the rest shared in the proportions of `fractions`."""
    low, high = limits.T
    free = (low == 0.0) & (high == 1.0)
    for _ in range(_TRIES):
        drawn = np.where(free, 0.0, generator.uniform(low, high))
        rest = 1.0 - drawn.sum()
        if free.any() and rest >= 0.0:
            weights = np.where(free, fractions + 1e-9, 0.0)
            return drawn + rest * weights / weights.sum()
        if not free.any():
            break
    # Every class is limited: from the lowest fractions upwards, each in proportion to its room.
    room = high - low
    return low + (1.0 - low.sum()) * room / max(room.sum(), 1e-9)


def _within(fractions: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which rows of fractions (n, n_classes) are within limits (n_classes, 2); NaN is not."""
    return ((fractions >= limits[:, 0] - 1e-6) & (fractions <= limits[:, 1] + 1e-6)).all(axis=1)
