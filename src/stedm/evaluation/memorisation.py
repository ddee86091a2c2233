"""Has the model learned training images by heart? The nearest training image of every synthetic one, in three spaces.

`pixels`: 16 px, the nearest of the eight mirror images and turns. `texture`: stains and how they vary, wherever in the
image. `features`: the encoder of a segmenter. Real images are near to some training image too, and nearer in one place
than in another, so what counts is how much nearer the nearest is than the next ones (Carlini et al. 2023,
arXiv 2301.13188), and what real images reach in that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from stedm.data.symmetry import N_SYMMETRIES, symmetry
from stedm.evaluation.seen import Seen
from stedm.seeds import numpy_generator

NEXT = 20
"""The next training images, whose median distance is the unit of `closeness`."""
REAL_QUANTILE, MARGIN = 0.02, 0.75
"""A copy is closer than `MARGIN` times what all but the closest 2 % of the real images are."""
FEWEST_REAL = 10
WITHOUT_REAL = 0.5
"""Limit where there are fewer than `FEWEST_REAL` real images to compare with."""
MOST_LEFT_OUT = 512
"""Training images looked at as if each were no training image."""
SHOWN = 10
"""The closest pairs."""


@dataclass(frozen=True)
class Nearest:
    """Of each of n images the nearest training image, in one space."""

    index: np.ndarray
    distance: np.ndarray
    closeness: np.ndarray
    """Distance to the nearest in units of the median distance to the next `NEXT`: a copy has about 0, an image like
    others of its kind about 1. NaN where there are no others."""
    annotated: np.ndarray
    """Distance to the nearest annotated training image."""
    unannotated: np.ndarray


def audit(
    synthetic: Seen, known: Seen, n_annotated: int, held_out: Seen, begun: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies in a set of synthetic images, and its closest pairs.

    Args:
        known: what the diffusion model has seen, the first `n_annotated` of it annotated; held_out: real images of
            patients it has not seen (may be empty).
        begun: bool (n,): painted over a real image (`start` below 1 in the plan). They are near to it on purpose, and
            counted by themselves.

    Returns:
        What `docs/quality.md` says of `memorisation`; and of the closest pairs image, training image, whether that is
        annotated, space, closeness in units of the limit, row and known_row.
    """
    others = np.sort(numpy_generator(0, "quality", "left out").permutation(len(known))[:MOST_LEFT_OUT])
    spaces, of_limit, nearest_of = {}, {}, {}
    for name, distances in _spaces(known).items():
        found = nearest(distances(synthetic, known), n_annotated)
        real = nearest(distances(held_out, known), n_annotated)
        left_out = nearest(_but_itself(distances(known.part(others), known), others), n_annotated)
        limit = copy_limit(real.closeness, left_out.closeness)
        of_limit[name], nearest_of[name] = found.closeness / limit, found.index
        spaces[name] = {
            "limit": limit,
            **_copies(found.closeness[~begun], limit),
            "begun_at_real_copies": int((found.closeness[begun] < limit).sum()),
            "held_out": _copies(real.closeness, limit),
            "left_out": _copies(left_out.closeness, limit),
            "distance": {
                kind: {"annotated": _median(part.annotated), "unannotated": _median(part.unannotated)}
                for kind, part in (("synthetic", found), ("held_out", real))
            },
            "auth_pct": _auth_pct(found, known, distances),
            "held_out_auth_pct": _auth_pct(real, known, distances),
        }
    result = {
        "verdict": _verdict(spaces),
        "n_images": int((~begun).sum()),
        "n_begun_at_real": int(begun.sum()),
        "n_known": len(known),
        "n_held_out": len(held_out),
        "spaces": spaces,
    }
    return result, _closest(synthetic, known, n_annotated, begun, of_limit, nearest_of)


def nearest(distances: np.ndarray, n_annotated: int) -> Nearest:
    """Of each row of distances (n, m) to training images, the first `n_annotated` annotated; infinite = not counted."""
    if not distances.size:
        empty = np.zeros(0)
        return Nearest(np.zeros(0, int), *(empty,) * 4)
    k = min(NEXT + 1, distances.shape[1])
    few = np.sort(np.partition(distances, k - 1, axis=1)[:, :k], axis=1)
    few[~np.isfinite(few)] = np.nan
    closeness = np.full(len(few), np.nan)
    if k > 1:
        known = ~np.isnan(few[:, 1:]).all(axis=1)
        units = np.nanmedian(few[known, 1:], axis=1)
        closeness[known] = np.divide(few[known, 0], units, out=np.zeros(known.sum()), where=units > 0)
    parts = [part.min(axis=1, initial=np.inf) for part in np.split(distances, [n_annotated], axis=1)]
    return Nearest(distances.argmin(axis=1), few[:, 0], closeness, *parts)


def copy_limit(*real: np.ndarray) -> float:
    """The closeness below which an image counts as a copy, by that of sets of real images."""
    known = [values[~np.isnan(values)] for values in real]
    least = [float(np.quantile(values, REAL_QUANTILE)) for values in known if len(values) >= FEWEST_REAL]
    return MARGIN * min(least) if least else WITHOUT_REAL


def rate(k: int, n: int) -> dict[str, Any]:
    """k of n with its exact 95 % interval (Clopper & Pearson 1934)."""
    if n == 0:
        return {"copies": 0, "n": 0, "rate": None, "ci": [None, None]}
    found = binomtest(k, n).proportion_ci(0.95, method="exact")
    return {"copies": k, "n": n, "rate": k / n, "ci": [float(found.low), float(found.high)]}


def _copies(closeness: np.ndarray, limit: float) -> dict[str, Any]:
    known = closeness[~np.isnan(closeness)]
    return rate(int((known < limit).sum()), len(known))


def _verdict(spaces: dict[str, Any]) -> str:
    """`copies`: one in pixels; or in another space more than among real images, which have likes there now and then."""
    if not spaces or not any(entry["n"] for entry in spaces.values()):
        return "unknown"
    for name, entry in spaces.items():
        real = max(entry[part]["ci"][1] or 0.0 for part in ("held_out", "left_out"))
        if entry["copies"] if name == "pixels" else (entry["ci"][0] or 0.0) > real:
            return "copies"
    return "none found"


def _auth_pct(found: Nearest, known: Seen, distances: Callable[[Seen, Seen], np.ndarray]) -> float | None:
    """AuthPct (Alaa et al. 2022, arXiv 2102.08921): percent of images that are farther from their nearest training
    image than that is from the nearest other one."""
    if not len(found.index) or len(known) < 2:
        return None
    rows, place = np.unique(found.index, return_inverse=True)
    apart = _but_itself(distances(known.part(rows), known), rows).min(axis=1)
    return float(100 * (found.distance >= apart[place]).mean())


def _spaces(known: Seen) -> dict[str, Callable[[Seen, Seen], np.ndarray]]:
    """Distances (n, m) between images, by the name of the space; features in units of their SD over `known`.

    Without training images there is none, and without an encoder no `features`.
    """

    def pixels(a: Seen, b: Seen) -> np.ndarray:
        if not len(a):
            return np.zeros((0, len(b)), np.float32)
        flat = _flat(b.thumbnails)
        found = np.full((len(a), len(b)), np.inf, np.float32)
        for index in range(N_SYMMETRIES):
            turned = np.moveaxis(symmetry(np.moveaxis(a.thumbnails, 0, 2), index), 2, 0)
            np.minimum(found, _euclidean(_flat(turned), flat), out=found)
        return found

    def standardised(field: str) -> Callable[[Seen, Seen], np.ndarray]:
        values = getattr(known, field)
        mean, scale = values.mean(axis=0), values.std(axis=0)
        weight = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 1e-6)  # a constant one tells nothing

        def between(a: Seen, b: Seen) -> np.ndarray:
            if not len(a):
                return np.zeros((0, len(b)), np.float32)
            return _euclidean((getattr(a, field) - mean) * weight, (getattr(b, field) - mean) * weight)

        return between

    if not len(known):
        return {}
    spaces = {"pixels": pixels, "texture": standardised("textures")}
    return spaces | ({"features": standardised("features")} if known.features.shape[1] else {})


def _flat(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.reshape(len(thumbnails), -1).astype(np.float32) / 255


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float32), b.astype(np.float32)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def _but_itself(distances: np.ndarray, rows: np.ndarray) -> np.ndarray:
    distances[np.arange(len(rows)), rows] = np.inf
    return distances


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _closest(
    synthetic: Seen,
    known: Seen,
    n_annotated: int,
    begun: np.ndarray,
    of_limit: dict[str, np.ndarray],
    nearest_of: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """The `SHOWN` closest pairs, each image in the space in which it is closest."""
    if not of_limit:
        return []
    names = list(of_limit)
    values = np.stack([np.where(np.isnan(of_limit[name]) | begun, np.inf, of_limit[name]) for name in names])
    best = values.argmin(axis=0)
    order = np.argsort(values.min(axis=0), kind="stable")[:SHOWN]
    pairs = []
    for row in order[np.isfinite(values.min(axis=0)[order])]:
        name = names[best[row]]
        near = int(nearest_of[name][row])
        pairs.append(
            {
                "image": str(synthetic.names[row]),
                "training_image": str(known.names[near]),
                "annotated": near < n_annotated,
                "space": name,
                "of_limit": float(values[best[row], row]),
                "row": int(row),
                "known_row": near,
            }
        )
    return pairs
