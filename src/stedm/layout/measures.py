"""Measures of layouts: class fractions, sizes of structures, contacts, and how far two sets of layouts are apart."""

import numpy as np
from scipy import ndimage
from scipy.stats import wasserstein_distance

from stedm.seeds import numpy_generator


def class_fractions(layouts: np.ndarray, n_classes: int) -> np.ndarray:
    """Part of the known pixels of each class, (n, n_classes), of layouts (n, H, W); NaN where no pixel is known."""
    counts = np.stack([(layouts == index).sum(axis=(1, 2)) for index in range(n_classes)], axis=1).astype(float)
    known = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, known, out=np.full_like(counts, np.nan), where=known > 0)


def component_areas(layouts: np.ndarray, index: int) -> np.ndarray:
    """Areas of the 4-connected components of a class in all layouts (n, H, W), as parts of an image."""
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
        for name, measure in (("fraction", _fractions_of), ("log_area", log_areas)):
            result[name].append(distance(measure(drawn, index, n_classes), measure(real, index, n_classes)))
            floors = [
                distance(*(measure(real[half], index, n_classes) for half in pair)) for pair in halves if len(real) > 1
            ]
            present = [floor for floor in floors if not np.isnan(floor)]
            result[f"{name}_floor"].append(float(np.mean(present)) if present else float("nan"))
    return result


def _fractions_of(layouts: np.ndarray, index: int, n_classes: int) -> np.ndarray:
    fractions = class_fractions(layouts, n_classes)[:, index]
    return fractions[np.isfinite(fractions)]


def log_areas(layouts: np.ndarray, index: int, n_classes: int) -> np.ndarray:
    return np.log(component_areas(layouts, index))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(wasserstein_distance(a, b)) if a.size and b.size else float("nan")


def neighbours(layouts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each pixel and the one below it, each pixel and the one right of it."""
    return [(layouts[:, :-1], layouts[:, 1:]), (layouts[:, :, :-1], layouts[:, :, 1:])]


def contacts_of(layouts: np.ndarray, n_classes: int) -> np.ndarray:
    """Length of the border between each two classes, in pixels, (n_classes, n_classes), symmetric."""
    contacts = np.zeros((n_classes, n_classes))
    for a, b in neighbours(layouts):
        known = (a < n_classes) & (b < n_classes)
        np.add.at(contacts, (a[known], b[known]), 1)
    contacts += contacts.T
    np.fill_diagonal(contacts, 0)
    return contacts
