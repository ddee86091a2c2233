"""`--classes`: the names of classes, and where it isn't plain, which values of the masks they are."""

import re
from dataclasses import dataclass

from stedm.errors import StedmError
from stedm.exchange.mask_files import COLOUR

IGNORE_INDEX = 255
_IGNORED = ("ignore", "ignored", "void")
_VALUES = re.compile(r"#(?P<colour>[0-9a-fA-F]{6})|(?P<first>\d+)(?P<range>-(?P<last>\d*))?")


@dataclass(frozen=True)
class ClassNames:
    """Names in the order of their indices, and for each the values it was given with, as (first, last)."""

    names: list[str]
    ranges: list[tuple[int, int, int]]
    """(class index, first value, last value); empty where names alone were given."""

    @classmethod
    def parse(cls, text: str) -> "ClassNames":
        """Of `background,gland`, `background=0,gland=1-`, `background=#000000,gland=#ff0000+#00ff00,ignore=255`.

        Raises:
            StedmError: a name is missing or there twice, or what stands behind a `=` is no value.
        """
        names: list[str] = []
        ranges, with_values = [], 0
        for part in text.split(","):
            name, has_values, values = part.partition("=")
            name = name.strip()
            if not name:
                raise StedmError(f"--classes {text!r}: a name is missing; write them as background,gland")
            is_ignored = name.casefold() in _IGNORED
            if not is_ignored and name in names:
                raise StedmError(f"--classes {text!r}: {name} is there twice; name each class once")
            if is_ignored and not has_values:
                raise StedmError(f"--classes {text!r}: say which value is ignored, as in ignore=255")
            index = IGNORE_INDEX if is_ignored else len(names)
            names += [] if is_ignored else [name]
            with_values += bool(has_values) and not is_ignored
            ranges += [(index, *_range(text, value)) for value in values.split("+") if has_values]
        if with_values not in (0, len(names)):
            raise StedmError(f"--classes {text!r}: give values to all names or to none of them")
        if len(names) < 2 or len(names) > IGNORE_INDEX:
            raise StedmError(f"--classes {text!r}: name 2 to {IGNORE_INDEX} classes, the background first")
        if not with_values and "background" in [name.casefold() for name in names[1:]]:
            raise StedmError(f"--classes {text!r}: the first name is that of the background; if it isn't, give values")
        return cls(names, ranges)

    @property
    def has_values(self) -> bool:
        """Whether all classes were given with their values."""
        return {index for index, *_ in self.ranges} >= set(range(len(self.names)))

    def index_of(self, value: int) -> int | None:
        """The class of a value; None where none was given it."""
        return next((index for index, first, last in self.ranges if first <= value <= last), None)


def _range(text: str, value: str) -> tuple[int, int]:
    found = _VALUES.fullmatch(value.strip())
    if found is None:
        raise StedmError(f"--classes {text!r}: {value!r} is no value; write 7, 1-9, 1- or #ff0000, several joined by +")
    if found["colour"]:
        colour = COLOUR | int(found["colour"], 16)
        return colour, colour
    first = int(found["first"])
    last = first if not found["range"] else int(found["last"]) if found["last"] else COLOUR - 1
    return first, last
