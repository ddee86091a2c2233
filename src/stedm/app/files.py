"""Bytes that come from the page and go to it: uploads, decoded under the same rules as files, and PNG."""

import io
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.io.images import class_palette, read_image_file, read_mask_file, resized

MOST_UPLOAD_BYTES = 32 << 20
"""Of an image or a mask."""


def png(array: np.ndarray, software: str = "") -> bytes:
    """PNG of uint8 RGB (H, W, 3), or of class indices (H, W) in the classes' colours; `software` made it."""
    image, file, notes = Image.fromarray(array), io.BytesIO(), PngImagePlugin.PngInfo()
    if array.ndim == 2:
        image.putpalette(class_palette())
    if software:
        notes.add_text("Software", software)
    image.save(file, format="PNG", compress_level=1, pnginfo=notes)
    return file.getvalue()


def shown_name(name: str, otherwise: str) -> str:
    """A name that a browser gave, without what could lead out of a folder or into markup."""
    return re.sub(r"[^\w.\- ]", "_", Path(name.replace("\\", "/")).name).lstrip(".")[-60:] or otherwise


def read_style(content: bytes, name: str, image_px: int) -> np.ndarray:
    """An uploaded style image as the model's are: uint8 RGB, the square in the middle, no larger than `image_px`."""
    name = shown_name(name, "image")
    with tempfile.TemporaryDirectory(prefix="stedm-app-") as folder:
        (Path(folder) / name).write_bytes(content)
        image = _in_words(lambda: read_image_file(Path(folder), name), folder)
    square = _middle(image)
    return resized(square, image_px) if len(square) > image_px else square


def read_layout(content: bytes, name: str, image_px: int, classes: list[str], ignore_index: int) -> np.ndarray:
    """An uploaded layout, uint8 `(image_px, image_px)`: class indices as in masks, 255 = unknown there.

    Raises:
        StedmError: not a PNG of class indices, or of classes that the model doesn't know.
    """
    name = shown_name(name, "mask")
    with tempfile.TemporaryDirectory(prefix="stedm-app-") as folder:
        (Path(folder) / name).write_bytes(content)
        mask = _in_words(lambda: read_mask_file(Path(folder), name), folder)
    if problem := DatasetInfo("upload", classes, ignore_index).mask_problem(mask):
        raise StedmError(f"{name}: {problem}")
    square = Image.fromarray(_middle(mask)).resize((image_px, image_px), Image.Resampling.NEAREST)
    layout = np.array(square)
    return np.where(layout < len(classes), layout, np.uint8(255))


def _middle(array: np.ndarray) -> np.ndarray:
    side = min(array.shape[:2])
    top, left = ((length - side) // 2 for length in array.shape[:2])
    return np.ascontiguousarray(array[top : top + side, left : left + side])


def _in_words(read, folder: str) -> np.ndarray:
    try:
        return read()
    except StedmError as error:
        # Of a file that was just sent nobody wants to know where it lies.
        raise StedmError(str(error).replace(f"{folder}/", "").replace(f" in {folder}", "")) from error
