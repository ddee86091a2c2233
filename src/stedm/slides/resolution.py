"""Microns per pixel of a slide by what its file says: which statement is believed, and which mean nothing."""

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stedm.errors import StedmError
from stedm.io.images import is_of_a_scanner

Stated = tuple[str, Any, Any]
"""Who says it, and the texts or numbers for x and y; None where nothing is said."""
_AXES_AGREE = 0.01
_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}


def stated_mpp(path: Path, statements: list[Stated]) -> float:
    """The first statement that can be one of a scanner, as the mean of both axes.

    Raises `StedmError` where there is none, and where the axes disagree: tiles are square in pixels and in microns.
    """
    refused = ""
    for source, *texts in statements:
        x, y = (_number(text) for text in texts)
        if x is None or y is None:
            continue
        if not (is_of_a_scanner(x) and is_of_a_scanner(y)):
            refused = refused or f" ({source} says {x:.4g} x {y:.4g} microns per pixel, which is no scanner's)"
        elif abs(x / y - 1) > _AXES_AGREE:
            raise StedmError(
                f"{path}: {source} says {x:.4g} microns per pixel across and {y:.4g} down; give the right one (column "
                "mpp of slides.csv), or resample the slide if its pixels are not square"
            )
        else:
            return math.sqrt(x * y)
    raise StedmError(
        f"{path}: the file doesn't say its resolution{refused}; give its microns per pixel (column mpp of slides.csv; "
        "--mpp for one PNG, JPEG or BMP image)"
    )


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def ome_mpp(description: str | None, size_px: tuple[int, int]) -> Stated:
    """What an OME-XML description says of the image of this size (OME schema 2016-06: the default unit is the micron).

    Files may hold a label or a macro image besides; where none has the size it is the first one.
    """
    sides: list[float | None] = [None, None]
    if description and "<OME" in description:
        try:
            images = ElementTree.fromstring(description.strip().encode()).findall(".//{*}Pixels")
        except (ElementTree.ParseError, ValueError, LookupError):  # the last: an encoding that nobody knows
            images = []
        size = tuple(map(str, size_px))
        images.sort(key=lambda pixels: (pixels.get("SizeX"), pixels.get("SizeY")) != size)
        for at, axis in enumerate("XY" if images else ""):
            unit = _MICRONS.get(images[0].get(f"PhysicalSize{axis}Unit", "µm"))
            value = _number(images[0].get(f"PhysicalSize{axis}"))
            sides[at] = value * unit if unit and value else None
    return ("its OME-XML", *sides)
