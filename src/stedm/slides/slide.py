"""Whole slides at any resolution, read through one interface: OpenSlide, TiffSlide, or a plain image.

Positions are pixels of level 0 (the slide's full resolution), counted from the corner of what was scanned: where
OpenSlide gives bounds (MRXS, some SCN) they begin there, as QuPath's do. Sizes are pixels of the result, and a
resolution is `mpp`, microns per pixel. A `Slide` holds no file: open files live in a small table of this process, so
that slides can be pickled, shared by threads and sent to worker processes, each of which opens its own.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stedm.errors import StedmError
from stedm.slides.readers import first_that_reads, forget, on_white, one_line, open_file
from stedm.slides.resolution import stated_mpp

_LARGEST_READ_PX = 4096
"""Longest side that is decoded in one piece: 64 MB of RGBA."""
_SAME_RESOLUTION = 0.02
"""A level that is coarser than asked for by so little counts as fine enough: scanners write 0.2527 for a nominal 0.25,
and the next finer level would cost sixteen times the pixels."""
_ALIGNED = 0.02
"""Parts of a level pixel that a tile's corner may lie off the pixel grid."""
_LARGEST_OVERVIEW_PX = 2**26
"""More than three times that of the largest slides at 8 microns a pixel."""


@dataclass(frozen=True)
class Slide:
    """A slide that can be read at any resolution.

    Open it with `Slide.open`, which finds out the other fields.
    """

    path: Path
    mpp: float
    """Microns per pixel of level 0."""
    size_px: tuple[int, int]
    """Width and height of what was scanned, in pixels of level 0."""
    downsamples: tuple[float, ...]
    """Of each level, 1.0 first."""
    reader: str
    """`openslide`, `tiffslide` or `image`."""
    origin_px: tuple[int, int] = (0, 0)
    """Where on OpenSlide's level 0 it begins (bounds-x, bounds-y), and all positions with it."""

    @classmethod
    def open(cls, path: str | Path, mpp: float | None = None) -> "Slide":
        """Open a slide. `mpp` of level 0 goes before what the file says.

        Raises:
            StedmError: no such file, not readable as a slide or image, or a resolution that is not known.
        """
        path = Path(path).absolute()
        if not (path.is_file() or path.is_dir()):  # a DICOM slide may be a folder
            raise StedmError(f"{path}: no such slide; correct its path")
        forget(path)  # the file may be another one by now
        reader, file = first_that_reads(path)
        known = mpp if mpp is not None else stated_mpp(path, file.resolutions())
        if not (math.isfinite(known) and known > 0):
            raise StedmError(f"{path}: mpp must be a positive number, not {known}")
        left, top, width, height = file.bounds
        return cls(path, float(known), (width, height), tuple(file.downsamples), reader, (left, top))

    def read(self, x: float, y: float, tile_px: int, mpp: float) -> np.ndarray:
        """A square tile at `mpp` microns per pixel, uint8 RGB `(tile_px, tile_px, 3)`.

        `x`, `y` is its upper left corner in pixels of level 0 from the slide's corner, possibly outside of it. White
        where there is no slide and where it is transparent. Raises `StedmError` where the file is damaged.
        """
        return self.region(x, y, tile_px, tile_px, mpp)

    def region(self, x: float, y: float, width_px: int, height_px: int, mpp: float) -> np.ndarray:
        """The same for a rectangle, uint8 RGB `(height_px, width_px, 3)`.

        Read from the coarsest level that is at least as fine as `mpp` and averaged down. Large regions are read piece
        by piece; pieces and neighbouring tiles meet without a seam.
        """
        if not (math.isfinite(mpp) and mpp > 0 and math.isfinite(x) and math.isfinite(y)):
            raise StedmError(f"{self.path}: cannot read at x={x}, y={y}, mpp={mpp}; mpp must be positive")
        level = self._level(mpp)
        result = np.empty((height_px, width_px, 3), np.uint8)
        step = mpp / self.mpp / self.downsamples[level]
        piece = max(1, int(_LARGEST_READ_PX / step))
        for top in range(0, height_px, piece):
            for left in range(0, width_px, piece):
                part = result[top : top + piece, left : left + piece]
                # In level pixels, counted from the region's own corner, so that pieces share one grid.
                corner = tuple(
                    (at + begin) / self.downsamples[level] + pixels * step
                    for at, begin, pixels in zip((x, y), self.origin_px, (left, top), strict=True)
                )
                part[:] = self._piece(level, corner, (part.shape[1], part.shape[0]), step)
        return result

    def overview(self, mpp: float) -> np.ndarray:
        """The whole slide at `mpp`, uint8 RGB `(ceil(height), ceil(width), 3)`; as coarse as it can be shown whole."""
        width, height = (max(1, math.ceil(side * self.mpp / mpp)) for side in self.size_px)
        if width * height > _LARGEST_OVERVIEW_PX:
            raise StedmError(
                f"{self.path}: is {width} x {height} px at {mpp:g} microns per pixel, which no slide is; correct its "
                f"mpp ({self.mpp:g}), or look for tissue at a coarser one (tissue.mpp)"
            )
        return self.region(0, 0, width, height, mpp)

    def _level(self, mpp: float) -> int:
        limit = mpp / self.mpp * (1 + _SAME_RESOLUTION)
        return max(
            (level for level, downsample in enumerate(self.downsamples) if downsample <= limit),
            key=lambda level: self.downsamples[level],
            default=0,
        )

    def _piece(self, level: int, corner: tuple[float, float], size: tuple[int, int], step: float) -> np.ndarray:
        """RGB of `size` (width, height) pixels, each `step` level pixels wide, from `corner` in level pixels."""
        if abs(step - 1.0) * max(size) < 0.5:  # the level itself, to the pixel
            left, top = (round(value) for value in corner)
            return np.asarray(self._level_region(level, left, top, *size))
        whole = abs(step - round(step)) * max(size) < 0.5
        if whole and step > 1 and max(abs(value - round(value)) for value in corner) < _ALIGNED:
            factor, (left, top) = round(step), (round(value) for value in corner)
            image = self._level_region(level, left, top, size[0] * factor, size[1] * factor)
            return np.asarray(image.reduce(factor))  # what BOX below gives, several times faster
        # Averaging of whole pixels is exact; elsewhere a smooth filter that looks over the tile's edge.
        method = Image.Resampling.BOX if whole and step > 1 else Image.Resampling.HAMMING
        if step < 1:
            method = Image.Resampling.BICUBIC
        margin = 0 if method == Image.Resampling.BOX else math.ceil(2 * max(step, 1.0))
        low = [math.floor(value) - margin for value in corner]
        high = [math.ceil(value + side * step) + margin for value, side in zip(corner, size, strict=True)]
        image = self._level_region(level, low[0], low[1], high[0] - low[0], high[1] - low[1])
        left, top = corner[0] - low[0], corner[1] - low[1]
        box = (left, top, min(left + size[0] * step, image.width), min(top + size[1] * step, image.height))
        return np.asarray(image.resize(size, method, box=box))

    def _level_region(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """RGB of a rectangle of a level, white outside of it."""
        file = open_file(self.path, self.reader)
        level_width, level_height = file.level_sizes[level]
        inside = (max(left, 0), max(top, 0), min(left + width, level_width), min(top + height, level_height))
        empty = inside[0] >= inside[2] or inside[1] >= inside[3]
        if not empty:
            try:
                image = on_white(file.read(level, *inside[:2], inside[2] - inside[0], inside[3] - inside[1]))
            except Exception as error:  # each reader and codec has its own
                forget(self.path)  # OpenSlide refuses everything after one error
                raise StedmError(f"{self.path}: damaged at level {level} ({one_line(error)}); scan it again") from error
            if inside == (left, top, left + width, top + height):
                return image
        canvas = Image.new("RGB", (width, height), "white")
        if not empty:
            canvas.paste(image, (inside[0] - left, inside[1] - top))
        return canvas
