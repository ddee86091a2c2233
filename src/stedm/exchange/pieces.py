"""Images of a source as they are stored: copied, or reduced and cut into tiles; and names for their files."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stedm.errors import StedmError
from stedm.io.images import LARGEST_PX, LARGEST_WHOLE_PX, open_image, read_image_file
from stedm.io.names import without_split_words

_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Piece:
    """An image to be stored; `image` None = the file as it is."""

    name: str
    image: np.ndarray | None
    mask: np.ndarray | None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pieces:
    """Side of the tiles in pixels (None = images stay whole) and their microns per pixel (None = as the images)."""

    tile_px: int | None = None
    mpp: float | None = None

    def check(self, rows: pd.DataFrame) -> None:
        """Refuse a resolution that can't be had from the images."""
        if self.mpp is None:
            return
        if "mpp" not in rows:
            raise StedmError("--tile-mpp: microns per pixel of the images aren't known; give --mpp, or a column mpp")
        if (finest := rows["mpp"].max()) > self.mpp * 1.001:
            raise StedmError(
                f"--tile-mpp {self.mpp:g}: images have {finest:g} microns per pixel, and finer ones can't be had; give "
                f"{finest:g} or more"
            )

    def of(self, path: Path, size: tuple[int, int], mask: np.ndarray | None, mpp: float | None) -> Iterator[Piece]:
        """What is stored of an image of `size` (width, height); facts of tiles are x, y, mpp and slide_mpp."""
        scale = 1.0 if self.mpp is None or mpp is None else self.mpp / mpp
        whole = self.tile_px is None or max(size) / scale <= self.tile_px
        if whole and scale < 1.001:
            if size[0] * size[1] > LARGEST_PX:
                raise StedmError(
                    f"{path}: has more than {LARGEST_PX // 10**6} million pixels; cut it with --tile-px 512"
                )
            yield Piece("", None if _can_be_copied(path) else read_image_file(path.parent, path.name), mask)
            return
        image = read_image_file(path.parent, path.name, largest_px=LARGEST_WHOLE_PX)
        if scale >= 1.001:
            reduced = tuple(max(1, round(side / scale)) for side in size)
            image = np.array(Image.fromarray(image).resize(reduced, Image.Resampling.BOX))
            mask = mask if mask is None else np.array(Image.fromarray(mask).resize(reduced, Image.Resampling.NEAREST))
        resolution = {} if mpp is None else {"mpp": mpp * scale, "slide_mpp": mpp}
        for y, x in _corners(image.shape[:2], self.tile_px):
            window = np.s_[y : y + (self.tile_px or image.shape[0]), x : x + (self.tile_px or image.shape[1])]
            place = {"x": round(x * scale), "y": round(y * scale)}
            name = "" if whole else f"_{place['x']}_{place['y']}"
            yield Piece(name, image[window], mask if mask is None else mask[window], resolution | place)


def _corners(shape: tuple[int, int], tile_px: int | None) -> Iterator[tuple[int, int]]:
    """Upper left corners of the fewest tiles that cover an image, evenly."""
    if tile_px is None:
        yield 0, 0
        return
    y, x = (
        np.round(np.linspace(0, max(0, side - tile_px), -(-side // tile_px))).astype(int).tolist() for side in shape
    )
    yield from ((top, left) for top in y for left in x)


def _can_be_copied(path: Path) -> bool:
    """JPEG, which would grow tenfold, and upright; everything else becomes PNG of eight bits."""
    with open_image(path) as image:
        return image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(_ORIENTATION, 1) == 1


def safe_names(keys: Iterable[str]) -> dict[str, str]:
    """A file name for each key that all systems and ImageFolder take, without a suffix; folders are kept."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for key in keys:
        text = unicodedata.normalize("NFC", key)
        name = without_split_words(re.sub(r"[^\w./ -]+", "_", text)).strip("._ /") or "image"
        name = "/".join(part.strip(". ") or "_" for part in name.split("/"))
        unique, number = name, 1
        while unique.casefold() in used:
            number += 1
            unique = f"{name}_{number}"
        used.add(unique.casefold())
        names[key] = unique
    return names
