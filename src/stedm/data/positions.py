"""Where the images of a dataset folder lie on their slides: which overlap, which are neighbours.

Optional columns of the metadata, all of them numbers: `x`, `y` = top left corner of the image in pixels of the
slide's level 0 (its full resolution); `mpp` = microns per pixel of the stored image; `slide_mpp` = microns per pixel
of level 0. The side of an image on its slide is its stored side times `mpp / slide_mpp`; where one of the two is not
known the image counts as taken from level 0. A row without both `x` and `y` has no known position.
"""

import numpy as np
import pandas as pd

from stedm.data.folder import DatasetFolder


class SlidePositions:
    """Rectangles of images on their slides.

    The size of a stored image is read from the head of its file when it is first asked for, and only for rows whose
    position is known. Comparing rows of different slides means nothing; callers compare rows of one slide.
    """

    def __init__(self, dataset: DatasetFolder):
        self._dataset = dataset
        self._corner = np.stack([_numbers(dataset.table, name) for name in ("x", "y")], axis=1)
        self._corner[np.isnan(self._corner).any(axis=1)] = np.nan
        scale = _numbers(dataset.table, "mpp") / _numbers(dataset.table, "slide_mpp")
        self._scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
        self._size = np.full_like(self._corner, np.nan)

    def known(self, row: int) -> bool:
        """Whether the metadata says where the image lies."""
        return not np.isnan(self._corner[row, 0])

    def overlapping(self, row: int, others: np.ndarray) -> np.ndarray:
        """Which of the rows `others` share area with `row`; bool `(len(others),)`, False where a position is unknown.

        An overlap of less than one stored pixel is rounding of positions, not an overlap.
        """
        return (self._free(row, others) < -self._rounding(row)).all(axis=1)

    def near(self, row: int, others: np.ndarray) -> np.ndarray:
        """Which of `others` don't overlap `row` and have less than one side of it (but for rounding) free between them
        on both axes.

        On a grid without gaps these are the eight neighbours. False where a position is unknown.
        """
        close = (self._free(row, others) < self._side(np.array([row])) - self._rounding(row)).all(axis=1)
        return close & ~self.overlapping(row, others)

    def _free(self, row: int, others: np.ndarray) -> np.ndarray:
        """Free space in level-0 pixels on both axes, `(k, 2)`; negative = overlap on that axis, NaN = unknown."""
        if not self.known(row) or len(others) == 0:
            return np.full((len(others), 2), np.nan)
        start, end = self._corner[row], self._corner[row] + self._side(np.array([row]))[0]
        other_start = self._corner[others]
        return np.maximum(other_start - end, start - (other_start + self._side(others)))

    def _side(self, rows: np.ndarray) -> np.ndarray:
        """Width and height `(k, 2)` in level-0 pixels."""
        for row in rows[np.isnan(self._size[rows, 0]) & ~np.isnan(self._corner[rows, 0])]:
            self._size[row] = self._dataset.image_size(int(row))
        return self._size[rows] * self._scale[rows, None]

    def _rounding(self, row: int) -> float:
        return float(self._scale[row])


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as floats; NaN where it is absent, empty or no number."""
    if column not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan, copy=True)
