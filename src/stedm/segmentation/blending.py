"""Overlapping tiles of probabilities, row by row, to a map of classes.

Tiles are weighted by a window that rises smoothly from their borders and falls in the same way, so that the weights of
neighbours add up to one. A pixel is finished when no later tile touches it: besides one row of finished classes only
the strip under it that the next row of tiles overlaps is kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np


@dataclass(frozen=True)
class TileGrid:
    """Tiles over a map of `width` x `height` pixels from its corner; the last ones may hang over its edge."""

    width: int
    height: int
    tile_px: int
    overlap_px: int
    """At most half a tile: a pixel then lies in two tiles a direction and no more."""

    @property
    def stride_px(self) -> int:
        return self.tile_px - self.overlap_px

    @property
    def columns(self) -> int:
        return max(1, -(-(self.width - self.overlap_px) // self.stride_px))

    @property
    def rows(self) -> int:
        return max(1, -(-(self.height - self.overlap_px) // self.stride_px))

    def corners(self) -> np.ndarray:
        """x, y of the tiles in pixels of the map, row by row, int `(rows * columns, 2)`."""
        y, x = np.indices((self.rows, self.columns)) * self.stride_px
        return np.stack([x.ravel(), y.ravel()], axis=1)


def window(tile_px: int, overlap_px: int) -> np.ndarray:
    """Weights of a tile's pixels, float32 `(tile_px, tile_px)`, above 0; those of overlapping tiles add up to 1."""
    rising = np.sin(np.pi / 2 * (np.arange(overlap_px) + 0.5) / max(overlap_px, 1)) ** 2
    profile = np.ones(tile_px)
    # Multiplied, because at half a tile's overlap both slopes meet in the middle.
    profile[:overlap_px] *= rising
    profile[tile_px - overlap_px :] *= rising[::-1]
    return np.outer(profile, profile).astype(np.float32)


class Blender:
    """Takes the tiles of a grid in order and gives finished rows of the map.

    `strip` float32 `(n_classes, overlap_px, width)` is all that is kept from row to row.
    """

    def __init__(self, grid: TileGrid, n_classes: int, keep_probabilities: bool = False):
        self.grid, self.keep_probabilities = grid, keep_probabilities
        self.window = window(grid.tile_px, grid.overlap_px)
        whole_width = (grid.columns - 1) * grid.stride_px + grid.tile_px
        self.strip = np.zeros((n_classes, grid.overlap_px, whole_width), np.float32)

    def bands(self, tiles: Iterable[np.ndarray | None], first_row: int = 0) -> Iterator[np.ndarray]:
        """Probabilities float `(n_classes, tile_px, tile_px)`, None where the network did not look.

        Yields uint8 `(rows, width)` of the most probable classes from top to bottom, 0 where no tile was given; a band
        for each row of tiles. They may begin in the middle, from `first_row` on: tiles of the row above that, which
        overlap it, come first then, and their own band is not given. With `keep_probabilities` bands are float32
        `(n_classes, rows, width)`.
        """
        tiles, grid = iter(tiles), self.grid
        if first_row:
            self._row(islice(tiles, grid.columns), grid.stride_px)
        for row in range(first_row, grid.rows):
            n_rows = grid.tile_px if row == grid.rows - 1 else grid.stride_px
            band = self._row(islice(tiles, grid.columns), n_rows)
            yield band[..., : grid.height - row * grid.stride_px, : grid.width]

    def _row(self, tiles: Iterable[np.ndarray | None], n_rows: int) -> np.ndarray:
        grid, n_classes = self.grid, len(self.strip)
        overlap, stride = grid.overlap_px, grid.stride_px
        of_band = (n_rows, self.strip.shape[2])
        band = np.zeros((n_classes, *of_band), np.float32) if self.keep_probabilities else np.zeros(of_band, np.uint8)
        edge = np.zeros((n_classes, grid.tile_px, overlap), np.float32)
        for column, tile in enumerate(tiles):
            last = column == grid.columns - 1
            sums = np.zeros((n_classes, *self.window.shape), np.float32) if tile is None else tile * self.window
            sums[:, :, :overlap] += edge
            edge = sums[:, :, stride:]
            done = sums if last else sums[:, :, :stride]
            x = slice(column * stride, column * stride + done.shape[2])
            done[:, :overlap] += self.strip[:, :, x]
            band[..., x] = done[:, :n_rows] if self.keep_probabilities else done[:, :n_rows].argmax(axis=0)
            self.strip[:, :, x] = done[:, stride:]
        return band
