"""`stedm quality`, and the same in a run: one set of synthetic images held against the real ones, in a minute or less.

What each measure means and its bounds: docs/quality.md. Nothing is trained and nothing downloaded; large sets are
sampled, and how many images were looked at is said.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.layout_agreement import IGNORED, WEAK, layout_result, look_for_layouts
from stedm.evaluation.memorisation import audit
from stedm.evaluation.quality import (
    distance_of_colours,
    kernel_distance,
    own_patient_retrieval,
    retrieval_chance,
    statistics_of_colours,
)
from stedm.evaluation.quality_text import warnings_of
from stedm.evaluation.seen import Seen, look
from stedm.layout.recipe import PREDICTED
from stedm.seeds import numpy_generator
from stedm.synthesis.plan import LIST_SEPARATOR

MOST_SYNTHETIC, MOST_KNOWN, MOST_LAYOUTS = 1024, 2048, 512
"""Images that are looked at: of the set, of annotated and of unannotated ones each, and for layouts."""
_FEWEST_LAYOUTS, _LAYOUT_PX = 64, 1 << 23
"""For layouts so many images as have this many pixels together: 512 of 128 px, 64 of 512 px."""
_FEWEST_FOR_KID = 50
_LEAST_RETRIEVAL = 0.1
"""Real images that lead to their patient hardly better than chance tell nothing of synthetic ones."""


@dataclass(frozen=True)
class Parts:
    """A synthetic set and the real images that it is held against; squares (see `stedm.data.squares`)."""

    synthetic: DatasetFolder
    annotated: DatasetFolder
    unannotated: DatasetFolder
    """Whose styles were asked for; with `annotated` all that the diffusion model has seen."""
    held_out: DatasetFolder
    """Split val; may be empty."""

    def __post_init__(self) -> None:
        if not len(self.annotated) or not len(self.unannotated):
            raise StedmError(
                f"{self.annotated.root}: images of train (with masks) and unlabeled are needed to measure against; "
                "give --against such"
            )
        if self.synthetic.info.classes != self.annotated.info.classes:
            raise StedmError(
                f"{self.synthetic.root}: its classes are not those of {self.annotated.root}; "
                "give the dataset that it was painted from"
            )


def assess(
    parts: Parts,
    image_px: int,
    network: nn.Module | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Measure a synthetic set.

    Args:
        image_px: side at which images are compared; the segmenter's where there is one.
        network: a segmenter that has learned from real images alone; None = layouts are looked for without one.
        on_progress: called with (images looked at, of how many), layouts apart.

    Returns:
        What quality.json says (docs/quality.md), and the closest pairs as an image, uint8 RGB.

    Raises:
        StedmError: no annotated or unannotated images, or other classes.
    """
    chosen = {
        "synthetic": _sampled(len(parts.synthetic), MOST_SYNTHETIC),
        "annotated": _sampled(len(parts.annotated), MOST_KNOWN),
        "unannotated": _sampled(len(parts.unannotated), MOST_KNOWN),
        "held_out": _sampled(len(parts.held_out), MOST_SYNTHETIC),
    }
    total, done = sum(map(len, chosen.values())), 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        if on_progress:
            on_progress(done, total)

    seen = {name: look(getattr(parts, name), rows, image_px, network, tick) for name, rows in chosen.items()}
    table = parts.synthetic.table.iloc[chosen["synthetic"]]
    begun = (table["start"].to_numpy(float) < 1) if "start" in table else np.zeros(len(table), bool)
    known = seen["annotated"].followed_by(seen["unannotated"])
    memorisation, closest = audit(seen["synthetic"], known, len(seen["annotated"]), seen["held_out"], begun)
    result: dict[str, Any] = {
        "n_images": len(parts.synthetic),
        "n_looked_at": {name: len(rows) for name, rows in chosen.items()},
        "layout": _layouts(parts, chosen["synthetic"][~begun if (~begun).any() else begun], image_px, network),
        "style": _style(seen["synthetic"], known, _shown(table, known)),
        "stain_distance": _stains(seen["synthetic"], known),
        "kid": _kid(seen),
        "memorisation": memorisation,
    }
    result["warnings"] = warnings_of(result)
    picture = _picture(parts, chosen, closest, len(seen["annotated"]), min(image_px, 128))
    result["closest"] = [{key: value for key, value in pair.items() if "row" not in key} for pair in closest]
    return result, picture


def _sampled(n: int, most: int) -> np.ndarray:
    """Of n rows so many at most, drawn over all of them."""
    return np.sort(numpy_generator(0, "quality", "sample", n).permutation(n)[:most])


# ---- layout -------------------------------------------------------------------------------------------------------


def _layouts(parts: Parts, rows: np.ndarray, image_px: int, network: nn.Module | None) -> dict[str, Any]:
    """Of images that were painted from noise: those begun at a real image show what is in that one."""
    most = min(MOST_LAYOUTS, max(_FEWEST_LAYOUTS, _LAYOUT_PX // image_px**2))
    unknown = {"verdict": "unknown", "share": None, "share_contrast": None, "synthetic": None, "real": None}

    def with_masks(dataset: DatasetFolder, rows: np.ndarray) -> np.ndarray:
        rows = rows[dataset.has_mask.to_numpy()[rows]]
        return rows[_sampled(len(rows), most)]

    asked = with_masks(parts.synthetic, rows)
    if len(asked) < 2:
        return unknown | {"per_patient": {}}
    synthetic = look_for_layouts(parts.synthetic, asked, image_px, network)
    for name, dataset in (("held_out", parts.held_out), ("annotated", parts.annotated)):
        annotated = with_masks(dataset, np.arange(len(dataset)))
        if len(annotated) > 1:
            return layout_result(synthetic, look_for_layouts(dataset, annotated, image_px, network), name)
    return layout_result(synthetic, None, "")


# ---- style --------------------------------------------------------------------------------------------------------


def _shown(table: pd.DataFrame, known: Seen) -> list[list[int]]:
    """Of each synthetic image the rows of `known` that the model was given: style images, an image it was begun at."""
    row_of = {name: row for row, name in enumerate(known.names)}
    shown = [[] for _ in range(len(table))]
    if "style_image_file_names" in table:
        shown = [str(names).split(LIST_SEPARATOR) for names in table["style_image_file_names"]]
    if {"layout_kind", "layout_image_file_name"} <= set(table):
        pairs = zip(table["layout_kind"], table["layout_image_file_name"], strict=True)
        shown = [
            [*names, *([name] if kind == PREDICTED else [])] for names, (kind, name) in zip(shown, pairs, strict=True)
        ]
    return [[row_of[name] for name in names if name in row_of] for names in shown]


def _style(synthetic: Seen, known: Seen, shown: list[list[int]]) -> dict[str, Any]:
    """How well an image leads to its own patient, by stains and texture, among all that the model has seen."""
    there = np.isin(synthetic.patients, known.patients)
    patients = np.unique(known.patients)
    if not there.any() or len(patients) < 2:
        return dict.fromkeys(("share", "mrr", "top1", "real", "chance"), None) | {
            "verdict": "unknown",
            "ci": [None, None],
            "n_patients": 0,
        }
    queries = np.flatnonzero(there)
    top1, mrr = own_patient_retrieval(
        synthetic.textures[queries] - _in_common(synthetic, known, queries),
        synthetic.patients[queries],
        known.textures,
        known.patients,
        [shown[row] for row in queries],
    )
    # Real images in the place of synthetic ones: as many of their patient are left out, the image itself among them.
    n_out = max(1, int(np.median([len(shown[row]) for row in queries])))
    rows = np.flatnonzero(np.isin(known.patients, synthetic.patients))
    rows_of = {patient: np.flatnonzero(known.patients == patient) for patient in np.unique(known.patients[rows])}
    left_out = []
    for row in rows:
        own = rows_of[known.patients[row]]
        left_out.append(np.roll(own, -int(np.searchsorted(own, row)))[:n_out])
    _, real = own_patient_retrieval(
        known.textures[rows], known.patients[rows], known.textures, known.patients, left_out
    )
    chance = retrieval_chance(len(patients))["retrieval_mrr"]
    possible = real.value - chance
    share = (mrr.value - chance) / possible if possible >= _LEAST_RETRIEVAL else None
    return {
        "verdict": _style_verdict(share),
        "share": share,
        "mrr": mrr.value,
        "ci": mrr.ci,
        "top1": top1.value,
        "real": real.value,
        "chance": chance,
        "n_patients": len(mrr.per_patient),
    }


def _in_common(synthetic: Seen, known: Seen, queries: np.ndarray) -> np.ndarray:
    """By what all synthetic images differ from the real ones of their patients, (27,): a little blur in every image
    would hide whose style it has. What it amounts to, stain distance and KID tell."""
    patients = np.unique(synthetic.patients[queries])
    apart = [synthetic.textures[queries][synthetic.patients[queries] == one].mean(axis=0) for one in patients]
    real = [known.textures[known.patients == one].mean(axis=0) for one in patients]
    return np.mean(apart, axis=0) - np.mean(real, axis=0)


def _style_verdict(share: float | None) -> str:
    if share is None or np.isnan(share):
        return "unknown"
    return "ignored" if share < IGNORED else "followed" if share >= WEAK else "weak"


def _stains(synthetic: Seen, known: Seen) -> dict[str, Any]:
    """Stain distance of each patient's images to its real ones; between halves of these; and to the next patient's."""
    made = statistics_of_colours(synthetic.colours, synthetic.patients)
    real = statistics_of_colours(known.colours, known.patients)
    if len(real) < 2 or not len(made.index.intersection(real.index)):
        return {"value": None, "ci": [None, None], "real": None, "next_patient": None}
    found = distance_of_colours(made, real)
    order = np.argsort(known.patients, kind="stable")
    halves = [statistics_of_colours(known.colours[part], known.patients[part]) for part in (order[::2], order[1::2])]
    moved = real.set_axis(np.roll(real.index, 1))
    between = distance_of_colours(*halves).value if len(halves[1]) > 1 else None
    return {
        "value": found.value,
        "ci": found.ci,
        "real": between,
        "next_patient": distance_of_colours(moved, real).value,
    }


# ---- likeness as a set --------------------------------------------------------------------------------------------


def _kid(seen: dict[str, Seen]) -> dict[str, Any] | None:
    """Kernel distance to the unannotated images, and that of held-out ones; None without torchmetrics (`quality`)."""
    sets = [seen[name] for name in ("synthetic", "unannotated", "held_out")]
    if find_spec("torchmetrics") is None or min(len(part) for part in sets[:2]) < _FEWEST_FOR_KID:
        return None
    space = "features" if sets[0].features.shape[1] else "texture"
    made, real, held_out = ((part.features if space == "features" else part.textures) for part in sets)
    found = kernel_distance(made, real)
    floor = kernel_distance(held_out, real).value if len(held_out) >= _FEWEST_FOR_KID else None
    return {"value": found.value, "ci": found.ci, "held_out": floor, "space": space}


# ---- closest pairs ------------------------------------------------------------------------------------------------


def _picture(
    parts: Parts, chosen: dict[str, np.ndarray], pairs: list[dict[str, Any]], n_annotated: int, image_px: int
) -> np.ndarray | None:
    """The closest pairs side by side: synthetic images above, the training images below them."""
    if not pairs:
        return None
    gap, columns = 4, []
    for pair in pairs:
        near, is_annotated = pair["known_row"], pair["annotated"]
        dataset = parts.annotated if is_annotated else parts.unannotated
        row = chosen["annotated"][near] if is_annotated else chosen["unannotated"][near - n_annotated]
        made = parts.synthetic.read_image(int(chosen["synthetic"][pair["row"]]), image_px)
        both = [made, dataset.read_image(int(row), image_px)]
        columns.append(
            np.concatenate([np.pad(image, [(0, gap), (0, gap), (0, 0)], constant_values=255) for image in both])
        )
    return np.concatenate(columns, axis=1)
