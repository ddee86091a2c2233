"""The dataset folder: `metadata.csv` (or .parquet), images, masks, `dataset.yaml`.

A Hugging Face ImageFolder with a few rules on top: a row an image, an empty `mask_file_name` = not annotated, each
patient in one split. `stedm.data.check` verifies a folder file by file; opening one reads only the two small files.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stedm.data.info import DatasetInfo, read_info
from stedm.data.memory import CacheBudget, common_budget
from stedm.data.pieces import cut, file_name, parsed
from stedm.data.regions import SlideRegions, holds_regions, region_table_problems
from stedm.errors import StedmError
from stedm.io.files import fingerprint, flush, replacing, write_text
from stedm.io.images import (
    image_size,
    leaves_folder,
    mask_as_shown,
    read_image_file,
    read_mask_file,
    resized,
    shown_name,
    write_png,
)
from stedm.io.manifest import verify, verify_present, write_manifest
from stedm.io.tables import SPLITS, csv_text, patient_problems, read_csv
from stedm.io.yaml_text import yaml_text

REQUIRED_COLUMNS = ("image_file_name", "patient_id", "split")
OPTIONAL_COLUMNS = ("mask_file_name", "slide_id", "category")
_IN_FILE = {"layout_image_file_name": "layout_of", "source_image_file_name": "source_of"}
"""Columns that name images of another folder, and what they are called in a file: Hugging Face's ImageFolder takes
*_file_name for a file of this one."""
__all__ = [
    "SPLITS",
    "DatasetFolder",
    "DatasetInfo",
    "hold_back",
    "rows_by_patient",
    "write_metadata",
    "write_png",
]


@dataclass(frozen=True, eq=False)
class DatasetFolder:
    """Table of a dataset folder (or of some rows of it) and access to its images and masks.

    `table` has index 0..n-1 and the columns image_file_name, mask_file_name, patient_id, slide_id, split, category as
    text ("" where absent), plus whatever other columns the metadata has. `unseen_categories` are the categories whose
    `train` patients the table shows as `unlabeled` (see `hold_back`).
    """

    root: Path
    info: DatasetInfo
    table: pd.DataFrame
    allow_unlabeled_masks: bool = False
    unseen_categories: tuple[str, ...] = ()
    regions: SlideRegions | None = None
    """Where images and masks come from if the rows are regions of slides (the folder has a `slides.csv`)."""
    memory: CacheBudget = field(default_factory=common_budget)
    """What caches of its images may hold, those of all parts of the folder together."""

    @classmethod
    def open(
        cls,
        root: str | Path,
        *,
        allow_unlabeled_masks: bool = False,
        unseen_categories: Sequence[str] | None = None,
        memory: CacheBudget | None = None,
    ) -> "DatasetFolder":
        """Read `dataset.yaml` and the table; no image is opened.

        With `allow_unlabeled_masks=False` the masks of split `unlabeled` cannot be read: that is the leakage guard of
        a semi-supervised run. `train` patients of `unseen_categories` are moved to `unlabeled`, so that the guard
        covers them. Caches of its images keep within `memory` (None = what all other folders share).
        Raises `StedmError` with the first problem of the table, and for a category that isn't there.
        """
        root = Path(root)
        verify_present(root, "dataset.yaml", "metadata.csv")
        info, table = read_info(root), read_table(root)
        problems = table_problems(table)
        problems += region_table_problems(table) if holds_regions(root) and not problems else []
        if problems:
            more = f" (and {len(problems) - 1} more: run `stedm check {root}`)" if problems[1:] else ""
            raise StedmError(f"{root}: {problems[0]}{more}")
        unseen = tuple(unseen_categories or ())
        if unknown := sorted(set(unseen) - set(table["category"])):
            raise StedmError(f"{root}: no image of category {', '.join(unknown)}; correct data.unseen_categories")
        regions = SlideRegions.of(root, info.classes, info.ignore_index)
        memory = common_budget() if memory is None else memory
        return cls(root, info, hold_back(table, unseen), allow_unlabeled_masks, unseen, regions, memory)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A row as a sample, so that the folder is a map-style dataset for `torch.utils.data.DataLoader`.

        `image` uint8 RGB (H, W, 3); `mask` uint8 (H, W) of class indices, or None where there is none and where the
        patient is unlabeled (unless the folder was opened with `allow_unlabeled_masks=True`); and the texts
        image_file_name, patient_id, slide_id, split and category. Images have the size that they are stored in.
        """
        row = range(len(self))[row]
        columns = ("image_file_name", "patient_id", "slide_id", "split", "category")
        values = {name: self.table.at[row, name] for name in columns}
        is_open = self.allow_unlabeled_masks or values["split"] != "unlabeled"
        mask = self.read_mask(row) if is_open and self.table.at[row, "mask_file_name"] else None
        return {"image": self.read_image(row), "mask": mask, **values}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    @property
    def has_mask(self) -> pd.Series:
        """Of each row, whether `read_mask` gives its mask."""
        is_open = self.allow_unlabeled_masks | (self.table["split"] != "unlabeled")
        return is_open & (self.table["mask_file_name"] != "")

    @property
    def annotated(self) -> "DatasetFolder":
        """The rows of split `train` that have a mask: what a network may learn from."""
        return self.select(self.has_mask & (self.table["split"] == "train"))

    def patients(self, split: str | None = None) -> list[str]:
        """Patient ids, sorted; of one split or of all."""
        table = self.table if split is None else self.split(split).table
        return sorted(set(table["patient_id"]))

    @property
    def size(self) -> str:
        """In words: `6 patients (55 images)`."""
        return f"{len(self.patients())} patients ({self.n_files} images)"

    @property
    def n_files(self) -> int:
        """Number of images; several rows may be squares of one (see stedm.data.squares)."""
        return len(set(map(file_name, self.table["image_file_name"])))

    @property
    def has_readable_masks(self) -> bool:
        """Whether `read_mask` gives the mask of any row."""
        return bool(self.has_mask.any())

    def select(self, rows: np.ndarray | pd.Series | list[int]) -> "DatasetFolder":
        """The same folder with fewer rows, given as a boolean mask or as row numbers; the index starts at 0 again."""
        rows = np.asarray(rows)
        if rows.size == 0:
            rows = rows.astype(np.intp)
        chosen = self.table.iloc[np.flatnonzero(rows) if rows.dtype == bool else rows]
        return replace(self, table=chosen.reset_index(drop=True))

    def followed_by(self, other: "DatasetFolder") -> "DatasetFolder":
        """These rows and behind them those of another part of the same folder."""
        if other.root != self.root:
            raise StedmError(f"{other.root}: is not a part of {self.root}")
        if len(other) == 0:
            return self
        return replace(self, table=pd.concat([self.table, other.table], ignore_index=True))

    def split(self, name: str) -> "DatasetFolder":
        """The rows of one split."""
        if name not in SPLITS:
            raise StedmError(f"unknown split {name!r}: use one of {', '.join(SPLITS)}")
        return self.select(self.table["split"] == name)

    def read_image(self, row: int, image_px: int | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3); with `image_px` reduced to that square by area averaging.

        Of an oblong image that is the square in its middle; `stedm.data.squares.in_squares` makes rows of all of it.
        """
        if self.regions is None:
            name = self.table["image_file_name"].iloc[row]
            verify(self.root, file_name(name))
            return resized(cut(read_image_file(self.root, file_name(name)), name, image_px is not None), image_px)
        return resized(self.regions.image(*self._place(row)), image_px)

    def image_size(self, row: int) -> tuple[int, int]:
        """(width, height) of an image as stored; of an image file only the head is read."""
        if self.regions is None:
            name, number, _ = parsed(self.table["image_file_name"].iloc[row])
            size = image_size(self.root, name)
            return (min(size),) * 2 if number else size
        return (int(self.table["tile_px"].iloc[row]),) * 2

    def common_mpp(self, image_px: int) -> float | None:
        """Microns per pixel of all images when resized to `image_px`; None where they differ or don't say.

        From the column `mpp` and the images' own size; two percent are forgiven.
        """
        if "mpp" not in self.table or not len(self):
            return None
        mpp = pd.to_numeric(self.table["mpp"], errors="coerce").to_numpy(float)
        if not (np.isfinite(mpp).all() and (mpp > 0).all()):
            return None
        if "tile_px" in self.table:
            sides = pd.to_numeric(self.table["tile_px"], errors="coerce").to_numpy(float)[None]
        else:
            sides = np.asarray([min(self.image_size(row)) for row in range(len(self))], float)
        resized_mpp = mpp * sides / image_px
        found = float(np.median(resized_mpp))
        # Not: all equal. Images of 0.2527 and 0.25 are of one resolution.
        return round(found, 6) if (abs(resized_mpp / found - 1) <= 0.02).all() else None

    def read_mask(self, row: int, image_px: int | None = None) -> np.ndarray:
        """uint8 (H, W) of class indices, `ignore_index` kept; with `image_px` resized by nearest neighbour.

        Raises `StedmError` where there is no mask, where an index is out of range, and for rows of split `unlabeled`
        unless the folder was opened with `allow_unlabeled_masks=True`.
        """
        row_of = self.table.iloc[row]
        if row_of["split"] == "unlabeled" and not self.allow_unlabeled_masks:
            raise StedmError(
                f"{row_of['image_file_name']}: the mask of an unlabeled image was asked for; open the dataset with "
                "allow_unlabeled_masks=True only for an upper bound"
            )
        if not row_of["mask_file_name"]:
            raise StedmError(f"{row_of['image_file_name']}: this image has no mask; select annotated rows")
        if self.regions is None:
            verify(self.root, row_of["mask_file_name"])
            whole = read_mask_file(self.root, row_of["mask_file_name"])
            whole = mask_as_shown(self.root, file_name(row_of["image_file_name"]), whole)
            mask = cut(whole, row_of["image_file_name"], image_px is not None)
        else:
            mask = self.regions.mask(*self._place(row))
        if problem := self.info.mask_problem(mask):
            raise StedmError(f"{row_of['mask_file_name']}: {problem}")
        if image_px is None or mask.shape == (image_px, image_px):
            return mask
        return np.array(Image.fromarray(mask).resize((image_px, image_px), Image.Resampling.NEAREST))

    def _place(self, row: int) -> tuple:
        return tuple(self.table.at[int(row), column] for column in ("slide_id", "x", "y", "tile_px", "mpp"))

    @property
    def fingerprint(self) -> str:
        """Names the content of `dataset.yaml` and of the table (the rows at hand, in order), not of the images."""
        return fingerprint({"info": asdict(self.info), "table": self.table.to_csv(index=False)})


# ---- metadata.csv or metadata.parquet -----------------------------------------------------------------------------


def read_table(root: Path) -> pd.DataFrame:
    """Read the metadata; ids and file names as text, absent optional columns filled with ""."""
    paths = [path for path in (root / "metadata.csv", root / "metadata.parquet") if path.is_file()]
    if not paths:
        raise StedmError(
            f"{root / 'metadata.csv'}: missing; "
            "a dataset folder has a metadata.csv or metadata.parquet, as `stedm data import` writes it"
        )
    if paths[1:]:
        raise StedmError(f"{root}: has metadata.csv and metadata.parquet; remove one of them")
    if paths[0].suffix == ".parquet":
        try:
            return _with_text_columns(pd.read_parquet(paths[0]))
        except Exception as error:  # damaged metadata makes pandas raise anything
            raise StedmError(f"{paths[0]}: not readable ({' '.join(str(error).split())}); write it again") from error
    table = _with_text_columns(read_csv(paths[0]))
    others = [column for column in table if not _is_text(column)]
    return table.assign(**{column: _numbers_if_all_are(table[column]) for column in others})


def _with_text_columns(table: pd.DataFrame) -> pd.DataFrame:
    """All optional columns present, ids and file names as text, rows numbered from 0."""
    table = table.reset_index(drop=True).rename(columns=str).rename(columns={new: old for old, new in _IN_FILE.items()})
    for column in OPTIONAL_COLUMNS:
        if column not in table:
            table[column] = ""
    for column in filter(_is_text, table.columns):
        table[column] = [_text(value) for value in table[column]]
        table[column] = table[column].astype(str)
    return table


def _text(value: Any) -> str:
    # Whole numbers with gaps are floats in parquet: patient 7, not 7.0.
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return "" if pd.isna(value) else str(value).strip()


def _is_text(column: str) -> bool:
    # By name, so that patient 007 stays 007, here and in columns like style_patient_id.
    return column in ("split", "category") or column.endswith(("_id", "_ids", "_file_name"))


def _numbers_if_all_are(column: pd.Series) -> pd.Series:
    try:
        return pd.to_numeric(column.mask(column == ""))
    except ValueError:
        return column


def table_problems(table: pd.DataFrame) -> list[str]:
    """What is wrong in the table itself, one line each; needs no file of the folder."""
    if table.empty:
        return ["metadata: no rows; a dataset needs at least one image"]
    spelled = {re.sub(r"\W|_", "", str(name)).casefold(): name for name in table}
    problems = [
        f"metadata: column {name} is missing; "
        + (f"rename {other!r}" if (other := spelled.get(name.replace("_", ""))) else "add it")
        for name in REQUIRED_COLUMNS
        if name not in table
    ]
    if "image_file_name" in table:
        names = table["image_file_name"]
        problems += [f"metadata: row {row + 1} has no image_file_name; fill it" for row in np.flatnonzero(names == "")]
        for name, count in names[(names != "") & names.duplicated(keep=False)].value_counts(sort=False).items():
            problems.append(f"{name}: is in {count} rows of the metadata; keep one")
        for name in pd.unique(pd.concat([names, table["mask_file_name"]])):
            if name and (problem := leaves_folder(name)):
                problems.append(f"{shown_name(name)}: {problem}")
            elif ";" in name:
                problems.append(f"{shown_name(name)}: has a semicolon, which divides names in plans; rename the file")
    return problems + patient_problems(table, "metadata")


def rows_by_patient(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Row numbers of each patient, in order of the table."""
    return {str(patient): np.asarray(rows) for patient, rows in table.groupby("patient_id", sort=True).indices.items()}


def write_metadata(root: str | Path, info: DatasetInfo, table: pd.DataFrame, *, sealed: bool = False) -> None:
    """Write `dataset.yaml` and, last, `metadata.csv`; `StedmError` if the table breaks the rules of the folder.

    sealed: with a manifest of tables, images and masks (stedm.io.manifest), for folders that nobody edits.
    """
    root = Path(root)
    table = _with_text_columns(table)
    problems = table_problems(table)
    if (root / "metadata.parquet").exists():
        problems.append("has a metadata.parquet already; remove it")
    if problems:
        raise StedmError.of([f"{root}: {problem}" for problem in problems])
    values = asdict(info)
    # `license` is the key of Hugging Face dataset cards; read_info takes both spellings.
    values["license"] = values.pop("licence")
    keys = ("name", "classes", "ignore_index", "license", "citation")
    ordered = {key: values[key] for key in keys}
    write_text(root / "dataset.yaml", yaml_text(ordered, short=True))
    flush(root)  # images are on the disk before the table that says so
    with replacing(root / "metadata.csv") as temporary:
        temporary.write_text(csv_text(table.rename(columns=_IN_FILE)), encoding="utf-8")
        if sealed:
            names = ["dataset.yaml", *table["image_file_name"], *table["mask_file_name"]]
            write_manifest(root, {name: root / name for name in names if name} | {"metadata.csv": temporary})


# ---- categories that nobody annotated -----------------------------------------------------------------------------


def hold_back(table: pd.DataFrame, unseen_categories: Sequence[str]) -> pd.DataFrame:
    """The table with the `train` patients of `unseen_categories` in split `unlabeled`, as if nobody annotated them.

    A patient moves whole if any of its images is of such a category, because a patient is in one split.
    """
    train = table["split"] == "train"
    unseen = set(table.loc[train & table["category"].isin(list(unseen_categories)), "patient_id"])
    return table.assign(split=table["split"].mask(train & table["patient_id"].isin(unseen), "unlabeled"))
