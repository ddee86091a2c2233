"""Masks that can be read and mean nothing: each kind is refused or warned of by its name, and good ones are not."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from stedm.cli import app
from stedm.data.check import check_dataset, examine
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.data.occurrence import class_findings
from stedm.data.summary import summary_text


@pytest.fixture
def root(tiny_dataset):
    return tiny_dataset(images=1)


def change_masks(root, change, patients=""):
    """Masks of the patients whose id begins so, each through `change`."""
    for path in sorted((root / "masks").glob(f"{patients}*.png")):
        write_png(path, np.asarray(change(np.array(Image.open(path))), np.uint8))


def name_classes(root, *names):
    dataset = DatasetFolder.open(root)
    write_metadata(root, DatasetInfo("tiny", list(names)), dataset.table)


def blank(mask):
    return np.full_like(mask, 255)


def beside(mask):
    """The disc as it is, ignored pixels around it."""
    return np.where(mask == 1, 1, 255)


REFUSED = {
    "0 and 255": ("", lambda mask: mask * 255, 2, "hold only 0 and 255: is 255 the disc"),
    "0 and 255 in train": ("train", lambda mask: mask * 255, 2, "hold only 0 and 255: is 255 the disc"),
    "0 and 255, three classes": ("", lambda mask: mask * 255, 3, "hold only 0 and 255: is 255 a class"),
    "counted from 1": ("", lambda mask: mask + 1, 3, r"class 0 \(background\) occurs nowhere; .* counted from 1"),
    "counted from 1 to the end": ("", lambda mask: mask + 1, 2, r"class 0 \(background\) occurs nowhere"),
    "empty": ("", lambda mask: mask * 0, 2, "hold only class background: .* empty by mistake"),
    "empty in train": ("train", lambda mask: mask * 0, 2, "hold only class background"),
    "ignored in train": ("train", blank, 2, "annotated train images: every pixel is ignored"),
    "ignored in test": ("test", blank, 2, "split test: every pixel is ignored .*nothing can be scored"),
    "empty in test": ("test", lambda mask: mask * 0, 2, "split test hold only class background"),
    "the positive class alone": (
        "",
        beside,
        2,
        "hold only class disc, beside ignored pixels: .*unannotated: background",
    ),
}
WARNED = {
    "ignored in val": ("val", blank, 2, "split val: every pixel is ignored"),
    "one patient ignored": ("trainP0", blank, 2, r"ignored throughout, they count nowhere: trainP0 \(train\)"),
    "one patient of train ignored": ("trainP0", blank, 2, r"\(train\); take their rows out of train"),
    "one test patient ignored": ("testP1", blank, 2, r"ignored throughout, they count nowhere: testP1 \(test\)$"),
    "a class that nobody drew": ("", lambda mask: mask, 3, "class third occurs in none; no network learns it$"),
    "a class of test alone": ("test", lambda mask: mask * 2, 3, "class third occurs in none; .* in val or test"),
    "0 and 255 in some": ("trainP0", lambda mask: mask * 255, 2, "is 255 a class in them. masks/trainP0-0.png"),
    "from 1 or partly annotated": (
        "",
        lambda m: np.where(np.eye(32), 255, m + 1),
        3,
        "background occurs .* from 1",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_mean_nothing_are_refused(root, kind):
    patients, change, n, line = REFUSED[kind]
    change_masks(root, change, patients)
    name_classes(root, *["background", "disc", "third"][:n])
    problems = check_dataset(root)
    assert pd.Series(problems).str.contains(line).any(), problems


@pytest.mark.parametrize("kind", WARNED)
def test_masks_that_seldom_mean_it_are_warned_of(root, kind):
    patients, change, n, line = WARNED[kind]
    change_masks(root, change, patients)
    name_classes(root, *["background", "disc", "third"][:n])
    found = examine(root)
    assert found.problems == []
    assert pd.Series(found.warnings).str.contains(line).sum() == 1, found.warnings


def test_a_mask_of_nothing_beside_others_of_its_patient_is_warned_of_in_train_alone(tiny_dataset):
    root = tiny_dataset(images=2)
    for patient in ("trainP0-0", "testP0-0", "unlabeledP0-0"):
        change_masks(root, blank, patient)
    (line,) = examine(root).warnings
    assert line.startswith("masks of split train that are ignored throughout: masks/trainP0-0.png; take their rows out")


def test_good_masks_are_not(root):
    # With ignored pixels in any place, and with other classes in unlabeled masks, which nobody looks into.
    change_masks(root, lambda mask: np.where(np.eye(32), 255, mask))
    change_masks(root, lambda mask: mask * 0, "unlabeled")
    found = examine(root)
    assert (found.problems, found.warnings) == ([], [])


def test_only_what_networks_learn_from_counts(root):
    """A budget takes some of the annotated images: those must hold the classes."""
    change_masks(root, lambda mask: mask * 0, "trainP0")
    assert examine(root).problems == []
    assert "hold only class background" in examine(root, annotated={"images/trainP0-0.png"}).problems[0]
    assert examine(root, annotated={"images/trainP1-0.png"}).problems == []


def test_the_split_that_is_scored_decides(root):
    change_masks(root, blank, "val")
    assert len(examine(root, scored_split="val").problems) == 1
    change_masks(root, blank, "test")
    assert len(examine(root, scored_split="val").problems) == 1


def with_palette(root, name, mask, *colours):
    image = Image.fromarray(mask, "P")
    image.putpalette(sum(colours, ()))
    image.save(root / name)


BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("others", ["grey", "palette"])
def test_a_palette_in_another_order_is_refused(root, others):
    names = sorted(f"masks/{path.name}" for path in (root / "masks").iterdir())
    masks = {name: np.array(Image.open(root / name)) for name in names}
    if others == "palette":
        for name, mask in masks.items():
            with_palette(root, name, mask, BLACK, RED)
    with_palette(root, "masks/trainP1-0.png", masks["masks/trainP1-0.png"], BLACK, GREEN)
    assert check_dataset(root) == []
    # The same on a screen, the opposite in training.
    with_palette(root, "masks/trainP1-0.png", 1 - masks["masks/trainP1-0.png"], RED, BLACK)
    problems = check_dataset(root)
    assert problems
    assert all(line.startswith("masks/trainP1-0.png: its palette shows class") for line in problems)


def test_the_command_shows_what_is_there_and_warns(root):
    change_masks(root, blank, "trainP0")
    shown = CliRunner().invoke(app, ["check", str(root)])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[0].split() == [
        "split",
        "patients",
        "images",
        "masks",
        "size",
        "(px)",
        "background",
        "disc",
        "ignored",
        "categories",
    ]
    assert lines[2].split() == ["unlabeled", "3", "3", "0", "32", "x", "32", "-", "-", "-", "a", "2,", "b", "1"]
    assert lines[-1].endswith("9 images of 9 patients, no problem found, 1 to look at")
    assert shown.stderr.startswith("warning: patients whose masks are ignored throughout")


def test_the_summary_counts_pixels(tmp_path):
    rows = []
    for number, side in enumerate((10, 20)):
        mask = np.zeros((side, 10), np.uint8)
        mask[:5], mask[5:8] = 1, 255
        name = f"{number}.png"
        write_png(tmp_path / "images" / name, np.dstack([mask] * 3))
        write_png(tmp_path / "masks" / name, mask)
        row = {"image_file_name": f"images/{name}", "mask_file_name": f"masks/{name}", "category": f"c{number}"}
        rows.append({**row, "patient_id": "A", "split": "train"})
    write_metadata(tmp_path, DatasetInfo("x", ["b", "c"]), pd.DataFrame(rows))
    found = examine(tmp_path)
    (train,) = found.splits
    # 30 rows of 10 pixels: 10 of class 1, 6 ignored, 14 of class 0.
    assert train.fractions == {"b": 14 / 24, "c": 10 / 24}
    assert train.ignored == 6 / 30
    assert (train.patients, train.images, train.masks) == (1, 2, 2)
    assert (train.width_px, train.height_px) == ((10, 10), (10, 20))
    assert train.categories == {"c0": 1, "c1": 1}
    assert "10 x 10-20" in summary_text(found.splits)
    assert "patients of several categories" in found.warnings[0]


def test_no_masks_no_findings():
    masks = pd.DataFrame(columns=["mask_file_name", "patient_id", "split"])
    assert class_findings(DatasetInfo("x", ["a", "b"]), masks, np.empty((0, 256), np.int64)) == ([], [])
