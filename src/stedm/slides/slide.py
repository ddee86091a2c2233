"""Whole slides at any resolution, read through one interface: OpenSlide, TiffSlide, or a plain image.

Positions are pixels of level 0 (the slide's full resolution), sizes are pixels of the result, and a resolution is
`mpp`, microns per pixel. A `Slide` holds no file: open files live in a small table of this process, so that slides can
be pickled, shared by threads and sent to worker processes, each of which opens its own.
"""

import ctypes
import math
import os
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from stedm.errors import StedmError
from stedm.io.images import read_image_file

INSTALL = 'pip install "stedm[slides]"'
_PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg")
_TIFF_SUFFIXES = (".tif", ".tiff")
_MOST_OPEN = 16
"""Open slides a process; each OpenSlide keeps up to 32 MB of decoded tiles."""
_LARGEST_READ_PX = 4096
"""Longest side that is decoded in one piece: 64 MB of RGBA."""
_SAME_RESOLUTION = 0.02
"""A level that is coarser than asked for by so little counts as fine enough: scanners write 0.2527 for a nominal 0.25,
and the next finer level would cost sixteen times the pixels."""
_ALIGNED = 0.02
"""Parts of a level pixel that a tile's corner may lie off the pixel grid."""
_PLAUSIBLE_MPP = (0.02, 50.0)
"""Resolution tags of TIFF files often say 72 dots per inch (353 microns) and mean nothing."""


@dataclass(frozen=True)
class Slide:
    """A slide that can be read at any resolution.

    Open it with `Slide.open`, which finds out the other fields.
    """

    path: Path
    mpp: float
    """Microns per pixel of level 0."""
    size_px: tuple[int, int]
    """Width and height of level 0."""
    downsamples: tuple[float, ...]
    """Of each level, 1.0 first."""
    reader: str
    """`openslide`, `tiffslide` or `image`."""

    @classmethod
    def open(cls, path: str | Path, mpp: float | None = None) -> "Slide":
        """Open a slide. `mpp` of level 0 goes before what the file says.

        Raises:
            StedmError: no such file, not readable as a slide or image, or a resolution that is not known.
        """
        path = Path(path).absolute()
        if not path.exists():  # a DICOM slide may be a folder
            raise StedmError(f"{path}: no such slide; correct its path")
        forget(path)  # the file may be another one by now
        reader, file = _first_that_reads(path)
        known = mpp if mpp is not None else file.mpp()
        if known is None:
            raise StedmError(f"{path}: the file doesn't say its resolution; give its microns per pixel (column mpp)")
        if not (math.isfinite(known) and known > 0):
            raise StedmError(f"{path}: mpp must be a positive number, not {known}")
        width, height = file.level_sizes[0]
        return cls(path, float(known), (int(width), int(height)), tuple(file.downsamples), reader)

    def read(self, x: float, y: float, tile_px: int, mpp: float) -> np.ndarray:
        """A square tile at `mpp` microns per pixel, uint8 RGB `(tile_px, tile_px, 3)`.

        `x`, `y` is its upper left corner in pixels of level 0, possibly outside the slide. White where there is no
        slide and where it is transparent. Raises `StedmError` where the file is damaged.
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
                corner = (x / self.downsamples[level] + left * step, y / self.downsamples[level] + top * step)
                part[:] = self._piece(level, corner, (part.shape[1], part.shape[0]), step)
        return result

    def overview(self, mpp: float) -> np.ndarray:
        """The whole slide at `mpp`, uint8 RGB `(ceil(height), ceil(width), 3)`; as coarse as it can be shown whole."""
        width, height = (max(1, math.ceil(side * self.mpp / mpp)) for side in self.size_px)
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
        file = _open_file(self.path, self.reader)
        level_width, level_height = file.level_sizes[level]
        inside = (max(left, 0), max(top, 0), min(left + width, level_width), min(top + height, level_height))
        empty = inside[0] >= inside[2] or inside[1] >= inside[3]
        if not empty:
            try:
                image = _on_white(file.read(level, *inside[:2], inside[2] - inside[0], inside[3] - inside[1]))
            except Exception as error:  # each reader and codec has its own
                forget(self.path)  # OpenSlide refuses everything after one error
                raise StedmError(
                    f"{self.path}: damaged at level {level} ({_one_line(error)}); scan it again"
                ) from error
            if inside == (left, top, left + width, top + height):
                return image
        canvas = Image.new("RGB", (width, height), "white")
        if not empty:
            canvas.paste(image, (inside[0] - left, inside[1] - top))
        return canvas


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode != "RGBA":
        return image.convert("RGB")
    if image.getchannel("A").getextrema()[0] < 255:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# ---- open files of this process -----------------------------------------------------------------------------------


class _File(Protocol):
    level_sizes: list[tuple[int, int]]
    downsamples: list[float]

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """RGB or RGBA of a rectangle that lies inside the level, in level pixels."""
        ...

    def mpp(self) -> float | None: ...


class _OpenSlideFile:
    def __init__(self, path: Path):
        self._file = _openslide().OpenSlide(path)
        self.level_sizes = list(self._file.level_dimensions)
        self.downsamples = list(self._file.level_downsamples)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        x, y = (round(value * self.downsamples[level]) for value in (left, top))
        pixels = _argb(self._file, x, y, level, width, height)
        # Nearly every region is opaque, and then alpha needs no arithmetic.
        if pixels is None or pixels.min() < 0xFF000000:
            return self._file.read_region((x, y), level, (width, height))
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "BGRX", 0, 1)

    def mpp(self) -> float | None:
        properties = self._file.properties
        found = _mean_mpp(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
        return found or _ome_mpp(properties.get("openslide.comment") or properties.get("tiff.ImageDescription"))

    @property
    def vendor(self) -> str:
        return self._file.properties.get("openslide.vendor", "")


def _argb(slide: Any, x: int, y: int, level: int, width: int, height: int) -> np.ndarray | None:
    """OpenSlide's own premultiplied ARGB, uint32 `(height * width,)`; None where it can't be had.

    `read_region` would go over every pixel to give RGBA, which takes a tenth of the time of reading.
    """
    try:
        from openslide.lowlevel import _read_region

        handle = slide._osr
    except (ImportError, AttributeError):  # not part of openslide-python's promises
        return None
    if sys.byteorder != "little":
        return None
    pixels = np.zeros(width * height, np.uint32)
    _read_region(handle, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32)), x, y, level, width, height)
    return pixels


class _TiffSlideFile:
    def __init__(self, path: Path):
        self._file = _tiffslide().TiffSlide(path)
        # Tiles behind the end of a file that was cut off would be read as black.
        series = self._file.ts_tifffile.series[self._file.properties["tiffslide.series-index"]]
        for page in (page for level in series.levels for page in level.pages):
            ends = np.add(page.dataoffsets, page.databytecounts)
            if len(ends) and ends.max() > path.stat().st_size:
                raise ValueError("the file was cut off")
        self.level_sizes = list(self._file.level_dimensions)
        self.downsamples = list(self._file.level_downsamples)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        scale = self.downsamples[level]
        # TiffSlide rounds down to level pixels: the next whole pixel of level 0 is in the right one.
        location = (math.ceil(left * scale), math.ceil(top * scale))
        array = self._file.read_region(location, level, (width, height), as_array=True)
        if array.dtype != np.uint8 or array.shape[2:] not in ((3,), (4,)):
            raise ValueError(f"{array.dtype} with {array.shape[2]} channels is not 8-bit RGB")
        return Image.fromarray(np.ascontiguousarray(array))

    def mpp(self) -> float | None:
        properties = self._file.properties
        found = _mean_mpp(properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y"))
        return found or _ome_mpp(properties.get("tiff.ImageDescription"))

    def __del__(self) -> None:
        # OpenSlide closes itself; TiffSlide's parts refer to each other and would wait for the garbage collector.
        if file := self.__dict__.get("_file"):
            file.close()


class _ImageFile:
    """An image without levels, decoded whole."""

    def __init__(self, path: Path):
        self._image = Image.fromarray(read_image_file(path.parent, path.name))
        self.level_sizes = [self._image.size]
        self.downsamples = [1.0]

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        return self._image.crop((left, top, left + width, top + height))

    def mpp(self) -> float | None:
        return None


_READERS: dict[str, Callable[[Path], _File]] = {
    "openslide": _OpenSlideFile,
    "tiffslide": _TiffSlideFile,
    "image": _ImageFile,
}
_files: "OrderedDict[tuple[Path, str], _File]" = OrderedDict()
_lock = threading.Lock()
_inherited: list[object] = []


def _open_file(path: Path, reader: str) -> _File:
    """The file of this process, opened if it isn't; the one not used for longest is let go where there are too many.

    A file is closed when the last thread that reads from it lets it go.
    """
    key = (path, reader)
    with _lock:
        if key not in _files:
            try:
                _files[key] = _READERS[reader](path)
            except StedmError:
                raise
            except Exception as error:
                raise StedmError(f"{path}: not readable as a slide ({_one_line(error)})") from error
        _files.move_to_end(key)
        while len(_files) > _MOST_OPEN:
            _files.popitem(last=False)
        return _files[key]


def forget(path: Path) -> None:
    """Let go of the open files of a slide; the next read opens it again."""
    with _lock:
        for key in [key for key in _files if key[0] == path]:
            del _files[key]


def _after_fork() -> None:
    # Parent and child would move one file position. The parent's objects are kept, never used: closing them here
    # could wait for a lock that another thread of the parent held.
    global _files, _lock
    _inherited.append(_files)
    _files, _lock = OrderedDict(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---- which reader -------------------------------------------------------------------------------------------------


def _first_that_reads(path: Path) -> tuple[str, _File]:
    """Name and open file of the best reader that can read the slide."""
    problems = []
    found: list[tuple[str, _File]] = []
    for reader in _candidates(path):
        try:
            file = _open_file(path, reader)
            for level in range(len(file.level_sizes)):  # some compressions are refused only by the decoder
                file.read(level, 0, 0, 1, 1)
        except Exception as error:
            forget(path)
            problems.append(f"{reader}: {_one_line(error.__cause__ or error)}")
        else:
            found.append((reader, file))
            if not (isinstance(file, _OpenSlideFile) and file.vendor == "generic-tiff" and len(file.level_sizes) == 1):
                break
    if not found:
        raise StedmError(f"{path}: not readable as a slide ({'; '.join(dict.fromkeys(problems))})")
    # OpenSlide sees only level 0 of OME-TIFF pyramids: the reader that sees more levels is the faster one by far.
    return max(found, key=lambda pair: len(pair[1].level_sizes))


def _candidates(path: Path) -> list[str]:
    if path.suffix.lower() in _PLAIN_SUFFIXES:
        return ["image"]
    slide_readers = [name for name, module in (("openslide", _openslide), ("tiffslide", _tiffslide)) if module()]
    if path.suffix.lower() in _TIFF_SUFFIXES and not _is_tiled(path):
        return ["image", *slide_readers]
    if not slide_readers:
        raise StedmError(f"{path}: slides need openslide-python or tiffslide; {INSTALL}")
    return slide_readers


def _is_tiled(path: Path) -> bool:
    """Whether a TIFF file is stored in tiles; True also for what is damaged or too large for Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(path, formats=("TIFF",)) as image:
                return 322 in image.tag_v2  # TileWidth
        except (OSError, SyntaxError, ValueError, AttributeError, Warning, Image.DecompressionBombError):
            return True


def _openslide() -> Any:
    """The module, or None where it is not installed (or its library not found)."""
    try:
        import openslide
    except (ImportError, OSError):
        return None
    return openslide


def _tiffslide() -> Any:
    try:
        import tiffslide
    except ImportError:
        return None
    return tiffslide


def _mean_mpp(x: Any, y: Any) -> float | None:
    """Microns per pixel from the texts of both axes; None where they are absent or implausible."""
    try:
        mpp = math.sqrt(float(x) * float(y))
    except (TypeError, ValueError):
        return None
    return mpp if _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1] else None


_MICRONS = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _ome_mpp(description: str | None) -> float | None:
    """Microns per pixel from an OME-XML description (OME schema 2016-06: the default unit is the micron)."""
    if not description or "<OME" not in description:
        return None
    try:
        pixels = ElementTree.fromstring(description.strip().encode()).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return None
    if pixels is None:
        return None
    sides = []
    for axis in ("X", "Y"):
        unit = _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        value = pixels.get(f"PhysicalSize{axis}")
        sides.append(float(value) * unit if unit and value else None)
    return _mean_mpp(*sides)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
