"""Image and mask files of a dataset folder: what is read and written, and what is refused."""

import colorsys
import contextlib
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from stedm.errors import StedmError
from stedm.io.files import replacing
from stedm.io.manifest import stamp_of
from stedm.version import __version__

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
_EXIF_ORIENTATION, _ON_ITS_SIDE, _SUBFILE_TYPE = 0x0112, (5, 6, 7, 8), 254
_PLAUSIBLE_MPP = (0.05, 4.99)
"""Scanners write 0.1 to 4 (an objective of 2.5x). Programs that draw write the resolution of a print or a screen,
which lies above up to 5,080 dots per inch."""
_PRINT_DPI = (5400, 5760, 6400, 7200, 8000, 9600)
"""Those of prints and film that lie inside."""
# What Pillow's decoders raise on damaged files.
UNREADABLE = (
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_LARGE_PX, _LONGEST_SHOWN = 4_000_000, 200
_sizes: dict[str, tuple[tuple[int, int, int] | None, tuple[int, int]]] = {}
TURNED_MASK = "a mask with an EXIF orientation of its own, which most readers of masks don't see; save it without"
LARGEST_PX = 50_000_000
"""Pixels of an image file of a dataset; what is larger is a slide. Decoding such an image takes 0.4 GB."""
LARGEST_WHOLE_PX = 1 << 27
"""Pixels of an image file that is tiled or segmented by itself."""
_TURNS = dict(
    zip(
        range(2, 9),
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        strict=True,
    )
)
"""What brings an image of an EXIF orientation upright."""


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
        raise StedmError(f"{shown_name(name)}: {problem}")
    try:
        path = (root / name).resolve()
        inside, exists = path.is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL in it, a loop of links
        raise StedmError(f"{name}: not a usable file name ({error}); change it") from error
    if not inside:
        raise StedmError(f"{name}: is a link that leaves the dataset folder; copy the file into the folder")
    if not exists:
        raise StedmError(f"{name}: missing in {root}; {_there_instead(root, name)}")
    return path


def _there_instead(root: Path, name: str) -> str:
    """What to do about a name that isn't there: it may be spelled otherwise."""
    # macOS writes names decomposed, most tables hold them composed; both look the same on a screen.
    for form in ("NFC", "NFD"):
        if (root / unicodedata.normalize(form, name)).is_file():
            return f"a file of that name in Unicode's form {form} is there, rename it"
    bare, dot, suffix = name.rpartition(".")
    others = name.replace("\\", "/"), bare + dot + suffix.lower(), bare + dot + suffix.upper(), name.lower()
    other = next((other for other in others if (root / other).is_file()), None)
    return f"{other} is there: correct its row" if other else "add the file or remove its row"


def shown_name(name: str) -> str:
    """A name from a table as an error line can hold it: one line, no control characters, not too long."""
    return name if name.isprintable() and len(name) <= _LONGEST_SHOWN else ascii(name[:_LONGEST_SHOWN])


def open_image(path: Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """`Image.open` without its warning of large images: these are read, or refused in a line."""
    if not set(FORMATS) <= set(Image.OPEN):
        Image.init()
    with path.open("rb") as file:
        head = file.read(16)
    for factory, accepts in (Image.OPEN[name] for name in formats):
        if accepts is None or accepts(head):
            try:
                return factory(path, str(path))
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                raise UnidentifiedImageError(str(error)) from error
    raise UnidentifiedImageError("another format")


@contextlib.contextmanager
def _opened_image(root: Path, name: str, largest_px: int = LARGEST_PX) -> Iterator[Image.Image]:
    """An image file of the folder before it is decoded; what can't be taken is a `StedmError`, also while it is."""
    path = file_inside(root, name)
    try:
        with open_image(path) as image:
            _refuse_large(name, image, largest_px)
            # Pillow would cut RGB of 16 bits to 8 silently; the raw mode of the file tells.
            deep = image.mode in ("I", "F") or ";16" in image.mode or any(";16" in str(tile) for tile in image.tile)
            if deep:
                raise StedmError(f"{name}: has more than 8 bits a channel; convert it to 8 bits")
            if (n := n_images(image)) > 1:
                raise StedmError(f"{name}: holds {n} images, and which is meant isn't known; write one a file")
            yield image
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG, JPEG, TIFF or BMP image ({error}); replace the file") from error


def n_images(image: Image.Image) -> int:
    """Images in a file; the smaller copies of a pyramid are none of their own, nor what cameras put into a JPEG."""
    if image.format not in ("PNG", "TIFF") or (n_frames := getattr(image, "n_frames", 1)) == 1:
        return 1
    if image.format == "PNG":
        return n_frames
    copies = 0
    for number in range(1, n_frames):
        image.seek(number)
        copies += bool(image.tag_v2.get(_SUBFILE_TYPE, 0) & 1)
    image.seek(0)
    return n_frames - copies


def _refuse_large(name: str, image: Image.Image, largest_px: int = LARGEST_PX) -> None:
    if image.width * image.height > largest_px:
        raise StedmError(
            f"{name}: has more than {largest_px // 10**6} million pixels; save it as a tiled TIFF and cut that, "
            "which is a slide, with `stedm tile`"
        )


def read_image_file(root: Path, name: str, image_px: int | None = None, largest_px: int = LARGEST_PX) -> np.ndarray:
    """Decode a PNG, JPEG, TIFF or BMP file of the folder to uint8 RGB (H, W, 3); transparent parts become white."""
    with _opened_image(root, name, largest_px) as image:
        if is_turned(image):
            image = image.transpose(_TURNS[_orientation(image)])
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        array = np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert copies what it needn't
    return resized(array, image_px)


def resized(image: np.ndarray, image_px: int | None) -> np.ndarray:
    """A square uint8 RGB (H, H, 3) brought to `image_px` by area averaging; None = as it is, of any shape."""
    if image_px is None or image.shape[:2] == (image_px, image_px):
        return image
    return np.array(Image.fromarray(image).resize((image_px, image_px), Image.Resampling.BOX))


def image_size(root: Path, name: str, largest_px: int = LARGEST_PX) -> tuple[int, int]:
    """(width, height) of an image file as `read_image_file` gives it; only the head of the file is read.

    Once in a process, and again if the file changes.
    """
    path = str(root / name)
    try:
        stamp = stamp_of(path)
    except (OSError, ValueError):
        stamp = None  # what follows says why
    known = _sizes.get(path)
    if known is None or known[0] != stamp:
        with _opened_image(root, name, largest_px) as image:
            known = _sizes[path] = stamp, _shown_size(image)
    return known[1]


def note_size(root: Path, name: str, stamp: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Tell `image_size` what was found in a file when it had this stamp (`stedm.io.manifest.stamp_of`)."""
    _sizes[str(root / name)] = stamp, size


def _shown_size(image: Image.Image) -> tuple[int, int]:
    is_turned = image.format != "TIFF" and _orientation(image) in _ON_ITS_SIDE
    return image.size[::-1] if is_turned else image.size


def _orientation(image: Image.Image) -> int:
    """By EXIF or XMP; 1 = as stored. PNG that hold it behind their pixels would have to be decoded to see it."""
    holders = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
    if image.format == "PNG" and not any(name in image.info for name in holders):
        return 1
    return image.getexif().get(_EXIF_ORIENTATION, 1)


def is_turned(image: Image.Image) -> bool:
    """Whether an image is shown otherwise than it is stored."""
    return image.format != "TIFF" and _orientation(image) in _TURNS  # TIFF are turned by Pillow itself


def is_on_stored_pixels(name: str, orientation: int, shown_px: tuple[int, int], mask_px: tuple[int, int]) -> bool:
    """Whether the mask of an image was drawn on its pixels as they are stored, and has to be turned as the image is.

    Most tools draw there, some on what EXIF says is shown; where the image is oblong the mask's size tells.

    Raises:
        StedmError: it doesn't tell.
    """
    if orientation not in _TURNS:
        return False
    if orientation not in _ON_ITS_SIDE or shown_px[0] == shown_px[1]:
        raise StedmError(
            f"{name}: is turned by its EXIF orientation {orientation}, and its mask may have been drawn on the turned "
            "or on the stored pixels; save the image without EXIF orientation, as its mask is"
        )
    return mask_px == shown_px[::-1]


def mask_as_shown(root: Path, image_name: str, mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) turned by its image's EXIF orientation, where it was drawn on the stored pixels."""
    if not (root / image_name).is_file():
        return mask  # masks can be read without their images
    with _opened_image(root, image_name) as image:
        orientation, shown_px = _orientation(image), _shown_size(image)
    if is_on_stored_pixels(image_name, orientation, shown_px, mask.shape[::-1]):
        return np.array(Image.fromarray(mask).transpose(_TURNS[orientation]))
    return mask


def image_mpp(root: Path, name: str) -> float | None:
    """Microns per pixel by the resolution that an image file states, None where it states none that can be meant.

    Most files say 72, 96 or 300 dots per inch, which are for printers: only what a microscope gives is believed, and
    that both axes agree on.
    """
    path = file_inside(root, name)
    try:
        with open_image(path) as image:
            across, down = (25_400 / float(dots) for dots in image.info.get("dpi", (1, 1)))
    except (*UNREADABLE, ArithmeticError, TypeError):
        return None
    return across if is_of_a_scanner(across) and abs(down / across - 1) <= 0.02 else None


def is_of_a_scanner(mpp: float) -> bool:
    """Whether a resolution that a file states can be one of a microscope, in microns per pixel."""
    low, high = _PLAUSIBLE_MPP
    return low <= mpp < high and not any(abs(mpp * dpi / 25_400 - 1) < 1e-3 for dpi in _PRINT_DPI)


@contextlib.contextmanager
def _opened_mask(root: Path, name: str) -> Iterator[Image.Image]:
    path = file_inside(root, name)
    try:
        with open_image(path, ("PNG",)) as image:
            _refuse_large(name, image)
            # Grey PNG of 1, 2 or 4 bits would be stretched to 0..255 by Pillow, so that indices change.
            if image.mode != "P" and (image.mode != "L" or image.tile[0].args != "L"):
                raise StedmError(f"{name}: is not single-channel 8-bit ({image.mode}); write masks as class indices")
            if is_turned(image):
                raise StedmError(f"{name}: {TURNED_MASK}")
            yield image
    except UNREADABLE as error:
        raise StedmError(f"{name}: not a readable PNG mask ({error}); replace the file") from error


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
    orientation: int = 1
    """By EXIF; `size` is that of the image as it is shown."""
    is_bilevel: bool = False
    """One bit a pixel: black or white."""


def image_facts(root: Path, name: str, large: contextlib.AbstractContextManager | None = None) -> FileFacts:
    """Of an image file that `read_image_file` can read; `StedmError` for others. Large ones are decoded in `large`."""
    with _opened_image(root, name) as image, _alone(image, large):
        size, orientation = _shown_size(image), _orientation(image)
        # JPEG at an eighth of its size: all of the file is read, in half of the time.
        image.draft(image.mode, (1, 1))
        extrema = np.reshape(image.getextrema(), (-1, 2))
        is_plain = bool((extrema[:, 0] == extrema[:, 1]).all())
        return FileFacts(size, zlib.crc32(image.tobytes()), None, None, is_plain, orientation, image.mode == "1")


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
    # No two classes look the same: `stedm check` takes such a palette for classes that were swapped.
    others = ((index * 0.618034 % 1, 0.45 + 0.1 * (index % 5), 0.9 - 0.15 * (index % 3)) for index in range(8, 256))
    colours = [*CLASS_COLOURS, *(tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*hsv)) for hsv in others)]
    colours[ignore_index] = (255, 255, 255)
    return bytes(value for colour in colours for value in colour)


def synthetic_by(fingerprint: str) -> str:
    """The description of an image that a model painted: whoever finds the file alone can tell."""
    return f"Synthetic image, no photograph: painted by the diffusion model {fingerprint} with stedm {__version__}"


def write_png(
    path: str | Path,
    array: np.ndarray,
    *,
    compress_level: int = 6,
    palette: bytes | None = None,
    software: str | None = None,
    description: str | None = None,
) -> None:
    """Write uint8 RGB (H, W, 3) or uint8 (H, W) as PNG, atomically; level 1 is the fastest, 9 the smallest.

    Args:
        palette: colours in which viewers show the values of (H, W), as `class_palette` gives them; None = grey.
        software: what made it, written into the file (see stedm.io.ownership).
        description: what it is, written into the file.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"expected uint8 (H, W, 3) or (H, W), got {array.dtype} {array.shape}")
    image, notes = Image.fromarray(array), PngImagePlugin.PngInfo()
    if palette is not None:
        image.putpalette(palette)
    if software is not None:
        notes.add_text("Software", software)
    if description is not None:
        notes.add_text("Description", description)
    with replacing(path, durable=False) as temporary:
        image.save(temporary, format="PNG", compress_level=compress_level, pnginfo=notes)


def write_tiff(path: str | Path, image: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) as TIFF that isn't compressed, atomically."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    with replacing(path, durable=False) as temporary:
        Image.fromarray(image).save(temporary, format="TIFF")
