"""Pictures and masks held in memory at training size, so that decoding never costs a training step."""

import numpy as np

from stedm.data.folder import DatasetFolder


class PictureCache:
    """All pictures of a dataset folder at `picture_px`, decoded once, each on first use.

    Holds n * picture_px^2 * 3 bytes for pictures and n * picture_px^2 for masks at most: the arrays are zeros that
    the operating system commits when they are written. Threads may share it: two that ask for the same row first both
    decode it and write the same bytes, and a row counts as present only after its bytes are.
    """

    def __init__(self, dataset: DatasetFolder, picture_px: int):
        self.dataset = dataset
        self.picture_px = picture_px
        side = (len(dataset), picture_px, picture_px)
        self._pictures = np.zeros((*side, 3), np.uint8)
        self._masks = np.zeros(side, np.uint8)
        self._has_picture = np.zeros(len(dataset), bool)
        self._has_mask = np.zeros(len(dataset), bool)

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
