"""For whom: does a gain depend on how far a patient's colours are from those of the annotated patients?"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from stedm.data.cache import ImageCache
from stedm.data.folder import rows_by_patient
from stedm.evaluation.quality import ImageSet, colour_statistics
from stedm.evaluation.stats import spearman

COLUMN = "stain_distance"
"""Of `per_patient.csv`."""
_MOST_IMAGES = 64
"""Looked at of a patient, spread evenly over its rows."""


def stain_distance(annotated: ImageCache, scored: ImageCache) -> pd.Series:
    """How far each scored patient's colours are from those of the annotated patient that is nearest in them.

    Of two patients the distance is the mean, over six numbers (mean and SD of three stains over the patient's
    images), of their difference in units of that number's SD between the scored patients: 1 = as far apart as two
    patients are in each stain. It needs no model and no mask.

    Returns:
        Distances, 0 and more, indexed by patient_id; NaN for all where there are fewer than two scored patients.
    """
    known, found = (colour_statistics(_some(images)) for images in (annotated, scored))
    spread = found.std(ddof=1).replace(0.0, np.nan)
    apart = np.abs(found.to_numpy()[:, None] - known.to_numpy()[None]) / spread.to_numpy()
    usable = np.isfinite(apart).all(axis=(0, 1))
    nearest = apart[:, :, usable].mean(axis=2).min(axis=1) if usable.any() else np.full(len(found), np.nan)
    return pd.Series(nearest, index=found.index.astype(str), name=COLUMN).rename_axis("patient_id")


def gains_by_distance(patients: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each pair of arms (new, baseline): does the gain grow with the column `stain_distance` of `patients`?

    Returns:
        A dict a pair: a, b, n_patients, spearman and its p (of gain against distance; None below 4 patients),
        delta_near and delta_far: the mean gain of the nearer and of the farther half of the patients.
    """
    scores = patients.pivot(index="patient_id", columns="arm", values="iou")
    distances = patients.groupby("patient_id")[COLUMN].first()
    results = []
    for a, b in pairs:
        pair = pd.DataFrame({"gain": scores[a] - scores[b], "distance": distances}).dropna().sort_values("distance")
        half = len(pair) // 2
        rank = spearman(pair["distance"].to_numpy(dtype=float), pair["gain"].to_numpy(dtype=float))
        results.append(
            {
                "a": a,
                "b": b,
                "n_patients": len(pair),
                "spearman": rank[0] if rank else None,
                "p_spearman": rank[1] if rank else None,
                "delta_near": float(pair["gain"].iloc[:half].mean()) if half else None,
                "delta_far": float(pair["gain"].iloc[len(pair) - half :].mean()) if half else None,
            }
        )
    return results


def _some(cache: ImageCache) -> ImageSet:
    """Images of every patient, up to `_MOST_IMAGES` each: of slides there may be thousands of tiles."""
    chosen = {
        patient: rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_IMAGES)).astype(int))]
        for patient, rows in rows_by_patient(cache.dataset.table).items()
    }
    return ImageSet(
        np.stack([cache.image(int(row)) for rows in chosen.values() for row in rows]),
        np.concatenate([np.full(len(rows), patient) for patient, rows in chosen.items()]),
    )
