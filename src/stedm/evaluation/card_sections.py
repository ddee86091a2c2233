"""What a run measured, in the sections of cards that are kept for it (stedm.data.card)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stedm.data.card import QUALITY, SCORES, fill_section
from stedm.evaluation.numbers import shown
from stedm.evaluation.quality_text import quality_text


def fill_quality(folders: Iterable[Path], quality: Mapping[str, Any]) -> None:
    """Write what was measured of a synthetic set into its card and its model's."""
    n = quality["n_looked_at"]
    text = (
        f"Of {quality['n_images']} synthetic images {n['synthetic']} were looked at, held against {n['annotated']} "
        f"annotated, {n['unannotated']} unannotated and {n['held_out']} held-out ones. A figure is readable between "
        f"those of real images and of chance.\n```\n{quality_text(dict(quality))}\n```\nNo copy found is no proof that "
        "there is none."
    )
    for folder in folders:
        fill_section(folder, QUALITY, text)


def fill_scores(folders: Iterable[Path], name: str, arm: Mapping[str, Any], split: str) -> None:
    """Write the scores of an arm into the cards of its segmenters."""
    scores = [shown(arm[key]) for key in ("iou_mean", "iou_sd", "iou_worst_decile")]
    text = (
        f"Foreground IoU over {arm['n_patients']} patients of split {split}, mean of {len(arm['seeds'])} networks of "
        f"arm `{name}`:\n\n| mean | SD between patients | worst decile |\n|---|---|---|\n| {' | '.join(scores)} |"
    )
    for folder in folders:
        fill_section(folder, SCORES, text)
