"""Dataset folders whose images are regions of slides, read when they are needed.

Such a folder has no images but, beside `metadata.csv` and `dataset.yaml`, a `slides.csv` (where the slides lie now)
and a `tiling.yaml`. A row is read at its `x`, `y` (level 0), `tile_px` and `mpp` from the slide of its `slide_id`, its
mask from the slide's annotation. Its file names are those that the written tile would have: they name the row, in plans
for example.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from stedm.config.base import read_values
from stedm.errors import StedmError
from stedm.slides.slide import Slide
from stedm.slides.table import read_slides

REGION_COLUMNS = ("slide_id", "x", "y", "tile_px", "mpp", "slide_mpp")
_BOUNDS = ("bounds_x", "bounds_y")
_MOST_ANNOTATIONS = 16


class Annotation(Protocol):
    """What a slide's annotation must be able to do (see stedm.slides.annotations)."""

    def rasterise(self, x: float, y: float, tile_px: int, downsample: float) -> np.ndarray:
        """uint8 `(tile_px, tile_px)` of class indices and `ignore_index`; `x`, `y` in level-0 pixels."""
        ...


AnnotationReader = Callable[[Path, Slide], Annotation]
"""Reads the annotation file of a slide."""


def annotation_reader(classes: list[str], ignore_index: int, class_mapping: dict[str, Any] | None) -> AnnotationReader:
    """The reader of stedm.slides.annotations for these classes."""

    def read(path: Path, slide: Slide) -> Annotation:
        from stedm.slides.annotations import read_annotation

        return read_annotation(
            path,
            classes,
            class_mapping,
            image_name=slide.path.name,
            ignore_index=ignore_index,
            slide_px=slide.size_px,
        )

    return read


def holds_regions(root: Path) -> bool:
    """Whether the rows of a dataset folder are regions of slides."""
    return (root / "slides.csv").is_file()


class SlideRegions:
    """Images and masks of rows that are regions of slides; can be pickled and shared by threads.

    Args:
        root: folder with `slides.csv`.
        read_annotation: reads the annotation of a slide.
    """

    def __init__(self, root: Path, read_annotation: AnnotationReader):
        self.root = root
        self._rows = read_slides(root / "slides.csv").set_index("slide_id")
        self._read_annotation = read_annotation
        self._clear()

    @classmethod
    def of(cls, root: Path, classes: list[str], ignore_index: int) -> "SlideRegions | None":
        """Those of a dataset folder; None if it has image files."""
        if not holds_regions(root):
            return None
        return cls(root, _ReaderOfFolder(classes, ignore_index, read_class_mapping(root)))

    def slide(self, slide_id: str) -> Slide:
        """The slide, opened once; `StedmError` if the table has none of that name."""
        if slide_id not in self._slides:
            if slide_id not in self._rows.index:
                raise StedmError(f"{self.root / 'slides.csv'}: has no slide {slide_id!r}; add its row")
            row = self._rows.loc[slide_id]
            self._slides[slide_id] = Slide.open(row["image"], None if np.isnan(row["mpp"]) else row["mpp"])
        return self._slides[slide_id]

    def annotation(self, slide_id: str) -> Annotation:
        """What was annotated on the slide; the last few stay in memory."""
        with self._lock:
            if slide_id not in self._annotations:
                slide, name = self.slide(slide_id), self._rows.loc[slide_id, "annotation"]
                if not name:
                    raise StedmError(f"{self.root / 'slides.csv'}: slide {slide_id} has no annotation; add the file")
                self._annotations[slide_id] = self._read_annotation(Path(name), slide)
            self._annotations.move_to_end(slide_id)
            while len(self._annotations) > _MOST_ANNOTATIONS:
                self._annotations.popitem(last=False)
            return self._annotations[slide_id]

    def image(self, slide_id: str, x: float, y: float, tile_px: int, mpp: float) -> np.ndarray:
        """uint8 RGB `(tile_px, tile_px, 3)`."""
        return self.slide(slide_id).read(x, y, int(tile_px), mpp)

    def mask(self, slide_id: str, x: float, y: float, tile_px: int, mpp: float) -> np.ndarray:
        """uint8 `(tile_px, tile_px)` of class indices and `ignore_index`. `DatasetFolder` guards it."""
        return self.annotation(slide_id).rasterise(x, y, int(tile_px), mpp / self.slide(slide_id).mpp)

    def files(self, slide_ids: Iterable[str], annotated: Iterable[str]) -> dict[str, Path]:
        """Of slides their files, and of `annotated` ones the annotations, by names that stay when the files move."""
        rows = self._rows
        images = {f"slide {i}": Path(rows.loc[i, "image"]) for i in slide_ids if i in rows.index}
        names = {i: rows.loc[i, "annotation"] for i in annotated if i in rows.index}
        return images | {f"annotation of slide {i}": Path(name) for i, name in names.items() if name}

    def _clear(self) -> None:
        self._slides: dict[str, Slide] = {}
        self._annotations: OrderedDict[str, Annotation] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process reads annotations itself: they may be large, and locks can't be sent.
        return {name: self.__dict__[name] for name in ("root", "_rows", "_read_annotation")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()


class _ReaderOfFolder:
    """`annotation_reader` as an object that can be pickled."""

    def __init__(self, *arguments: Any):
        self._arguments = arguments

    def __call__(self, path: Path, slide: Slide) -> Annotation:
        return annotation_reader(*self._arguments)(path, slide)


def read_class_mapping(root: Path) -> dict[str, Any] | None:
    """The class mapping in the `tiling.yaml` of a folder."""
    path = root / "tiling.yaml"
    if not path.is_file():
        return None
    mapping = read_values(path, None).get("class_mapping")
    return mapping if isinstance(mapping, dict) else None


def region_table_problems(table: pd.DataFrame) -> list[str]:
    """Columns that rows of slides need and don't have, and places and sizes that are no numbers."""
    if missing := [column for column in REGION_COLUMNS if column not in table]:
        return [
            f"metadata: column {name} is missing; rows of slides need it (if these are image files, remove slides.csv)"
            for name in missing
        ]
    return [
        f"metadata: row {row + 1}: x, y, tile_px, mpp and slide_mpp must be numbers"
        for row in np.flatnonzero(_not_numbers(table))
    ]


def _not_numbers(table: pd.DataFrame) -> np.ndarray:
    numbers = table[list(REGION_COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    sizes = numbers[["tile_px", "mpp", "slide_mpp"]]
    return ~(np.isfinite(numbers).all(axis=1) & (sizes > 0).all(axis=1)).to_numpy()


def region_problems(root: Path, classes: list[str], ignore_index: int, table: pd.DataFrame) -> list[str]:
    """Problems of such a folder, one line each: every slide and annotation in use is opened, no tile is read.

    Annotations of `unlabeled` slides stay closed.
    """
    problems = region_table_problems(table)
    if not set(REGION_COLUMNS) <= set(table):
        return problems
    bad = _not_numbers(table)
    try:
        regions = SlideRegions.of(root, classes, ignore_index)
    except StedmError as error:
        return [*problems, *str(error).splitlines()]
    assert regions is not None
    for slide_id, rows in table[~bad].groupby("slide_id"):
        try:
            slide = regions.slide(str(slide_id))
            if ((rows["mask_file_name"] != "") & (rows["split"] != "unlabeled")).any():
                regions.annotation(str(slide_id))
        except StedmError as error:
            problems += str(error).splitlines()
            continue
        side = rows["tile_px"] * rows["mpp"] / slide.mpp
        outside = (rows["x"] + side <= 0) | (rows["y"] + side <= 0)
        outside |= (rows["x"] >= slide.size_px[0]) | (rows["y"] >= slide.size_px[1])
        begins = [pd.to_numeric(rows[name], errors="coerce").fillna(0) if name in rows else 0 for name in _BOUNDS]
        if any(np.any(begin != origin) for begin, origin in zip(begins, slide.origin_px, strict=True)):
            problems.append(
                f"metadata: slide {slide_id} has bounds at {slide.origin_px}, its tiles count from elsewhere; tile anew"
            )
        if outside.any():
            problems.append(f"metadata: {outside.sum()} tiles of slide {slide_id} lie outside of it; tile it again")
        if (abs(rows["slide_mpp"] / slide.mpp - 1) > 1e-6).any():
            problems.append(
                f"metadata: slide {slide_id} was tiled at {rows['slide_mpp'].iloc[0]:g} microns per pixel, slides.csv "
                f"says {slide.mpp:g}; tile it again"
            )
    return problems
