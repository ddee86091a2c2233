"""The directories of a TIFF file, read before anything else opens it.

Readers of slides trust them: a damaged size or a directory that points to itself keeps them busy for hours or ends the
process, and pixels that are not RGB are shown as if they were.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MOST_PAGES = 20_000
_MOST_TAGS = 4_096
_LARGEST_TILE_PX = 2**26
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
WIDTH, HEIGHT, BITS, PHOTOMETRIC, STRIPS, SAMPLES = 256, 257, 258, 262, 273, 277
PLANAR, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, SUB_PAGES, EXTRA, FORMAT = 284, 322, 323, 324, 325, 330, 338, 339
_READ = (WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, PLANAR, TILE_WIDTH, TILE_HEIGHT, SUB_PAGES, EXTRA, FORMAT)
_MOST_VALUES, _MOST_TILES = 4_096, 2**22
_PHOTOMETRIC = {0: "grey", 1: "grey", 3: "a palette", 4: "a mask", 5: "CMYK", 8: "CIELab", 9: "CIELab"}


@dataclass(frozen=True)
class TiffPage:
    """A directory: how many values its tags have, and the values of those that say what the pixels are."""

    counts: dict[int, int]
    values: dict[int, tuple[int, ...]]

    def one(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return (self.values.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.one(WIDTH), self.one(HEIGHT)

    @property
    def is_tiled(self) -> bool:
        return TILE_WIDTH in self.counts


def tiff_pages(path: Path) -> list[TiffPage]:
    """The directories of a TIFF or BigTIFF file with those below them; none for files of other kinds.

    Raises `ValueError`, in words: damaged, endless, or not as many tiles as the size needs.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start, length = file.read(4), path.stat().st_size
        # NDPI has addresses of its own kind beyond 4 GB.
        if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or path.suffix.lower() == ".ndpi":
            return []
        big, order = b"+" in start, "<" if start[:1] == b"I" else ">"
        if not big and length >= 2**32:
            return []
        pages = _Directories(file, length, big, order).read()
    if not pages:
        raise ValueError("its header points to no image")
    for number, page in enumerate(pages):
        if problem := _size_problem(page):
            raise ValueError(f"damaged header: image {number} {problem}")
    return pages


@dataclass
class _Directories:
    file: BinaryIO
    length: int
    big: bool
    order: str

    def read(self) -> list[TiffPage]:
        (offset,) = self._numbers(8 if self.big else 4, "Q" if self.big else "I", 1)
        pages: dict[int, TiffPage] = {}
        while offset:
            if offset in pages or len(pages) >= _MOST_PAGES:
                raise ValueError("damaged header: its images are listed without an end")
            pages[offset], offset = self._page(offset)
        # Those below others (levels of OME-TIFF) are named by them and may also be chained.
        below = [offset for page in pages.values() for offset in page.values.get(SUB_PAGES, ())]
        while below and len(pages) < _MOST_PAGES:
            if (offset := below.pop()) and offset not in pages:
                pages[offset], _ = self._page(offset)
                below += pages[offset].values.get(SUB_PAGES, ())
        return list(pages.values())

    def _page(self, offset: int) -> tuple[TiffPage, int]:
        (n_tags,) = self._numbers(offset, "Q" if self.big else "H", 1)
        if n_tags > _MOST_TAGS:
            raise ValueError(f"damaged header: {n_tags} entries of an image")
        size, place = (20, 8) if self.big else (12, 4)
        first = offset + (8 if self.big else 2)
        counts, values = {}, {}
        for at in range(first, first + n_tags * size, size):
            tag, kind = self._numbers(at, "H", 2)
            (count,) = self._numbers(at + 4, "Q" if self.big else "I", 1)
            inline = count * _BYTES.get(kind, 1) <= place
            start = at + size - place if inline else self._numbers(at + size - place, "Q" if self.big else "I", 1)[0]
            if tag in (*_READ, STRIPS, TILES, TILE_BYTES) and start + count * _BYTES.get(kind, 1) > self.length:
                raise ValueError("damaged header: it points behind the end of the file")
            counts[tag] = count
            if tag == TILE_BYTES and kind in _NUMBERS:
                self._check_tiles(self._numbers(start, _NUMBERS[kind], min(count, _MOST_TILES)))
            if tag in _READ and kind in _NUMBERS and count <= _MOST_VALUES:
                values[tag] = self._numbers(start, _NUMBERS[kind], count)
        return TiffPage(counts, values), self._numbers(first + n_tags * size, "Q" if self.big else "I", 1)[0]

    def _check_tiles(self, sizes: tuple[int, ...]) -> None:
        if max(sizes, default=0) > self.length:
            raise ValueError("damaged header: a tile of it is larger than the file")

    def _numbers(self, offset: int, kind: str, count: int) -> tuple[int, ...]:
        self.file.seek(offset)
        data = self.file.read(struct.calcsize(f"={count}{kind}"))
        try:
            return struct.unpack(f"{self.order}{count}{kind}", data)
        except struct.error as error:
            raise ValueError("damaged header: it points behind the end of the file") from error


def _size_problem(page: TiffPage) -> str:
    (width, height), samples = page.size, page.one(SAMPLES, 1)
    planes = samples if page.one(PLANAR, 1) == 2 else 1
    if min(width, height, samples) < 1:
        return "has no size"
    if not page.is_tiled:
        return ""
    tile_width, tile_height = page.one(TILE_WIDTH), page.one(TILE_HEIGHT)
    if not 0 < tile_width * tile_height <= _LARGEST_TILE_PX:
        return f"has tiles of {tile_width} x {tile_height} px"
    expected = -(-width // tile_width) * -(-height // tile_height) * planes
    found = page.counts.get(TILES) or page.counts.get(STRIPS, 0)  # some list their tiles as strips
    if found < expected:
        return f"is {width} x {height} px, which needs {expected} tiles, and has {found}"
    return ""


def pixel_problem(pages: list[TiffPage]) -> str:
    """Why the largest image is no RGB slide, in words; "" where it is one."""
    page = max(pages, key=lambda page: (page.is_tiled, page.one(WIDTH) * page.one(HEIGHT)))
    samples, photometric = page.one(SAMPLES, 1), page.one(PHOTOMETRIC, 1)
    bits, alike = page.one(BITS, 1), sum(other.size == page.size for other in pages)
    if photometric not in (2, 6) or samples < 3:
        kind, planes = _PHOTOMETRIC.get(photometric, "colours"), f", in {alike} planes" if alike > 1 else ""
        return f"its pixels are {kind} with {samples} {'channels' if samples > 1 else 'channel'} of {bits} bits{planes}"
    if samples > 4 or (samples == 4 and page.one(EXTRA) not in (1, 2)):
        return f"its pixels have {samples} channels"
    if set(page.values.get(BITS, (8,))) not in ({8}, {16}) or page.one(FORMAT, 1) != 1:
        return f"its pixels are numbers of {bits} bits that are no whole numbers of 8"
    return ""
