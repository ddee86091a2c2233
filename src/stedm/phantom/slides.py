"""Phantom slides: tiled TIFF pyramids of phantom patients, of any size, in seconds and without holding one in memory.

A slide is a patch of tissue, rendered once and continued by its mirror images, inside an outline with empty glass
around. So each pixel of each level is known without the others: levels are written tile by tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from stedm.config import PhantomConfig
from stedm.errors import StedmError
from stedm.io.files import replacing
from stedm.io.images import write_png
from stedm.io.tables import write_csv
from stedm.layout.random_field import SmoothField
from stedm.phantom.cohort import patient_categories
from stedm.phantom.patients import CLASSES, draw_layout, draw_patient
from stedm.phantom.render import render_patient_image
from stedm.seeds import numpy_generator

_TILE_PX = 256
_LETTER_OF = {"train": "A", "unlabeled": "U", "val": "V", "test": "T"}


@dataclass(frozen=True, eq=False)
class PhantomSlide:
    """A slide that is computed where it is looked at."""

    image: np.ndarray
    """The patch, uint8 RGB `(n, n, 3)`; n a power of two times the tile."""
    layout: np.ndarray
    """Its class indices, uint8 `(n, n)`."""
    size_px: tuple[int, int]
    """Width and height of the slide."""
    mpp: float
    glass: tuple[int, int, int]
    outline: SmoothField

    def tissue(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether there is tissue, bool `(len(y), len(x))`, at points in pixels of level 0."""
        u, v = x / self.size_px[0] * 2 - 1, y / self.size_px[1] * 2 - 1
        bumps = 0.12 * self.outline(y / self.size_px[1], x / self.size_px[0])
        return np.hypot(u[None, :], v[:, None]) < 0.8 + bumps

    def region(self, x: int, y: int, width: int, height: int, downsample: int = 1) -> np.ndarray:
        """uint8 RGB `(height, width, 3)` of a level; `x`, `y` in pixels of that level."""
        return self._painted(_reduced(self.image, downsample), x, y, width, height, downsample)

    def _painted(self, patch: np.ndarray, x: int, y: int, width: int, height: int, downsample: int) -> np.ndarray:
        columns, rows = np.arange(x, x + width), np.arange(y, y + height)
        tissue = self.tissue((columns + 0.5) * downsample, (rows + 0.5) * downsample)
        if not tissue.any():
            return np.full((height, width, 3), self.glass, np.uint8)
        return np.where(tissue[..., None], _mirrored(patch, rows, columns), np.array(self.glass, np.uint8))

    def truth(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Class indices, uint8 `(height, width)`, of a region of level 0; glass is class 0."""
        columns, rows = np.arange(x, x + width), np.arange(y, y + height)
        return _mirrored(self.layout, rows, columns) * self.tissue(columns + 0.5, rows + 0.5)

    def level(self, downsample: int) -> Iterator[np.ndarray]:
        """Tiles of a level, row by row, as tifffile writes them."""
        width, height = (side // downsample for side in self.size_px)
        patch = _reduced(self.image, downsample)
        for top in range(0, height, _TILE_PX):
            for left in range(0, width, _TILE_PX):
                yield self._painted(patch, left, top, _TILE_PX, _TILE_PX, downsample)


def _reduced(image: np.ndarray, downsample: int) -> np.ndarray:
    if downsample == 1:
        return image
    side = image.shape[0] // downsample
    return image.reshape(side, downsample, side, downsample, 3).mean(axis=(1, 3)).round().astype(np.uint8)


def _mirrored(unit: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    side = unit.shape[0]
    folded = [np.where((index := i % (2 * side)) < side, index, 2 * side - 1 - index) for i in (rows, columns)]
    return unit[np.ix_(*folded)]


def draw_phantom_slide(
    config: PhantomConfig, split: str, number: int, size_px: tuple[int, int], unit_px: int = 1024
) -> PhantomSlide:
    """The slide of a patient of the cohort `config` (its `image_px` is not used); level 0 at `config.mpp`."""
    category = patient_categories(config, split)[number]
    patient = draw_patient(config, category, numpy_generator(config.seed, "phantom", split, number))
    generator = numpy_generator(config.seed, "phantom slide", split, number)
    layout = draw_layout(patient, unit_px, config.mpp, generator)
    image = render_patient_image(patient, layout, config.mpp, generator)
    glass = tuple(round(255 * value) for value in patient.white)
    return PhantomSlide(image, layout, size_px, config.mpp, glass, SmoothField(1.0, 1.0, 0.25, generator))


def write_phantom_slide(slide: PhantomSlide, path: str | Path, kind: Literal["aperio", "ome"] = "aperio") -> None:
    """Write a JPEG-compressed pyramid with levels 1, 4, 16, as an Aperio SVS or an OME-TIFF with sub-resolutions.

    Needs tifffile and imagecodecs (extra `slides`). Streamed: memory doesn't grow with the slide.
    """
    tifffile = _tifffile()
    width, height = slide.size_px
    levels = [scale for scale in (1, 4, 16) if min(width, height) // scale >= _TILE_PX // 2]
    options = {
        "tile": (_TILE_PX, _TILE_PX),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 90},
        "dtype": np.uint8,
    }
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=kind == "ome") as writer:
        for scale in levels:
            shape = (height // scale, width // scale, 3)
            if kind == "ome":
                pixels = {"axes": "YXS", "PhysicalSizeX": slide.mpp, "PhysicalSizeXUnit": "µm"}
                pixels |= {"PhysicalSizeY": slide.mpp, "PhysicalSizeYUnit": "µm"}
                extra = {"subifds": len(levels) - 1, "metadata": pixels} if scale == 1 else {"subfiletype": 1}
            else:
                text = f"Aperio Image Library v12.0.0\n{width}x{height} ({_TILE_PX}x{_TILE_PX}) JPEG/RGB Q=90"
                text += f"|AppMag = {10 / slide.mpp:g}|MPP = {slide.mpp:g}" if scale == 1 else ""
                extra = {"description": text, "metadata": None}
            writer.write(slide.level(scale), shape=shape, **options, **extra)
            if kind == "aperio" and scale == 1:
                # The second image of an SVS is its thumbnail; readers count on it.
                step = max(1, max(width, height) // 256)
                small = slide.region(0, 0, width // step, height // step, _power_of_two(step))
                writer.write(small, photometric="rgb", compression="jpeg", description=text, metadata=None)


def _power_of_two(value: int) -> int:
    return 1 << (value.bit_length() - 1)


def make_phantom_slides(
    config: PhantomConfig,
    root: str | Path,
    size_px: tuple[int, int],
    *,
    kind: Literal["aperio", "ome"] = "aperio",
    unit_px: int = 1024,
) -> list[PhantomSlide]:
    """Write a cohort, one slide a patient: `slides.csv`, `slides/`, and the truth of each as a label PNG of level 0.

    Returns the slides in the order of the table. Labels of `unlabeled` slides are written too: as in a cohort whose
    annotations are held back.
    """
    root, rows, slides = Path(root), [], []
    for split, n_patients in config.patients.items():
        for number in range(n_patients):
            slide = draw_phantom_slide(config, split, number, size_px, unit_px)
            name = f"{_LETTER_OF[split]}{number:02d}"
            image, annotation = f"slides/{name}{'.ome.tif' if kind == 'ome' else '.svs'}", f"annotations/{name}.png"
            write_phantom_slide(slide, root / image, kind)
            write_png(root / annotation, slide.truth(0, 0, *size_px))
            category = patient_categories(config, split)[number]
            rows.append((f"{name}-slide", name, split, image, annotation, config.mpp, category))
            slides.append(slide)
    columns = ["slide_id", "patient_id", "split", "image", "annotation", "mpp", "category"]
    write_csv(root / "slides.csv", pd.DataFrame(rows, columns=columns))
    return slides


def classes(config: PhantomConfig) -> list[str]:
    """Class names of the truth."""
    return list(CLASSES[config.stain])


def _tifffile():
    try:
        import tifffile
    except ImportError as error:
        raise StedmError('writing slides needs tifffile: pip install "stedm[slides]"') from error
    return tifffile
