"""Smooth random fields, from which the phantom and the warp of layouts are drawn."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class SmoothField:
    """Smooth Gaussian random field (mean 0, variance about 1) that can be evaluated block by block.

    It is a cubic B-spline over noise: on a grid of points the spline is a product of two sparse matrices. Its
    correlation is about that of white noise under a Gaussian filter of standard deviation 0.6 `scale`.

    Args:
        height, width, scale: extent of the field and distance between its knots, in one unit of length.
    """

    def __init__(self, height: float, width: float, scale: float, generator: np.random.Generator):
        self.scale = scale
        self.start = 2.0 + generator.uniform(0.0, 1.0, 2)  # so that the knots are not aligned with the image
        shape = [int(np.ceil(side / scale)) + 7 for side in (height, width)]
        # 0.479 is the mean of the squared weights of a cubic B-spline, per axis.
        self.knots = (generator.standard_normal(shape) / 0.479).astype(np.float32)

    def __call__(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Values, float32 (n, m), on the grid of rows y (n,) and columns x (m,)."""
        rows = self._weights(y / self.scale + self.start[0], self.knots.shape[0])
        columns = self._weights(x / self.scale + self.start[1], self.knots.shape[1])
        return rows @ np.ascontiguousarray((columns @ self.knots.T).T)

    @staticmethod
    def _weights(position: np.ndarray, n_knots: int) -> "csr_array":
        """Weights (n, n_knots) of the four knots about each position."""
        from scipy.sparse import csr_array

        below = np.floor(position).astype(np.int32)
        t = position - below
        weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
        knots = below[:, None] + np.arange(-1, 3)
        starts = np.arange(0, knots.size + 1, 4)
        return csr_array((weights.ravel().astype(np.float32), knots.ravel(), starts), shape=(len(t), n_knots))
