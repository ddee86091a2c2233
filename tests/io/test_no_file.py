"""What lies where a file should be: a pipe would be waited for, a folder can't be replaced by a file."""

import os

import numpy as np
import pytest

from stedm.config.base import read_values
from stedm.errors import StedmError
from stedm.io.artefacts import read_json
from stedm.io.files import claim, replacing, sweep, write_once
from stedm.io.manifest import sha256_of, verify, verify_sum
from stedm.io.tables import read_csv
from stedm.io.weights import read_weights
from stedm.segmentation.row_checkpoint import RowCheckpoint
from stedm.slides.label_images import is_label_image, label_scale
from stedm.slides.polygon_files import read_json as read_polygons_json
from stedm.slides.slide import Slide

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_json(path, dict),
        read_weights,
        is_label_image,
        lambda path: label_scale(path, (64, 64), None),
        lambda path: write_once(path, "text"),
    ],
)
def test_a_pipe_is_one_line(pipe, read):
    with pytest.raises(StedmError, match=r"pipe.*not a regular file"):
        read(pipe)


def test_a_pipe_among_files_with_sums(tmp_path, pipe):
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of(pipe)
    pipe.rename(tmp_path / "a.csv.sha256")
    with pytest.raises(StedmError, match="not a regular file"):
        verify_sum(tmp_path / "a.csv")
    (tmp_path / "a.csv.sha256").rename(tmp_path / "manifest.json")
    with pytest.raises(StedmError, match="damaged"):
        verify(tmp_path, "a.csv")


def test_rows_of_a_label_map_that_are_no_file_are_made_again(tmp_path):
    os.mkfifo(tmp_path / "key-0-1.npz")
    bands = [np.ones((2, 2), np.uint8)]
    assert len(list(RowCheckpoint(tmp_path, "key").passing(lambda row: iter(bands[row:])))) == 1


def test_a_folder_where_a_file_is_to_be_written(tmp_path):
    (tmp_path / "agreement.csv").mkdir()
    with pytest.raises(StedmError, match=r"agreement.csv: is a folder"), replacing(tmp_path / "agreement.csv") as new:
        new.write_text("text")
    assert (tmp_path / "agreement.csv").is_dir()


def test_a_claim_that_is_no_text(tmp_path):
    (tmp_path / "tiling.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StedmError, match=r"tiling.yaml: not readable"):
        claim(tmp_path / "tiling.yaml", "a", lambda text: True, another=str, not_empty="")


def test_leftovers_beside_an_output_are_swept_and_those_below_other_folders_are_not(tmp_path):
    here, deeper = (folder / ".stedm-00000000-1-abcdefgh" for folder in (tmp_path, tmp_path / "mine"))
    for holder in (here, deeper):
        holder.mkdir(parents=True)
        os.utime(holder, (0, 0))
    sweep(tmp_path, below=False)
    assert (here.exists(), deeper.exists()) == (False, True)


def test_pipes_among_what_users_give(pipe):
    for read in (lambda path: read_values(path, None), read_csv, read_polygons_json, Slide.open):
        with pytest.raises(StedmError, match=r"pipe.*(not a regular file|no such)"):
            read(pipe)
