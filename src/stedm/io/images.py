"""Image and mask files of a dataset folder: what is read and written, and what is refused."""

import struct
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, ImageOps

from stedm.errors import StedmError
from stedm.io.files import replacing

_EXIF_ORIENTATION = 0x0112
# What Pillow's decoders raise on damaged files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def leaves_folder(name: str) -> str:
    """The end of an error line if a name of the metadata is absolute or goes up; "" otherwise. Opens nothing."""
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in name.replace("\\", "/").split("/"):
        return "leaves the dataset folder; give a path inside it, relative and without .."
    return ""


def file_inside(root: Path, name: str) -> Path:
    """Path of an existing file of the folder; `StedmError` if it is missing or, links followed, outside."""
    if problem := leaves_folder(name):
        raise StedmError(f"{name}: {problem}")
    try:
        path = (root / name).resolve()
        inside, exists = path.is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL in it, a loop of links
        raise StedmError(f"{name}: not a usable file name ({error}); change it") from error
    if not inside:
        raise StedmError(f"{name}: is a link that leaves the dataset folder; copy the file into the folder")
    if not exists:
        raise StedmError(f"{name}: missing in {root}; add the file or remove its row")
    return path


def read_image_file(root: Path, name: str, image_px: int | None = None) -> np.ndarray:
    """Decode a PNG, JPEG or TIFF file of the folder to uint8 RGB (H, W, 3); transparent parts become white."""
    path = file_inside(root, name)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
            # Pillow would cut RGB of 16 bits to 8 silently; the raw mode of the file tells.
            deep = image.mode in ("I", "F") or ";16" in image.mode or any(";16" in str(tile) for tile in image.tile)
            if deep:
                raise StedmError(f"{name}: has more than 8 bits a channel; convert it to 8 bits")
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG, JPEG or TIFF image ({error}); replace the file") from error
    return resized(np.array(image), image_px)


def resized(image: np.ndarray, image_px: int | None) -> np.ndarray:
    """uint8 RGB (H, W, 3) brought to a square of `image_px` by area averaging; None = as it is."""
    if image_px is None or image.shape[:2] == (image_px, image_px):
        return image
    return np.array(Image.fromarray(image).resize((image_px, image_px), Image.Resampling.BOX))


def image_size(root: Path, name: str) -> tuple[int, int]:
    """(width, height) of an image file as `read_image_file` gives it; only the head of the file is read."""
    path = file_inside(root, name)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
            width, height = image.size
            lies_on_its_side = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG, JPEG or TIFF image ({error}); replace the file") from error
    return (height, width) if lies_on_its_side else (width, height)


def read_mask_file(root: Path, name: str) -> np.ndarray:
    """Decode a single-channel 8-bit PNG file (grey or palette) of the folder to uint8 (H, W), values as stored."""
    path = file_inside(root, name)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            # Grey PNG of 1, 2 or 4 bits would be stretched to 0..255 by Pillow, so that indices change.
            if image.mode != "P" and (image.mode != "L" or image.tile[0].args != "L"):
                raise StedmError(f"{name}: is not single-channel 8-bit ({image.mode}); write masks as class indices")
            return np.array(image)
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG mask ({error}); replace the file") from error


def write_png(path: str | Path, array: np.ndarray, *, compress_level: int = 6) -> None:
    """Write uint8 RGB (H, W, 3) or uint8 (H, W) as PNG, atomically; level 1 is the fastest, 9 the smallest."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {array.dtype} {array.shape}")
    with replacing(path, durable=False) as temporary:
        Image.fromarray(array).save(temporary, format="PNG", compress_level=compress_level)
