"""The composition prior: new layouts whose class fractions and structure sizes are those of a category.

Which layouts are plausible for a patient is known from its category (diagnosis, score) without pixel annotation
(paper, section 3). The paper reuses annotated layouts; here they can also be warped, joined, or drawn from random
fields. A layout is decided first (`LayoutRecipe`: everything random about it) and built afterwards, so that a plan
holds the decision in a row and any machine builds the same layout from it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import ndtri
from scipy.stats import wasserstein_distance
from skimage.graph import shortest_path

from stedm.config import LayoutKind
from stedm.data.field import SmoothField
from stedm.data.folder import DatasetFolder
from stedm.data.transforms import N_SYMMETRIES, symmetry
from stedm.errors import StedmError
from stedm.seeds import numpy_generator, seed_for

KINDS: tuple[LayoutKind, ...] = ("resample", "warp", "recombine", "procedural")
Limits = Mapping[str, Mapping[str, tuple[float, float]]]
"""By category and class name: lowest and highest fraction of the picture."""

_WARP_SIDES = 0.05  # standard deviation of the displacement, in picture sides
_WARP_SCALE_SIDES = 0.3  # distance over which the displacement changes; much more than it moves, so nothing folds
_TURN_RADIANS, _ZOOM = 0.3, 0.1
_TRIES = 100
_CELL_SPACING = 3.0  # distance between cells over the scale of the Gaussian field
_CELL_MEAN, _CELL_SPREAD = 0.30, 0.21  # of the unscaled cellular field
_DOUBT = 1.4  # by how much cells must fit better than no cells: a few layouts are a noisy measure
_CELLS, _TRIALS = (0.0, -0.5, -0.85, 0.5, 0.85), 12  # what is tried in the fit
_MEASURE_PX = 64  # layouts are thinned to at most this side for the fit
_UNSEEN_SCALE_SIDES = 0.25  # scale of a class that touches no other in any annotated layout


@dataclass(frozen=True)
class Texture:
    """What a procedural layout is drawn from. Classes form a tree: each is carved out of its parent's region."""

    fractions: tuple[float, ...]
    """Part of the picture of each class; they sum to 1."""
    scales: tuple[float, ...]
    """Distance between the knots of each class's random field, in picture sides."""
    cells: tuple[float, ...]
    """How cellular each class's field is, -1..1: at 0 a Gaussian random field; towards 1 the class is made of bodies
    that don't touch (glands), towards -1 it is the net between such bodies (stroma)."""
    parents: tuple[int, ...]
    """The class that each is carved out of; -1 for the one that fills the picture first."""

    @classmethod
    def from_json(cls, text: str) -> "Texture":
        """Read what `to_json` wrote. ValueError, KeyError or TypeError if the text is something else."""
        values = json.loads(text)
        texture = cls(**{name: tuple(values[name]) for name in ("fractions", "scales", "cells", "parents")})
        if len({len(value) for value in asdict(texture).values()} - {0}) != 1:
            raise ValueError("one number of each sort per class")
        return texture

    def to_json(self) -> str:
        """One line; numbers read back equal."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True)
class LayoutRecipe:
    """One layout, decided but not built."""

    kind: LayoutKind
    source: str
    """Annotated picture (`image_file_name`) whose layout is used, or whose class fractions `procedural` followed."""
    symmetry: int
    seed: int = 0
    second: str = ""
    """The other annotated picture of `recombine`."""
    texture: Texture | None = None
    """For `procedural`."""


def build_layout(recipe: LayoutRecipe, read: Callable[[str], np.ndarray], picture_px: int) -> np.ndarray:
    """Build a layout, uint8 (picture_px, picture_px) of class indices; unknown pixels of the sources stay unknown.

    Args:
        read: gives the layout of an annotated picture by its `image_file_name`.
    """
    generator = np.random.default_rng(recipe.seed)
    if recipe.kind == "procedural":
        if recipe.texture is None:
            raise StedmError(f"{recipe.source}: a procedural layout without fractions; make the plan again")
        return carve(recipe.texture, picture_px, generator)
    layout = read(recipe.source)
    if recipe.kind == "warp":
        layout = warp(layout, generator)
    elif recipe.kind == "recombine":
        layout = join(layout, symmetry(read(recipe.second), int(generator.integers(N_SYMMETRIES))), generator)
    return np.ascontiguousarray(symmetry(layout, recipe.symmetry))


# ---- the three ways to make a layout that nobody drew -------------------------------------------------------------


def warp(layout: np.ndarray, generator: np.random.Generator, amplitude_sides: float = _WARP_SIDES) -> np.ndarray:
    """Turn, stretch and elastically deform a layout (H, W), mirrored at the border.

    A pixel takes the class that has most weight in bilinear interpolation, which keeps outlines smoother than the
    nearest neighbour does and makes no new class either. `amplitude_sides` is the standard deviation of the elastic
    displacement in picture sides.
    """
    height, width = layout.shape
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    turn, (zoom_y, zoom_x) = generator.normal(0, _TURN_RADIANS), np.exp(generator.normal(0, _ZOOM, 2))
    cosine, sine = np.cos(turn), np.sin(turn)
    down, right = np.meshgrid(y - 0.5, x - 0.5, indexing="ij")
    moved = np.stack([zoom_y * (cosine * down - sine * right), zoom_x * (sine * down + cosine * right)]) + 0.5
    for axis in moved:
        axis += amplitude_sides * SmoothField(1.0, 1.0, _WARP_SCALE_SIDES, generator)(y, x)
    points = moved * np.array([height, width])[:, None, None] - 0.5
    values = np.unique(layout)
    weights = [
        ndimage.map_coordinates((layout == v).astype(np.float32), points, order=1, mode="reflect") for v in values
    ]
    return values[np.argmax(weights, axis=0)]


def join(first: np.ndarray, second: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Upper part of one layout, lower part of another, along a seam where the two agree as far as possible.

    The minimum-error boundary cut of image quilting (Efros & Freeman 2001), with class disagreement as the error and a
    random field added, so that the same two layouts have many seams. It stays between 0.2 and 0.8 of the height.
    """
    height, width = first.shape
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    cost = (first != second) + 0.3 * np.exp(SmoothField(1.0, 1.0, 0.2, generator)(y, x))
    cost += 4.0 * (y[:, None] - generator.uniform(0.35, 0.65)) ** 2 + 1e3 * (np.abs(y[:, None] - 0.5) > 0.3)
    rows, _ = shortest_path(cost, axis=1)
    return np.where(np.arange(height)[:, None] <= rows, first, second)


def carve(texture: Texture, picture_px: int, generator: np.random.Generator) -> np.ndarray:
    """Layout (picture_px, picture_px) from thresholded random fields, with the texture's fractions to a pixel.

    Each class takes, with the classes that will be carved out of it, the highest values of its field in its parent's
    region.
    """
    order = _from_root(texture.parents)
    layout = np.full(picture_px**2, order[0], np.uint8)
    for index in order[1:]:
        field = tissue_field(picture_px, texture.scales[index], texture.cells[index], generator).ravel()
        region = np.flatnonzero(layout == texture.parents[index])
        share = sum(texture.fractions[inside] for inside in _subtree(texture.parents, index))
        count = min(round(share * layout.size), region.size)
        layout[region[np.argsort(field[region], kind="stable")[region.size - count :]]] = index
    return layout.reshape(picture_px, picture_px)


def tissue_field(picture_px: int, scale: float, cells: float, generator: np.random.Generator) -> np.ndarray:
    """Random field (picture_px, picture_px) of mean about 0 and variance about 1: Gaussian, cellular or between.

    The cellular part (Worley 1996) is the distance from the border between the two nearest of scattered points; its
    high values are separate bodies, elongated in a common direction.
    """
    scale = max(scale, 1.0 / picture_px)
    grid = (np.arange(picture_px) + 0.5) / picture_px
    smooth = SmoothField(1.0, 1.0, scale, generator)(grid, grid)
    if cells == 0:
        return smooth
    spacing = _CELL_SPACING * scale
    bend = [0.25 * spacing * SmoothField(1.0, 1.0, spacing, generator)(grid, grid) for _ in range(2)]
    angle, stretch = generator.uniform(0, np.pi), np.exp(0.5 * generator.normal(0.0, 0.4))
    down, right = np.meshgrid(grid - 0.5, grid - 0.5, indexing="ij")
    down, right = down + bend[0], right + bend[1]
    turned = np.stack([np.cos(angle) * down - np.sin(angle) * right, np.sin(angle) * down + np.cos(angle) * right], -1)
    half = int(np.ceil(1.2 * max(stretch, 1 / stretch) / spacing)) + 2
    knots = np.stack(np.meshgrid(*[np.arange(-half, half + 1.0)] * 2, indexing="ij"), -1).reshape(-1, 2)
    knots[:, 1] += 0.5 * (knots[:, 0] % 2)  # closer to hexagonal packing
    knots += generator.uniform(-0.5, 0.5, 2) + generator.uniform(-0.35, 0.35, knots.shape)
    near, far = np.moveaxis(cKDTree(knots).query(turned * [stretch, 1 / stretch] / spacing, k=2)[0], -1, 0)
    bodies = (far - near - _CELL_MEAN) / _CELL_SPREAD
    return (1.0 - abs(cells)) * smooth + cells * bodies


# ---- the prior ----------------------------------------------------------------------------------------------------


class LayoutPrior:
    """Layouts by category, and what is common to the layouts of a category.

    Attributes:
        names: `image_file_name` of the annotated pictures (n).
    """

    def __init__(self, annotated: DatasetFolder, picture_px: int | None, limits: Limits | None = None):
        held_out = sorted(set(annotated.table["split"]) - {"train"})
        if held_out:
            raise StedmError(f"{annotated.root}: layouts may not come from split {', '.join(held_out)}")
        if len(annotated) == 0:
            raise StedmError(f"{annotated.root}: a layout prior needs annotated pictures")
        self.annotated, self.picture_px = annotated, picture_px
        self.names = annotated.table["image_file_name"].tolist()
        self.n_classes = len(annotated.info.classes)
        self.limits = {name: self._limits(name, ranges) for name, ranges in (limits or {}).items()}
        by_category = annotated.table.groupby("category").indices
        self._rows_of = {str(name): np.asarray(rows) for name, rows in by_category.items()}
        self._row_of = {name: row for row, name in enumerate(self.names)}
        self._composition_of: dict[str | None, _Composition] = {}

    @classmethod
    def fit(cls, annotated: DatasetFolder, picture_px: int | None, limits: Limits | None = None) -> "LayoutPrior":
        """Fit on annotated pictures of split train.

        Masks are read, at `picture_px`, and a category is measured when it is first needed; resampling without limits
        needs neither, and then `picture_px` may be None.

        Args:
            limits: what the user knows: `{category: {class_name: (low, high)}}`, fractions of the picture. A category
                that is in here gets only layouts that fit.

        Raises:
            StedmError: a picture is not of split train, there is none, or a class of `limits` is unknown.
        """
        return cls(annotated, picture_px, limits)

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
        """Build a recipe of this prior, uint8 (picture_px, picture_px)."""
        return build_layout(recipe, lambda name: self.layouts[self._row_of[name]], self.layouts.shape[1])

    def draw(self, kind: LayoutKind, category: str | None, generator: np.random.Generator) -> np.ndarray:
        """Decide on a layout and build it: uint8 (picture_px, picture_px) of class indices."""
        return self.build(self.recipe(kind, category, generator))

    def draw_many(self, kind: LayoutKind, category: str | None, n: int, seed: int) -> np.ndarray:
        """`n` layouts (n, picture_px, picture_px); layout i is a pure function of (seed, i)."""
        return np.stack([self.draw(kind, category, numpy_generator(seed, "layout", i)) for i in range(n)])

    @cached_property
    def layouts(self) -> np.ndarray:
        """All annotated layouts, uint8 (n, picture_px, picture_px), ignored pixels kept."""
        if self.picture_px is None:
            raise ValueError("picture_px is needed to read layouts")
        return np.stack([self.annotated.read_mask(row, self.picture_px) for row in range(len(self.annotated))])

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
        self.parents = _parents(self.fractions.mean(axis=0), _contacts(layouts, prior.n_classes))
        fields = [_fitted_field(layouts, everywhere, self.parents, index) for index in range(prior.n_classes)]
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


# ---- measures of layouts ------------------------------------------------------------------------------------------


def class_fractions(layouts: np.ndarray, n_classes: int) -> np.ndarray:
    """Part of the known pixels of each class, (n, n_classes), of layouts (n, H, W); NaN where no pixel is known."""
    counts = np.stack([(layouts == index).sum(axis=(1, 2)) for index in range(n_classes)], axis=1).astype(float)
    known = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, known, out=np.full_like(counts, np.nan), where=known > 0)


def component_areas(layouts: np.ndarray, index: int) -> np.ndarray:
    """Areas of the 4-connected components of a class in all layouts (n, H, W), as parts of a picture."""
    areas = [np.bincount(ndimage.label(layout == index)[0].ravel())[1:] for layout in layouts]
    return np.concatenate(areas) / layouts[0].size


def compare_layouts(
    drawn: np.ndarray, real: np.ndarray, n_classes: int, *, seed: int = 0, splits: int = 20
) -> dict[str, list[float]]:
    """How far drawn layouts (n, H, W) are from real ones (m, H, W), per class.

    Wasserstein distances of the distribution over layouts of the class fraction (`fraction`) and over components of
    the natural logarithm of the area (`log_area`), and for each the same distance between two random halves of the
    real layouts, mean over `splits` (`..._floor`): drawn layouts as good as real ones come about there, or somewhat
    below, because a half has fewer layouts. Indices that are no class are left out. NaN where a class is absent.
    """
    result: dict[str, list[float]] = {"fraction": [], "log_area": [], "fraction_floor": [], "log_area_floor": []}
    halves = [np.array_split(numpy_generator(seed, "halves", i).permutation(len(real)), 2) for i in range(splits)]
    for index in range(n_classes):
        for name, measure in (("fraction", _fractions_of), ("log_area", _log_areas)):
            result[name].append(_distance(measure(drawn, index, n_classes), measure(real, index, n_classes)))
            floors = [
                _distance(*(measure(real[half], index, n_classes) for half in pair)) for pair in halves if len(real) > 1
            ]
            present = [floor for floor in floors if not np.isnan(floor)]
            result[f"{name}_floor"].append(float(np.mean(present)) if present else float("nan"))
    return result


def _fractions_of(layouts: np.ndarray, index: int, n_classes: int) -> np.ndarray:
    fractions = class_fractions(layouts, n_classes)[:, index]
    return fractions[np.isfinite(fractions)]


def _log_areas(layouts: np.ndarray, index: int, n_classes: int) -> np.ndarray:
    return np.log(component_areas(layouts, index))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(wasserstein_distance(a, b)) if a.size and b.size else float("nan")


def _within(fractions: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which rows of fractions (n, n_classes) are within limits (n_classes, 2); NaN is not."""
    return ((fractions >= limits[:, 0] - 1e-6) & (fractions <= limits[:, 1] + 1e-6)).all(axis=1)


def _neighbours(layouts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each pixel and the one below it, each pixel and the one right of it."""
    return [(layouts[:, :-1], layouts[:, 1:]), (layouts[:, :, :-1], layouts[:, :, 1:])]


def _contacts(layouts: np.ndarray, n_classes: int) -> np.ndarray:
    """Length of the border between each two classes, in pixels, (n_classes, n_classes), symmetric."""
    contacts = np.zeros((n_classes, n_classes))
    for a, b in _neighbours(layouts):
        known = (a < n_classes) & (b < n_classes)
        np.add.at(contacts, (a[known], b[known]), 1)
    contacts += contacts.T
    np.fill_diagonal(contacts, 0)
    return contacts


def _parents(fractions: np.ndarray, contacts: np.ndarray) -> tuple[int, ...]:
    """Tree of classes: the most frequent one is the root, each next one hangs on the class that it borders most."""
    order = np.argsort(-fractions, kind="stable").tolist()
    parents = [-1] * len(order)
    for place, index in enumerate(order[1:], start=1):
        placed = order[:place]
        parents[index] = placed[int(np.argmax(contacts[index, placed]))]
    return tuple(parents)


def _subtree(parents: tuple[int, ...], index: int) -> list[int]:
    """A class and all that is carved out of it."""
    return [index, *(c for child, parent in enumerate(parents) if parent == index for c in _subtree(parents, child))]


def _from_root(parents: tuple[int, ...]) -> list[int]:
    """All classes, each after its parent."""
    return _subtree(parents, parents.index(-1))


def _fitted_field(
    layouts: np.ndarray, everywhere: np.ndarray, parents: tuple[int, ...], index: int
) -> tuple[float, float]:
    """Scale (picture sides) and cellularity of a class's field.

    The scale of a Gaussian field follows from the length of the class's border. For each cellularity a few layouts are
    drawn to correct the scale, and again to see whose components are most like those of the layouts.
    """
    if parents[index] < 0:
        return _UNSEEN_SCALE_SIDES, 0.0
    real, scale = _carving(layouts, parents, index), _border_scale(layouts, parents, index)
    if np.isnan(scale):
        return round(
            min(np.nan_to_num(_border_scale(everywhere, parents, index), nan=np.inf), _UNSEEN_SCALE_SIDES), 5
        ), 0.0
    shares = np.sort(class_fractions(real, 2)[:, 1])
    shares = np.quantile(shares[np.isfinite(shares)], (np.arange(_TRIALS) + 0.5) / _TRIALS)
    fields = [(cells, scale * _border_ratio(_trials(shares, cells, scale, real), real)) for cells in _CELLS]
    misfits = [_misfit(_trials(shares, *field, real), real) * (_DOUBT if field[0] else 1.0) for field in fields]
    cells, scale = fields[int(np.argmin(misfits))]
    return round(scale, 5), cells


def _trials(shares: np.ndarray, cells: float, scale: float, like: np.ndarray) -> np.ndarray:
    """One two-class layout of the size of `like` for each share of class 1."""
    textures = [Texture((1.0 - share, share), (scale, scale), (0.0, cells), (-1, 0)) for share in shares]
    generators = [numpy_generator(0, "trial", number) for number in range(len(shares))]
    return np.stack([carve(texture, like.shape[1], g) for texture, g in zip(textures, generators, strict=True)])


def _border_ratio(drawn: np.ndarray, real: np.ndarray) -> float:
    """Border length per area of drawn layouts over that of real ones, kept between 1/3 and 3."""
    per_area = [_contacts(layouts, 2)[0, 1] / (layouts < 2).sum() for layouts in (drawn, real)]
    return float(np.clip(per_area[0] / per_area[1], 1 / 3, 3))


def _misfit(drawn: np.ndarray, real: np.ndarray) -> float:
    """Distance of component sizes and of border length; the side with more components says more of sizes."""
    pairs = [(_log_areas(drawn, side, 2), _log_areas(real, side, 2)) for side in (0, 1)]
    counts = np.array([areas.size for _, areas in pairs])
    sizes = np.nan_to_num([_distance(*pair) for pair in pairs]) @ counts / counts.sum()
    return float(sizes + abs(np.log(_border_ratio(drawn, real))))


def _carving(layouts: np.ndarray, parents: tuple[int, ...], index: int) -> np.ndarray:
    """Layouts as the carving of one class sees them: 1 = it and its subtree, 0 = rest of its parent's, 255 = else."""
    domain = np.isin(layouts, _subtree(parents, parents[index]))
    return np.where(domain, np.isin(layouts, _subtree(parents, index)).astype(np.uint8), 255).astype(np.uint8)


def _border_scale(layouts: np.ndarray, parents: tuple[int, ...], index: int) -> float:
    """Scale in picture sides of the Gaussian field that would give a class its border length; NaN without a border.

    Rice's formula: a stationary Gaussian field with slope deviation r crosses level u at r / pi * exp(-u^2 / 2) points
    per unit length. Within the parent's region, u follows from the fraction and the crossings are the class borders.
    """
    carving = _carving(layouts, parents, index)
    share = np.nan_to_num(class_fractions(carving, 2)[:, 1])
    expected, crossings = 0.0, 0
    for a, b in _neighbours(carving):
        pairs = (a < 2) & (b < 2)
        expected += float(np.sum(pairs.sum(axis=(1, 2)) * np.exp(-0.5 * ndtri(share) ** 2)))
        crossings += int(np.sum(pairs & (a != b)))
    return SmoothField.ROUGHNESS / np.pi * expected / crossings / layouts.shape[1] if crossings else float("nan")
