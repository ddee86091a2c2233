"""Pseudonyms of patients, and names in place of paths, for reports and synthetic sets that leave the house.

Patients are numbered in the order of their ids, over all of the dataset: every report on it gives a patient the same
pseudonym, and as the order stays, so do all figures. Who has the dataset's table can tell who is who, nobody else.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pandas as pd

from stedm.data.folder import DatasetFolder
from stedm.io.yaml_text import parse_yaml, yaml_text

_PATIENTS = ("patient_id", "style_patient_id", "layout_patient_id")
_IMAGES = ("layout_image_file_name", "style_image_file_names")


class Pseudonyms:
    """Those of the patients and images of a dataset folder."""

    def __init__(self, dataset: DatasetFolder):
        self._patients = _numbered("patient", dataset.table["patient_id"])
        self._images = _numbered("image", dataset.table["image_file_name"])

    def patients(self, ids: Iterable[str]) -> list[str]:
        """The pseudonyms of some patients."""
        return [self._patients[patient] for patient in ids]

    def table(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with pseudonyms in its columns of patients and of source images; paths in its `attrs` are kept."""
        changed = {name: self.patients(table[name]) for name in _PATIENTS if name in table}
        for name in filter(table.columns.__contains__, _IMAGES):
            changed[name] = [";".join(self._images[image] for image in cell.split(";")) for cell in table[name]]
        return table.assign(**changed)

    def dataset(self, dataset: DatasetFolder) -> DatasetFolder:
        """The folder as it is read under pseudonyms; images and masks are found as before."""
        return replace(dataset, table=dataset.table.assign(patient_id=self.patients(dataset.table["patient_id"])))


def without_paths(value: Any) -> Any:
    """Plain values with the last part of every absolute path."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and PurePosixPath(value).is_absolute():
        return PurePosixPath(value).name
    if isinstance(value, str) and PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return value


def yaml_without_paths(text: str) -> str:
    """The same of YAML."""
    return yaml_text(without_paths(parse_yaml(text)))


def _numbered(kind: str, names: Iterable[str]) -> dict[str, str]:
    ordered = sorted(set(names))
    width = len(str(len(ordered)))
    return {name: f"{kind}-{number:0{width}}" for number, name in enumerate(ordered, start=1)}
