"""Fit of procedural layouts: which random fields have the borders and structures of a category's layouts."""

import numpy as np
from scipy.special import ndtri

from stedm.layout.measures import class_fractions, contacts_of, distance, log_areas, neighbours
from stedm.layout.random_field import SmoothField
from stedm.layout.recipe import Texture, carve, subtree
from stedm.seeds import numpy_generator

_DOUBT = 1.4  # by how much cells must fit better than no cells: a few layouts are a noisy measure
_CELLS, _TRIALS = (0.0, -0.5, -0.85, 0.5, 0.85), 12  # what is tried in the fit
_UNSEEN_SCALE_SIDES = 0.25  # scale of a class that touches no other in any annotated layout


def class_tree(fractions: np.ndarray, contacts: np.ndarray) -> tuple[int, ...]:
    """Tree of classes: the most frequent one is the root, each next one hangs on the class that it borders most."""
    order = np.argsort(-fractions, kind="stable").tolist()
    parents = [-1] * len(order)
    for place, index in enumerate(order[1:], start=1):
        placed = order[:place]
        parents[index] = placed[int(np.argmax(contacts[index, placed]))]
    return tuple(parents)


def fitted_field(
    layouts: np.ndarray, everywhere: np.ndarray, parents: tuple[int, ...], index: int
) -> tuple[float, float]:
    """Scale (image sides) and cellularity of a class's field.

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
    per_area = [contacts_of(layouts, 2)[0, 1] / (layouts < 2).sum() for layouts in (drawn, real)]
    return float(np.clip(per_area[0] / per_area[1], 1 / 3, 3))


def _misfit(drawn: np.ndarray, real: np.ndarray) -> float:
    """Distance of component sizes and of border length; the side with more components says more of sizes."""
    pairs = [(log_areas(drawn, side, 2), log_areas(real, side, 2)) for side in (0, 1)]
    counts = np.array([areas.size for _, areas in pairs])
    sizes = np.nan_to_num([distance(*pair) for pair in pairs]) @ counts / counts.sum()
    return float(sizes + abs(np.log(_border_ratio(drawn, real))))


def _carving(layouts: np.ndarray, parents: tuple[int, ...], index: int) -> np.ndarray:
    """Layouts as the carving of one class sees them: 1 = it and its subtree, 0 = rest of its parent's, 255 = else."""
    domain = np.isin(layouts, subtree(parents, parents[index]))
    return np.where(domain, np.isin(layouts, subtree(parents, index)).astype(np.uint8), 255).astype(np.uint8)


def _border_scale(layouts: np.ndarray, parents: tuple[int, ...], index: int) -> float:
    """Scale in image sides of the Gaussian field that would give a class its border length; NaN without a border.

    Rice's formula: a stationary Gaussian field with slope deviation r crosses level u at r / pi * exp(-u^2 / 2) points
    per unit length. Within the parent's region, u follows from the fraction and the crossings are the class borders.
    """
    carving = _carving(layouts, parents, index)
    share = np.nan_to_num(class_fractions(carving, 2)[:, 1])
    expected, crossings = 0.0, 0
    for a, b in neighbours(carving):
        pairs = (a < 2) & (b < 2)
        expected += float(np.sum(pairs.sum(axis=(1, 2)) * np.exp(-0.5 * ndtri(share) ** 2)))
        crossings += int(np.sum(pairs & (a != b)))
    return SmoothField.ROUGHNESS / np.pi * expected / crossings / layouts.shape[1] if crossings else float("nan")
