"""Which images a report shows: ignored pixels are neither a class nor foreground."""

import numpy as np
import pytest

from stedm.config import MachineConfig, SegmentationConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, write_png
from stedm.evaluation.panels import _different_rows, overlays
from stedm.evaluation.scoring import count_dataset
from stedm.segmentation.model import build_segmenter, save_segmenter

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


@pytest.fixture
def cache(tiny_dataset):
    """One patient in train and one in test, of each of whose three images the first is hardly annotated."""
    root = tiny_dataset(patients={"train": 1, "test": 1})

    def make(split: str, first: np.ndarray) -> ImageCache:
        write_png(root / "masks" / f"{split}P0-0.png", first)
        return ImageCache(DatasetFolder.open(root).split(split), 32)

    return make


def test_the_image_of_a_patient_is_one_with_classes(cache, tmp_path):
    half = np.zeros((32, 32), np.uint8)
    half[:16] = 255
    held_out = cache("test", half)
    info = held_out.dataset.info
    model = save_segmenter(tmp_path / "model", build_segmenter(TINY, 2), TINY, info, image_px=32)
    counts = count_dataset(model, held_out, arm="real", seed=0)
    (shown,) = overlays({"real": model}, held_out, counts, "patient", MachineConfig())
    assert set(np.unique(shown.truth)) == {0, 1}


def test_a_layout_of_which_nothing_is_known_is_shown_where_there_is_no_other(cache):
    annotated = cache("train", np.full((32, 32), 255, np.uint8))
    areas = [int((annotated.mask(row) == 1).sum()) for row in (1, 2)]
    assert _different_rows(annotated, 6) == [1 + row for row in np.argsort(areas)]
    nothing = ImageCache(annotated.dataset.select(np.arange(3) == 0), 32)
    assert _different_rows(nothing, 6) == [0]
