"""A run doesn't go on with other images or masks than it was begun with, wherever they lie."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest

from stedm.config import parse_config
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.experiment import inputs
from stedm.experiment.experiment import Experiment
from stedm.experiment.inputs import check_files
from stedm.io.images import read_mask_file, write_png
from stedm.progress import Reporter


@pytest.fixture
def begin(tmp_path, tiny_run):
    """Function: the checks of a run at its start, on a dataset folder."""

    def check(root, **segmentation) -> Experiment:
        config = parse_config(tiny_run({"path": str(root)}, **segmentation), "test")
        experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
        experiment.check()
        return experiment

    return check


@pytest.mark.parametrize("name", ["images/trainP0-0.png", "masks/trainP0-0.png", "images/unlabeledP1-2.png"])
def test_replaced_files_are_refused_by_name_and_taken_again_when_put_back(begin, tiny_dataset, name):
    root = tiny_dataset()
    begin(root)
    path = root / name
    before = path.read_bytes()
    other = path.with_name(path.name.replace("P0-0", "P1-1").replace("P1-2", "P0-0"))
    path.write_bytes(other.read_bytes())
    with pytest.raises(StedmError, match=rf"{name} is not what .*run was begun with") as error:
        begin(root)
    assert "\n" not in str(error.value)
    path.write_bytes(before)
    begin(root)


def test_data_may_move_and_be_touched(begin, tiny_dataset, tmp_path):
    root = tiny_dataset()
    begin(root)
    os.utime(root / "images" / "trainP0-0.png", ns=(1, 1))
    begin(root)
    shutil.copytree(root, tmp_path / "elsewhere")
    shutil.rmtree(root)
    experiment = begin(tmp_path / "elsewhere")
    assert experiment.last_round.plan().attrs["dataset"] == str(tmp_path / "elsewhere")


def test_a_plan_names_the_place_where_the_data_are_now(begin, tiny_dataset, tmp_path):
    root = tiny_dataset()
    assert begin(root).last_round.plan().attrs["dataset"] == str(root)
    root.rename(tmp_path / "elsewhere")
    assert begin(tmp_path / "elsewhere").last_round.plan().attrs["dataset"] == str(tmp_path / "elsewhere")


def test_masks_of_unlabeled_images_count_only_where_they_are_learned_from(begin, tiny_dataset, monkeypatch):
    root = tiny_dataset()
    opened = []
    monkeypatch.setattr(inputs, "_sum_of", lambda path, size: opened.append(path.name) or path.read_bytes().hex())
    begin(root, arms=["real"])
    table = pd.read_csv(root / "metadata.csv")
    assert len(opened) == len(table) + (table["split"] != "unlabeled").sum()
    mask = root / "masks" / "unlabeledP0-0.png"
    write_png(mask, 1 - read_mask_file(root, "masks/unlabeledP0-0.png"))
    begin(root, arms=["real"])
    begin(root, arms=["real", "upper"])  # from here on they are part of the data
    write_png(mask, np.zeros((32, 32), np.uint8))
    with pytest.raises(StedmError, match=r"masks/unlabeledP0-0\.png is not what"):
        begin(root, arms=["real", "upper"])


def test_a_file_is_hashed_once_in_a_run_folder(begin, tiny_dataset, monkeypatch):
    root = tiny_dataset()
    begin(root)
    monkeypatch.setattr(inputs, "_sum_of", lambda path, size: pytest.fail("hashed again"))
    begin(root)


def test_of_large_files_blocks_are_hashed(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(inputs, "_BLOCK_BYTES", 10)
    dataset = DatasetFolder.open(tiny_dataset())
    (tmp_path / "run").mkdir()
    check_files(tmp_path / "run", dataset, unlabeled_masks=False)
    path = dataset.root / "images" / "trainP0-0.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(StedmError, match=r"trainP0-0\.png is not what"):
        check_files(tmp_path / "run", dataset, unlabeled_masks=False)


def test_a_damaged_list_of_files_is_one_line(begin, tiny_dataset, tmp_path):
    root = tiny_dataset()
    begin(root)
    for name in ("data_files.parquet", "provenance.json"):
        path = tmp_path / "run" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(StedmError, match=rf"{name}: ") as error:
            begin(root)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    begin(root)


@pytest.mark.parametrize("text", ["", "a: [", "[1]", "a: &b [1]\nc: *b\n", "\x00"])
def test_a_damaged_config_of_a_run_is_one_line(begin, tiny_dataset, tmp_path, text):
    root = tiny_dataset()
    begin(root)
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(StedmError, match=r"config\.yaml: damaged") as error:
        begin(root)
    assert "\n" not in str(error.value)


def test_another_value_in_provenance_is_one_line(begin, tiny_dataset, tmp_path):
    root = tiny_dataset()
    begin(root)
    path = tmp_path / "run" / "provenance.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "9'))
    with pytest.raises(StedmError, match=r"provenance\.json: damaged"):
        begin(root)
