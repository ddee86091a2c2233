"""The true parameters of phantom patients, and how well they are recovered from synthetic images in their style."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stedm.errors import StedmError
from stedm.evaluation.quality import ImageSet, Measure, colour_amounts, over_patients


def phantom_parameters(root: Path) -> pd.DataFrame:
    """True parameters of the patients of a phantom folder, a row a patient."""
    path = root / "patients.json"
    if not path.is_file():
        raise StedmError(f"{path}: missing; only a phantom has true parameters")
    records = json.loads(path.read_text(encoding="utf-8"))["patients"]
    return pd.DataFrame({record["patient_id"]: true_parameters(record) for record in records}).T


def true_parameters(record: dict[str, Any]) -> dict[str, float]:
    """What the recovery is scored on, of one entry of a phantom's `patients.json`.

    second_stain_od: optical density (base 10) of DAB or eosin on tumour cells; haematoxylin: its concentration, 1 =
    usual; white: mean of the white balance; blur_um.
    """
    tumour = record["tissues"]["tumour"]
    return {
        "second_stain_od": (tumour["cytoplasm_od"] + tumour["membrane_od"]) * record["concentrations"][1],
        "haematoxylin": record["concentrations"][0],
        "white": float(np.mean(record["white"])),
        "blur_um": record["blur_um"],
    }


def region_statistics(images: ImageSet, n_classes: int) -> pd.DataFrame:
    """Per patient, from the images and masks: stains inside each class, brightest colour, sharpness.

    A class that no image of a patient has leaves NaN, which `ParameterRegressor` fills with the mean of the fit.
    """
    if images.masks is None:
        raise StedmError("quality: these images have no masks to take statistics in")
    stains = colour_amounts(images.images, "hed")
    light = images.images.astype(np.float64).mean(axis=-1)
    edges = np.abs(np.diff(light, axis=1))[:, :, :-1] + np.abs(np.diff(light, axis=2))[:, :-1]
    coarse = np.abs(light[:, 2:, 2:] - light[:, :-2, :-2])
    rows = []
    for index in range(len(light)):
        row = [
            np.quantile(images.images[index], 0.98),
            np.log1p(edges[index].mean()),
            np.log1p(coarse[index].mean()),
        ]
        for number in range(n_classes):
            inside = stains[index][images.masks[index] == number]
            row += [*inside.mean(axis=0), *inside.std(axis=0)] if len(inside) else [np.nan] * 6
        rows.append(row)
    return pd.DataFrame(rows).groupby(images.patients).mean()


@dataclass(frozen=True)
class ParameterRegressor:
    """Ridge regression from `region_statistics` to `true_parameters`, fitted on real phantom images."""

    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    """(features + 1, parameters), the last row the intercept."""
    names: list[str]

    @classmethod
    def fit(cls, statistics: pd.DataFrame, parameters: pd.DataFrame, ridge: float = 1.0) -> "ParameterRegressor":
        """statistics and parameters: a row a patient, with the same patients in the index."""
        x, y = statistics.to_numpy(), parameters.loc[statistics.index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a class that is nowhere: its columns count for nothing
            centre, scale = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
        scale = np.where(scale > 1e-9, scale, np.inf)
        design = np.column_stack([np.nan_to_num((x - centre) / scale), np.ones(len(x))])
        penalty = ridge * np.diag([1.0] * x.shape[1] + [0.0])
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ y.to_numpy())
        return cls(centre, scale, weights, list(y.columns))

    def predict(self, statistics: pd.DataFrame) -> pd.DataFrame:
        standard = np.nan_to_num((statistics.to_numpy() - self.centre) / self.scale)
        values = np.column_stack([standard, np.ones(len(standard))]) @ self.weights
        return pd.DataFrame(values, index=statistics.index, columns=self.names)


def parameter_error(
    regressor: ParameterRegressor, images: ImageSet, parameters: pd.DataFrame, n_classes: int
) -> dict[str, Measure]:
    """For each parameter `error_NAME` (mean absolute error over patients) and `correlation_NAME` with the truth.

    parameters: true values, a row a patient. Correlation is NaN where the prediction or the truth does not vary.
    """
    found = regressor.predict(region_statistics(images, n_classes))
    truth = parameters.loc[found.index]
    measures = {}
    for name in regressor.names:
        varies = len(found) > 2 and min(found[name].std(), truth[name].std()) > 1e-12
        correlation = float(np.corrcoef(found[name], truth[name])[0, 1]) if varies else float("nan")
        measures[f"error_{name}"] = over_patients((found[name] - truth[name]).abs())
        measures[f"correlation_{name}"] = Measure(correlation)
    return measures
