"""Style sampling: which pictures show the network the style of a training picture (paper, section 3).

The style must not tell the layout of the target: `cohort` never takes the target itself, and `augmented`, which has
nothing else, shows small turned pieces of it.
"""

import numpy as np
import pandas as pd
from PIL import Image

from stedm.data.samples import PictureCache
from stedm.data.transforms import N_SYMMETRIES, symmetry

_SMALLEST_PIECE, _LARGEST_PIECE = 0.3, 0.7


class StyleSampler:
    """Draw the query styles of a training picture.

    Args:
        cache: the pictures.
        kind: `none`, `augmented` (pieces of the picture itself) or `cohort` (other pictures of the same patient; a
            patient with one picture: as `augmented`).
        n_pictures: style pictures a sample; where a patient has fewer others, the rest is padding.
    """

    def __init__(self, cache: PictureCache, kind: str, n_pictures: int):
        self.cache, self.kind, self.n_pictures = cache, kind, n_pictures
        self._rows_of = rows_by_patient(cache.dataset.table)
        self._patient_of = cache.dataset.table["patient_id"].tolist()

    def __call__(self, row: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Style pictures uint8 `(n, px, px, 3)` of the picture `row`, and present `(n,)`, False at padding."""
        side = self.cache.picture_px
        pictures = np.zeros((self.n_pictures, side, side, 3), np.uint8)
        present = np.zeros(self.n_pictures, bool)
        if self.kind == "none":
            return pictures, present
        others = self._others(row) if self.kind == "cohort" else np.empty(0, np.intp)
        if len(others):
            chosen = generator.permutation(others)[: self.n_pictures]
            shown = [symmetry(self.cache.picture(int(i)), int(generator.integers(N_SYMMETRIES))) for i in chosen]
        else:
            shown = [random_piece(self.cache.picture(row), generator) for _ in range(self.n_pictures)]
        for i, picture in enumerate(shown):
            pictures[i], present[i] = picture, True
        return pictures, present

    def _others(self, row: int) -> np.ndarray:
        rows = self._rows_of[self._patient_of[row]]
        return rows[rows != row]


def random_piece(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random square piece of a picture, mirrored or turned, enlarged to the picture's size."""
    height, width = picture.shape[:2]
    side = round(min(height, width) * generator.uniform(_SMALLEST_PIECE, _LARGEST_PIECE))
    top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
    piece = Image.fromarray(picture[top : top + side, left : left + side])
    enlarged = np.asarray(piece.resize((width, height), Image.Resampling.BILINEAR))
    return symmetry(enlarged, int(generator.integers(N_SYMMETRIES)))


def rows_by_patient(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Row numbers of each patient, in order of the table."""
    return {str(patient): np.asarray(rows) for patient, rows in table.groupby("patient_id", sort=True).indices.items()}
