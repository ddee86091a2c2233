"""Patients one by one: an image with its truth outlined, and beside it what each arm predicted.

A card holds its image once: its other panels use it again, under their outlines.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

from stedm.evaluation.figures import OUTLINE_COLOURS, WRONG_COLOUR, Overlay, printable
from stedm.evaluation.numbers import shown
from stedm.evaluation.plots import anchor
from stedm.evaluation.stats import ordered_arms

LARGEST_PX = 192
UNKNOWN_COLOUR = "#9aa0a8"


@dataclass(frozen=True)
class Card:
    """What the page shows of a patient: `panels` are (name, number below it, image) from left to right."""

    anchor: str
    patient: str
    category: str
    panels: list[tuple[str, str, Markup]]


def card(overlay: Overlay) -> Card:
    """The image, its truth, and the prediction of every arm that the overlay has."""
    height, width = overlay.image.shape[:2]
    home = anchor(overlay.patient_id)
    known = overlay.truth < len(OUTLINE_COLOURS)
    unknown, again = _area(~known, UNKNOWN_COLOUR, 0.75), f'<use href="#i{home}"/>'

    def panel(name: str, number: str, drawn: str) -> tuple[str, str, Markup]:
        label = escape(f"{printable(overlay.patient_id)}, {name} {number}".strip())
        head = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}">'
        return name, number, Markup(f"{head}{drawn}</svg>")

    image = f'<image id="i{home}" width="{width}" height="{height}" href="{data_url(overlay.image)}"/>'
    panels = [panel("image", "", image), panel("truth", "", f"{again}{unknown}{_outlines(overlay.truth)}")]
    for arm in ordered_arms(overlay.predictions):
        predicted = overlay.predictions[arm]
        wrong = _area((predicted != overlay.truth) & known, WRONG_COLOUR, 0.55)
        panels.append(panel(arm, _iou(overlay.iou.get(arm)), f"{again}{wrong}{unknown}{_outlines(predicted)}"))
    return Card(home, printable(overlay.patient_id), printable(overlay.category), panels)


def data_url(image: np.ndarray, largest_px: int = LARGEST_PX) -> str:
    """A uint8 RGB image as the address of an `<img>`: small ones as they are, large ones reduced and as JPEG."""
    height, width = image.shape[:2]
    drawn, buffer = Image.fromarray(np.ascontiguousarray(image)), io.BytesIO()
    if max(height, width) <= 64:
        drawn.save(buffer, format="PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    if (scale := largest_px / max(height, width)) < 1:
        drawn = drawn.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    drawn.save(buffer, format="JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _outlines(mask: np.ndarray) -> str:
    """Of each class but the background; a dark line under the bright one keeps it visible on any tissue."""
    drawn = []
    for index in range(1, len(OUTLINE_COLOURS)):
        if path := _path(mask == index):
            drawn.append(
                f'<path d="{path}" class="under"/><path d="{path}" stroke="{OUTLINE_COLOURS[index]}" class="over"/>'
            )
    return "".join(drawn)


def _area(where: np.ndarray, colour: str, opacity: float) -> str:
    path = _path(where)
    return f'<path d="{path}" fill="{colour}" fill-opacity="{opacity}" fill-rule="evenodd"/>' if path else ""


def _path(inside: np.ndarray) -> str:
    """The borders of a boolean mask (H, W) as a path; a hundredth of the image is fine enough."""
    if not inside.any():
        return ""
    # The border of zeros closes outlines at the edge of the image.
    borders = find_contours(np.pad(inside, 1).astype(float), 0.5)
    tolerance = max(0.3, max(inside.shape) / 400)
    return "".join(_polygon(approximate_polygon(border - 0.5, tolerance)) for border in borders)


def _polygon(points: np.ndarray) -> str:
    places = [f"{x:.4g} {y:.4g}" for y, x in points[:-1]]
    return f"M{'L'.join(places)}z" if len(places) > 2 else ""


def _iou(value: float | None) -> str:
    return "" if value is None else f"IoU {shown(value, 2)}"


def cards(overlays: Sequence[Overlay]) -> list[Card]:
    """One a patient."""
    return [card(overlay) for overlay in overlays]
