"""`stedm check`: every problem of a dataset folder in one pass, before hours of training find the first."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.data.folder import DatasetInfo, hold_back, info_and_problems, read_table, table_problems
from stedm.data.regions import holds_regions, region_problems
from stedm.errors import StedmError
from stedm.io.images import read_image_file, read_mask_file


def check_dataset(
    root: str | Path, *, read_unlabeled_masks: bool = True, unseen_categories: Sequence[str] | None = None
) -> list[str]:
    """All problems of a dataset folder, one line each (what, which file, what to do); empty = fine.

    With `read_unlabeled_masks=False` the masks of split `unlabeled` are not opened, not even looked for; train
    patients of `unseen_categories` count as `unlabeled`.
    """
    root = Path(root)
    if not root.is_dir():
        return [f"{root}: no such folder; give the folder that holds metadata.csv and dataset.yaml"]
    info, problems = info_and_problems(root)
    try:
        table = read_table(root)
    except StedmError as error:
        return [*problems, str(error)]
    problems += table_problems(table)
    if {"patient_id", "split"} <= set(table):
        table = hold_back(table, unseen_categories or ())
    problems += _annotation_problems(table)
    problems += _file_problems(root, info, table, read_unlabeled_masks)
    # The same line can come from the table and from the file, and from each image that shares a mask.
    return list(dict.fromkeys(problems))


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


def _file_problems(root: Path, info: DatasetInfo | None, table: pd.DataFrame, unlabeled_masks: bool) -> list[str]:
    if "image_file_name" not in table:
        return []
    if holds_regions(root):
        return region_problems(root, info.classes, info.ignore_index, table) if info else []
    masks = table["mask_file_name"]
    if not unlabeled_masks:
        # Without a split column every row may be unlabeled.
        masks = masks.where(table["split"] != "unlabeled", "") if "split" in table else masks.where(masks == "", "")
    # A pair listed twice is reported as duplicate name already; decode it once.
    pairs = dict.fromkeys(zip(table["image_file_name"], masks, strict=True))
    # Threads suffice: Pillow's decoders release the interpreter lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        lines = pool.map(partial(_pair_problems, root, info), *zip(*pairs, strict=True)) if pairs else []
        return [line for some in lines for line in some]


def _pair_problems(root: Path, info: DatasetInfo | None, image_name: str, mask_name: str) -> list[str]:
    problems: list[str] = []
    image = _read(read_image_file, root, image_name, problems)
    mask = _read(read_mask_file, root, mask_name, problems)
    if mask is not None and info is not None and (problem := info.mask_problem(mask)):
        problems.append(f"{mask_name}: {problem}")
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        problems.append(
            f"{mask_name}: is {mask_width} x {mask_height} px but its image {image_name} is {width} x {height} px; "
            "make them the same size"
        )
    return problems


def _read(read, root: Path, name: str, problems: list[str]) -> np.ndarray | None:
    if not name:
        return None
    try:
        return read(root, name)
    except StedmError as error:
        problems.append(str(error))
        return None
