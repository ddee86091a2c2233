"""Mask files as people have them: any bit depth, palettes, colours; decoded to one number a pixel."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from stedm.errors import StedmError
from stedm.io.files import require_file
from stedm.io.images import LARGEST_WHOLE_PX, TURNED_MASK, UNREADABLE, is_turned, n_images, open_image

COLOUR = 1 << 24
"""Added to red, green and blue in one number: colours are told from indices by it."""
_STRETCH = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey values of few bits with."""


@dataclass(frozen=True)
class MaskValues:
    """A mask before anybody has said what its values mean.

    `values` whole numbers (H, W), in as few bytes as they were stored in: grey values, indices of a palette, ids, or
    `COLOUR` and a colour. `palette`: the colour of each index that occurs, where the file has one. `is_lossy`: the
    file's format changes values (JPEG).
    """

    values: np.ndarray
    palette: dict[int, int] = field(default_factory=dict)
    is_lossy: bool = False

    @property
    def colours(self) -> np.ndarray:
        """The values as colours: of a palette those that it shows, of grey ones grey."""
        return in_colours(self.values, self.palette)


def in_colours(values: np.ndarray, palette: dict[int, int]) -> np.ndarray:
    """Values of a mask as colours."""
    if palette:
        return looked_up(values, {index: palette.get(index, COLOUR) for index in range(256)}, np.int64)
    wide = values.astype(np.int64)
    return np.where(wide < COLOUR, COLOUR | (wide & 0xFF) * 0x010101, wide)


def counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, int64, and how often. Small ones are counted, which is many times faster than sorting."""
    if values.dtype in (np.uint8, np.uint16) and values.size:
        # In parts: numpy widens what it counts to eight bytes.
        parts = (np.bincount(part, minlength=int(values.max()) + 1) for part in np.array_split(values.ravel(), 16))
        counts = sum(parts)
        found = np.flatnonzero(counts)
        return found, counts[found]
    found, counts = np.unique(values, return_counts=True)
    return found.astype(np.int64), counts


def looked_up(values: np.ndarray, table: dict[int, int], dtype: type, others: int = 0) -> np.ndarray:
    """Each value as the table has it, `others` where it has none."""
    if values.dtype in (np.uint8, np.uint16):
        column = np.full(np.iinfo(values.dtype).max + 1, others, dtype)
        for value, wanted in table.items():
            if 0 <= value < len(column):
                column[value] = wanted
        return column[values]
    found, where = np.unique(values, return_inverse=True)
    return np.asarray([table.get(int(value), others) for value in found], dtype)[where].reshape(values.shape)


def shown(value: int) -> str:
    """A value as `--classes` takes it: a number, or a colour as #rrggbb."""
    return f"#{value - COLOUR:06x}" if value >= COLOUR else str(value)


def read_mask_values(path: Path) -> MaskValues:
    """Decode a PNG, TIFF, BMP or JPEG file of a mask; `StedmError` with one line for what can't be read as one."""
    try:
        require_file(path)
        with open_image(path) as image:
            if (n := n_images(image)) > 1:
                raise StedmError(f"{path}: holds {n} images, and which is the mask isn't known; write one a file")
            if image.width * image.height > LARGEST_WHOLE_PX:
                raise StedmError(f"{path}: has more than {LARGEST_WHOLE_PX // 10**6} million pixels; cut it first")
            if is_turned(image):
                raise StedmError(f"{path}: {TURNED_MASK}")
            values, palette = _decoded(image)
            return MaskValues(values, palette, image.format == "JPEG")
    except UNREADABLE as error:
        raise StedmError(f"{path}: not a readable PNG, TIFF, BMP or JPEG mask ({error}); replace the file") from error


def _decoded(image: Image.Image) -> tuple[np.ndarray, dict[int, int]]:
    if image.mode == "P":
        # Not converted: in indexed masks the index is the class, whatever the colours are.
        indices = np.array(image)
        flat = np.asarray(image.getpalette("RGB"), np.int64).reshape(-1, 3)
        packed = COLOUR | flat[:, 0] << 16 | flat[:, 1] << 8 | flat[:, 2]
        return indices, {int(i): int(packed[i]) for i in counted(indices)[0] if i < len(packed)}
    if image.mode == "L":
        factor = _STRETCH.get(str(image.tile[0].args), 1)  # before the pixels are read, after which it is gone
        return np.array(image) // np.uint8(factor), {}
    if image.mode == "1":
        return np.array(image).astype(np.uint8), {}
    if image.mode.startswith("I"):
        values = np.array(image)
        return values.astype(np.uint16 if values.min() >= 0 and values.max() < 1 << 16 else np.int64), {}
    if image.mode == "F":
        values = np.array(image)
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            raise ValueError("its values are no whole numbers")
        return values.astype(np.int64), {}
    pixels = np.array(image.convert("RGBA"))
    pixels[pixels[..., 3] < 128] = 0  # transparent: nothing was drawn there
    red, green, blue = (pixels[..., channel] for channel in range(3))
    if (red == green).all() and (red == blue).all():
        return red, {}
    red, green, blue = (channel.astype(np.int32) for channel in (red, green, blue))
    return COLOUR | red << 16 | green << 8 | blue, {}
