"""One patient under two ids, one image under two names: refused between splits, a warning within one."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.check import check_dataset, examine
from stedm.data.duplicates import slide_findings
from stedm.data.folder import DatasetFolder, write_png
from stedm.errors import StedmError
from stedm.io.tables import alike, patient_problems


@pytest.fixture
def root(tiny_dataset):
    return tiny_dataset(images=2, image_px=48)


def rename(root, column, old, new):
    path = root / "metadata.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table[column] = table[column].replace(old, new)
    table.to_csv(path, index=False)


SAME = [
    ("P1", "p1"),
    ("P1", "P 1"),
    ("P1", "P\u00a01"),
    ("P1", "P1\u200b"),
    ("P1", "\ufeffP1"),
    ("P1", "\uff30\uff11"),
    ("P1", "P01"),
    ("P-1", "P1"),
    ("P-1", "P\u20131"),
    ("P-1", "P_1"),
    ("1-11", "1\u201111"),
    ("7", "007"),
    ("7", "7.0"),
    ("M\u00fcller", "Mu\u0308ller"),
    ("Stra\u00dfe", "STRASSE"),
]
OTHERS = [("1-11", "11-1"), ("1-11", "111"), ("P1", "P10"), ("P1-1", "P11"), ("1.10", "1.1"), ("HER2+", "HER2-")]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_ids_that_look_alike_are_one_patient(one, two):
    table = pd.DataFrame({"patient_id": [one, two], "split": ["train", "test"]})
    (line,) = patient_problems(table, "slides")
    assert line.startswith("slides: patients ")
    assert "several splits (test, train)" in line
    assert patient_problems(table.assign(split="val"), "slides") == []


@pytest.mark.parametrize(("one", "two"), OTHERS)
def test_other_ids_are_not(one, two):
    assert alike(one) != alike(two)


def test_look_alikes_in_the_folder(root):
    rename(root, "patient_id", "testP1", "TRAINp1")
    assert len(check_dataset(root)) == 1
    with pytest.raises(StedmError, match="look like one in several splits"):
        DatasetFolder.open(root)
    rename(root, "patient_id", "TRAINp1", "testp-0")
    found = examine(root)
    assert found.problems == []
    assert found.warnings == ["metadata: 'testP0' and 'testp-0' look alike; one patient? they count as 2"]


def test_whole_numbers_of_parquet_are_ids(root):
    table = pd.read_csv(root / "metadata.csv")
    (root / "metadata.csv").unlink()
    number_of = {patient: float(number) for number, patient in enumerate(sorted(set(table["patient_id"])))}
    table.assign(patient_id=table["patient_id"].map(number_of)).to_parquet(root / "metadata.parquet")
    assert DatasetFolder.open(root).patients() == [str(number) for number in range(9)]


def test_a_slide_is_of_one_patient(root):
    rename(root, "slide_id", "testP1-s", "testP0-s")
    found = examine(root)
    assert found.problems == []
    assert found.warnings == [
        "metadata: slide testP0-s is of several patients (testP0, testP1); one patient, or two slides of one name?"
    ]
    rename(root, "slide_id", "trainP1-s", "testP0-s")
    (line,) = check_dataset(root)
    assert "slide testP0-s is of several patients (testP0, testP1, trainP1) in several splits (test, train)" in line


@pytest.mark.parametrize("how", ["copy", "another format", "link"])
def test_an_image_in_two_splits(root, how):
    source, target = root / "images/trainP0-0.png", root / "images/unlabeledP1-0.png"
    target.unlink()
    if how == "link":
        target.symlink_to(source)
    elif how == "copy":
        shutil.copy(source, target)
    else:
        Image.open(source).save(target, compress_level=1)
    (line,) = check_dataset(root)
    assert "trainP0-0.png, images/unlabeledP1-0.png are the same image, in several splits (train, unlabeled)" in line


def test_an_image_twice_in_a_split_is_a_warning(root):
    shutil.copy(root / "images/testP0-0.png", root / "images/testP1-0.png")
    shutil.copy(root / "images/valP0-0.png", root / "images/valP0-1.png")
    found = examine(root)
    assert found.problems == []
    assert "under several patients (testP0, testP1); one patient?" in found.warnings[0]
    assert found.warnings[1].endswith("1 times: images/valP0-0.png = images/valP0-1.png")


def test_glass_is_no_copy(root):
    for name in ("trainP0-0", "testP0-0"):
        write_png(root / f"images/{name}.png", np.full((48, 48, 3), 244, np.uint8))
    assert examine(root).warnings == check_dataset(root) == []


def test_a_mask_file_of_two_splits(root):
    rename(root, "mask_file_name", "masks/testP0-0.png", "masks/trainP0-0.png")
    assert any("masks/trainP0-0.png is one mask, in several splits" in line for line in check_dataset(root))


def test_masks_that_are_too_intricate_for_chance(root):
    noise = np.random.default_rng(0).integers(0, 2, (48, 48)).astype(np.uint8) * np.eye(48, dtype=np.uint8)[::-1]
    dense = np.random.default_rng(0).integers(0, 2, (128, 128)).astype(np.uint8)
    for mask, lines in ((noise, 0), (dense, 1)):
        for name in ("trainP0-0", "testP0-0"):
            write_png(root / f"masks/{name}.png", mask)
            image = np.random.default_rng(len(name) + ord(name[0])).integers(0, 255, (*mask.shape, 3))
            write_png(root / f"images/{name}.png", image.astype(np.uint8))
        assert len(check_dataset(root)) == lines


def test_masks_of_unlabeled_images_are_not_compared(root):
    dense = np.random.default_rng(0).integers(0, 2, (128, 128)).astype(np.uint8)
    for name in ("trainP0-0", "unlabeledP0-0"):
        write_png(root / f"masks/{name}.png", dense)
        write_png(root / f"images/{name}.png", np.dstack([dense * (100 + len(name))] * 3))
    assert check_dataset(root, read_unlabeled_masks=False) == check_dataset(root) == []


def test_slides_are_compared_by_content(tmp_path):
    for name, data in (("a", b"slide"), ("b", b"slide"), ("c", b"other"), ("d", b"longer")):
        (tmp_path / name).write_bytes(data)
    slides = pd.DataFrame(
        {
            "image": [str(tmp_path / name) for name in ("a", "b", "c", "d", "missing")],
            "patient_id": list("ABCDE"),
            "split": ["train", "train", "test", "test", "val"],
        }
    )
    problems, warnings = slide_findings(slides)
    assert problems == []
    assert warnings == [f"{tmp_path}/a, {tmp_path}/b are the same slide under several patients (A, B); one patient?"]
    slides.loc[1, "split"] = "test"
    assert slide_findings(slides)[0] == [
        f"{tmp_path}/a, {tmp_path}/b are the same slide, in several splits (test, train); keep it in one"
    ]
