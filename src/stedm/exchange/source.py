"""What a source of images has: each image, its mask, and what the source itself says of it."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stedm.errors import StedmError
from stedm.exchange.mask_files import MaskValues, read_mask_values

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".czi", ".dcm")
_SPLIT_WORDS = {
    "train": r"tr|train|training",
    "val": r"val|valid|validation|dev",
    "test": r"ts|test(?:[-_ ]?[a-z])?|testing|eval|evaluation",
    "unlabeled": r"unlabell?ed|unannotated",
}


@dataclass(frozen=True)
class SourceImage:
    """An image of a source.

    `key` names it within the source, without a suffix. `facts`: what the source says of it, by column of a dataset's
    table (patient_id, slide_id, split, category, x, y, mpp, slide_mpp). `mask`: the file of its mask, where there is
    one; None = not annotated, unless the source draws it.
    """

    key: str
    path: Path
    mask: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)
    drawn: object = None
    """What the source draws the mask of, where no file has it."""

    @property
    def is_annotated(self) -> bool:
        return self.mask is not None or self.drawn is not None


@dataclass(frozen=True)
class Source:
    """Images and masks as they are, before anybody has said what values mean and whose they are.

    `kind`: what it is, in words. `labels`: class name by value of a mask, where the source says so.
    """

    root: Path
    kind: str
    images: list[SourceImage]
    labels: dict[int, str] | None = None
    ignored: int | None = None
    """Value that is ignored, where the source says so."""
    notes: list[str] = field(default_factory=list)
    draw: Callable[[object], MaskValues] | None = None
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        counts = Counter(image.key for image in self.images)
        if twice := sorted(key for key, n in counts.items() if n > 1):
            raise StedmError(f"{self.root}: {some(twice)} is an image twice in it; keep one, or rename the other")

    def read_mask(self, image: SourceImage) -> MaskValues:
        """The mask of an annotated image as stored."""
        if image.mask is not None:
            return read_mask_values(image.mask)
        assert self.draw is not None
        return self.draw(image.drawn)


def files_below(folder: Path) -> list[Path]:
    """Files of a folder and of those in it, sorted, hidden ones left out; links to folders are followed, once each."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(root, name)) not in seen
        ]
        found += [Path(root, name) for name in names if name[0] != "."]
    return sorted(path for path in found if path.is_file())


def image_files(folder: Path) -> list[Path]:
    """Image files in a folder and the folders in it; slides are refused in a line."""
    files = files_below(folder)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        if any(path.suffix.lower() in _SLIDE_SUFFIXES for path in files):
            raise StedmError(f"{folder}: holds slides; cut them with `stedm tile SLIDES.csv` (docs/slides.md)")
        others = sorted({path.suffix for path in files if path.suffix})
        found = f", only {', '.join(others[:5])}" if others else ""
        raise StedmError(f"{folder}: no PNG, JPEG, TIFF or BMP image in it{found}; give the folder of the images")
    return images


def split_word(text: str) -> str | None:
    """The split that a word stands for; None if it is none."""
    return next((split for split, words in _SPLIT_WORDS.items() if re.fullmatch(words, text.casefold())), None)


def split_in_name(key: str) -> str | None:
    """The split that the name of an image says: a folder `train`, or a name like `testA_1`."""
    *folders, name = key.split("/")
    found = [split for folder in folders if (split := split_word(folder))]
    every = "|".join(_SPLIT_WORDS.values())
    begin = re.match(rf"({every})(?:[-_ .]*\d)", name.casefold())
    return found[-1] if found else split_word(begin[1]) if begin else None


def normal(name: str) -> str:
    """A name as it is compared: systems and tables differ in case and in the form of accents."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/").strip()


def some(names: Sequence[str]) -> str:
    """The first few names of a line."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
