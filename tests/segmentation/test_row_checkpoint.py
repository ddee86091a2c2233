"""Rows of a label map that was not finished: kept where they can be gone on with, and made again where damaged."""

import errno

import numpy as np
import pytest

from stedm.errors import DiskError, StedmError
from stedm.segmentation.row_checkpoint import RowCheckpoint

BANDS = [np.full((2, 5), row, np.uint8) for row in range(6)]


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A folder with the first four of six bands, in two files."""
    monkeypatch.setattr("stedm.segmentation.row_checkpoint.WRITE_AFTER_PX", 20)
    bands = RowCheckpoint(tmp_path / "rows", "key").passing(lambda row: iter(BANDS[row:]))
    for _ in range(5):
        next(bands)
    assert sorted(file.name for file in (tmp_path / "rows").iterdir()) == ["key-0-2.npz", "key-2-4.npz"]
    return tmp_path / "rows"


def _made(folder) -> tuple[np.ndarray, list[int]]:
    """The whole map, and from which row on it was made."""
    asked = []
    bands = RowCheckpoint(folder, "key").passing(lambda row: asked.append(row) or iter(BANDS[row:]))
    return np.concatenate(list(bands)), asked


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:80] + bytes([b[80] ^ 1]) + b[81:], lambda b: b""]
)
def test_damaged_rows_are_made_again(killed, damage):
    file = killed / "key-2-4.npz"
    file.write_bytes(damage(file.read_bytes()))
    rows, asked = _made(killed)
    np.testing.assert_array_equal(rows, np.concatenate(BANDS))
    assert asked == [2]


@pytest.mark.parametrize(
    ("error", "kept"), [(KeyboardInterrupt(), True), (DiskError("full"), True), (StedmError("damaged slide"), False)]
)
def test_rows_stay_unless_the_slide_is_at_fault(killed, error, kept):
    with pytest.raises(type(error)), RowCheckpoint(killed, "key"):
        raise error
    assert killed.exists() == kept


def test_a_full_disk_is_no_fault_of_the_slide(tmp_path, monkeypatch):
    """Else it would be noted as one that can't be read."""
    from stedm.segmentation import whole_slide

    def full(*_, **__):
        raise DiskError(errno.ENOSPC)

    monkeypatch.setattr(whole_slide.Slide, "open", full)
    source = whole_slide.SlideSource("a", tmp_path / "a.svs", None)
    segmentation = whole_slide._Segmentation(None, None, None, None)
    with pytest.raises(DiskError):
        segmentation(whole_slide._Target(source, tmp_path / "a.geojson", "key", None))
