"""Which classes occur in the masks of a dataset folder: a network can only learn what somebody drew.

Masks that are no class indices (0 and 255, counted from 1), that are empty or ignored throughout, or that hold one
class alone are readable, train without a complaint and give a score: this is where they are told from good ones.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stedm.data.info import DatasetInfo
from stedm.io.images import FileFacts

_SHOWN = 5
_WASTED = "take their rows out of train, samples and painted layouts are wasted on them"
Findings = tuple[list[str], list[str]]
"""Problems, with which training or scoring means nothing, and warnings; one line each."""


def some(names: Sequence[str]) -> str:
    """The first few names of a line."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def class_findings(info: DatasetInfo, masks: pd.DataFrame, counts: np.ndarray, scored_split: str = "test") -> Findings:
    """What the classes that occur say about the masks.

    Args:
        masks: a row a mask, with mask_file_name, patient_id and split; none of split `unlabeled`.
        counts: int64 (n, 256), pixels of each value in each mask.
        scored_split: the one that nothing can be said about without scored pixels.
    """
    if masks.empty or len(info.classes) < 2:
        return [], []
    if problem := _encoding_problem(info, counts.sum(axis=0)):
        return [problem], []
    problems, warnings = _train_findings(info, masks, counts)
    for split in ("val", "test"):
        if not (of_split := (masks["split"] == split).to_numpy()).any():
            continue
        total = counts[of_split].sum(axis=0)
        occurring = np.flatnonzero(total[: len(info.classes)])
        if not len(occurring):
            line = f"masks of split {split}: every pixel is ignored (index {info.ignore_index}); nothing can be scored"
        elif len(occurring) == 1:
            line = f"masks of split {split} hold only class {info.classes[occurring[0]]}; its scores mean nothing"
        else:
            continue
        # One class that isn't the background has a score, of 1 for whoever answers nothing else.
        refused = split == scored_split and not occurring.any()
        (problems if refused else warnings).append(line)
    return problems, [*warnings, *_blank_warnings(info, masks, counts), *_binary_files(info, masks, counts)]


def _encoding_problem(info: DatasetInfo, total: np.ndarray) -> str:
    """Masks that are no class indices at all; "" where nothing speaks for it."""
    n, values = len(info.classes), set(np.flatnonzero(total).tolist())
    if values == {0, 255}:
        return _binary(info, "masks")
    classes = values - {info.ignore_index}
    # With ignored pixels around them classes from 1 on are what a partial annotation may have.
    if classes and min(classes) > 0 and (n in classes or (len(classes) > 1 and len(values) == len(classes))):
        return (
            f"masks: class 0 ({info.classes[0]}) occurs nowhere; are the indices counted from 1? count from 0, or take "
            f"{info.classes[0]} out of classes and of the indices"
        )
    return ""


def _binary(info: DatasetInfo, where: str) -> str:
    name = f"the {info.classes[1]}" if len(info.classes) == 2 else "a class"
    meaning = "here 255 is ignored; w" if info.ignore_index == 255 else "w"
    return f"{where} hold only 0 and 255: is 255 {name}? {meaning}rite class indices, 0 to {len(info.classes) - 1}"


def _train_findings(info: DatasetInfo, masks: pd.DataFrame, counts: np.ndarray) -> Findings:
    of_train = (masks["split"] == "train").to_numpy()
    if not of_train.any():
        return [], []
    total, elsewhere = (counts[rows].sum(axis=0) for rows in (of_train, ~of_train))
    n, ignored, where = len(info.classes), total[info.ignore_index] > 0, "masks of the annotated train images"
    occurring = np.flatnonzero(total[:n])
    if not len(occurring):
        return [f"{where}: every pixel is ignored (index {info.ignore_index}); nothing can be learned"], []
    if len(occurring) > 1:
        missing = [index for index in range(n) if not total[index]]
        return [], [
            f"{where}: class {info.classes[index]} occurs in none; no network learns it"
            + (", and it occurs in val or test" if elsewhere[index] else "")
            + ("; are the indices counted from 1?" if index == 0 and not elsewhere[0] else "")
            for index in missing
        ]
    (index,) = occurring
    if index == 0 and ignored and info.ignore_index == 255:
        return [_binary(info, where)], []
    name, beside = info.classes[index], ", beside ignored pixels" if ignored else ""
    line = f"{where} hold only class {name}{beside}: a network would learn to answer nothing else; "
    if index == 0:
        return [line + "are the masks empty by mistake?"], []
    return [
        line + f"annotate {info.classes[0]}, or tile with `unannotated: {info.classes[0]}` in the class mapping"
    ], []


def _blank_warnings(info: DatasetInfo, masks: pd.DataFrame, counts: np.ndarray) -> list[str]:
    """Patients without a pixel that counts, and such masks of `train` patients who have others."""
    scored = pd.Series(counts[:, : len(info.classes)].sum(axis=1), masks.index)
    sums = scored.groupby([masks["split"], masks["patient_id"]]).transform("sum")
    patients = masks.loc[sums == 0, ["split", "patient_id"]].drop_duplicates().sort_values(["split", "patient_id"])
    files = masks.loc[(scored == 0) & (sums > 0) & (masks["split"] == "train"), "mask_file_name"]
    found = []
    if len(patients):
        names = some([f"{patient} ({split})" for split, patient in patients.itertuples(index=False)])
        wasted = f"; {_WASTED}" if (patients["split"] == "train").any() else ""
        found.append(f"patients whose masks are ignored throughout, they count nowhere: {names}{wasted}")
    if len(files):
        found.append(f"masks of split train that are ignored throughout: {some(files.tolist())}; {_WASTED}")
    return found


def _binary_files(info: DatasetInfo, masks: pd.DataFrame, counts: np.ndarray) -> list[str]:
    """Files in which 255 may be a class, beside others of class indices: 255 never lies beside a class but 0."""
    if info.ignore_index != 255 or not (ignored := counts[:, 255] > 0).any():
        return []
    has_class = counts[:, 1 : len(info.classes)].any(axis=1)
    suspects = ignored & (counts[:, 0] > 0)
    if (ignored & has_class).any() or not suspects.any():
        return []
    names = some(masks["mask_file_name"][suspects].tolist())
    return [f"masks that hold only 0 and 255, where others hold classes; is 255 a class in them? {names}"]


def palette_problems(n_classes: int, masks: Mapping[str, FileFacts]) -> list[str]:
    """Masks in which a colour stands for another class than in most others: on a screen they look the same."""
    if not any(facts.colours for facts in masks.values()):
        return []
    votes: dict[tuple[int, int, int], Counter[int]] = defaultdict(Counter)
    shown = {name: _colours(facts, n_classes) for name, facts in masks.items()}
    for colours in shown.values():
        for index, colour in colours.items():
            votes[colour][index] += 1
    usual = {colour: counter.most_common(1)[0][0] for colour, counter in votes.items()}
    return [
        f"{name}: its palette shows class {index} in the colour that is class {usual[colour]} in most masks; are its "
        "classes swapped? correct it, or store masks without palettes"
        for name, colours in shown.items()
        for index, colour in list(colours.items())
        if usual[colour] != index
    ]


def _colours(facts: FileFacts, n_classes: int) -> dict[int, tuple[int, int, int]]:
    """Colour of each class that occurs; without a palette its grey."""
    assert facts.counts is not None
    palette = facts.colours
    return {
        index: (index,) * 3 if palette is None else palette[index]
        for index in np.flatnonzero(facts.counts[:n_classes]).tolist()
        if palette is None or index < len(palette)
    }
