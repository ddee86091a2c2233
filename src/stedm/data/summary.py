"""What is in a dataset folder, a row a split: patients, images, sizes, classes, categories."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stedm.columns import aligned, fitted
from stedm.data.info import DatasetInfo
from stedm.io.tables import SPLITS

_SHOWN_CATEGORIES, _LONGEST_CLASS = 6, 24


@dataclass(frozen=True)
class SplitSummary:
    """A split of a dataset folder."""

    split: str
    patients: int
    images: int
    masks: int
    """Masks that were read; those of `unlabeled` never are."""
    width_px: tuple[int, int] | None
    """Smallest and largest; None where no image could be read."""
    height_px: tuple[int, int] | None
    fractions: dict[str, float]
    """Part of each class in the pixels that are not ignored; NaN where there are none."""
    ignored: float
    """Part of the pixels of the masks."""
    categories: dict[str, int]
    """Images of each, the most frequent first; without those that have none."""


def summarise(
    info: DatasetInfo,
    table: pd.DataFrame,
    sizes: Mapping[str, tuple[int, int]],
    masks: pd.DataFrame,
    counts: np.ndarray,
) -> list[SplitSummary]:
    """Args: the folder's table, (width, height) by image name, and the masks read as `class_findings` takes them."""
    parts = []
    for split in SPLITS:
        rows = table[table["split"] == split]
        known = [sizes[name] for name in rows["image_file_name"] if name in sizes]
        if len(rows):
            parts.append(_of_split(info, split, rows, known, counts[(masks["split"] == split).to_numpy()]))
    return parts


def _of_split(
    info: DatasetInfo, split: str, rows: pd.DataFrame, sizes: list[tuple[int, int]], counts: np.ndarray
) -> SplitSummary:
    total = counts.sum(axis=0)
    scored, ignored = total[: len(info.classes)], int(total[info.ignore_index])
    pixels = int(scored.sum())
    widths, heights = zip(*sizes, strict=True) if sizes else ((), ())
    return SplitSummary(
        split=split,
        patients=rows["patient_id"].nunique(),
        images=len(rows),
        masks=len(counts),
        width_px=(min(widths), max(widths)) if sizes else None,
        height_px=(min(heights), max(heights)) if sizes else None,
        fractions={
            name: count / pixels if pixels else float("nan")
            for name, count in zip(info.classes, scored.tolist(), strict=True)
        },
        ignored=ignored / (pixels + ignored) if pixels + ignored else float("nan"),
        categories=dict(Counter(filter(None, rows["category"])).most_common()),
    )


def summary_text(splits: Sequence[SplitSummary]) -> str:
    """The table for a terminal."""
    if not splits:
        return ""
    names = [fitted(name, _LONGEST_CLASS) for name in splits[0].fractions]
    head = ["split", "patients", "images", "masks", "size (px)", *names, "ignored", "categories"]
    rows = [
        [
            *(part.split, str(part.patients), str(part.images), str(part.masks)),
            f"{_range(part.width_px)} x {_range(part.height_px)}" if part.width_px else "-",
            *map(_fraction, [*part.fractions.values(), part.ignored]),
            _categories(part.categories),
        ]
        for part in splits
    ]
    is_text = {0, 4, len(head) - 1}
    return aligned([head, *rows], right=set(range(len(head))) - is_text)


def _range(ends: tuple[int, int] | None) -> str:
    return "-" if ends is None else "-".join(map(str, sorted(set(ends))))


def _fraction(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _categories(categories: dict[str, int]) -> str:
    shown = [f"{fitted(name, _LONGEST_CLASS)} {count}" for name, count in list(categories.items())[:_SHOWN_CATEGORIES]]
    return ", ".join(shown) + (" ..." if len(categories) > _SHOWN_CATEGORIES else "")
