"""What images go through on their way to a network: the eight symmetries of the square, and the range [-1, 1]."""

import numpy as np
import torch

N_SYMMETRIES = 8


def symmetry(array: np.ndarray, index: int) -> np.ndarray:
    """One of the 8 symmetries of the square, applied to the first two axes of `array`.

    `index` 0 is the identity; index // 4 mirrors, index % 4 turns by 90 degrees. Image and mask given the same
    index stay aligned.
    """
    if index >= 4:
        array = array[:, ::-1]
    return np.rot90(array, index % 4)


def to_signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 images (or floats in 0..255) to floats in [-1, 1], the range of all networks here."""
    return images.float().div(127.5).sub(1.0)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Images (..., height, width, 3) as a tensor (..., 3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))
