"""Style images made from one image: its look stays, its arrangement doesn't.

Pieces are brought to image size by mirroring at their borders, not by enlarging them: size and spacing of nuclei,
veins or petals are part of the look, and at generation the style images are seen at their own scale.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stedm.data.symmetry import N_SYMMETRIES, symmetry

_PIECE = (0.3, 0.7)
"""Side of a piece of the target itself, as part of the image's side."""
_PATCH = (0.5, 0.9)
"""Side of a patch of another image: nothing of the target is in it, so it may show more."""
_LARGEST_SCALE = 1.25
_BEND = 0.04
"""Standard deviation of the bending, as part of the image's side."""
_BEND_CELLS = 4
_PATCH_TRIES = 5
_TISSUE_ENOUGH = 0.5
_GLASS_SATURATION, _GLASS_BRIGHTNESS = 0.05, 0.85


def deformed(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The image "strongly deformed" (the paper's `augmented`): where things are can't be read from it.

    A random piece of 0.3 to 0.7 of the side, continued by its mirror images, turned by any angle, mirrored, scaled by
    0.8 to 1.25 and bent. Input and result: uint8 `(h, w, 3)`.
    """
    height, width = image.shape[:2]
    piece = _random_crop(image, _PIECE, generator)
    # Half the diagonal of the enlarged image, and the bending, fit between the centre and the border.
    reach = int(np.ceil(_LARGEST_SCALE * np.hypot(height, width) / 2 + 3 * _BEND * max(height, width))) + 1
    canvas = np.pad(piece, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    centre = reach + generator.uniform(0.0, 1.0, 2) * (piece.shape[1], piece.shape[0])
    mesh = _bent_mesh(width, height, centre, generator)
    return np.array(
        Image.fromarray(canvas).transform((width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    )


def _bent_mesh(
    width: int, height: int, centre: np.ndarray, generator: np.random.Generator
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Pillow's MESH: boxes of the result and the quadrilaterals of the source that fill them."""
    columns, rows = (np.linspace(0, side, _BEND_CELLS + 1).round().astype(int) for side in (width, height))
    angle, mirror = generator.uniform(0.0, 2.0 * np.pi), generator.choice([-1.0, 1.0])
    scale = _LARGEST_SCALE ** generator.uniform(-1.0, 1.0)
    turn = scale * np.array([[mirror * np.cos(angle), -np.sin(angle)], [mirror * np.sin(angle), np.cos(angle)]])
    nodes = np.stack(np.meshgrid(columns - width / 2, rows - height / 2), axis=-1) @ turn.T + centre
    nodes += np.clip(generator.normal(0.0, _BEND, nodes.shape), -2 * _BEND, 2 * _BEND) * (width, height)
    return [
        (
            (int(columns[j]), int(rows[i]), int(columns[j + 1]), int(rows[i + 1])),
            # North-west, south-west, south-east, north-east.
            (*nodes[i, j], *nodes[i + 1, j], *nodes[i + 1, j + 1], *nodes[i, j + 1]),
        )
        for i in range(_BEND_CELLS)
        for j in range(_BEND_CELLS)
    ]


@dataclass(frozen=True)
class _Patch:
    """A piece of an image, turned, and the margins that mirror it until it is as large as the image.

    Channels lie first, as networks want them, and each by itself: what is looked at and mirrored are long rows.
    """

    piece: np.ndarray
    margins: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def draw(cls, image: np.ndarray, generator: np.random.Generator) -> "_Patch":
        height, width = image.shape[:2]
        piece = _random_crop(image, _PATCH, generator)
        above, left = generator.integers(height - piece.shape[0] + 1), generator.integers(width - piece.shape[1] + 1)
        margins = ((above, height - piece.shape[0] - above), (left, width - piece.shape[1] - left))
        index = int(generator.integers(N_SYMMETRIES))
        # Turned while it is small: a mirrored image turned is the turned image mirrored.
        planes = np.ascontiguousarray(np.moveaxis(symmetry(piece, index), -1, 0))
        return cls(planes, _turned_margins(margins, index))

    def image(self) -> np.ndarray:
        return np.moveaxis(np.pad(self.piece, ((0, 0), *self.margins), mode="symmetric"), 0, -1)

    def tissue_fraction(self) -> float:
        """`tissue_fraction` of the image, of which only the piece is looked at."""
        return _tissue_fraction(np.pad(_glass(np.moveaxis(self.piece, 0, -1)), self.margins, mode="symmetric"))


def _turned_margins(
    margins: tuple[tuple[int, int], tuple[int, int]], index: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where ((above, below), (left, right)) lie after `symmetry`."""
    rows, columns = margins
    if index >= 4:
        columns = columns[::-1]
    for _ in range(index % 4):
        rows, columns = columns[::-1], rows
    return rows, columns


def random_patch(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random patch of 0.5 to 0.9 of the image's side, continued by its mirror images, mirrored or turned.

    uint8 `(h, w, 3)` to uint8 `(h, w, 3)`; sides are equal.
    """
    return _Patch.draw(image, generator).image()


def random_tissue_patch(
    read: Callable[[int], np.ndarray], rows: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """A random patch of one of the images `read(row)`, at least half of it tissue.

    After a few patches that are mostly background, the one of them with most tissue.
    """
    best, most = None, -1.0
    for _ in range(_PATCH_TRIES):
        patch = _Patch.draw(read(int(generator.choice(rows))), generator)
        if (tissue := patch.tissue_fraction()) > most:
            best, most = patch, tissue
        if tissue >= _TISSUE_ENOUGH:
            break
    assert best is not None
    return best.image()


def tissue_fraction(image: np.ndarray) -> float:
    """Part of a uint8 RGB image that isn't empty glass (bright and without colour)."""
    return _tissue_fraction(_glass(image))


def _tissue_fraction(glass: np.ndarray) -> float:
    return 1.0 - np.count_nonzero(glass) / glass.size


def _glass(image: np.ndarray) -> np.ndarray:
    """Bool `(h, w)`: where a uint8 RGB image shows empty glass."""
    red, green, blue = np.moveaxis(image, -1, 0)
    # Not max(axis=-1): over an axis of three NumPy is thirteen times slower. And no floats: four times the bytes.
    brightest = np.maximum(np.maximum(red, green), blue)
    difference = brightest - np.minimum(np.minimum(red, green), blue)
    glass = np.zeros(difference.shape, bool)
    for bright, below in _GLASS:
        glass |= (brightest >= bright) & (difference < below)
    return glass


def _glass_steps() -> list[tuple[int, int]]:
    """A pixel is glass if for one of these its brightest channel is at least the first number, and the difference of
    its channels below the second."""
    bright = np.arange(int(255 * _GLASS_BRIGHTNESS) + 1, 256, dtype=np.float32)
    below, first = np.unique(np.ceil(_GLASS_SATURATION * bright), return_index=True)
    return list(zip(bright[first].astype(int).tolist(), below.astype(int).tolist(), strict=True))


_GLASS = _glass_steps()


def _random_crop(image: np.ndarray, part: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    fraction = generator.uniform(*part)
    crop_height, crop_width = (max(2, round(side * fraction)) for side in (height, width))
    top, left = generator.integers(height - crop_height + 1), generator.integers(width - crop_width + 1)
    return image[top : top + crop_height, left : left + crop_width]
