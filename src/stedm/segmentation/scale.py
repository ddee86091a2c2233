"""At which scale the network looks at an image, so that it sees tissue as large as in its training images.

The first rule that can be followed:

1. The resolutions of the image and of the training images are known: the image is brought to that of the training
   images, as slides are.
2. The training images were all of one size and reduced by one factor: the image is reduced by the same factor, since
   nothing says that its pixels are others. An image of their size is seen as they were, to the bit.
3. They were of several sizes, the shorter side of each reduced to `image_px`: so is that of the image.
4. Nothing is known of them (a segmenter of an older version): the image is seen in its own pixels.

The aspect of an image is kept. What is larger than `image_px` is seen in overlapping tiles.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stedm.errors import StedmError
from stedm.segmentation.model import SegmenterInfo

SAME = 0.02
"""Resolutions and sizes that differ by less count as one, as in `DatasetFolder.common_mpp`."""


@dataclass(frozen=True)
class Scale:
    """How an image is brought to what the network sees."""

    size_px: tuple[int, int]
    """Width and height there."""
    rule: str
    """Which rule was taken, in words."""

    def apply(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) at this size: area averaging where it gets smaller, else bilinear."""
        height, width = image.shape[:2]
        if self.size_px == (width, height):
            return image
        smaller = self.size_px[0] * self.size_px[1] <= width * height
        method = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        return np.array(Image.fromarray(image).resize(self.size_px, method))


def scale_of(size_px: tuple[int, int], info: SegmenterInfo, mpp: float | None = None) -> Scale:
    """The scale for an image of (width, height) pixels, each `mpp` microns wide (None = unknown)."""
    side = info.image_px
    if mpp is not None and info.mpp is not None:
        return Scale(_reduced(size_px, info.mpp / mpp, side), f"at {info.mpp:g} microns per pixel, as in training")
    unknown = "resolution unknown (--mpp): "
    if info.source_px is None:
        return Scale(size_px, unknown + "in the images' own pixels")
    smallest, largest = info.source_px
    if largest > smallest * (1 + SAME):
        text = f"the shorter side brought to {side} px, as in training"
        return Scale(_reduced(size_px, min(size_px) / side, side), unknown + text)
    factor = (smallest + largest) / (2 * side)
    text = "in the images' own pixels" if factor == 1 else f"reduced {factor:.3g} times"
    return Scale(_reduced(size_px, factor, side), f"{unknown}{text}, as in training")


def coarseness_text(mpp: float, own_mpp: float | None) -> str:
    """How fine outlines can be that a network sees at `mpp`, beside the pixels of the image where these are known."""
    own = "" if own_mpp is None or own_mpp >= mpp else f", {mpp / own_mpp:.3g} of the image's pixels"
    return f"outlines are as coarse as what the network sees: {mpp:g} microns{own}"


def refuse_useless_mpp(mpp: float | None, info: SegmenterInfo) -> None:
    """Raises `StedmError` where the resolution of the images was given and can't be compared with anything."""
    if mpp is not None and not 0 < mpp < float("inf"):
        raise StedmError(f"--mpp {mpp:g}: microns per pixel of the images are above 0")
    if mpp is not None and info.mpp is None:
        raise StedmError(
            f"--mpp {mpp:g}: the model doesn't know the resolution of its training images, with which to compare it; "
            "leave it out"
        )


def _reduced(size_px: tuple[int, int], factor: float, side: int) -> tuple[int, int]:
    width, height = (max(1, round(pixels / factor)) for pixels in size_px)
    if size_px[0] == size_px[1] and abs(width / side - 1) <= SAME:
        return side, side  # one tile, as the training images were, and not a tile and the rest of one
    return width, height
