"""The figures of the report, each a function that returns a matplotlib Figure.

`save_png` writes one to a file (for documents), `inline_svg` turns one into an SVG that takes its ink from the page,
so that the same figure reads in light and in dark mode. No pyplot: nothing here touches global state.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from stedm.evaluation.stats import ordered_arms
from stedm.io.files import replacing

# Okabe & Ito (2008): told apart with every common colour blindness. Markers repeat what colours say.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f"]
ARM_COLOURS = {
    "real": "#7f8790",
    "real+stain": "#e69f00",
    "ssl": "#cc79a7",
    "self-training": "#7d5fb2",
    "real+synthetic": "#0072b2",
    "real+stain+synthetic": "#009e73",
    "real+synthetic+ssl": "#56b4e9",
    "real+stain+synthetic+ssl": "#8c6d1f",
    "real+synthetic+self-training": "#3f9fa8",
    "real+stain+synthetic+self-training": "#1d5c4a",
    "upper": "#d55e00",
}
# Class maps: background pale, other classes strong.
CLASS_COLOURS = ["#e9e6df", "#7b3f8c", "#2a9d8f", "#e0a030", "#c4473a", "#4a6fb5", "#8a8a3c", "#d884b0"]
# Outlines lie on tissue, which is itself purple, blue or brown: bright colours.
OUTLINE_COLOURS = ["#ffffff", "#ffe14d", "#ff7a5c", "#9dff70", "#ff8df2", "#ffffff", "#c9a2ff", "#ffb347"]
WRONG_COLOUR, UNKNOWN_COLOUR = "#00e5ff", "#464646"
INK, MUTED, PAPER = "#1b1d22", "#81868f", "#fdfefe"  # replaced by the page's colours in `inline_svg`


@dataclass(frozen=True)
class StyleGrid:
    """Rows are styles, columns are layouts: `generated[row][col]` has layout `col` in the style of row `row`.

    A row label may have several lines.

    Images are uint8 RGB (H, W, 3), layouts uint8 class maps (H, W).
    """

    style_images: list[list[np.ndarray]]
    layouts: list[np.ndarray]
    generated: list[list[np.ndarray]]
    row_labels: list[str]
    caption: str = ""


@dataclass(frozen=True)
class StyleStrip:
    """One layout in styles from one patient's to another's: `generated[i]` from left to right.

    `ends` are real images of the two patients, `end_labels` their names.
    """

    layout: np.ndarray
    ends: tuple[list[np.ndarray], list[np.ndarray]]
    generated: list[np.ndarray]
    end_labels: tuple[str, str]
    caption: str = ""


@dataclass(frozen=True)
class PatientExamples:
    """Synthetic images for one unannotated patient: `synthetic[i]` was generated from `layouts[i]`."""

    patient_id: str
    style_images: list[np.ndarray]
    layouts: list[np.ndarray]
    synthetic: list[np.ndarray]
    category: str = ""


@dataclass(frozen=True)
class Overlay:
    """One image of a test patient with its truth and what some arms predicted (class maps), and the patient's IoU."""

    patient_id: str
    image: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    iou: dict[str, float] = field(default_factory=dict)
    category: str = ""


def save_png(path: str | Path, figure: Figure, dpi: int = 160) -> None:
    """Write a figure as PNG on white, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(figure, dpi))


def png_bytes(figure: Figure, dpi: int = 160) -> bytes:
    """A figure as PNG on white."""
    buffer = io.BytesIO()
    with _styled():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def inline_svg(figure: Figure, description: str) -> str:
    """A figure as an `<svg>` element to stand inside HTML: no prologue, no addresses, ink and paper from the page."""
    buffer = io.BytesIO()
    with _styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    # Inside HTML the names of XML are known without their addresses.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Outlines of ragged masks are long: a hundredth of a point is fine enough, and halves the file.
    svg = re.sub(r'\sd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    for colour, on_page in ((INK, "var(--ink)"), (MUTED, "var(--muted)"), (PAPER, "var(--paper)")):
        svg = svg.replace(colour, on_page)
    width, height = figure.get_size_inches() * 72
    head = f'<svg role="img" aria-label="{_attribute(description)}" viewBox="0 0 {width:g} {height:g}" '
    # Natural size in CSS pixels: a figure shrinks with the page down to the min-width its container sets.
    head += f'style="width:{width * 4 / 3:.0f}px">'
    return head + svg[svg.index(">") + 1 :]


def arms_figure(patients: pd.DataFrame, unit: str = "patient") -> Figure:
    """Every patient's IoU in every arm, with the mean (bar) per arm, for documents; the report has `plots.arms_plot`.

    `patients` is the table of `metrics.per_patient`, `unit` what the axis calls one of its rows.
    """
    arms = ordered_arms(patients["arm"].unique())
    rng = np.random.default_rng(0)  # only moves dots apart, the same way each time
    with _styled():
        figure = Figure(figsize=(7.2, 0.7 + 0.46 * len(arms)), layout="constrained")
        ax = figure.add_subplot()
        for row, arm in enumerate(arms):
            values = patients.loc[patients["arm"] == arm, "iou"].dropna().to_numpy()
            y = row + rng.uniform(-0.22, 0.22, len(values))
            ax.plot(values, y, "o", ms=4.5, color=arm_colour(arm, row), alpha=0.75, mew=0)
            if len(values):
                ax.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=INK, lw=2.2)
        ax.set_yticks(range(len(arms)), [_label(arm) for arm in arms])
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_xlabel(f"IoU per {unit} (bar: mean)")
        _plain(ax, grid="x")
    return figure


def style_grid_figure(grid: StyleGrid) -> Figure:
    """Style images on the left, layouts on top, generated images at the crossings."""
    n_styles = max((len(images) for images in grid.style_images), default=0)
    rows, columns = len(grid.generated), len(grid.layouts)
    with _styled():
        figure, axes = _cells(rows + 1, n_styles + columns, cell=0.92, gap_after_column=n_styles, gap_after_row=1)
        for column, layout in enumerate(grid.layouts):
            _show(axes[0][n_styles + column], colour_layout(layout))
        for row, (styles, generated) in enumerate(zip(grid.style_images, grid.generated, strict=True), start=1):
            for column, image in enumerate(styles):
                _show(axes[row][column], image)
            for column, image in enumerate(generated):
                _show(axes[row][n_styles + column], image)
            _row_label(axes[row][0], *grid.row_labels[row - 1].split("\n"))
        if n_styles:
            _heading(axes[0][0], "styles ↓   layouts →")
    return figure


def style_strip_figure(strip: StyleStrip) -> Figure:
    """Above, real images of the two patients and the layout between them; below, the generated images."""
    first, last = strip.ends
    columns = max(len(strip.generated), len(first) + len(last) + 1)
    with _styled():
        figure, (above, below) = _cells(2, columns, cell=0.92, gap_after_row=1)
        for column, image in enumerate(first):
            _show(above[column], image)
        for column, image in enumerate(last, start=columns - len(last)):
            _show(above[column], image)
        _show(above[columns // 2], colour_layout(strip.layout))
        for column, image in enumerate(strip.generated):
            _show(below[column], image)
        for ax, label in ((above[0], strip.end_labels[0]), (above[columns - len(last)], strip.end_labels[1])):
            _heading(ax, _label(label, 28))
        _heading(above[columns // 2], "layout")
        _row_label(above[0], "real")
        _row_label(below[0], "synthetic")
    return figure


def patient_examples_figure(examples: Sequence[PatientExamples]) -> Figure:
    """One row a patient: its real images, then pairs of layout and synthetic image."""
    n_styles = max(len(example.style_images) for example in examples)
    n_synthetic = max(len(example.synthetic) for example in examples)
    with _styled():
        figure, axes = _cells(len(examples), n_styles + 2 * n_synthetic, cell=0.92, gap_after_column=n_styles)
        for row, example in zip(axes, examples, strict=True):
            for ax, image in zip(row, example.style_images, strict=False):
                _show(ax, image)
            for i, (layout, image) in enumerate(zip(example.layouts, example.synthetic, strict=True)):
                _show(row[n_styles + 2 * i], colour_layout(layout))
                _show(row[n_styles + 2 * i + 1], image)
            _row_label(row[0], example.patient_id, example.category)
        _heading(axes[0][0], "real")
        _heading(axes[0][n_styles], "layout | synthetic")
    return figure


def colour_layout(layout: np.ndarray) -> np.ndarray:
    """Class map (H, W) -> uint8 RGB (H, W, 3); indices beyond the known colours (ignored pixels) become dark grey."""
    table = np.full((256, 3), int(UNKNOWN_COLOUR[1:3], 16), np.uint8)
    for index, colour in enumerate(CLASS_COLOURS):
        table[index] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[np.asarray(layout, np.uint8)]


def arm_colour(arm: str, row: int) -> str:
    return ARM_COLOURS.get(arm.rsplit("/", 1)[-1], COLOURS[row % len(COLOURS)])


@contextmanager
def _styled():
    """Text stays text in SVG, is never read as formulas, and a character the font lacks is drawn as a box."""
    options = {
        "svg.fonttype": "none",
        "svg.hashsalt": "stedm",
        "text.parse_math": False,
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "image.interpolation": "none",
    }
    with matplotlib.rc_context(options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _plain(ax: Axes, grid: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=MUTED, alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


def _cells(
    rows: int, columns: int, cell: float, gap_after_column: int = 0, gap_after_row: int = 0, row_gap: float = 0.05
) -> tuple[Figure, list[list[Axes]]]:
    """A table of square axes, `cell` inches wide, with room for row labels, a heading and one wider gap."""
    left, top, gap, wide = 1.45, 0.28, 0.05, 0.16
    width = left + columns * (cell + gap) + wide
    height = top + rows * (cell + row_gap) + (wide if gap_after_row else 0)
    figure = Figure(figsize=(width, height))

    def place(row: int, column: int) -> Axes:
        x = left + column * (cell + gap) + (wide if gap_after_column and column >= gap_after_column else 0)
        y = height - top - row * (cell + row_gap) - cell - (wide if gap_after_row and row >= gap_after_row else 0)
        ax = figure.add_axes((x / width, y / height, cell / width, cell / height))
        ax.set_axis_off()
        return ax

    return figure, [[place(row, column) for column in range(columns)] for row in range(rows)]


def _show(ax: Axes, image: np.ndarray, largest_px: int = 160) -> None:
    """Draw a uint8 RGB image; large ones are made smaller, because the report is one file."""
    height, width = image.shape[:2]
    shown = Image.fromarray(np.ascontiguousarray(image))
    if max(height, width) > largest_px:
        scale = largest_px / max(height, width)
        shown = shown.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    ax.imshow(np.asarray(shown), extent=(0, width, height, 0))


def _row_label(ax: Axes, *lines: str) -> None:
    text = "\n".join(_label(line, 16) for line in lines if line)
    ax.text(-0.08, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=9, color=INK)


def _heading(ax: Axes, text: str, align: str = "left") -> None:
    x = 0.5 if align == "center" else 0
    # A centred heading stands over one cell, which is as wide as 21 letters of size 9.
    size = min(9, 9 * 21 / max(len(text), 1)) if align == "center" else 9
    ax.text(x, 1.05, text, transform=ax.transAxes, ha=align, va="bottom", fontsize=size, color=INK)


def printable(text: str) -> str:
    """Free text on one line, without characters that can't be shown."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def _label(text: str, longest: int = 34) -> str:
    """Free text for a figure: printable and not too long; `longest` counts letters of usual width."""
    text = printable(text)
    widths = np.cumsum([_letters(c) for c in text])
    return text if not len(text) or widths[-1] <= longest else text[: int((widths <= longest - 1.5).sum())] + "…"


def _letters(character: str) -> float:
    """How many usual letters a character is wide, about, whatever the font."""
    if unicodedata.east_asian_width(character) in "WF":
        return 1.7
    return 1.55 if character.isupper() or character in "mw@%—" else 1.0


def _attribute(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text
