"""`stedm check`: every problem of a dataset folder in one pass, before hours of training find the first."""

import os
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.data.duplicates import duplicate_findings, slide_findings, slide_id_findings
from stedm.data.facts import RememberedFacts
from stedm.data.folder import hold_back, read_table, table_problems
from stedm.data.info import DatasetInfo, info_and_problems
from stedm.data.occurrence import class_findings, palette_problems, some
from stedm.data.regions import holds_regions, region_problems
from stedm.data.summary import SplitSummary, summarise
from stedm.errors import StedmError
from stedm.io.images import FileFacts, image_facts, is_on_stored_pixels, mask_facts
from stedm.io.names import has_split_word
from stedm.io.tables import patient_warnings
from stedm.slides.table import read_slides


@dataclass(frozen=True)
class Examination:
    """What was found in a dataset folder."""

    problems: list[str]
    """With them nothing is trained; one line each (what, which file, what to do)."""
    warnings: list[str] = field(default_factory=list)
    """What may be meant as it is, but seldom is."""
    splits: list[SplitSummary] = field(default_factory=list)
    """What is there; empty where the tables can't be read."""
    notes: list[str] = field(default_factory=list)
    """What other readers of the folder stumble over."""


def check_dataset(
    root: str | Path, *, read_unlabeled_masks: bool = True, unseen_categories: Sequence[str] | None = None
) -> list[str]:
    """All problems of a dataset folder, one line each (what, which file, what to do); empty = fine. See `examine`."""
    return examine(root, read_unlabeled_masks=read_unlabeled_masks, unseen_categories=unseen_categories).problems


def examine(
    root: str | Path,
    *,
    read_unlabeled_masks: bool = True,
    unseen_categories: Sequence[str] | None = None,
    annotated: Collection[str] | None = None,
    scored_split: str = "test",
    remembered: RememberedFacts | None = None,
) -> Examination:
    """Problems of a dataset folder, what looks wrong, and what is in it. Every file is decoded once.

    Args:
        read_unlabeled_masks: False = the masks of split `unlabeled` are not opened, not even looked for. What is in
            them is told in no case: they are only read to see whether they can be.
        unseen_categories: `train` patients of these count as `unlabeled`.
        annotated: image names of `train` that networks learn from, where a budget takes only some.
        scored_split: the one that results are about.
        remembered: what an earlier examination found in files; those that are as they were are not decoded again.
    """
    root = Path(root)
    if not root.is_dir():
        return Examination([f"{root}: no such folder; give the folder that holds metadata.csv and dataset.yaml"])
    info, problems = info_and_problems(root)
    try:
        table = read_table(root)
    except StedmError as error:
        return Examination([*problems, str(error)])
    problems += table_problems(table)
    if {"patient_id", "split"} <= set(table):
        table = hold_back(table, unseen_categories or ())
    problems += _annotation_problems(table)
    if "image_file_name" not in table:
        return Examination(list(dict.fromkeys(problems)))
    if holds_regions(root):
        found = _regions(root, info, table)
    else:
        found = _files(root, info, table, read_unlabeled_masks, remembered)
    warnings = patient_warnings(table, "metadata") + found.warnings
    splits: list[SplitSummary] = []
    if info is not None and {"patient_id", "split"} <= set(table):
        shared, doubts = slide_id_findings(table)
        problems, warnings = problems + shared, warnings + doubts
        masks = table[(table["split"] != "unlabeled") & (table["mask_file_name"] != "")]
        n_masks, masks = len(masks), masks[masks["mask_file_name"].isin(found.counts)].reset_index(drop=True)
        counts = np.asarray([found.counts[name] for name in masks["mask_file_name"]], np.int64).reshape(-1, 256)
        splits = summarise(info, table, found.sizes, masks, counts)
        if len(masks) == n_masks:  # those that can't be read may hold what the others lack
            if annotated is not None:
                counted = ((masks["split"] != "train") | masks["image_file_name"].isin(annotated)).to_numpy()
                masks, counts = masks[counted].reset_index(drop=True), counts[counted]
            of_classes, doubts = class_findings(info, masks, counts, scored_split)
            problems, warnings = problems + of_classes, doubts + warnings
    problems += found.problems
    # The same line can come from the table and from the file, and from each image that shares a mask.
    notes = [] if holds_regions(root) else _reader_notes(table)
    return Examination(list(dict.fromkeys(problems)), list(dict.fromkeys(warnings)), splits, notes)


def _reader_notes(table: pd.DataFrame) -> list[str]:
    names = pd.unique(pd.concat([table["image_file_name"], table["mask_file_name"]]))
    words = [name for name in names if has_split_word(name)]
    if not words:
        return []
    return [
        f"file names with words such as train or test: {some(words)}; Hugging Face's ImageFolder takes them for splits "
        "and loses all columns, rename them if you use it"
    ]


def _annotation_problems(table: pd.DataFrame) -> list[str]:
    if table.empty or not {"image_file_name", "split"} <= set(table):
        return []
    bare = table[(table["mask_file_name"] == "") & table["split"].isin(("train", "val", "test"))]
    if "tissue_fraction" in table:
        # Of slides that are annotated in part, the other tiles show the style.
        annotated = table.loc[table["mask_file_name"] != "", "slide_id"]
        bare = bare[(bare["split"] != "train") | ~bare["slide_id"].isin(annotated)]
    problems = [
        f"{row.image_file_name}: has no mask in split {row.split}; add one"
        + (" or move its patient to unlabeled" if row.split == "train" else " (it cannot be scored)")
        for row in bare[["image_file_name", "split"]].itertuples()
    ]
    if not ((table["split"] == "train") & (table["mask_file_name"] != "")).any():
        problems.append("metadata: no annotated image in split train; nothing can be learned from this dataset")
    return problems


@dataclass
class _Found:
    """What the files of a folder hold: problems, (width, height) by image name, pixels of each value by mask name."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)


def _files(
    root: Path,
    info: DatasetInfo | None,
    table: pd.DataFrame,
    unlabeled_masks: bool,
    remembered: RememberedFacts | None,
) -> _Found:
    names = table["mask_file_name"]
    if not unlabeled_masks:
        # Without a split column every row may be unlabeled.
        names = names.where(table["split"] != "unlabeled", "") if "split" in table else names.where(names == "", "")
    # A pair listed twice is reported as duplicate name already; decode it once.
    pairs = list(dict.fromkeys(zip(table["image_file_name"], names, strict=True)))
    found, images, masks, turned = _Found(), {}, {}, []
    reader = _Reader(root, remembered)
    # Threads suffice: Pillow's decoders release the interpreter lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        read = list(pool.map(reader, pairs))
    if remembered is not None:
        remembered.save()
    for (image_name, mask_name), (image, mask, problems) in zip(pairs, read, strict=True):
        found.problems += problems
        if image is not None:
            images[image_name], found.sizes[image_name] = image, image.size
        if mask is not None:
            masks[mask_name] = mask
            found.problems += _mask_problems(info, image_name, image, mask_name, mask)
        if image is not None and mask is not None and image.orientation > 1 and image.size == mask.size[::-1]:
            turned.append(mask_name)
    if turned:
        found.warnings.append(
            f"masks of images with an EXIF orientation, drawn on the stored pixels: {some(turned)}; they are turned as "
            "the images are"
        )
    if bilevel := [name for name, facts in images.items() if facts.is_bilevel]:
        found.warnings.append(f"images of one bit a pixel, black or white: {some(bilevel)}; are they masks?")
    open_rows = table[table["split"] != "unlabeled"] if "split" in table else table.iloc[:0]
    told = {name: masks[name] for name in open_rows["mask_file_name"].unique() if name in masks}
    found.counts = {name: facts.counts for name, facts in told.items() if facts.counts is not None}
    if info is not None:
        found.problems += palette_problems(len(info.classes), told)
    if {"patient_id", "split"} <= set(table):
        problems, warnings = duplicate_findings(root, table, images, told)
        found.problems, found.warnings = found.problems + problems, found.warnings + warnings
    return found


def _mask_problems(
    info: DatasetInfo | None, image_name: str, image: FileFacts | None, mask_name: str, mask: FileFacts
) -> list[str]:
    problems = []
    if info is not None and (problem := info.values_problem(mask.counts)):
        problems.append(f"{mask_name}: {problem}")
    if image is None:
        return problems
    try:
        turned = is_on_stored_pixels(image_name, image.orientation, image.size, mask.size)
    except StedmError as error:
        return [*problems, str(error)]
    if image.size != (mask.size[::-1] if turned else mask.size):
        (width, height), (mask_width, mask_height) = image.size, mask.size
        problems.append(
            f"{mask_name}: is {mask_width} x {mask_height} px but its image {image_name} is {width} x {height} px; "
            "make them the same size"
        )
    return problems


class _Reader:
    """Decodes an image and its mask."""

    def __init__(self, root: Path, remembered: RememberedFacts | None):
        self.root, self.remembered, self._one_at_a_time = root, remembered, threading.Lock()

    def __call__(self, names: tuple[str, str]) -> tuple[FileFacts | None, FileFacts | None, list[str]]:
        problems: list[str] = []
        image = self._read("image", image_facts, names[0], problems)
        return image, self._read("mask", mask_facts, names[1], problems), problems

    def _read(self, kind: str, read, name: str, problems: list[str]) -> FileFacts | None:
        if not name:
            return None
        try:
            if self.remembered is None:
                return read(self.root, name, self._one_at_a_time)
            return self.remembered.of(kind, name, lambda: read(self.root, name, self._one_at_a_time))
        except StedmError as error:
            problems.append(str(error))
            return None


def _regions(root: Path, info: DatasetInfo | None, table: pd.DataFrame) -> _Found:
    if info is None:
        return _Found()
    found = _Found(region_problems(root, info.classes, info.ignore_index, table))
    try:
        problems, found.warnings = slide_findings(read_slides(root / "slides.csv"))
    except StedmError:
        return found  # said by region_problems
    found.problems += problems
    found.counts = region_counts(info, table)
    if "tile_px" in table:
        sides = pd.to_numeric(table["tile_px"], errors="coerce").fillna(0).astype(int)
        found.sizes = {name: (side, side) for name, side in zip(table["image_file_name"], sides, strict=True)}
    return found


def tile_warnings(info: DatasetInfo, table: pd.DataFrame) -> list[str]:
    """What `check` will refuse or warn of in tiles that were just made, from the fractions in their table."""
    counts = region_counts(info, table)
    masks = table[(table["split"] != "unlabeled") & table["mask_file_name"].isin(counts)].reset_index(drop=True)
    pixels = np.asarray([counts[name] for name in masks["mask_file_name"]], np.int64).reshape(-1, 256)
    return [line for lines in class_findings(info, masks, pixels) for line in lines]


def region_counts(info: DatasetInfo, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Pixels of each value by mask name, from the columns `fraction_CLASS` that tiling wrote; no tile is read."""
    columns = [f"fraction_{name}" for name in info.classes]
    if not {*columns, "tile_px", "split"} <= set(table):
        return {}
    rows = table[(table["mask_file_name"] != "") & (table["split"] != "unlabeled")]
    fractions = rows[columns].apply(pd.to_numeric, errors="coerce").fillna(0).to_numpy(float)
    area = pd.to_numeric(rows["tile_px"], errors="coerce").fillna(0).to_numpy(float)[:, None] ** 2
    counts = np.zeros((len(rows), 256), np.int64)
    counts[:, : len(columns)] = np.round(fractions * area)
    # Fractions are rounded: a pixel in ten thousand is no ignored one.
    counts[:, info.ignore_index] = np.round(np.maximum(1 - fractions.sum(axis=1, keepdims=True) - 1e-3, 0) * area)[:, 0]
    return dict(zip(rows["mask_file_name"], counts, strict=True))
