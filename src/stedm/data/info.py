"""`dataset.yaml`: what the classes of a dataset folder are called."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stedm.errors import StedmError
from stedm.io.yaml_text import read_yaml


@dataclass(frozen=True)
class DatasetInfo:
    """Content of `dataset.yaml`. Class index i of a mask is `classes[i]`; `ignore_index` is scored nowhere."""

    name: str
    classes: list[str]
    ignore_index: int = 255
    licence: str = ""
    citation: str = ""

    def mask_problem(self, mask: np.ndarray) -> str:
        """The end of an error line if a uint8 mask has values other than class indices and `ignore_index`; or ""."""
        return self.values_problem(np.bincount(mask.ravel(), minlength=256))

    def values_problem(self, counts: np.ndarray) -> str:
        """The same of the number of pixels of each value (256,)."""
        values = np.flatnonzero(counts)
        bad = [str(value) for value in values if value >= len(self.classes) and value != self.ignore_index]
        allowed = f"allowed are 0 to {len(self.classes) - 1} and ignore_index {self.ignore_index}"
        return f"class indices {', '.join(bad)} are out of range; {allowed}" if bad else ""


def read_info(root: Path) -> DatasetInfo:
    """Read `dataset.yaml`; `StedmError` with one line for each problem."""
    info, problems = info_and_problems(root)
    if problems or info is None:
        raise StedmError.of(problems, f"`stedm check {root}` lists all")
    return info


def info_and_problems(root: Path) -> tuple[DatasetInfo | None, list[str]]:
    """What `dataset.yaml` says and all that is wrong with it; with a wrong key the classes may still be usable."""
    path = root / "dataset.yaml"
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        return None, [f"{path}: missing; write name and classes into it"]
    except (OSError, ValueError, yaml.YAMLError) as error:
        return None, [f"{path}: not readable as YAML ({' '.join(str(error).split())}); correct it"]
    if not isinstance(values, dict):
        return None, [f"{path}: must be a mapping with the keys name and classes"]
    key_problems, class_problems = _key_problems(values), _class_problems(values)
    problems = [f"{path}: {problem}" for problem in key_problems + class_problems]
    if class_problems:
        return None, problems
    text = {key: str(values.get(key) or "") for key in ("name", "licence", "license", "citation")}
    info = DatasetInfo(
        name=text["name"],
        classes=list(values["classes"]),
        ignore_index=values.get("ignore_index", 255),
        licence=text["licence"] or text["license"],
        citation=text["citation"],
    )
    return info, problems


def _key_problems(values: dict[Any, Any]) -> list[str]:
    known = ("name", "classes", "ignore_index", "licence", "license", "citation")
    problems = [f"unknown key {key!r}; known are {', '.join(known)}" for key in values if key not in known]
    for key in ("name", "licence", "license", "citation"):
        if isinstance(values.get(key), list | dict):
            problems.append(f"{key} must be a text")
    if values.get("name") in (None, ""):
        problems.append("name is missing; give the dataset a name")
    return problems


def _class_problems(values: dict[Any, Any]) -> list[str]:
    problems = []
    classes, ignore_index = values.get("classes"), values.get("ignore_index", 255)
    if not isinstance(classes, list) or not classes:
        wrong = "classes is no list" if classes else "classes is missing"
        problems.append(f"{wrong}; list the class names in the order of the mask indices")
        classes = []
    elif not all(isinstance(name, str) and name for name in classes):
        problems.append("classes must be texts; put numbers, yes and no in quotes")
    elif len({unicodedata.normalize("NFC", name).casefold().strip() for name in classes}) < len(classes):
        problems.append("classes has a name twice; name each class once")
    if type(ignore_index) is not int or not len(classes) <= ignore_index <= 255:
        problems.append(f"ignore_index must be a whole number from {len(classes)} (no class) to 255")
    return problems
