"""Geometric transforms that keep pixels exact: the eight symmetries of the square."""

import numpy as np

N_SYMMETRIES = 8


def symmetry(array: np.ndarray, index: int) -> np.ndarray:
    """One of the 8 symmetries of the square, applied to the first two axes of `array`.

    `index` 0 is the identity; index // 4 mirrors, index % 4 turns by 90 degrees. Picture and mask given the same
    index stay aligned.
    """
    if index >= 4:
        array = array[:, ::-1]
    return np.rot90(array, index % 4)
