"""The plots of the report: SVG that takes the width it is given, whose dots tell their patient and lead to its images.

Places are in per cent of the width, sizes in pixels of the page: text has the same size on a telephone, on a screen and
on paper. Colours are the page's (variables of its style sheet), so that a plot reads in light, in dark and in print.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from stedm.evaluation.figures import COLOURS, arm_colour, printable
from stedm.evaluation.numbers import shown, signed
from stedm.evaluation.stats import ordered_arms

# Of dots, by category: they repeat what colours say.
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5l5 9h-10z",
    "M0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "M0 5l5 -9h-10z",
    "M-5 0l9 -5v10z",
    "M5 0l-9 -5v10z",
    "M-2 -5h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
)
HEIGHT_PX, ROW_PX = 300, 44
NARROW = 0.04
"""Part of the range that stays free at both ends of an axis."""


@dataclass(frozen=True)
class Axis:
    """Numbers to per cent or pixels of an axis, and where its ticks are."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], *, zero: bool = False, most: float = math.inf) -> "Axis":
        """That shows all of some finite numbers, 0 where asked, and nothing beyond `most`."""
        values = [*values, *([0.0] if zero else [])] or [0.0, 1.0]
        free = NARROW * (max(values) - min(values)) or 0.05
        return cls(min(values) - free, min(max(values) + free, max(most, max(values))))

    def part(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers on the axis."""
        rough = (self.high - self.low) / about
        size = 10 ** math.floor(math.log10(rough))
        step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * i, 10) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def anchor(patient: str) -> str:
    """Where in the page the images of a patient are, or its row of the table: an id that any name gives."""
    return "patient-" + hashlib.sha256(str(patient).encode()).hexdigest()[:10]


def breakable(text: str) -> Markup:
    """Escaped, with places at which names of arms may be broken."""
    return Markup(re.sub(r"([+/_])", r"\1<wbr>", str(escape(printable(text)))))


def category_marks(patients: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and shape of each category, by name."""
    names = sorted(patients["category"].unique())
    return {name: (COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i, name in enumerate(names)}


def pairs_of(patients: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """Patients with a score in both arms, by id: category, a, b, gain."""
    new, old = (patients[patients["arm"] == arm].set_index("patient_id") for arm in (a, b))
    pairs = pd.DataFrame({"category": old["category"], "a": new["iou"], "b": old["iou"]}).dropna()
    return pairs.assign(gain=pairs["a"] - pairs["b"])


def arms_plot(patients: pd.DataFrame, unit: str = "patient") -> Markup:
    """Every patient's IoU in every arm, with the mean (bar) per arm; `patients` from `metrics.per_patient`."""
    arms, kept = ordered_arms(patients["arm"].unique()), patients.dropna(subset="iou")
    axis = Axis.of(kept["iou"].tolist(), most=1.0)
    rng = np.random.default_rng(0)  # only moves dots apart, the same way each time
    drawn, height = [], ROW_PX * len(arms)
    for row, arm in enumerate(arms):
        of_arm, middle = kept[kept["arm"] == arm], ROW_PX * (row + 0.5)
        offsets = rng.uniform(-0.2, 0.2, len(of_arm)) * ROW_PX
        # The names stand on lines of their own above the dots: they may be long and the page narrow.
        for patient, category, value, offset in zip(
            of_arm["patient_id"], of_arm["category"], of_arm["iou"], offsets, strict=True
        ):
            text = f"{_who(patient, category, unit)}\n{arm}: IoU {shown(value)}"
            place = f'cx="{_percent(axis.part(value))}" cy="{middle + offset:.1f}" r="4.5"'
            drawn.append(_linked(patient, text, f'<circle {place} fill="{arm_colour(arm, row)}" class="dot"/>'))
        if len(of_arm):
            x = _percent(axis.part(of_arm["iou"].mean()))
            drawn.append(f'<line x1="{x}" x2="{x}" y1="{middle - 15}" y2="{middle + 15}" class="mean"/>')
    names = "".join(f'<div style="height:{ROW_PX}px"><span>{breakable(arm)}</span></div>' for arm in arms)
    plot = _frame(f"IoU of every {unit} in every arm", height, axis, None, drawn)
    axes = _with_axes(plot, "", f"IoU per {unit} (bar: mean)")
    return Markup(f'<div class="named"><div class="names">{names}</div>{axes}</div>')


def pair_plot(patients: pd.DataFrame, a: str, b: str, unit: str = "patient") -> Markup:
    """Each patient's IoU from baseline `b` to new arm `a`, marked by category; thick: the mean."""
    pairs, marks = pairs_of(patients, a, b), category_marks(patients)
    axis = Axis.of([*pairs["a"], *pairs["b"]], most=1.0)
    left, right = "14%", "86%"
    drawn = []
    for patient, row in pairs.iterrows():
        colour, shape = marks[row["category"]]
        y = [HEIGHT_PX * (1 - axis.part(row[arm])) for arm in ("b", "a")]
        line = f'<line x1="{left}" x2="{right}" y1="{y[0]:.1f}" y2="{y[1]:.1f}" stroke="{colour}" class="change"/>'
        dots = "".join(_mark(x, at, colour, shape) for x, at in zip((left, right), y, strict=True))
        text = f"{_who(patient, row['category'], unit)}\n{shown(row['b'])} → {shown(row['a'])} ({signed(row['gain'])})"
        drawn.append(_linked(patient, text, line + dots))
    if len(pairs):
        y = [HEIGHT_PX * (1 - axis.part(pairs[arm].mean())) for arm in ("b", "a")]
        drawn.append(f'<line x1="{left}" x2="{right}" y1="{y[0]:.1f}" y2="{y[1]:.1f}" class="mean"/>')
    svg = _frame(f"IoU per {unit}, {b} and {a}", HEIGHT_PX, None, axis, drawn)
    ends = f'<div class="ends"><span>{breakable(b)}</span><span>{breakable(a)}</span></div>'
    return Markup(f"{_with_axes(svg, f'IoU of the {unit} (thick line: mean)', None)}{ends}")


def gain_plot(
    patients: pd.DataFrame, a: str, b: str, unit: str = "patient", x: pd.Series | None = None, x_name: str = ""
) -> Markup:
    """Each patient's gain from `b` to `a` against the IoU it had with `b`: do the difficult patients gain most?

    With `x`, a number for each patient id, and its `x_name`: against that.
    """
    pairs, marks = pairs_of(patients, a, b), category_marks(patients)
    pairs["x"] = pairs["b"] if x is None else x.reindex(pairs.index)
    pairs = pairs.dropna(subset="x")
    across, up = Axis.of(pairs["x"].tolist()), Axis.of(pairs["gain"].tolist(), zero=True)
    zero = HEIGHT_PX * (1 - up.part(0.0))
    drawn = [f'<line x1="0" x2="100%" y1="{zero:.1f}" y2="{zero:.1f}" class="zero"/>']
    for patient, row in pairs.iterrows():
        place = _percent(across.part(row["x"])), HEIGHT_PX * (1 - up.part(row["gain"]))
        text = f"{_who(patient, row['category'], unit)}\n{shown(row['b'])} → {shown(row['a'])} ({signed(row['gain'])})"
        text += "" if x is None else f"\n{x_name}: {row['x']:.2f}"
        drawn.append(_linked(patient, text, _mark(*place, *marks[row["category"]])))
    svg = _frame(f"gain of {a} against {x_name or f'IoU with {b}'}", HEIGHT_PX, across, up, drawn)
    return _with_axes(svg, f"gain in IoU with {a}", x_name or f"IoU with {b}")


def category_key(patients: pd.DataFrame, unit: str = "patient") -> Markup:
    """What colours and shapes of the dots mean, as items of a list; empty where no patient has a category."""
    counts = patients.groupby("category")["patient_id"].nunique()
    if list(counts.index) == [""]:
        return Markup()
    items = []
    for name, (colour, shape) in category_marks(patients).items():
        count = f" ({counts[name]})" if unit == "patient" else ""  # a category that is a unit itself needs none
        drawn = f'<svg width="12" height="12" viewBox="-6 -6 12 12"><path d="{shape}" fill="{colour}"/></svg>'
        items.append(f"<li>{drawn}{escape(printable(name) or 'without category')}{count}</li>")
    return Markup("".join(items))


def line_plot(lines: dict[str, tuple[Sequence[float], Sequence[float]]], x_name: str, y_name: str) -> Markup:
    """Lines by name, each with its x and y; finite numbers, x rising."""
    across = Axis(0.0, max(max(x) for x, _ in lines.values()) or 1.0)
    up = Axis.of([value for _, y in lines.values() for value in y], zero=True)
    drawn = []
    for (name, (x, y)), colour in zip(lines.items(), cycle(COLOURS), strict=False):
        points = " ".join(
            f"{1000 * across.part(i):.0f},{1000 * (1 - up.part(j)):.0f}" for i, j in zip(x, y, strict=True)
        )
        drawn.append(
            f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" class="line">'
            f'<polyline points="{points}" stroke="{colour}"><title>{escape(name)}</title></polyline></svg>'
        )
    return _with_axes(_frame(f"{y_name} by {x_name}", HEIGHT_PX, across, up, drawn), y_name, x_name)


def line_key(names: Sequence[str]) -> Markup:
    """The names of the lines of `line_plot` with their colours, as items of a list."""
    marks = zip(names, cycle(COLOURS), strict=False)
    return Markup("".join(f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in marks))


def _who(patient: object, category: str, unit: str) -> str:
    return printable(str(patient)) + (f" ({printable(category)})" if category and unit == "patient" else "")


def _linked(patient: object, text: str, drawn: str) -> str:
    return f'<a href="#{anchor(str(patient))}"><title>{escape(text)}</title>{drawn}</a>'


def _mark(x: str, y: float, colour: str, shape: str) -> str:
    # A path has no place of its own that could be in per cent; an SVG inside has.
    return f'<svg x="{x}" y="{y:.1f}" class="mark"><path d="{shape}" fill="{colour}" class="dot"/></svg>'


def _frame(name: str, height: float, across: Axis | None, up: Axis | None, drawn: Sequence[str]) -> Markup:
    """The svg: grid lines and numbers of the axes, then what is drawn."""
    parts = [f'<svg role="group" aria-label="{escape(name)}" class="plot" height="{height:.0f}">']
    for value in across.ticks() if across else []:
        x = _percent(across.part(value))
        parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height:.0f}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{height + 17:.0f}" text-anchor="middle">{_tick(value)}</text>')
    for value in up.ticks() if up else []:
        y = height * (1 - up.part(value))
        parts.append(f'<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    return Markup("".join([*parts, *drawn, "</svg>"]))


def _with_axes(svg: str, up: str | None, across: str | None) -> Markup:
    """The plot between the names of its axes, which are text of the page and wrap."""
    above = f'<p class="axis">{breakable(up)}</p>' if up else ""
    below = f'<p class="axis below">{breakable(across)}</p>' if across else ""
    return Markup(f'<div class="axes{" left" if up else ""}{" below" if across else ""}">{above}{svg}{below}</div>')


def _percent(part: float) -> str:
    return f"{100 * part:.2f}%"


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")
