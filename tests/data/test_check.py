"""`check_dataset`: each kind of problem has its line, and all are listed in one pass."""

import re
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.check import check_dataset, examine
from stedm.data.folder import write_png
from stedm.io import images


@pytest.fixture
def root(tiny_dataset):
    return tiny_dataset(images=2)


def edit_table(root, change):
    table = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(root / "metadata.csv", index=False)


def set_cell(column, name, value):
    """A change of the row whose image is images/NAME.png."""
    return lambda root: edit_table(
        root, lambda table: table.__setitem__(column, table[column].mask(table["image_file_name"] == name, value))
    )


def truncate(name):
    def damage(root):
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])

    return damage


def write(name, array):
    return lambda root: write_png(root / name, np.asarray(array, np.uint8))


def link_out(root):
    outside = root.parent / "outside.png"
    (root / "images/valP0-0.png").rename(outside)
    (root / "images/valP0-0.png").symlink_to(outside)


def yaml(text):
    return lambda root: (root / "dataset.yaml").write_text(text)


def table_text(change):
    """The bytes of metadata.csv changed."""
    return lambda root: (root / "metadata.csv").write_bytes(change((root / "metadata.csv").read_bytes()))


def turned_mask(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "masks/trainP0-0.png") as image:
        image.load()
    image.save(root / "masks/trainP0-0.png", exif=exif)


# Damages that do not hide each other: `test_all_at_once` applies all of them to one folder.
DAMAGES = {
    "missing image": (lambda root: (root / "images/trainP0-0.png").unlink(), r"images/trainP0-0\.png: missing"),
    "missing mask": (lambda root: (root / "masks/trainP0-0.png").unlink(), r"masks/trainP0-0\.png: missing"),
    "truncated image": (
        truncate("images/trainP0-1.png"),
        r"images/trainP0-1\.png: not a readable PNG, JPEG, TIFF or BMP",
    ),
    "truncated mask": (truncate("masks/trainP0-1.png"), r"masks/trainP0-1\.png: not a readable PNG mask"),
    "not an image": (
        lambda root: (root / "images/trainP1-0.png").write_text("hello"),
        r"images/trainP1-0\.png: not a readable PNG, JPEG, TIFF or BMP",
    ),
    "empty file": (
        lambda root: (root / "images/testP1-0.png").write_bytes(b""),
        r"images/testP1-0\.png: not a readable",
    ),
    "16 bits": (
        lambda root: Image.fromarray(np.zeros((32, 32), np.uint16)).save(root / "images/testP1-1.png"),
        r"images/testP1-1\.png: has more than 8 bits",
    ),
    "mask size": (
        write("masks/trainP1-1.png", np.zeros((32, 30))),
        r"masks/trainP1-1\.png: is 30 x 32 px but its image images/trainP1-1\.png is 32 x 32 px",
    ),
    "class indices": (
        write("masks/unlabeledP0-0.png", np.full((32, 32), 9) - np.eye(32) * 4),
        r"masks/unlabeledP0-0\.png: class indices 5, 9 are out of range; allowed are 0 to 1 and ignore_index 255",
    ),
    "RGB mask": (
        write("masks/unlabeledP0-1.png", np.zeros((32, 32, 3))),
        r"masks/unlabeledP0-1\.png: is not single-channel 8-bit \(RGB\)",
    ),
    "patient in two splits": (
        set_cell("patient_id", "images/unlabeledP1-0.png", "valP0"),
        r"patient valP0 is in several splits \(unlabeled, val\)",
    ),
    "unknown split": (
        set_cell("split", "images/unlabeledP1-1.png", "holdout"),
        r"unknown split 'holdout' in 1 rows, first row 8; use one of train, unlabeled, val, test",
    ),
    "duplicate image": (
        lambda root: edit_table(root, lambda table: pd.concat([table, table[table["patient_id"] == "testP0"].tail(1)])),
        r"images/testP0-1\.png: is in 2 rows of the metadata",
    ),
    "path goes up": (
        set_cell("image_file_name", "images/unlabeledP2-0.png", "../other.png"),
        r"\.\./other\.png: leaves the dataset folder",
    ),
    "absolute mask path": (
        set_cell("mask_file_name", "images/unlabeledP2-1.png", "/etc/hostname"),
        r"/etc/hostname: leaves the dataset folder",
    ),
    "link out": (link_out, r"images/valP0-0\.png: is a link that leaves the dataset folder"),
    "empty patient": (set_cell("patient_id", "images/valP0-1.png", ""), r"row 12 has no patient_id"),
    "val without mask": (
        set_cell("mask_file_name", "images/valP1-0.png", ""),
        r"images/valP1-0\.png: has no mask in split val",
    ),
    "train without mask": (
        set_cell("mask_file_name", "images/trainP1-0.png", ""),
        r"images/trainP1-0\.png: has no mask in split train; .* unlabeled",
    ),
    "suffix in other letters": (
        set_cell("image_file_name", "images/valP1-1.png", "images/valP1-1.PNG"),
        r"images/valP1-1\.PNG: missing in .*; images/valP1-1\.png is there: correct its row",
    ),
    "backslash": (
        set_cell("mask_file_name", "images/testP0-0.png", "masks\\testP0-0.png"),
        r"masks\\testP0-0\.png: missing in .*; masks/testP0-0\.png is there: correct its row",
    ),
    "semicolon": (
        lambda root: [
            (root / "images/testP0-0.png").rename(root / "images/a;b.png"),
            set_cell("image_file_name", "images/testP0-0.png", "images/a;b.png")(root),
        ],
        r"images/a;b\.png: has a semicolon, which divides names in plans; rename the file",
    ),
    "wrong key": (
        yaml("name: tiny\nclasses: [background, disc]\ncolour: red\n"),
        r"dataset\.yaml: unknown key 'colour'",
    ),
}

TABLE = "image_file_name,mask_file_name,patient_id,split\n"
LONE = {
    "no folder": (lambda root: root.rename(root.with_name("moved")), [r"no such folder"]),
    "no metadata": (lambda root: (root / "metadata.csv").unlink(), [r"metadata\.csv: missing"]),
    "two tables": (lambda root: (root / "metadata.parquet").touch(), [r"remove one of them"]),
    "broken parquet": (
        lambda root: (root / "metadata.csv").rename(root / "metadata.parquet"),
        [r"metadata\.parquet: not readable"],
    ),
    "empty table file": (lambda root: (root / "metadata.csv").write_text(""), [r"metadata\.csv: not readable"]),
    "not UTF-8": (lambda root: (root / "metadata.csv").write_bytes(b"\xff\xfe\x00a"), [r"metadata\.csv: not readable"]),
    "rows too long": (
        lambda root: (root / "metadata.csv").write_text(TABLE + "images/a.png,masks/a.png,P1,train,surplus\n"),
        [r"metadata\.csv: not readable"],
    ),
    "column twice": (
        table_text(lambda data: data.replace(b"slide_id", b"patient_id")),
        [r"metadata\.csv: column patient_id is there twice; keep one"],
    ),
    "semicolons, a comma in the header": (
        table_text(lambda data: data.replace(b",", b";").replace(b"split", b"split, for now")),
        [r"metadata\.csv: the separator is a semicolon"],
    ),
    "headings of another spelling": (
        table_text(lambda data: data.replace(b"patient_id", b" Patient ID").replace(b"split", b" split")),
        [r"column patient_id is missing; rename 'Patient ID'"],
    ),
    "end lost with the power": (
        table_text(lambda data: data + 400 * b"\0"),
        [r"'(\\x00){200}': holds a control character", r"row 19 has no patient_id", r"unknown split ''"],
    ),
    "mask with an orientation": (turned_mask, [r"masks/trainP0-0\.png: a mask with an EXIF orientation of its own"]),
    "no rows": (lambda root: (root / "metadata.csv").write_text(TABLE), [r"no rows"]),
    "missing columns": (
        lambda root: edit_table(root, lambda table: table.drop(columns=["patient_id", "split"])),
        [r"column patient_id is missing", r"column split is missing"],
    ),
    "no image column": (
        lambda root: edit_table(root, lambda table: table.drop(columns="image_file_name")),
        [r"column image_file_name is missing"],
    ),
    "empty image name": (
        set_cell("image_file_name", "images/unlabeledP0-0.png", ""),
        [r"row 5 has no image_file_name"],
    ),
    "nothing annotated": (
        lambda root: edit_table(root, lambda table: table[table["split"] != "train"]),
        [r"no annotated image in split train"],
    ),
    "no dataset.yaml": (lambda root: (root / "dataset.yaml").unlink(), [r"dataset\.yaml: missing"]),
    "yaml is no mapping": (yaml("- a\n"), [r"must be a mapping"]),
    "yaml is broken": (yaml("name: [\n"), [r"dataset\.yaml: not readable as YAML"]),
    "yaml says little": (
        yaml("ignore_index: yes\n"),
        [r"name is missing", r"classes is missing", r"ignore_index must"],
    ),
    "classes read as other types": (yaml("name: x\nclasses: [no, 1]\n"), [r"classes must be texts"]),
    "class twice": (yaml("name: x\nclasses: [a, a]\n"), [r"name each class once"]),
    "class twice but for case and spaces": (yaml("name: x\nclasses: [a, 'A ']\n"), [r"name each class once"]),
    "classes by number": (yaml("name: x\nclasses: {0: a, 1: b}\n"), [r"classes is no list; list the class names"]),
    "ignore_index is a class": (yaml("name: x\nclasses: [a, b]\nignore_index: 1\n"), [r"ignore_index must be"]),
}


def assert_lines(problems, patterns):
    """Each pattern has exactly one line, and no other line is there."""
    for pattern in patterns:
        assert sum(bool(re.search(pattern, line)) for line in problems) == 1, (pattern, problems)
    assert len(problems) == len(patterns), problems
    assert not any("\n" in line for line in problems)


def test_clean_folder(root):
    assert check_dataset(root) == []


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_problem_has_its_line(root, kind):
    damage, pattern = DAMAGES[kind]
    damage(root)
    assert_lines(check_dataset(root), [pattern])


@pytest.mark.parametrize("kind", LONE)
def test_problems_of_the_two_small_files(root, kind):
    damage, patterns = LONE[kind]
    damage(root)
    assert_lines(check_dataset(root), patterns)


def test_rows_of_commas_behind_the_last_are_none(root):
    table_text(lambda data: data + 2 * b",,,,,\n")(root)
    assert check_dataset(root) == []


def test_categories_that_look_alike_are_told(root):
    for name, category in ("images/trainP0-0.png", "Grade 3"), ("images/trainP0-1.png", "grade 3.0"):
        set_cell("category", name, category)(root)
    assert not any("look alike" in line for line in examine(root).warnings)
    set_cell("category", "images/trainP0-1.png", "grade 3 ")(root)
    (line,) = (line for line in examine(root).warnings if "look alike" in line)
    assert line == "metadata: categories 'Grade 3' and 'grade 3' look alike; one category? they count as 2"


def test_all_at_once(root):
    for damage, _ in DAMAGES.values():
        damage(root)
    assert_lines(check_dataset(root), [pattern for _, pattern in DAMAGES.values()])


def test_unlabeled_masks_can_stay_unread(root):
    for path in (root / "masks").glob("unlabeledP0*"):
        path.write_bytes(b"never to be read")
    for path in (root / "masks").glob("unlabeledP1*"):
        path.unlink()
    assert check_dataset(root, read_unlabeled_masks=False) == []
    assert len(check_dataset(root)) == 4


def test_images_without_masks_are_fine_where_unlabeled(root):
    edit_table(root, lambda t: t.__setitem__("mask_file_name", t["mask_file_name"].mask(t["split"] == "unlabeled", "")))
    assert check_dataset(root) == []


@pytest.mark.parametrize("name", ["ebhi_seg", "flowers17"])
def test_real_datasets_are_clean(shared_data, name):
    assert check_dataset(shared_data(name)) == []


def test_masks_of_unseen_categories_are_not_even_looked_for(tiny_dataset):
    root = tiny_dataset(patients={"train": 2, "unlabeled": 1, "val": 1, "test": 1})
    for mask in [*(root / "masks").glob("trainP1*"), *(root / "masks").glob("unlabeled*")]:
        mask.unlink()
    assert check_dataset(root, read_unlabeled_masks=False, unseen_categories=["b"]) == []
    assert len(check_dataset(root, read_unlabeled_masks=False)) == 3


@pytest.mark.parametrize("side_px", [8000, 13000, 30000])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_images_of_the_size_of_slides_are_refused_by_their_header(root, kind, side_px):
    """Below, at and above the sizes that Pillow warns of; nothing of them is decoded."""
    path = root / kind / "trainP0-0.png"
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", side_px, side_px)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    (line,) = check_dataset(root)
    remedy = "save it as a tiled TIFF and cut that, which is a slide, with `stedm tile`"
    assert line == f"{kind}/trainP0-0.png: has more than 50 million pixels; {remedy}"


def test_large_images_are_decoded_one_at_a_time(root, monkeypatch):
    """Each takes some times its size."""
    monkeypatch.setattr(images, "_LARGE_PX", 100)
    at_work, most = [], []
    load = Image.Image.getextrema

    def slow(image):
        at_work.append(image)
        most.append(len(at_work))
        try:
            return load(image)
        finally:
            at_work.pop()

    monkeypatch.setattr(Image.Image, "getextrema", slow)
    assert check_dataset(root) == []
    assert len(most) == 18
    assert max(most) == 1
