"""Open files of slides: OpenSlide, TiffSlide or a plain image behind one interface, and which of them reads a file.

They live in a small table of this process and are opened anew in each other one.
"""

import contextlib
import ctypes
import math
import os
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from stedm.errors import StedmError
from stedm.io.images import LARGEST_WHOLE_PX, UNREADABLE, open_image, read_image_file
from stedm.slides.resolution import Stated, ome_mpp
from stedm.slides.tiff_header import pixel_problem, tiff_pages

INSTALL = 'pip install "stedm[slides]"'
_PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_TIFF_SUFFIXES = (".tif", ".tiff")
_MOST_OPEN = 16
"""Open slides a process; each OpenSlide keeps up to 32 MB of decoded tiles."""
_OPENING_SECONDS = 120.0
"""Far more than any whole slide takes, over a network too."""


Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels of level 0."""


class SlideFile(Protocol):
    level_sizes: list[tuple[int, int]]
    downsamples: list[float]
    bounds: Box
    """What was scanned."""

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        """RGB or RGBA of a rectangle that lies inside the level, in level pixels."""
        ...

    def resolutions(self) -> list[Stated]:
        """Microns per pixel as the file says them, the most trustworthy first."""
        ...


def _bounds(properties: Mapping[str, Any], prefix: str, size: tuple[int, int]) -> Box:
    """The box of the properties PREFIX.bounds-*, the whole of level 0 where there are none or they make no sense."""
    try:
        names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
        x, y, width, height = (int(properties[f"{prefix}.{name}"]) for name in names)
    except (KeyError, TypeError, ValueError):
        return (0, 0, *size)
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, size[0]), min(y + height, size[1])
    return (left, top, right - left, bottom - top) if left < right and top < bottom else (0, 0, *size)


class _OpenSlideFile:
    def __init__(self, path: Path):
        self._file = _openslide().OpenSlide(path)
        self.level_sizes = list(self._file.level_dimensions)
        self.downsamples = list(self._file.level_downsamples)
        self.bounds = _bounds(self._file.properties, "openslide", self.level_sizes[0])

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        x, y = (round(value * self.downsamples[level]) for value in (left, top))
        pixels = _argb(self._file, x, y, level, width, height)
        # Nearly every region is opaque, and then alpha needs no arithmetic.
        if pixels is None or pixels.min() < 0xFF000000:
            return self._file.read_region((x, y), level, (width, height))
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "BGRX", 0, 1)

    def resolutions(self) -> list[Stated]:
        properties = self._file.properties
        description = properties.get("openslide.comment") or properties.get("tiff.ImageDescription")
        tags = ("its header", properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))
        return [ome_mpp(description, self.level_sizes[0]), tags]

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
        # Opened here: it takes :: in a path for a chain of file systems.
        self._opened = path.open("rb")
        self._file = _tiffslide().TiffSlide(self._opened)
        # Tiles behind the end of a file that was cut off would be read as black.
        series = self._file.ts_tifffile.series[self._file.properties["tiffslide.series-index"]]
        for page in (page for level in series.levels for page in level.pages):
            ends = np.add(page.dataoffsets, page.databytecounts)
            if len(ends) and ends.max() > path.stat().st_size:
                raise ValueError("the file was cut off")
        self.level_sizes = list(self._file.level_dimensions)
        self.downsamples = list(self._file.level_downsamples)
        self.bounds = _bounds(self._file.properties, "tiffslide", self.level_sizes[0])

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        scale = self.downsamples[level]
        # TiffSlide rounds down to level pixels: the next whole pixel of level 0 is in the right one.
        location = (math.ceil(left * scale), math.ceil(top * scale))
        array = self._file.read_region(location, level, (width, height), as_array=True)
        if array.dtype != np.uint8 or array.shape[2:] not in ((3,), (4,)):
            raise ValueError(f"{array.dtype} with {array.shape[2]} channels is not 8-bit RGB")
        return Image.fromarray(np.ascontiguousarray(array))

    def resolutions(self) -> list[Stated]:
        properties = self._file.properties
        tags = ("its header", properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y"))
        return [ome_mpp(properties.get("tiff.ImageDescription"), self.level_sizes[0]), tags]

    def __del__(self) -> None:
        # OpenSlide closes itself; TiffSlide's parts refer to each other and would wait for the garbage collector.
        for name in ("_file", "_opened"):
            if part := self.__dict__.get(name):
                part.close()


class _ImageFile:
    """An image without levels, decoded whole."""

    def __init__(self, path: Path):
        self._pixels = read_image_file(path.parent, path.name, largest_px=LARGEST_WHOLE_PX)
        size = self._pixels.shape[1::-1]
        self.level_sizes = [size]
        self.downsamples = [1.0]
        self.bounds = (0, 0, *size)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> Image.Image:
        # Not Pillow's crop, which warns of large regions.
        return Image.fromarray(self._pixels[top : top + height, left : left + width])

    def resolutions(self) -> list[Stated]:
        return []


_READERS: dict[str, Callable[[Path], SlideFile]] = {
    "openslide": _OpenSlideFile,
    "tiffslide": _TiffSlideFile,
    "image": _ImageFile,
}
_files: "OrderedDict[tuple[Path, str], SlideFile]" = OrderedDict()
_lock = threading.Lock()
_inherited: list[object] = []


def open_file(path: Path, reader: str) -> SlideFile:
    """The file of this process, opened if it isn't; the one not used for longest is let go where there are too many.

    A file is closed when the last thread that reads from it lets it go.
    """
    key = (path, reader)
    with _lock:
        file = _files.get(key)
    if file is None:  # opened without the lock: a damaged file may never be
        try:
            file = _READERS[reader](path)
        except StedmError:
            raise
        except Exception as error:
            raise StedmError(
                f"{path}: not readable as a slide ({one_line(error)}); copy it again, or convert it to a tiled TIFF"
            ) from error
    with _lock:
        file = _files.setdefault(key, file)
        _files.move_to_end(key)
        while len(_files) > _MOST_OPEN:
            _files.popitem(last=False)
        return file


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


def first_that_reads(path: Path) -> tuple[str, SlideFile]:
    """Name and open file of the best reader that can read the slide."""
    _check_header(path)
    problems = []
    found: list[tuple[str, SlideFile]] = []
    for reader in _candidates(path):
        try:
            file = _in_time(lambda reader=reader: _tried(path, reader))
        except Exception as error:
            forget(path)
            problems.append(f"{reader}: {one_line(error.__cause__ or error)}")
        else:
            found.append((reader, file))
            if not (isinstance(file, _OpenSlideFile) and file.vendor == "generic-tiff" and len(file.level_sizes) == 1):
                break
    if not found:
        raise StedmError(
            f"{path}: not readable as a slide ({'; '.join(dict.fromkeys(problems))}); "
            "copy it again, or convert it to a tiled TIFF"
        )
    # OpenSlide sees only level 0 of OME-TIFF pyramids: the reader that sees more levels is the faster one by far.
    return max(found, key=lambda pair: len(pair[1].level_sizes))


def _tried(path: Path, reader: str) -> SlideFile:
    file = open_file(path, reader)
    for level in range(len(file.level_sizes)):  # some compressions are refused only by the decoder
        file.read(level, 0, 0, 1, 1)
    return file


def _in_time(call: Callable[[], SlideFile]) -> SlideFile:
    """What the call returns. One that hangs in a damaged file is left behind, and ends with the process."""
    outcome: Future[SlideFile] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(_OPENING_SECONDS)
    except TimeoutError:
        if outcome.done():
            raise
        raise ValueError(f"not open after {_OPENING_SECONDS:g} seconds, it may be damaged") from None


def _check_header(path: Path) -> None:
    if path.suffix.lower() in _PLAIN_SUFFIXES:
        with contextlib.suppress(*UNREADABLE), open_image(path) as image:  # the reader says what is wrong
            if image.mode in ("1", "L", "LA"):
                raise StedmError(f"{path}: its pixels are grey; slides are RGB of 8 bits: export it as RGB")
        return
    try:
        pages = tiff_pages(path)
    except OSError as error:
        raise StedmError(f"{path}: not readable ({one_line(error)}); copy it again") from error
    except ValueError as error:
        raise StedmError(f"{path}: not readable as a slide ({error}); export it again") from error
    if problem := pixel_problem(pages) if pages else "":
        raise StedmError(f"{path}: {problem}; slides are RGB of 8 bits: export it as RGB")


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


def on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode != "RGBA":
        return image.convert("RGB")
    if image.getchannel("A").getextrema()[0] < 255:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
