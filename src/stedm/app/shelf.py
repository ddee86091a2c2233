"""The Slide tab: slides in tiles of any zoom, and a segmentation of them as an overlay."""

import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
from PIL import Image

from stedm.app.files import shown_name
from stedm.app.opened import Opened
from stedm.config import SlideSegmentationConfig
from stedm.errors import StedmError
from stedm.io.images import class_palette
from stedm.segmentation.predict import IMAGE_SUFFIXES
from stedm.segmentation.slide_sources import SLIDE_SUFFIXES, SlideSource, slides_in
from stedm.segmentation.whole_slide import segment_slide
from stedm.slides.readers import first_that_reads
from stedm.slides.slide import Slide
from stedm.slides.write_label_map import tifffile

TILE_PX = 256
MOST_SLIDE_BYTES = 2 << 30
"""Of an upload."""


@dataclass
class Shown:
    """A slide of the list, opened when it is looked at."""

    source: SlideSource
    slide: Slide | None = None
    overlays: dict[str, "Overlay"] = field(default_factory=dict)
    """By arm."""


@dataclass(frozen=True)
class Overlay:
    """The label map of a slide; on disk, because it may be larger than the memory."""

    labels: np.ndarray
    """uint8 (H, W), in a file."""
    mpp: float
    areas: list[dict[str, Any]]
    geojson: Path
    skipped: tuple[int, ...]
    """Indices that are not coloured: background and glass."""


class Shelf:
    """Slides that may be looked at; nothing else can be opened from the page."""

    def __init__(self, opened: Opened, slides: Sequence[Path] = ()):
        self.opened, self._lock = opened, threading.Lock()
        self.slides = [Shown(source) for source in _sources(opened, slides)]
        self._folder = TemporaryDirectory(prefix="stedm-app-slides-")

    def close(self) -> None:
        """Remove what was uploaded and computed."""
        self._folder.cleanup()

    def place_for(self, name: str) -> Path:
        """Where the bytes of an uploaded slide are to be written; then `add` it."""
        name = shown_name(name, "slide")
        known = (*SLIDE_SUFFIXES, *IMAGE_SUFFIXES)
        if Path(name).suffix.lower() not in known:
            raise StedmError(f"{name}: not a slide or an image by its name; known are {', '.join(known)}")
        return Path(mkdtemp(prefix="upload-", dir=self._folder.name)) / name

    def add(self, path: Path) -> int:
        """Take an uploaded slide onto the shelf; its number."""
        with self._lock:
            self.slides.append(Shown(SlideSource(path.stem, path)))
            return len(self.slides) - 1

    def _shown(self, number: int) -> Shown:
        if not 0 <= number < len(self.slides):
            raise StedmError(f"no such slide: {number} of {len(self.slides)}")
        return self.slides[number]

    def look(self, number: int, mpp: float | None = None) -> dict[str, Any]:
        """Open a slide: size, resolution, number of zooms; `mpp` where its file doesn't say it."""
        shown = self._shown(number)
        if shown.slide is None or mpp is not None:
            try:
                shown.slide = Slide.open(shown.source.path, mpp if mpp is not None else shown.source.mpp)
            except StedmError as error:
                raise StedmError(str(error).replace(f"{shown.source.path.parent}/", "")) from error
        width, height = shown.slide.size_px
        zooms = 1 + max(0, math.ceil(math.log2(max(width, height) / TILE_PX)))
        done = {arm: overlay.areas for arm, overlay in shown.overlays.items()}
        return {"width": width, "height": height, "mpp": shown.slide.mpp, "zooms": zooms, "done": done}

    def _slide(self, number: int) -> Slide:
        shown = self._shown(number)
        if shown.slide is None:
            self.look(number)
        assert shown.slide is not None
        return shown.slide

    def tile(self, number: int, zoom: int, x: int, y: int) -> bytes:
        """JPEG of a tile; zoom 0 = full resolution, each further one halves it; `x`, `y` count tiles."""
        slide, scale = self._slide(number), _scale(self.look(number), zoom, x, y)
        pixels = slide.read(x * TILE_PX * scale, y * TILE_PX * scale, TILE_PX, slide.mpp * scale)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=88)
        return file.getvalue()

    def overlay_tile(self, number: int, arm: str, zoom: int, x: int, y: int) -> bytes:
        """PNG of the same tile of the label map, transparent where there is background or glass."""
        overlay, slide = self.overlay(number, arm), self._slide(number)
        scale = _scale(self.look(number), zoom, x, y)
        step, (height, width) = scale * slide.mpp / overlay.mpp, overlay.labels.shape
        columns, rows = (((at * TILE_PX + np.arange(TILE_PX) + 0.5) * step).astype(np.int64) for at in (x, y))
        inside = np.ix_(rows < height, columns < width)
        labels = np.full((TILE_PX, TILE_PX), overlay.skipped[-1], np.uint8)
        labels[inside] = overlay.labels[np.ix_(rows[rows < height], columns[columns < width])]
        image = Image.fromarray(labels)
        image.putpalette(class_palette())
        file = io.BytesIO()
        alpha = bytes(0 if index in overlay.skipped else 255 for index in range(256))
        image.save(file, format="PNG", transparency=alpha, compress_level=1)
        return file.getvalue()

    def overlay(self, number: int, arm: str) -> Overlay:
        """The segmentation of a slide by an arm; `StedmError` where it wasn't made yet."""
        overlays = self._shown(number).overlays
        if arm not in overlays:
            raise StedmError("this slide was not segmented yet; press Segment")
        return overlays[arm]

    def segment(self, number: int, arm: str, tick: Callable[..., None], mpp: float | None = None) -> Overlay:
        """As `stedm segment`: polygons, areas, and the label map for the overlay.

        mpp: at which the network looks, where it doesn't know that of its training images.
        """
        shown, segmenter, slide = self._shown(number), self.opened.segmenter(arm), self._slide(number)
        index = list(self.opened.segmenters).index(arm)
        path = Path(self._folder.name) / f"{number}-{index}" / f"{shown.source.name}.geojson"
        config = SlideSegmentationConfig(label_map=True, mpp=mpp if segmenter.mpp is None else None)
        if segmenter.mpp is None and mpp is None:
            raise StedmError("the network doesn't know the resolution of its training images; give microns per pixel")
        areas = segment_slide(segmenter.network, segmenter.info, slide, path, config, tick)
        labels = _on_disk(path.with_suffix(".ome.tif"), path.with_suffix(".labels"))
        rows = areas.to_dict("records")
        found = Overlay(labels, rows[0]["mpp"], rows, path, (0, segmenter.info.ignore_index))
        shown.overlays[arm] = found
        return found


def _sources(opened: Opened, slides: Sequence[Path]) -> list[SlideSource]:
    """Slides that the user named, and those that the run's tiles are cut from."""
    found: list[SlideSource] = []
    for path in slides:
        is_one = path.is_file() and path.suffix.lower() != ".csv"
        if is_one:
            first_that_reads(path)  # what was named by hand is refused now, in a line
        of_path = slides_in(path, "x.geojson" if is_one else "folder")
        if of_path is None:
            raise StedmError(f"{path}: has no slides; give a slide, a folder of slides or a slides.csv")
        found += of_path
    data = next(iter(opened.sets.values()), None)
    table = None if data is None else data.dataset.root / "slides.csv"
    if table is not None and table.is_file():
        found += slides_in(table, "folder") or []
    return found


def _scale(look: dict[str, Any], zoom: int, x: int, y: int) -> int:
    """Pixels of level 0 to one of a tile; `StedmError` for a tile that isn't there."""
    if not 0 <= zoom < look["zooms"]:
        raise StedmError(f"no such zoom: {zoom} of {look['zooms']}")
    side = TILE_PX << zoom
    if not (0 <= x * side < look["width"] and 0 <= y * side < look["height"]):
        raise StedmError(f"no such tile: {x}, {y} of zoom {zoom}")
    return 1 << zoom


def _on_disk(tiff: Path, path: Path) -> np.ndarray:
    """The full resolution of a label map as an array in a file; one tile at a time is in memory."""
    with tifffile().TiffFile(tiff) as file:
        page = file.pages[0]
        labels = np.memmap(path, np.uint8, "w+", shape=page.shape)
        for tile, place, _ in page.segments():
            if tile is not None:
                part = labels[place[2] :, place[3] :][: tile.shape[1], : tile.shape[2]]
                part[:] = tile[0, : part.shape[0], : part.shape[1], 0]  # tiles hang over the edge
    tiff.unlink()
    return labels
