"""How images of any shape become the squares that networks learn from, without a change of their aspect.

An oblong image is cut into the fewest squares of its shorter side that cover it, spread evenly along the longer one: an
image of 775 x 522 px into two, which overlap. Each is a row of its own, called `images/a.png#1of2`, and reduced to
`image_px`. Square images are as they were. In scores a pixel counts once: squares halve what they share.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from stedm.data.folder import DatasetFolder
from stedm.data.pieces import corner, file_name, n_squares, own_part, parsed, piece_name
from stedm.io.images import image_size


def in_squares(dataset: DatasetFolder) -> DatasetFolder:
    """The dataset with a row for each square of its images; the same object where no image is oblong.

    Of image files the heads are read.
    """
    if dataset.regions is not None:
        return dataset
    sizes = [dataset.image_size(row) for row in range(len(dataset))]
    counts = np.array([n_squares(size) for size in sizes], int)
    if (counts == 1).all():
        return dataset
    table = dataset.table.loc[dataset.table.index.repeat(counts)].reset_index(drop=True)
    rows, numbers = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(n) + 1 for n in counts])
    pairs = [(sizes[row], number, counts[row]) for row, number in zip(rows, numbers, strict=True)]
    names = zip(table["image_file_name"], pairs, strict=True)
    table["image_file_name"] = [piece_name(name, number, n) if n > 1 else name for name, (_, number, n) in names]
    return replace(dataset, table=_moved(table, np.array([corner(*pair) for pair in pairs])))


def with_squares(dataset: DatasetFolder, names: Iterable[str]) -> DatasetFolder:
    """The dataset and behind it rows for those of `names` that are squares of its images; no file is opened."""
    squares = [name for name in dict.fromkeys(names) if file_name(name) != name]
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    found = [name for name in squares if file_name(name) in row_of and name not in row_of]
    if not found:
        return dataset
    rows = dataset.table.iloc[[row_of[file_name(name)] for name in found]].assign(image_file_name=found)
    return replace(dataset, table=pd.concat([dataset.table, rows], ignore_index=True))


def without_others_part(dataset: DatasetFolder, row: int, truth: np.ndarray) -> np.ndarray:
    """A mask (H, W) of a row in which what counts as part of another square of its image is ignored."""
    name, number, of = parsed(dataset.table["image_file_name"].iloc[row])
    if of < 2:
        return truth
    own = np.zeros(truth.shape, bool)
    parts = own_part(image_size(dataset.root, name), number, of)
    own[tuple(slice(*(round(end * side) for end in part)) for part, side in zip(parts, truth.shape, strict=True))] = 1
    return np.where(own, truth, np.uint8(dataset.info.ignore_index))


def files_of(dataset: DatasetFolder) -> pd.Series:
    """Of each row the file that its image is in: squares of one image have it in common."""
    return dataset.table["image_file_name"].map(file_name)


def shorter_sides(dataset: DatasetFolder) -> list[int]:
    """Smallest and largest shorter side, in pixels, of the images as stored; of image files only heads are read."""
    sides = [min(dataset.image_size(row)) for row in range(len(dataset))]
    return [min(sides), max(sides)]


def squares_text(datasets: Iterable[DatasetFolder], image_px: int) -> str:
    """In a line, how images are brought to `image_px`."""
    sizes: set[tuple[int, int]] = set()
    for dataset in datasets:
        if dataset.regions is None:
            sizes |= {image_size(dataset.root, name) for name in set(files_of(dataset))}
        else:
            sizes |= {dataset.image_size(row) for row in range(len(dataset))}
    factors, counts = [min(size) / image_px for size in sizes], [n_squares(size) for size in sizes]
    smallest, largest = min(sizes, key=sorted), max(sizes, key=sorted)
    shown = " x ".join(map(str, smallest))
    if len(sizes) > 1:
        shown = f"{len(sizes)} sizes, {shown} to {' x '.join(map(str, largest))}"
    text = f"images of {shown} px: " + _range([_scaling(factor) for factor in (min(factors), max(factors))])
    if max(counts) > 1:
        text += f", cut into {_range([str(min(counts)), str(max(counts))])} squares"
    return text


def _scaling(factor: float) -> str:
    if factor == 1:
        return "as they are"
    return f"reduced {factor:.3g} times" if factor > 1 else f"enlarged {1 / factor:.3g} times"


def _range(ends: list[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _moved(table: pd.DataFrame, by_px: np.ndarray) -> pd.DataFrame:
    """With the positions on the slide (see stedm.data.positions) of the squares rather than of their images."""
    if not {"x", "y"} <= set(table):
        return table
    numbers = {
        name: pd.to_numeric(table[name], errors="coerce") for name in ("x", "y", "mpp", "slide_mpp") if name in table
    }
    scale = pd.Series(1.0, table.index)
    if {"mpp", "slide_mpp"} <= set(numbers):
        ratio = numbers["mpp"] / numbers["slide_mpp"]
        scale = ratio.where(np.isfinite(ratio) & (ratio > 0), 1.0)
    return table.assign(x=numbers["x"] + by_px[:, 0] * scale, y=numbers["y"] + by_px[:, 1] * scale)
