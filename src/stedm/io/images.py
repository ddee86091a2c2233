"""Image and mask files of a dataset folder: what is read and written, and what is refused."""

import contextlib
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from stedm.errors import StedmError
from stedm.io.files import replacing

# RGB of classes on stained tissue, by index; the first is the background.
CLASS_COLOURS = (
    (200, 200, 200),
    (200, 0, 0),
    (0, 150, 136),
    (230, 159, 0),
    (86, 110, 233),
    (123, 63, 140),
    (139, 195, 74),
    (216, 70, 160),
)
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_EXIF_ORIENTATION = 0x0112
# A print of 4,800 dots per inch has 5.3 microns per pixel.
_PLAUSIBLE_MPP = (0.05, 5.0)
# What Pillow's decoders raise on damaged files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_LARGE_PX = 4_000_000
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
LARGEST_PX = 50_000_000
"""Pixels of an image file of a dataset; what is larger is a slide. Decoding such an image takes 0.4 GB."""


def leaves_folder(name: str) -> str:
    """The end of an error line if a name of a table is absolute, goes up or holds control characters; "" otherwise.

    Opens nothing. Both systems' rules count on both: a table travels.
    """
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "holds a control character; rename the file"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in name.replace("\\", "/").split("/"):
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
        # macOS writes names decomposed, most tables hold them composed; both look the same on a screen.
        for form in ("NFC", "NFD"):
            if (root / unicodedata.normalize(form, name)).is_file():
                raise StedmError(
                    f"{name}: missing in {root}; a file of that name in Unicode's form {form} is there, rename it"
                )
        raise StedmError(f"{name}: missing in {root}; add the file or remove its row")
    return path


@contextlib.contextmanager
def _opened_image(root: Path, name: str) -> Iterator[Image.Image]:
    """An image file of the folder before it is decoded; what can't be taken is a `StedmError`, also while it is."""
    path = file_inside(root, name)
    try:
        with Image.open(path, formats=FORMATS) as image:
            _refuse_large(name, image)
            # Pillow would cut RGB of 16 bits to 8 silently; the raw mode of the file tells.
            deep = image.mode in ("I", "F") or ";16" in image.mode or any(";16" in str(tile) for tile in image.tile)
            if deep:
                raise StedmError(f"{name}: has more than 8 bits a channel; convert it to 8 bits")
            yield image
    except _TOO_LARGE as error:
        raise _too_large(name) from error
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG, JPEG, TIFF or BMP image ({error}); replace the file") from error


def _refuse_large(name: str, image: Image.Image) -> None:
    if image.width * image.height > LARGEST_PX:
        raise _too_large(name)


def _too_large(name: str) -> StedmError:
    return StedmError(
        f"{name}: has more than {LARGEST_PX // 10**6} million pixels; cut it into tiles with `stedm tile`"
    )


def read_image_file(root: Path, name: str, image_px: int | None = None) -> np.ndarray:
    """Decode a PNG, JPEG, TIFF or BMP file of the folder to uint8 RGB (H, W, 3); transparent parts become white."""
    with _opened_image(root, name) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    return resized(np.array(image), image_px)


def resized(image: np.ndarray, image_px: int | None) -> np.ndarray:
    """uint8 RGB (H, W, 3) brought to a square of `image_px` by area averaging; None = as it is."""
    if image_px is None or image.shape[:2] == (image_px, image_px):
        return image
    return np.array(Image.fromarray(image).resize((image_px, image_px), Image.Resampling.BOX))


def image_size(root: Path, name: str) -> tuple[int, int]:
    """(width, height) of an image file as `read_image_file` gives it; only the head of the file is read."""
    with _opened_image(root, name) as image:
        return _shown_size(image)


def _shown_size(image: Image.Image) -> tuple[int, int]:
    lies_on_its_side = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return image.size[::-1] if lies_on_its_side else image.size


@contextlib.contextmanager
def _opened_mask(root: Path, name: str) -> Iterator[Image.Image]:
    path = file_inside(root, name)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            _refuse_large(name, image)
            # Grey PNG of 1, 2 or 4 bits would be stretched to 0..255 by Pillow, so that indices change.
            if image.mode != "P" and (image.mode != "L" or image.tile[0].args != "L"):
                raise StedmError(f"{name}: is not single-channel 8-bit ({image.mode}); write masks as class indices")
            yield image
    except _TOO_LARGE as error:
        raise _too_large(name) from error
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG mask ({error}); replace the file") from error


def image_mpp(root: Path, name: str) -> float | None:
    """Microns per pixel by the resolution that an image file states, None where it states none that can be meant.

    Most files say 72, 96 or 300 dots per inch, which are for printers: only what a microscope gives is believed, and
    that both axes agree on.
    """
    path = file_inside(root, name)
    try:
        with Image.open(path, formats=FORMATS) as image:
            across, down = (25_400 / float(dots) for dots in image.info.get("dpi", (1, 1)))
    except (*UNREADABLE, ArithmeticError, TypeError):
        return None
    smallest, largest = _PLAUSIBLE_MPP
    return across if smallest <= across <= largest and abs(down / across - 1) <= 0.02 else None


def read_mask_file(root: Path, name: str) -> np.ndarray:
    """Decode a single-channel 8-bit PNG file (grey or palette) of the folder to uint8 (H, W), values as stored."""
    with _opened_mask(root, name) as image:
        return np.array(image)


@dataclass(frozen=True)
class FileFacts:
    """What a check needs of a decoded image or mask, without its pixels."""

    size: tuple[int, int]
    """(width, height)."""
    checksum: int
    """Of the decoded pixels: images that differ in it differ."""
    counts: np.ndarray | None = None
    """int64 (256,): pixels of each value of a mask."""
    colours: tuple[tuple[int, int, int], ...] | None = None
    """RGB of the indices in the palette of a mask, where it has one."""
    is_plain: bool = False
    """An image of one colour, such as glass."""


def image_facts(root: Path, name: str, large: contextlib.AbstractContextManager | None = None) -> FileFacts:
    """Of an image file that `read_image_file` can read; `StedmError` for others. Large ones are decoded in `large`."""
    with _opened_image(root, name) as image, _alone(image, large):
        size = _shown_size(image)
        # JPEG at an eighth of its size: all of the file is read, in half of the time.
        image.draft(image.mode, (1, 1))
        extrema = np.reshape(image.getextrema(), (-1, 2))
        return FileFacts(size, zlib.crc32(image.tobytes()), is_plain=bool((extrema[:, 0] == extrema[:, 1]).all()))


def mask_facts(root: Path, name: str, large: contextlib.AbstractContextManager | None = None) -> FileFacts:
    """Of a mask file that `read_mask_file` can read; `StedmError` for others. Large ones are decoded in `large`."""
    with _opened_mask(root, name) as image, _alone(image, large):
        colours = None
        if image.mode == "P":
            flat = image.getpalette("RGB") or []
            colours = tuple(zip(flat[0::3], flat[1::3], flat[2::3], strict=False))
        return FileFacts(image.size, zlib.crc32(image.tobytes()), np.asarray(image.histogram(), np.int64), colours)


def _alone(image: Image.Image, large: contextlib.AbstractContextManager | None) -> contextlib.AbstractContextManager:
    return large if large is not None and image.width * image.height > _LARGE_PX else contextlib.nullcontext()


def class_palette(ignore_index: int = 255) -> bytes:
    """Colours for the 256 values of a mask, RGB by turns: those of the classes, and white where it is ignored."""
    colours = [CLASS_COLOURS[index % len(CLASS_COLOURS)] for index in range(256)]
    colours[ignore_index] = (255, 255, 255)
    return bytes(value for colour in colours for value in colour)


def write_png(
    path: str | Path,
    array: np.ndarray,
    *,
    compress_level: int = 6,
    palette: bytes | None = None,
    software: str | None = None,
) -> None:
    """Write uint8 RGB (H, W, 3) or uint8 (H, W) as PNG, atomically; level 1 is the fastest, 9 the smallest.

    Args:
        palette: colours in which viewers show the values of (H, W), as `class_palette` gives them; None = grey.
        software: what made it, written into the file (see stedm.io.ownership).
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {array.dtype} {array.shape}")
    image, notes = Image.fromarray(array), PngImagePlugin.PngInfo()
    if palette is not None:
        image.putpalette(palette)
    if software is not None:
        notes.add_text("Software", software)
    with replacing(path, durable=False) as temporary:
        image.save(temporary, format="PNG", compress_level=compress_level, pnginfo=notes)
