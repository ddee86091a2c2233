"""Layouts decided but not built, and the ways to build them: resampled, warped, joined, drawn from random fields.

Everything random about a layout is in its `LayoutRecipe`, so that a plan holds the decision in a row and any machine
builds the same layout from it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.graph import shortest_path

from stedm.config import LayoutKind
from stedm.data.symmetry import N_SYMMETRIES, symmetry
from stedm.errors import StedmError
from stedm.layout.random_field import SmoothField

KINDS: tuple[LayoutKind, ...] = ("resample", "warp", "recombine", "procedural")
"""Made of annotated layouts (see stedm.layout.prior)."""
PREDICTED: LayoutKind = "predicted"
"""What segmenters see in an unannotated image."""

_WARP_SIDES = 0.05  # standard deviation of the displacement, in image sides
_WARP_SCALE_SIDES = 0.3  # distance over which the displacement changes; much more than it moves, so nothing folds
_TURN_RADIANS, _ZOOM = 0.3, 0.1
_CELL_SPACING = 3.0  # distance between cells over the scale of the Gaussian field
_CELL_MEAN, _CELL_SPREAD = 0.30, 0.21  # of the unscaled cellular field


@dataclass(frozen=True)
class Texture:
    """What a procedural layout is drawn from. Classes form a tree: each is carved out of its parent's region."""

    fractions: tuple[float, ...]
    """Part of the image of each class; they sum to 1."""
    scales: tuple[float, ...]
    """Distance between the knots of each class's random field, in image sides."""
    cells: tuple[float, ...]
    """How cellular each class's field is, -1..1: at 0 a Gaussian random field; towards 1 the class is made of bodies
    that don't touch (glands), towards -1 it is the net between such bodies (stroma)."""
    parents: tuple[int, ...]
    """The class that each is carved out of; -1 for the one that fills the image first."""

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
    """Image (`image_file_name`) whose layout is used, or whose class fractions `procedural` followed; an annotated
    one, but for `predicted`."""
    symmetry: int
    seed: int = 0
    second: str = ""
    """The other annotated image of `recombine`."""
    texture: Texture | None = None
    """For `procedural`."""


def build_layout(recipe: LayoutRecipe, read: Callable[[str], np.ndarray], image_px: int) -> np.ndarray:
    """Build a layout, uint8 (image_px, image_px) of class indices; unknown pixels of the sources stay unknown.

    Args:
        read: gives the layout of the recipe's images by `image_file_name`.
    """
    generator = np.random.default_rng(recipe.seed)
    if recipe.kind == "procedural":
        if recipe.texture is None:
            raise StedmError(f"{recipe.source}: a procedural layout without fractions; make the plan again")
        return carve(recipe.texture, image_px, generator)
    layout = read(recipe.source)
    if recipe.kind == "warp":
        layout = warp(layout, generator)
    elif recipe.kind == "recombine":
        layout = join(layout, symmetry(read(recipe.second), int(generator.integers(N_SYMMETRIES))), generator)
    return np.ascontiguousarray(symmetry(layout, recipe.symmetry))


def warp(layout: np.ndarray, generator: np.random.Generator, amplitude_sides: float = _WARP_SIDES) -> np.ndarray:
    """Turn, stretch and elastically deform a layout (H, W), mirrored at the border.

    A pixel takes the class that has most weight in bilinear interpolation, which keeps outlines smoother than the
    nearest neighbour does and makes no new class either. `amplitude_sides` is the standard deviation of the elastic
    displacement in image sides.
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


def carve(texture: Texture, image_px: int, generator: np.random.Generator) -> np.ndarray:
    """Layout (image_px, image_px) from thresholded random fields, with the texture's fractions to a pixel.

    Each class takes, with the classes that will be carved out of it, the highest values of its field in its parent's
    region.
    """
    order = _from_root(texture.parents)
    layout = np.full(image_px**2, order[0], np.uint8)
    for index in order[1:]:
        field = tissue_field(image_px, texture.scales[index], texture.cells[index], generator).ravel()
        region = np.flatnonzero(layout == texture.parents[index])
        share = sum(texture.fractions[inside] for inside in subtree(texture.parents, index))
        count = min(round(share * layout.size), region.size)
        layout[region[np.argsort(field[region], kind="stable")[region.size - count :]]] = index
    return layout.reshape(image_px, image_px)


def tissue_field(image_px: int, scale: float, cells: float, generator: np.random.Generator) -> np.ndarray:
    """Random field (image_px, image_px) of mean about 0 and variance about 1: Gaussian, cellular or between.

    The cellular part (Worley 1996) is the distance from the border between the two nearest of scattered points; its
    high values are separate bodies, elongated in a common direction.
    """
    scale = max(scale, 1.0 / image_px)
    grid = (np.arange(image_px) + 0.5) / image_px
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


def subtree(parents: tuple[int, ...], index: int) -> list[int]:
    """A class and all that is carved out of it."""
    return [index, *(c for child, parent in enumerate(parents) if parent == index for c in subtree(parents, child))]


def _from_root(parents: tuple[int, ...]) -> list[int]:
    """All classes, each after its parent."""
    return subtree(parents, parents.index(-1))
