"""Where the tissue of a slide is: Otsu's threshold on saturation at low resolution, without holes, dust and pen."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_closing, binary_dilation, gaussian_filter, label, uniform_filter
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu

from stedm.config import TissueConfig
from stedm.slides.slide import Slide

_SATURATION = (0.035, 0.06)
"""Bounds of the threshold. Below lie glass and compression noise; pale tissue (unstained stroma, fat) begins above."""
_BLUR_UM = 12.0
"""Nuclei and the gaps between them become one tissue, compression noise disappears."""
_GLASS_BRIGHTNESS, _GLASS_SATURATION, _GLASS_UNEVENNESS, _GLASS_SHARE = 0.7, 0.12, 0.015, 0.005
"""What glass is like, in RGB of 0..1, and the part of a slide from which its colour is believed."""
_GAP_UM = 32.0
_PEN_UM2 = 50_000.0
"""Pen strokes are larger than this (half a millimetre wide); what is smaller may be a nest of cells."""
_PEN_BORDER_UM = 60.0
"""The border of a stroke is paler than pen and would pass as tissue."""


@dataclass(frozen=True)
class TissueMask:
    """Tissue of a slide as a map of coarse pixels."""

    mask: np.ndarray
    """bool `(H, W)`."""
    downsample: float
    """Pixels of level 0 along the side of one of the map's."""

    @classmethod
    def of(cls, slide: Slide, config: TissueConfig | None = None) -> "TissueMask":
        """Find the tissue of a slide. Reads the whole slide once, at `config.mpp`."""
        config = config or TissueConfig()
        # Never finer than the slide itself.
        mpp = max(config.mpp, slide.mpp)
        mask = find_tissue(slide.overview(mpp), mpp, config)
        # A slide's last coarse row and column may hang over its edge, where the overview is white.
        return cls(mask, mpp / slide.mpp)

    @property
    def area(self) -> float:
        """Tissue in pixels of level 0."""
        return float(self.mask.sum()) * self.downsample**2

    def fractions(self, x: np.ndarray, y: np.ndarray, side: float) -> np.ndarray:
        """Part of each square that is tissue, float `(n,)` in 0..1, exact to parts of the map's pixels.

        `x`, `y` `(n,)` are upper left corners and `side` is the side, in pixels of level 0. Outside the slide there is
        no tissue.
        """
        total = np.zeros(tuple(n + 1 for n in self.mask.shape))
        total[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        x, y = np.asarray(x, float) / self.downsample, np.asarray(y, float) / self.downsample
        step = side / self.downsample
        area = (
            _between(total, y + step, x + step)
            - _between(total, y, x + step)
            - _between(total, y + step, x)
            + _between(total, y, x)
        )
        return np.clip(area / step**2, 0.0, 1.0)


def _between(total: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """A summed-area table read between its nodes; bilinear interpolation is exact there."""
    row, column = np.clip(row, 0, total.shape[0] - 1), np.clip(column, 0, total.shape[1] - 1)
    top = np.minimum(row.astype(int), total.shape[0] - 2)
    left = np.minimum(column.astype(int), total.shape[1] - 2)
    down, right = row - top, column - left
    upper = total[top, left] * (1 - right) + total[top, left + 1] * right
    lower = total[top + 1, left] * (1 - right) + total[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def find_tissue(image: np.ndarray, mpp: float, config: TissueConfig | None = None) -> np.ndarray:
    """Tissue in an image of a slide, uint8 RGB `(H, W, 3)` at `mpp` microns per pixel; bool `(H, W)`.

    Otsu's threshold on saturation, after the colour of the glass is taken out; small holes filled, small pieces
    removed, pen left out. A slide with nothing but glass has no tissue.
    """
    config = config or TissueConfig()
    smooth = gaussian_filter(image.astype(np.float32) / 255, (_BLUR_UM / mpp / 2, _BLUR_UM / mpp / 2, 0))
    pen = _pen(smooth, mpp) if config.exclude_pen else np.zeros(image.shape[:2], bool)
    saturation = rgb2hsv(np.clip(smooth / _glass_colour(smooth, pen), 0, 1))[..., 1]
    seen = saturation[~pen]
    if seen.size == 0:
        return np.zeros(image.shape[:2], bool)
    # Pale tissue is found in crumbs: what lies close together is one piece.
    reach = max(1, round(_GAP_UM / 2 / mpp))
    crumbs = np.pad(saturation > _threshold(seen), reach, mode="edge")
    tissue = binary_closing(crumbs, iterations=reach)[reach:-reach, reach:-reach] & ~pen
    tissue = _without_small(tissue, config.smallest_piece_um2 / mpp**2)
    holes = ~tissue & ~pen
    return tissue | (holes & ~_without_small(holes, config.largest_hole_um2 / mpp**2))


def _threshold(saturation: np.ndarray) -> float:
    """Saturation above which a pixel is tissue.

    Otsu's threshold may lie between dark and pale tissue; then the pixels below are divided again.
    """
    low, high = _SATURATION
    threshold = 1.0
    while threshold > high:
        below = saturation[saturation <= threshold]
        # Otsu needs two values; what has one is all glass or all tissue.
        if below.size == 0 or below.max() <= high or below.min() == below.max():
            break
        threshold = threshold_otsu(below)
    return float(np.clip(threshold, low, high))


def _glass_colour(image: np.ndarray, pen: np.ndarray) -> np.ndarray:
    """RGB of empty glass, 0..1 `(3,)`: the colour of what is bright, pale and even; white where hardly anything is.

    Scanners give glass a tint that may be as strong as that of pale tissue, but tissue is never even.
    """
    brightness = image.mean(axis=-1)
    variance = uniform_filter(brightness**2, 3) - uniform_filter(brightness, 3) ** 2
    darkest = image.min(axis=-1)
    pale = 1 - darkest / np.maximum(image.max(axis=-1), 1e-6) < _GLASS_SATURATION
    glass = (variance < _GLASS_UNEVENNESS**2) & pale & (darkest > _GLASS_BRIGHTNESS) & ~pen
    return np.median(image[glass], axis=0) if glass.mean() > _GLASS_SHARE else np.ones(3)


def _pen(image: np.ndarray, mpp: float) -> np.ndarray:
    """Blue, green and black pen with its border, bool `(H, W)`, in RGB 0..1.

    At low resolution no usual stain is so blue (haematoxylin stays below a saturation of 0.55), green at all, or
    so black. Red pen is not told from eosin.
    """
    hue, saturation, value = np.moveaxis(rgb2hsv(np.clip(image, 0, 1)), -1, 0)
    chroma = saturation * value
    blue = (hue > 0.5) & (hue < 0.72) & (saturation > 0.6)
    green = (hue > 0.22) & (hue <= 0.5) & (saturation > 0.25) & (chroma > 0.1)
    black = (value < 0.3) & (chroma < 0.12)
    pen = _without_small(blue | green | black, _PEN_UM2 / mpp**2)
    if not pen.any():
        return pen
    radius = math.ceil(_PEN_BORDER_UM / mpp)
    return binary_dilation(pen, iterations=radius)


def _without_small(mask: np.ndarray, smallest_px: float) -> np.ndarray:
    """The mask without connected pieces (by sides) of fewer pixels."""
    numbers, _ = label(mask)
    large = np.bincount(numbers.ravel()) >= max(smallest_px, 1)
    large[0] = False
    return large[numbers]
