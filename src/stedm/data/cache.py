"""Images and masks held in memory at training size, so that decoding never costs a training step."""

import mmap
import weakref

import numpy as np
from numpy.typing import DTypeLike

from stedm.data.folder import DatasetFolder


class ImageCache:
    """All images of a dataset folder at `image_px`, decoded once, each on first use.

    Holds n * image_px^2 * 3 bytes for images and n * image_px^2 for masks at most: the arrays are zeros that
    the operating system commits when they are written. Threads and forked processes share it: two that ask for the
    same row first both decode it and write the same bytes, and a row counts as present only after its bytes are.

    Where that is more than the folder's `memory` has left, only some rows are held, spread evenly over the folder, and
    the others are read each time. (Rows are drawn at random; to drop some for others would gain nothing, and which
    are held needs no agreement between processes.)
    """

    def __init__(self, dataset: DatasetFolder, image_px: int):
        self.dataset = dataset
        self.image_px = image_px
        bytes_each = image_px**2 * (4 if dataset.has_readable_masks else 3)
        n_held = dataset.memory.take(len(dataset), bytes_each)
        weakref.finalize(self, dataset.memory.give_back, n_held * bytes_each)
        self._slots = _spread_slots(len(dataset), n_held)
        side = (n_held, image_px, image_px)
        self._images = _shared_zeros((*side, 3), np.uint8)
        self._masks = _shared_zeros(side, np.uint8)
        self._has_image = _shared_zeros((n_held,), bool)
        self._has_mask = _shared_zeros((n_held,), bool)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def n_held(self) -> int:
        """Rows that stay in memory once they were used."""
        return len(self._has_image)

    def image(self, row: int) -> np.ndarray:
        """uint8 RGB (image_px, image_px, 3), a copy that the caller may change."""
        slot = self._slots[row]
        if slot < 0:
            return np.array(self.dataset.read_image(row, self.image_px))
        if not self._has_image[slot]:
            self._images[slot] = self.dataset.read_image(row, self.image_px)
            self._has_image[slot] = True
        return self._images[slot].copy()

    def mask(self, row: int) -> np.ndarray:
        """uint8 (image_px, image_px) of class indices, `ignore_index` kept; a copy that the caller may change.

        Raises `StedmError` as `DatasetFolder.read_mask` does: no mask, or the mask of an unlabeled image.
        """
        slot = self._slots[row]
        if slot < 0:
            return np.array(self.dataset.read_mask(row, self.image_px))
        if not self._has_mask[slot]:
            self._masks[slot] = self.dataset.read_mask(row, self.image_px)
            self._has_mask[slot] = True
        return self._masks[slot].copy()


def _spread_slots(n: int, n_held: int) -> np.ndarray:
    """For each of `n` rows its place among the `n_held` that are held, -1 = none; evenly spread, int `(n,)`."""
    place = np.arange(n + 1) * n_held // max(n, 1)
    return np.where(np.diff(place) > 0, place[:-1], -1)


def _shared_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array that forked processes write to together; with ordinary memory each would fill a copy of its own."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), dtype, int(np.prod(shape))).reshape(shape)
