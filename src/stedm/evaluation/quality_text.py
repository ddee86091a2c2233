"""What the measures of a synthetic set say, in words: warnings, and a table for the terminal."""

import base64
from pathlib import Path
from typing import Any

from stedm.columns import aligned
from stedm.evaluation.numbers import shown

_NONE = "-"


def warnings_of(quality: dict[str, Any]) -> list[str]:
    """What must not be overlooked, a sentence each; [] = nothing."""
    layout, style, copies = quality["layout"], quality["style"], quality["memorisation"]
    found = []
    if layout["verdict"] == "ignored":
        found.append(
            f"The synthetic images ignore their layouts: {_layout_words(layout)}. The diffusion model has learned too "
            "little: more diffusion.steps, before anything else here is believed."
        )
    if style["verdict"] == "ignored":
        found.append(
            "The synthetic images don't look like the patients whose style was asked for: their own patient is found "
            f"with a mean reciprocal rank of {shown(style['mrr'])}, by chance {shown(style['chance'])}, of real images "
            f"{shown(style['real'])}."
        )
    if copies["verdict"] == "copies":
        name, worst = max(copies["spaces"].items(), key=lambda item: (item[1]["copies"], item[0] == "pixels"))
        found.append(
            f"{worst['copies']} of {worst['n']} synthetic images are copies of training images ({name}: "
            f"{_percent(worst)}). Look at the closest pairs before the set or the model is given away."
        )
    return found


def quality_text(quality: dict[str, Any]) -> str:
    """Tables in fixed-width columns, and the warnings."""
    layout, style, stains, kid = (quality[name] for name in ("layout", "style", "stain_distance", "kid"))
    made, real = layout["synthetic"] or {}, layout["real"] or {}
    rows = [
        ["", "synthetic", "95 % interval", "real", "chance", ""],
        [
            "layout IoU",
            _number(made.get("iou")),
            _interval(made.get("ci")),
            _number(real.get("iou")),
            _number(made.get("iou_of_other_layouts")),
            layout["verdict"],
        ],
        [
            "layout in colours",
            _number(made.get("contrast")),
            _NONE,
            _number(real.get("contrast")),
            _number(made.get("contrast_of_other_layouts")),
            "",
        ],
        [
            "own patient (MRR)",
            _number(style["mrr"]),
            _interval(style.get("ci")),
            _number(style["real"]),
            _number(style["chance"]),
            style["verdict"],
        ],
        [
            "stain distance",
            _number(stains["value"]),
            _interval(stains["ci"]),
            _number(stains["real"]),
            _number(stains["next_patient"]),
            "",
        ],
    ]
    if kid is not None:
        rows.append(["KID", _number(kid["value"]), _interval(kid["ci"]), _number(kid["held_out"]), _NONE, ""])
    text = [aligned(rows, rule=True), "", aligned(_copy_rows(quality["memorisation"]), rule=True)]
    if kid is None:
        text.append("no KID: it needs 50 images of either kind and `pip install 'stedm[quality]'`")
    text += [f"warning: {line}" for line in quality["warnings"]]
    return "\n".join(text)


def png_url(path: Path | None) -> str:
    """A PNG file as it stands in a page that works offline; "" where there is none."""
    if path is None or not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _copy_rows(memorisation: dict[str, Any]) -> list[list[str]]:
    rows = [["copies of training images", "synthetic", "95 % interval", "held-out real", "AuthPct", "of real"]]
    for name, entry in memorisation["spaces"].items():
        held_out = entry["held_out"]
        rows.append(
            [
                name,
                f"{entry['copies']} of {entry['n']}",
                _percent(entry),
                f"{held_out['copies']} of {held_out['n']}",
                _number(entry["auth_pct"], 0),
                _number(entry["held_out_auth_pct"], 0),
            ]
        )
    return rows


def _layout_words(layout: dict[str, Any]) -> str:
    made, real = layout["synthetic"], layout["real"]
    if layout["share"] is not None:
        return (
            f"a segmenter of real images finds IoU {shown(made['iou'])} of what was asked for, "
            f"{shown(made['iou_of_other_layouts'])} of layouts of other images, and {shown(real['iou'])} in real images"
        )
    return (
        f"they explain {shown(made['contrast'])} of the colours, layouts of other images "
        f"{shown(made['contrast_of_other_layouts'])}, and masks of real images {shown(real['contrast'])}"
    )


def _percent(entry: dict[str, Any]) -> str:
    low, high = entry["ci"]
    return _NONE if low is None else f"{100 * low:.1f} to {100 * high:.1f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None or value != value else f"{value:.{digits}f}"


def _interval(bounds: list[float | None] | None) -> str:
    return _NONE if not bounds or None in bounds else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
