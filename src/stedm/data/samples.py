"""Pictures and masks held in memory at training size, so that decoding never costs a training step."""

import mmap

import numpy as np
from numpy.typing import DTypeLike

from stedm.data.folder import DatasetFolder


class PictureCache:
    """All pictures of a dataset folder at `picture_px`, decoded once, each on first use.

    Holds n * picture_px^2 * 3 bytes for pictures and n * picture_px^2 for masks at most: the arrays are zeros that
    the operating system commits when they are written. Threads and forked processes share it: two that ask for the
    same row first both decode it and write the same bytes, and a row counts as present only after its bytes are.
    """

    def __init__(self, dataset: DatasetFolder, picture_px: int):
        self.dataset = dataset
        self.picture_px = picture_px
        side = (len(dataset), picture_px, picture_px)
        self._pictures = _shared_zeros((*side, 3), np.uint8)
        self._masks = _shared_zeros(side, np.uint8)
        self._has_picture = _shared_zeros((len(dataset),), bool)
        self._has_mask = _shared_zeros((len(dataset),), bool)

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, row: int) -> np.ndarray:
        """uint8 RGB (picture_px, picture_px, 3), a copy that the caller may change."""
        if not self._has_picture[row]:
            self._pictures[row] = self.dataset.read_picture(row, self.picture_px)
            self._has_picture[row] = True
        return self._pictures[row].copy()

    def mask(self, row: int) -> np.ndarray:
        """uint8 (picture_px, picture_px) of class indices, `ignore_index` kept; a copy that the caller may change.

        Raises `StedmError` as `DatasetFolder.read_mask` does: no mask, or the mask of an unlabeled picture.
        """
        if not self._has_mask[row]:
            self._masks[row] = self.dataset.read_mask(row, self.picture_px)
            self._has_mask[row] = True
        return self._masks[row].copy()


def _shared_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array that forked processes write to together; with ordinary memory each would fill a copy of its own."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), dtype, int(np.prod(shape))).reshape(shape)
