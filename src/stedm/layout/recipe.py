"""Layouts decided but not built, and how they are built: an annotated layout as it is, or warped.

Everything random about a layout is in its `LayoutRecipe`, so that a plan holds the decision in a row and any machine
builds the same layout from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np

from stedm.config import LayoutKind
from stedm.data.symmetry import symmetry
from stedm.layout.random_field import SmoothField

KINDS: tuple[LayoutKind, ...] = get_args(LayoutKind)
"""Made of annotated layouts (see stedm.layout.prior)."""
PREDICTED = "predicted"
"""What segmenters see in an unannotated image."""

_WARP_SIDES = 0.05  # standard deviation of the displacement, in image sides
_WARP_SCALE_SIDES = 0.3  # distance over which the displacement changes; much more than it moves, so nothing folds
_TURN_RADIANS, _ZOOM = 0.3, 0.1


@dataclass(frozen=True)
class LayoutRecipe:
    """One layout, decided but not built."""

    kind: str
    """One of `KINDS`, or `PREDICTED`."""
    source: str
    """Image (`image_file_name`) whose layout is used; an annotated one, but for `predicted`."""
    symmetry: int
    seed: int = 0


def build_layout(recipe: LayoutRecipe, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Build a layout, uint8 (H, W) of class indices; unknown pixels of the source stay unknown.

    Args:
        read: gives the layout of the recipe's image by `image_file_name`.
    """
    layout = read(recipe.source)
    if recipe.kind == "warp":
        layout = warp(layout, np.random.default_rng(recipe.seed))
    return np.ascontiguousarray(symmetry(layout, recipe.symmetry))


def warp(layout: np.ndarray, generator: np.random.Generator, amplitude_sides: float = _WARP_SIDES) -> np.ndarray:
    """Turn, stretch and elastically deform a layout (H, W), mirrored at the border.

    A pixel takes the class that has most weight in bilinear interpolation, which keeps outlines smoother than the
    nearest neighbour does and makes no new class either. `amplitude_sides` is the standard deviation of the elastic
    displacement in image sides.
    """
    from scipy import ndimage

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
