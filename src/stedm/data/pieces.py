"""Squares of an oblong image: how many, where they lie, and what they are called."""

import math
import re

import numpy as np

_NAME = re.compile(r"(.+\.\w+)#(\d+)of(\d+)")
_SAME = 0.02
"""Sides that differ by less are those of a square: what lies over is cut off."""


def n_squares(size_px: tuple[int, int]) -> int:
    """The fewest squares of the shorter side that cover an image of (width, height)."""
    return max(1, math.ceil(max(size_px) / min(size_px) - _SAME))


def piece_name(image_file_name: str, number: int, of: int) -> str:
    """`images/a.png#1of2`: names a row of a table, as file names do, and says which square of which file it is."""
    return f"{image_file_name}#{number}of{of}"


def parsed(name: str) -> tuple[str, int, int]:
    """File name, number of the square (from 1) and of how many; number 0 where the name is of a whole image."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else (name, 0, 1)


def file_name(name: str) -> str:
    """The file that a row's image is in."""
    return parsed(name)[0]


def corner(size_px: tuple[int, int], number: int, of: int) -> tuple[int, int]:
    """Left and top of a square; they are spread evenly along the longer side, a single one lies in the middle."""
    place = 0.5 if of < 2 else (max(number, 1) - 1) / (of - 1)
    width, height = size_px
    side = min(size_px)
    return round(place * (width - side)), round(place * (height - side))


def cut(array: np.ndarray, name: str, to_square: bool) -> np.ndarray:
    """What a row's name means of its file's image or mask (H, W, ...): all of it, or a square.

    `to_square`: of a name that means all of it the square in the middle, rather than change its aspect.
    """
    _, number, of = parsed(name)
    height, width = array.shape[:2]
    if not number and (not to_square or height == width):
        return array
    left, top = corner((width, height), number, of)
    side = min(width, height)
    return np.ascontiguousarray(array[top : top + side, left : left + side])


def own_part(size_px: tuple[int, int], number: int, of: int) -> list[tuple[float, float]]:
    """Which part of a square's rows, and of its columns, is its own, from 0 to 1: overlaps are halved."""
    side, here, parts = min(size_px), corner(size_px, number, of), []
    for axis in (1, 0):
        first, last = 0.0, 1.0
        if size_px[axis] > side and number > 1:
            first = ((corner(size_px, number - 1, of)[axis] + side + here[axis]) // 2 - here[axis]) / side
        if size_px[axis] > side and 0 < number < of:
            last = ((corner(size_px, number + 1, of)[axis] + side + here[axis]) // 2 - here[axis]) / side
        parts.append((max(first, 0.0), min(last, 1.0)))
    return parts
