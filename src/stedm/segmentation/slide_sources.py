"""Which slides the user means: a file, a folder, a slides.csv, or images after all."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stedm.errors import StedmError
from stedm.io.files import visible_files
from stedm.segmentation.predict import IMAGE_SUFFIXES
from stedm.slides.table import read_slides

SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")


_LARGEST_IMAGE_PX = 8192
"""A TIFF file with a longer side is a slide, also without `-o FILE.geojson`."""


_NOT_A_FOLDER = (".json", ".csv", *IMAGE_SUFFIXES)


@dataclass(frozen=True)
class SlideSource:
    """A slide to segment."""

    name: str
    path: Path
    mpp: float | None = None
    """Of level 0; None = as the file says."""


def is_plain_image(path: str | Path) -> bool:
    """Whether a file is an image that no scanner wrote, whose resolution the user has to say."""
    return Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp")


def slides_in(path: str | Path, output: str | Path, mpp: float | None = None) -> list[SlideSource] | None:
    """The slides that the user means, or None where they are images (see stedm.segmentation.predict).

    A table (.csv) is a slides.csv. A file is a slide by its suffix (.svs, .ndpi, ...), as a TIFF longer than 8,192 px,
    and whatever it is if `output` is a .geojson. A folder holds slides or images. `mpp`: of a plain image.
    Raises `StedmError` for a folder with both, and where several slides go into one file.
    """
    path, output = Path(path), Path(output)
    one_file = output.suffix.lower() == ".geojson"
    if path.suffix.lower() == ".csv":
        table = read_slides(path)
        names = ("slide_id", "image", "mpp")
        rows = zip(*(table[name] for name in names), strict=True)
        slides = [SlideSource(name, Path(image), None if np.isnan(mpp) else mpp) for name, image, mpp in rows]
    elif not path.exists():
        raise StedmError(f"{path}: no such image, slide or folder; correct its path")
    elif path.is_file():
        slides = [SlideSource(path.stem, path, mpp if is_plain_image(path) else None)]
        slides = slides if one_file or is_slide(path) else []
    else:
        known = (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES)
        files = [file for file in visible_files(path, deep=False) if file.suffix.lower() in known]
        slides = [SlideSource(file.stem, file) for file in files if is_slide(file)]
        if slides and len(slides) < len(files):
            image = next(file for file in files if not is_slide(file))
            raise StedmError(
                f"{path}: has slides ({slides[0].path.name}) and images ({image.name}); give a folder of one kind"
            )
    if not slides and not one_file:
        return None
    if one_file and len(slides) != 1:
        raise StedmError(f"{output}: is one file for {len(slides)} slides of {path}; give a folder")
    if not one_file and (output.is_file() or output.suffix.lower() in _NOT_A_FOLDER):
        raise StedmError(f"{output}: slides are written to FILE.geojson (one slide) or to a folder; give one of these")
    if twice := sorted({slide.name for slide in slides if [other.name for other in slides].count(slide.name) > 1}):
        raise StedmError(f"{path}: several slides are called {', '.join(twice)}; give a slides.csv with slide ids")
    return slides


def is_slide(path: Path) -> bool:
    """Whether a file is a slide rather than an image, by its suffix and, of a TIFF, by its size."""
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Image.open(path, formats=("TIFF",)) as image:
                return max(image.size) > _LARGEST_IMAGE_PX
        except (Warning, Image.DecompressionBombError):
            return True
        except (OSError, SyntaxError, ValueError, AttributeError):
            return False  # read as an image, it says what is wrong with it
