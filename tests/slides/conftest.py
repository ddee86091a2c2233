"""Slides of a few hundred pixels, written by tifffile as scanners and other programs write them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from stedm.seeds import numpy_generator

TISSUE = (190, 110, 165)


def tissue_array(width: int = 512, height: int = 384, box=(64, 64, 448, 320)) -> np.ndarray:
    """Glass with one box (left, top, right, bottom) of pink tissue, uint8 RGB."""
    array = np.full((height, width, 3), 244, np.uint8)
    left, top, right, bottom = np.minimum(box, (width, height) * 2)
    noise = numpy_generator(0, "tissue").normal(0, 10, (bottom - top, right - left, 3))
    array[top:bottom, left:right] = np.clip(np.array(TISSUE) + noise, 0, 255)
    return array


def write_tiff(path: Path, array: np.ndarray, mpp: float | tuple[float, float] | None = 1.0, **options) -> Path:
    """A tiled TIFF of one image; mpp goes into its tags."""
    x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    tags = {} if mpp is None else {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    options = {"photometric": "rgb", "metadata": None, "compression": "deflate", "tile": (64, 64), **tags, **options}
    tifffile.imwrite(path, array, **options)
    return path


def write_scn(path: Path, array: np.ndarray, offset: tuple[int, int], canvas: tuple[int, int], nm: int = 500) -> Path:
    """A Leica SCN of which only a part of the glass was scanned, from `offset` (x, y) on."""
    (height, width), ((x, y), (whole_x, whole_y)) = array.shape[:2], (offset, canvas)
    description = f"""<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="x">
<collection name="c" uuid="y" sizeX="{whole_x * nm}" sizeY="{whole_y * nm}">
<image name="i" uuid="z"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="SCN400" version="1"/>
<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/></pixels>
<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{x * nm}" offsetY="{y * nm}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.7</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>
</scanSettings></image></collection></scn>"""
    options = {"photometric": "rgb", "metadata": None, "compression": "jpeg", "description": description}
    tifffile.imwrite(
        path, array, bigtiff=True, tile=(64, 64), resolution=(1e7 / nm,) * 2, resolutionunit="CENTIMETER", **options
    )
    return path


@pytest.fixture
def write():
    """The functions above."""
    return SimpleNamespace(tissue=tissue_array, tiff=write_tiff, scn=write_scn)


@pytest.fixture
def scn(tmp_path) -> Path:
    """512 x 384 px of tissue at 0.5 microns, scanned from (512, 256) on, of 1,536 x 1,024."""
    return write_scn(tmp_path / "a.scn", tissue_array(), (512, 256), (1536, 1024))
