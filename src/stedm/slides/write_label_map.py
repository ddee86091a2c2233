"""Label maps of any size as pyramidal OME-TIFF, written in bands: uint8 class indices, tiled, lossless."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stedm.errors import StedmError
from stedm.io.files import replacing
from stedm.io.ownership import SEGMENTED

_TILE_PX = 512


def tifffile():
    """The module; `StedmError` where it is not installed."""
    try:
        import tifffile
    except ImportError as error:
        raise StedmError('label maps need tifffile: pip install "stedm[slides]"') from error
    return tifffile


class LabelMapWriter:
    """Collects the rows of a map in a file beside the result; `write` makes the pyramid of it.

    The rows wait on disk (a byte a pixel), because the levels of a pyramid are written one after the other.
    """

    def __init__(self, file: BinaryIO, width: int):
        self.file, self.width, self.height = file, width, 0

    def add(self, band: np.ndarray) -> None:
        """uint8 `(rows, width)`, the rows below those before."""
        self.file.write(np.ascontiguousarray(band))
        self.height += len(band)

    def passing(self, bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Add the bands and hand them on."""
        for band in bands:
            self.add(band)
            yield band

    def write(self, path: str | Path, mpp: float, description: str = "") -> None:
        """Write the OME-TIFF: levels 1, 2, 4, ... down to one tile; every 2nd, 4th, ... pixel of each row."""
        # An odd column or row is left out of the coarser level, as in other pyramids.
        levels = range(1 + max(0, math.ceil(math.log2(max(self.width, self.height, 1) / _TILE_PX))))
        scales = [1 << level for level in levels if min(self.width, self.height) >> level > 0]
        pixels = {"axes": "YX", "Description": description}
        for axis in ("X", "Y"):
            pixels |= {f"PhysicalSize{axis}": mpp, f"PhysicalSize{axis}Unit": "µm"}
        options = {"dtype": np.uint8, "tile": (_TILE_PX, _TILE_PX), "compression": "zlib", "photometric": "minisblack"}
        with replacing(path) as temporary, tifffile().TiffWriter(temporary, bigtiff=True, ome=True) as writer:
            for scale in scales:
                extra = {"subifds": len(scales) - 1, "metadata": pixels} if scale == 1 else {"subfiletype": 1}
                extra["software"] = SEGMENTED
                shape = (self.height // scale, self.width // scale)
                writer.write(self._tiles(scale), shape=shape, **options, **extra)

    def _tiles(self, scale: int) -> Iterator[np.ndarray]:
        height, width = self.height // scale, self.width // scale
        for top in range(0, height, _TILE_PX):
            rows = np.stack(
                [self._row(row * scale)[::scale][:width] for row in range(top, min(top + _TILE_PX, height))]
            )
            for left in range(0, width, _TILE_PX):
                part = rows[:, left : left + _TILE_PX]
                yield np.pad(part, [(0, _TILE_PX - side) for side in part.shape])

    def _row(self, row: int) -> np.ndarray:
        self.file.seek(row * self.width)
        return np.frombuffer(self.file.read(self.width), np.uint8)
