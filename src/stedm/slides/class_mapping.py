"""Which annotation names become which classes: a small YAML file beside `slides.csv`."""

import unicodedata
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from stedm.config.base import Part, checked, read_values
from stedm.errors import StedmError

IGNORE = "ignore"
# QuPath's own class for regions that nothing shall be learned from.
QUPATH_IGNORE = "Ignore*"


class ClassMapping(Part):
    """Names used in annotations -> names of classes, or `ignore`.

    As a YAML file either these keys, or nothing but `NAME: class` lines (then they are `mapping`).
    """

    classes: list[str] | None = None
    """The classes in the order of their indices; null = given by whoever reads the annotation."""
    mapping: dict[str, str] | None = None
    """`NAME: class` or `NAME: ignore`, NAME as QuPath or the COCO categories spell it, or a value of a label image.
    null = the names of the classes themselves, and QuPath's `Ignore*` is ignored."""
    unknown: Literal["error", "ignore"] = "error"
    """What to do with names that are not in `mapping`: stop and list them, or ignore their regions."""
    unclassified: str | None = None
    """Class (or `ignore`) of regions without a class; null = stop."""
    unannotated: str = IGNORE
    """What lies outside all regions: `ignore`, or a class where everything of the other classes was annotated."""
    order: list[str] | None = None
    """Classes (and `ignore`) from the lowest to the one on top where regions overlap, those not named lie below;
    `ignore` is on top unless named. null, and among regions of equal rank: larger outlines first, so that what was
    drawn inside of something is on top."""

    @model_validator(mode="before")
    @classmethod
    def _text_keys(cls, values):
        """YAML reads 1 as a number, and values of label images are numbers."""
        if isinstance(values, dict) and isinstance(values.get("mapping"), dict):
            values = {**values, "mapping": {str(name): target for name, target in values["mapping"].items()}}
        return values

    def class_indices(self, classes: list[str], ignore_index: int) -> dict[str, int]:
        """Class index of every name that may occur, in Unicode's form NFC.

        Raises `StedmError` where the mapping names a class that isn't there.
        """
        targets = {name: index for index, name in enumerate(classes)} | {IGNORE: ignore_index}
        mapping = self.mapping
        if mapping is None:
            mapping = {name: name for name in classes} | {QUPATH_IGNORE: IGNORE}
        named = [*mapping.values(), self.unannotated, *(self.order or []), *filter(None, [self.unclassified])]
        if strangers := sorted({name for name in named if name not in targets}):
            raise StedmError(
                f"class mapping: {', '.join(strangers)} is no class; classes are {', '.join(classes)}, and ignore"
            )
        return {unicodedata.normalize("NFC", name): targets[target] for name, target in mapping.items()}

    def index_of(self, target: str, classes: list[str], ignore_index: int) -> int:
        """Index of a class name or of `ignore`."""
        return ignore_index if target == IGNORE else classes.index(target)


def read_mapping(path: str | Path) -> ClassMapping:
    """Read a mapping file; `StedmError` with one line a problem."""
    # The reader of configurations refuses keys that are there twice, and aliases that grow without an end.
    try:
        values = read_values(Path(path), None)
    except StedmError as error:
        raise StedmError(f"{error}; a class mapping has lines such as `Tumor: tumour`") from error
    return as_mapping(values, str(path))


def as_mapping(mapping: "ClassMapping | dict | str | Path | None", source: str = "class mapping") -> ClassMapping:
    """A mapping, the content of its YAML file, or the path of that file."""
    if isinstance(mapping, ClassMapping):
        return mapping
    if mapping is None:
        return ClassMapping()
    if isinstance(mapping, str | Path):
        return read_mapping(mapping)
    keys = set(ClassMapping.model_fields)
    # `{ignore: ...}` is a name, `{mapping: {...}}` or `{unknown: error, order: [...]}` are our keys.
    full = isinstance(mapping.get("mapping"), dict) or set(mapping) <= keys
    return checked(ClassMapping, mapping if full else {"mapping": mapping}, source)
