"""Positions on slides: overlap and neighbourhood in level-0 pixels, unknown positions, image sizes."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.data.positions import SlidePositions

EVERYTHING = np.arange(25)


@pytest.fixture
def placed(tmp_path):
    """Function: rows with x, y and the like, all of one slide, to positions; images of 20 px unless said."""

    def make(rows: list[dict], sizes: dict[int, tuple[int, int]] | None = None) -> SlidePositions:
        for i in range(len(rows)):
            height, width = (sizes or {}).get(i, (20, 20))
            write_png(tmp_path / f"{i}.png", np.zeros((height, width, 3), np.uint8))
        table = pd.DataFrame(rows).assign(patient_id="P", split="train")
        table["image_file_name"] = [f"{i}.png" for i in range(len(rows))]
        write_metadata(tmp_path, DatasetInfo("placed", ["a"]), table)
        return SlidePositions(DatasetFolder.open(tmp_path))

    return make


def _grid(step: float, **more) -> list[dict]:
    return [{"x": step * j, "y": step * i, **more} for i in range(5) for j in range(5)]


def test_on_a_grid_the_eight_neighbours_are_near(placed):
    positions = placed(_grid(20))
    assert np.flatnonzero(positions.near(12, EVERYTHING)).tolist() == [6, 7, 8, 11, 13, 16, 17, 18]
    assert np.flatnonzero(positions.near(0, EVERYTHING)).tolist() == [1, 5, 6]
    assert np.flatnonzero(positions.overlapping(12, EVERYTHING)).tolist() == [12]


def test_overlapping_tiles_are_not_near_but_those_behind_them_are(placed):
    positions = placed(_grid(10))
    assert np.flatnonzero(positions.overlapping(12, EVERYTHING)).tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    near = positions.near(12, EVERYTHING)
    assert near.sum() == 16
    assert not (near & positions.overlapping(12, EVERYTHING)).any()


@pytest.mark.parametrize(("free", "near"), [(0, True), (18, True), (20, False), (100, False)])
def test_near_means_less_than_a_side_between(placed, free, near):
    positions = placed([{"x": 0, "y": 0}, {"x": 20 + free, "y": 0}, {"x": 0, "y": -20 - free}])
    assert positions.near(0, np.array([1, 2])).tolist() == [near, near]


def test_sides_are_stored_pixels_times_mpp_over_slide_mpp(placed):
    # 20 px at 1.0 microns are 40 pixels of a slide of 0.5 microns.
    positions = placed(_grid(40, mpp=1.0, slide_mpp=0.5))
    assert positions.near(12, EVERYTHING).sum() == 8
    assert placed(_grid(20, mpp=1.0, slide_mpp=0.5)).overlapping(12, EVERYTHING).sum() == 9
    # Without slide_mpp the image counts as taken from level 0.
    assert placed(_grid(20, mpp=1.0)).near(12, EVERYTHING).sum() == 8


def test_a_rounded_step_is_no_overlap(placed):
    positions = placed(_grid(39, mpp=0.5, slide_mpp=0.2527))
    assert 39 < 20 * 0.5 / 0.2527
    assert positions.near(12, EVERYTHING).sum() == 8


def test_width_and_height_count_each_on_its_axis(placed):
    rows = [{"x": 0, "y": 0}, {"x": 30, "y": 0}, {"x": 0, "y": 30}]
    positions = placed(rows, sizes={0: (20, 40)})
    assert positions.overlapping(0, np.array([1, 2])).tolist() == [True, False]
    assert positions.overlapping(1, np.array([0, 2])).tolist() == [True, False]


def test_unknown_positions_neither_overlap_nor_are_near(placed):
    positions = placed([{"x": 0, "y": 0}, {"x": 0, "y": None}, {"x": "left", "y": 0}, {"x": None, "y": None}])
    assert [positions.known(row) for row in range(4)] == [True, False, False, False]
    for row in range(4):
        others = np.delete(np.arange(4), row)
        assert not positions.overlapping(row, others).any()
        assert not positions.near(row, others).any()


def test_the_size_is_that_of_the_image_as_it_is_read(placed, tmp_path):
    """A camera's JPEG lies on its side and says so: 20 x 40 stored, 40 high when read."""
    positions = placed([{"x": 0, "y": 0}, {"x": 0, "y": 30}, {"x": 30, "y": 0}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "0.png", exif=exif)
    assert positions.overlapping(0, np.array([1, 2])).tolist() == [True, False]
