"""Label images of slides: PNG or TIFF of class indices, at a resolution of their own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stedm.errors import StedmError
from stedm.io.files import require_file
from stedm.io.images import UNREADABLE
from stedm.slides.class_mapping import ClassMapping
from stedm.slides.geometry import geometry_libraries, tile_shape
from stedm.slides.tiff_header import STRIPS, tiff_pages

# Label images up to so many pixels are kept in memory, larger TIFFs are read window by window.
_IN_MEMORY_PX = 2**28
_LARGEST_PIECE_PX = 2**28
_PNG_START = b"\x89PNG"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF


@dataclass(eq=False)
class LabelImage:
    """An image of class indices that covers the slide at its own resolution; nearest neighbour at any other.

    Without a mapping the values are class indices; with one, their decimal text ("0", "1", ...) is the name. Outside
    the image everything is as unannotated. A pickled one reads its file anew.
    """

    classes: list[str]
    ignore_index: int
    rules: ClassMapping
    path: Path
    downsample: float
    _source: Any = field(default=None, repr=False)
    _pixels: np.ndarray | None = field(default=None, repr=False)

    def opened(self) -> "LabelImage":
        """Itself, with the file open and, unless it is a huge TIFF, its pixels in memory and checked."""
        if self._source is None:
            self._source = _open_labels(self.path)
            width, height = self._source.size
            if width * height <= _IN_MEMORY_PX or not self._source.has_windows:
                self._pixels = self._mapped(self._source.read())
        return self

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """See `Annotation.bounds`; a label image says something of all that it covers."""
        width, height = self.opened()._source.size
        return (0.0, 0.0, width * self.downsample, height * self.downsample)

    def rasterise(self, x: float, y: float, tile_px: int | tuple[int, int], downsample: float) -> np.ndarray:
        """See `Annotation.rasterise`."""
        (width, height), (rows, columns) = self.opened()._source.size, tile_shape(tile_px)
        row = np.floor((y + (np.arange(rows) + 0.5) * downsample) / self.downsample).astype(np.intp)
        column = np.floor((x + (np.arange(columns) + 0.5) * downsample) / self.downsample).astype(np.intp)
        inside_row, inside_column = (row >= 0) & (row < height), (column >= 0) & (column < width)
        unannotated = self.rules.index_of(self.rules.unannotated, self.classes, self.ignore_index)
        tile = np.full((rows, columns), unannotated, np.uint8)
        if inside_row.any() and inside_column.any():
            tile[np.ix_(inside_row, inside_column)] = self._labels_at(row[inside_row], column[inside_column])
        return tile

    def _labels_at(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        if self._pixels is not None:
            return self._pixels[np.ix_(row, column)]
        window = ((int(row[0]), int(row[-1]) + 1), (int(column[0]), int(column[-1]) + 1))
        return self._mapped(self._source.read(window))[np.ix_(row - row[0], column - column[0])]

    def _mapped(self, values: np.ndarray) -> np.ndarray:
        """Stored values -> uint8 class indices."""
        table = np.full(256, -1, np.int16)
        if self.rules.mapping is None:
            table[: len(self.classes)] = np.arange(len(self.classes))
            table[self.ignore_index] = self.ignore_index
        else:
            if self.rules.unknown == "ignore":
                table[:] = self.ignore_index
            for name, index in self.rules.class_indices(self.classes, self.ignore_index).items():
                if name.isascii() and name.isdigit() and int(name) < 256:
                    table[int(name)] = index
        found = np.bincount(values.ravel(), minlength=256) > 0
        if (table[found] < 0).any():
            strangers = np.flatnonzero(found & (table < 0))
            listed = ", ".join(map(str, strangers[:9])) + (" and more" if strangers[9:].size else "")
            raise StedmError(
                f"{self.path}: values {listed} are no class; without a mapping values are 0 to "
                f"{len(self.classes) - 1} and ignore_index {self.ignore_index}: map them, or write class indices"
            )
        return table.clip(0).astype(np.uint8)[values]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None, "_pixels": None}


class _PngLabels:
    """Read whole. By Pillow: GDAL gives memory as it was where a PNG file is cut off."""

    has_windows = False

    def __init__(self, path: Path) -> None:
        from PIL import PngImagePlugin

        self.path = path
        with path.open("rb") as file:
            # Image.open refuses as an attack what is only a large map; the limit here is that of memory.
            image = PngImagePlugin.PngImageFile(file)
            self.size = image.size
            # Grey of 1, 2 or 4 bits would be stretched to 0..255 by Pillow, so that indices change.
            if image.mode != "P" and (image.mode != "L" or image.tile[0].args != "L"):
                raise StedmError(
                    f"{path}: a label image has one 8-bit channel of class indices, this one {image.mode}; "
                    "write it anew"
                )
            if image.width * image.height > _LARGEST_PIECE_PX:
                raise StedmError(
                    f"{path}: {image.width} x {image.height} px are too large for a PNG, which is read whole; write "
                    "the label image as a tiled TIFF, or smaller (it may be coarser than the slide)"
                )

    def read(self, window: Any = None) -> np.ndarray:
        from PIL import PngImagePlugin

        try:
            with self.path.open("rb") as file:
                return np.asarray(PngImagePlugin.PngImageFile(file))
        except UNREADABLE as error:
            raise StedmError(f"{self.path}: damaged label image ({error}); write it again") from error


class _TiffLabels:
    """Read by windows ((top, bottom), (left, right)), so that it may be of any size."""

    has_windows = True

    def __init__(self, path: Path) -> None:
        import warnings

        rasterio, _ = geometry_libraries()
        self.path = path
        pages = tiff_pages(path)  # says in words what is damaged
        with warnings.catch_warnings():
            # Images of tissue lie nowhere on Earth.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            self.file = rasterio.open(path.resolve(), driver="GTiff")
        self.size = (self.file.width, self.file.height)
        if self.file.count != 1 or self.file.dtypes[0] != "uint8":
            found = f"{self.file.count} of {self.file.dtypes[0]}"
            raise StedmError(
                f"{path}: a label image has one 8-bit channel of class indices, this one {found}; write it anew"
            )
        # Strips are decoded whole, and a tile of the slide may need them again and again.
        pieces = max(1, pages[0].counts.get(STRIPS, 1))
        if not pages[0].is_tiled and self.file.width * self.file.height / pieces > _LARGEST_PIECE_PX:
            raise StedmError(
                f"{path}: {self.size[0]} x {self.size[1]} px in {pieces} strips are too large to read; write the label "
                "image as a tiled TIFF, or smaller (it may be coarser than the slide)"
            )

    def read(self, window: Any = None) -> np.ndarray:
        rasterio, _ = geometry_libraries()
        try:
            return self.file.read(1, window=window)
        except rasterio.errors.RasterioError as error:
            raise StedmError(f"{self.path}: damaged label image ({error}); write it again") from error


def is_label_image(path: Path) -> bool:
    try:
        require_file(path)
        with path.open("rb") as file:
            return file.read(4) in (_PNG_START, *_TIFF_STARTS)
    except FileNotFoundError as error:
        raise StedmError(f"{path}: missing; correct the path of the annotation") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise StedmError(f"{path}: not readable ({error}); replace the file") from error


def _open_labels(path: Path) -> _PngLabels | _TiffLabels:
    rasterio, _ = geometry_libraries()
    try:
        require_file(path)
        with path.open("rb") as file:
            is_png = file.read(4) == _PNG_START
        return _PngLabels(path) if is_png else _TiffLabels(path)
    except (*UNREADABLE, rasterio.errors.RasterioError) as error:
        raise StedmError(f"{path}: not a readable label image ({error}); write it again") from error


def label_scale(path: Path, slide_px: tuple[int, int] | None, label_downsample: float | None) -> float:
    """Level-0 pixels a label pixel; `StedmError` if it is not known or the image doesn't cover the slide."""
    if label_downsample is not None and not 0 < label_downsample < np.inf:
        raise StedmError(f"{path}: label_downsample is {label_downsample}; it is a number above 0")
    if slide_px is None:
        if label_downsample is None:
            raise StedmError(f"{path}: say how large the slide is (slide_px) or a label pixel is (label_downsample)")
        return float(label_downsample)
    size = _open_labels(path).size
    scale = label_downsample or slide_px[0] / size[0]
    whole_number = max(1, round(scale))
    if label_downsample is None and abs(slide_px[0] / whole_number - size[0]) < 1:
        # Sizes are rounded: 10,007 px against 625 means 16, not 16.011.
        scale = float(whole_number)
    if label_downsample is None and scale < 1:
        raise StedmError(
            f"{path}: the label image is {size[0]} x {size[1]} px, larger than the slide of {slide_px[0]} x "
            f"{slide_px[1]} px; write it anew from what was scanned (the slide's bounds, as QuPath shows it)"
        )
    # A pixel of rounding, and 0.2 % for an mpp of few digits.
    if any(abs(whole / scale - side) > 1 + 0.002 * side for whole, side in zip(slide_px, size, strict=True)):
        raise StedmError(
            f"{path}: the label image is {size[0]} x {size[1]} px, which doesn't cover the slide of "
            f"{slide_px[0]} x {slide_px[1]} px at one scale; write it anew from the same slide"
        )
    return float(scale)
