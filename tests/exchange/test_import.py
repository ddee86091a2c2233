"""From what people have to a dataset folder: masks of every kind, tables of patients, splits; GlaS by one command."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.cli import main
from stedm.data.check import examine
from stedm.data.folder import DatasetFolder
from stedm.errors import DiskError, StedmError
from stedm.exchange.api import closing_text, import_dataset
from stedm.exchange.exporting import export_dataset
from stedm.exchange.importing import open_source, understand
from stedm.exchange.people import find_people
from stedm.seeds import numpy_generator

SIDE = 48


def tissue(number: int, n_objects: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A colour image and its objects, numbered from 1, each one piece."""
    generator = numpy_generator(0, "tissue", number)
    objects = np.zeros((SIDE, SIDE + 16), np.uint8)
    for value in range(1, n_objects + 1):
        top, left = generator.integers(2, SIDE - 12), 2 + (value - 1) * 60 // n_objects
        objects[top : top + 9, left : left + 60 // n_objects - 4] = value
    noise = generator.normal(0, 6, (*objects.shape, 3))
    image = np.where(objects[..., None] > 0, (120, 60, 150), (220, 180, 210)) + generator.integers(-20, 20, 3) + noise
    return np.clip(image, 0, 255).astype(np.uint8), objects


def save(path: Path, array: np.ndarray | Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Factory: a folder of images and masks as `write(path, objects)` saves them; 8 patients of 2 images."""

    def make(write, suffix: str = ".png", n_patients: int = 8) -> Path:
        for patient in range(n_patients):
            for number in range(2):
                image, objects = tissue(2 * patient + number, 3 + (patient + number) % 4)
                save(tmp_path / "source" / "images" / f"P{patient}_{number}.png", image)
                (tmp_path / "source" / "masks").mkdir(exist_ok=True)
                write(tmp_path / "source" / "masks" / f"P{patient}_{number}{suffix}", objects)
        return tmp_path / "source"

    return make


def masks_of(root: Path) -> dict[str, np.ndarray]:
    """Masks by the name of their image, those of unlabeled patients too."""
    dataset = DatasetFolder.open(root, allow_unlabeled_masks=True)
    return {Path(row["image_file_name"]).stem: row["mask"] for row in dataset}


def glas(root: Path) -> dict[str, np.ndarray]:
    """The files of GlaS as they are published: BMP, objects, a table; the published split divides patients."""
    rows, expected = [], {}
    for patient in range(1, 9):
        for number, part in enumerate(("train", "testA")):
            image, objects = tissue(10 * patient + number, 3 + patient % 4)
            name = f"{part}_{patient}"
            save(root / f"{name}.bmp", image)
            save(root / f"{name}_anno.bmp", objects)
            grade = ("benign", "malignant")[patient % 2]
            rows.append(f"{name},{patient}, {grade}, {('healthy', 'moderately differentiated')[patient % 2]}")
            expected[name] = (objects > 0).astype(np.uint8)
    head = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
    (root / "Grade.csv").write_bytes("\r".join([head, *rows, ""]).encode("utf-8-sig"))
    return expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [("background,tumour,gland", "objects can be of one class only"), ("gland,background", "first name is that of")],
)
def test_names_that_objects_cannot_have_are_refused(tmp_path, classes, message):
    glas(tmp_path / "GlaS")
    with pytest.raises(StedmError, match=message):
        import_dataset(tmp_path / "GlaS", tmp_path / "dataset", classes=classes)
    assert not (tmp_path / "dataset").exists()


def test_glas_comes_in_by_one_command(tmp_path, capsys):
    expected, root = glas(tmp_path / "GlaS"), tmp_path / "dataset"
    main_without_exit(["data", "import", str(tmp_path / "GlaS"), "-o", str(root), "--classes", "background,gland"])
    shown = capsys.readouterr()
    for words in ("a number for each object", "8, Grade.csv, column patient ID", "grade (GlaS)", "0 background"):
        assert words in shown.out
    assert "8 patients are in several of its splits" in shown.err
    dataset = DatasetFolder.open(root)
    assert dataset.info.classes == ["background", "gland"]
    assert sorted(dataset.patients()) == [str(patient) for patient in range(1, 9)]
    assert set(dataset.table["category"]) == {"benign", "malignant"}
    assert dataset.table.groupby("split")["patient_id"].nunique().to_dict() == {
        "train": 2,
        "unlabeled": 1,
        "val": 1,
        "test": 4,
    }
    assert set(dataset.split("train").table["category"]) == {"benign", "malignant"}
    found = {name.replace("xtrain", "train"): mask for name, mask in masks_of(root).items()}
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert not examine(root).problems
    with Image.open(tmp_path / "dataset.png") as sheet:
        assert sheet.width > 300


def main_without_exit(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code in (0, None), arguments  # noqa: PT017


def _palette(order: list[tuple[int, int, int]]):
    def write(path, objects):
        image = Image.fromarray((objects > 0).astype(np.uint8))
        image.putpalette([value for colour in order for value in colour])
        save(path, image)

    return write


def _rgb(path, objects):
    save(path, np.asarray([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)[np.minimum(objects, 2)])


def _shuffled_palette(path, objects):
    """The same colours, the indices of every second file the other way round."""
    swapped = path.stem.endswith("1")
    image = Image.fromarray(((objects > 0) ^ swapped).astype(np.uint8))
    image.putpalette([255, 0, 0, 0, 0, 0] if swapped else [0, 0, 0, 255, 0, 0])
    save(path, image)


_RANDOM = numpy_generator(0, "colours").integers(20, 256, (64, 3)).astype(np.uint8)
_RANDOM[0] = 0

BINARY = {
    "0 and 255": (lambda path, objects: save(path, (objects > 0) * np.uint8(255)), ".png"),
    "one bit": (lambda path, objects: save(path, Image.fromarray(objects > 0)), ".png"),
    "grey RGB": (lambda path, objects: save(path, np.stack([(objects > 0) * np.uint8(225)] * 3, -1)), ".png"),
    "grey and alpha": (
        lambda path, objects: save(path, Image.fromarray((objects > 0).astype(np.uint8)).convert("LA")),
        ".png",
    ),
    "palette": (_palette([(0, 0, 0), (0, 128, 0)]), ".png"),
    "palettes in two orders": (_shuffled_palette, ".png"),
    "objects, 16 bit": (lambda path, objects: save(path, objects.astype(np.uint16)), ".tif"),
    "objects, 32 bit": (lambda path, objects: save(path, Image.fromarray(objects.astype(np.int32))), ".tif"),
    "objects, each in a colour": (
        lambda path, objects: save(path, _RANDOM[objects * (1 + ord(path.stem[1]) % 5)]),
        ".png",
    ),
    "JPEG": (lambda path, objects: save(path, (objects > 0) * np.uint8(255), quality=90), ".jpg"),
}


@pytest.mark.parametrize("kind", BINARY)
def test_masks_of_one_class_in_every_coding_give_the_same(folder, tmp_path, kind):
    source = folder(*BINARY[kind])
    import_dataset(source, tmp_path / "d", classes="background,gland", patients="{patient}_*")
    for name, mask in masks_of(tmp_path / "d").items():
        patient, number = map(int, name[1:].split("_"))
        expected = tissue(2 * patient + number, 3 + (patient + number) % 4)[1] > 0
        assert (mask != expected).mean() < (0.02 if kind == "JPEG" else 1e-9), name
    assert DatasetFolder.open(tmp_path / "d").info.classes == ["background", "gland"]


CODINGS = {
    "indices": (lambda p, o: save(p, np.minimum(o, 2)), None, ["background", "label 1", "label 2"]),
    "from 1": (lambda p, o: save(p, np.minimum(o, 2) + 1), "a,b,c", ["a", "b", "c"]),
    "colours": (_rgb, None, ["background", "#00ff00", "#ff0000"]),
    "colours, told": (_rgb, "stroma=#000000,tumour=#ff0000,fat=#00ff00", ["stroma", "tumour", "fat"]),
    "greys, told": (
        lambda p, o: save(p, np.asarray([0, 128, 255], np.uint8)[np.minimum(o, 2)]),
        "stroma=0,tumour=128,fat=255",
        ["stroma", "tumour", "fat"],
    ),
    "an ignored value": (
        lambda p, o: save(p, np.asarray([0, 1, 255], np.uint8)[np.minimum(o, 2)]), "stroma,tumour", ["stroma", "tumour"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CODINGS)
def test_masks_of_several_classes(folder, tmp_path, kind):
    write, classes, names = CODINGS[kind]
    import_dataset(folder(write), tmp_path / "d", classes=classes, patients="{patient}_*")
    dataset = DatasetFolder.open(tmp_path / "d")
    assert dataset.info.classes == names
    order = [0, 2, 1] if kind == "colours" else [0, 1, 255] if kind == "an ignored value" else [0, 1, 2]
    expected = np.minimum(tissue(0, 3)[1], 2)
    assert (masks_of(tmp_path / "d")["P0_0"] == np.asarray(order)[expected]).all()


REFUSED = {
    "three greys": (lambda p, o: save(p, np.asarray([0, 200, 255], np.uint8)[np.minimum(o, 2)]), None, "NAME0=0,"),
    "a value nobody named": (lambda p, o: save(p, np.minimum(o, 2)), "a=0,b=1", "hold 2, which"),
    "empty": (lambda p, o: save(p, o * 0), None, "nothing but 0; name others with --masks"),
    "photographs": (lambda p, o: save(p, tissue(1)[0]), None, "colours; are these the masks? if so, export"),
    "another size": (lambda p, o: save(p, (o > 0)[:, :-3].astype(np.uint8)), None, "is 61 x 48 px, its image"),
    "no mask at all": (lambda p, o: p.write_bytes(b"not an image"), None, "not a readable"),
    "a damaged image": (lambda p, o: _damage(p, o), None, "source: P0_0.png: not a readable"),
    "colours without order": (_rgb, "a,b,c", "#ff0000"),
}  # fmt: skip


def _damage(path: Path, objects: np.ndarray) -> None:
    """A whole mask of an image that is cut off."""
    save(path, (objects > 0).astype(np.uint8))
    image = path.parents[1] / "images" / path.name
    image.write_bytes(image.read_bytes()[:2000])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_be_meant_in_two_ways_is_one_line_and_nothing_is_written(folder, tmp_path, kind):
    write, classes, message = REFUSED[kind]
    source = folder(write, n_patients=3)
    with pytest.raises(StedmError) as refused:
        import_dataset(source, tmp_path / "d", classes=classes, patients="{patient}_*")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "d").exists()


def test_names_of_classes_are_read_as_windows_writes_them(tmp_path):
    source = _pairs(tmp_path / "s", ["0", "1"])
    (source / "classes.txt").write_bytes("Hintergrund\r\nDr\u00fcse\r\n".encode("cp1252"))
    assert understand(open_source(source)).labels.classes == ["Hintergrund", "Dr\u00fcse"]
    (source / "classes.txt").write_bytes(b"\x81")
    with pytest.raises(StedmError, match=r"classes\.txt: not readable as text"):
        understand(open_source(source))


# ---- where masks lie ----------------------------------------------------------------------------------------------


LAYOUTS = {
    "beside, _mask": (lambda n: f"{n}.png", lambda n: f"{n}_mask.png", None),
    "beside, -labelled": (lambda n: f"{n}.tif", lambda n: f"{n}-labelled.png", None),
    "JPEG and PNG of one name": (lambda n: f"{n}.jpg", lambda n: f"{n}.png", None),
    "folders of splits": (lambda n: f"all/images/{n}.png", lambda n: f"all/masks/{n}.png", None),
    "train and train_masks": (lambda n: f"train/{n}.png", lambda n: f"train_masks/{n}_mask.png", None),
    "image_ and mask_": (lambda n: f"image_{n}.png", lambda n: f"mask_{n}.png", None),
    "an ending of their own": (lambda n: f"{n}.png", lambda n: f"{n}_xyz.png", "_xyz"),
    "a folder of their own": (lambda n: f"he/{n}.png", lambda n: f"drawn/{n}.png", "drawn"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_found_where_people_keep_them(tmp_path, layout):
    image_name, mask_name, masks = LAYOUTS[layout]
    for number in range(4):
        image, objects = tissue(number)
        save(tmp_path / "s" / image_name(f"P{number}"), image, **({"quality": 95} if "jpg" in image_name("") else {}))
        save(tmp_path / "s" / mask_name(f"P{number}"), (objects > 0).astype(np.uint8))
    (tmp_path / "s" / "._P0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "here").symlink_to(tmp_path / "s")
    import_dataset(
        tmp_path / "linked" / "here" if masks else tmp_path / "linked", tmp_path / "d", masks=masks, split="1/1/1/1"
    )
    found = masks_of(tmp_path / "d")
    assert len(found) == 4
    assert all((mask == (tissue(int(name[-1]))[1] > 0)).all() for name, mask in found.items())


def test_images_without_masks_are_unlabeled(folder, tmp_path):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))
    for path in (source / "masks").glob("P[4567]_*"):
        path.unlink()
    import_dataset(source, tmp_path / "d", patients="{patient}_*")
    table = DatasetFolder.open(tmp_path / "d").table
    assert set(table["patient_id"][table["split"] == "unlabeled"]) >= {"P4", "P5", "P6", "P7"}
    assert not examine(tmp_path / "d").problems


# ---- whose they are -----------------------------------------------------------------------------------------------


def _workbook(rows: list[list]) -> bytes:
    """The least that is a workbook: numbers as numbers, texts in place."""

    def cell(value) -> str:
        return f"<c><v>{value}</v></c>" if isinstance(value, int) else f'<c t="inlineStr"><is><t>{value}</t></is></c>'

    sheet = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default '
        'Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName='
        '"/xl/workbook.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
        '<Override PartName="/xl/worksheets/sheet1.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'spreadsheetml.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{relations}"><Relationship Id="r" Type="{office}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="a" sheetId="1" r:id="s"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{relations}"><Relationship Id="s" Type="{office}/'
        'worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
    }  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return buffer.getvalue()


ROWS = [
    ["Bild", "Patient", "Grade", "Size"],
    *([f"P{p}_{n}.png", 100 + p, "ab"[p % 2], 1] for p in range(8) for n in (0, 1)),
]


def _csv(separator: str, line_end: str) -> str:
    return "".join(separator.join(map(str, row)) + line_end for row in ROWS)


TABLES = {
    "commas": ("a.csv", _csv(",", "\n").encode()),
    "semicolons, BOM, CR LF": ("a.csv", _csv(";", "\r\n").encode("utf-8-sig")),
    "tabs, UTF-16, CR": ("a.tsv", _csv("\t", "\r").encode("utf-16")),
    "Excel's first line": ("a.csv", b"sep=;\r\n" + _csv(";", "\r\n").encode()),
    "Excel": ("a.xlsx", _workbook(ROWS)),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("given", [True, False])
def test_tables_of_images_in_every_spelling(folder, tmp_path, kind, given):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))
    name, content = TABLES[kind]
    table = (tmp_path if given else source) / name
    table.write_bytes(content)
    done = import_dataset(source, tmp_path / "d", patients=str(table) if given else None)
    found = DatasetFolder.open(tmp_path / "d").table
    assert set(found["patient_id"]) == {str(100 + patient) for patient in range(8)}
    stems = found["image_file_name"].str.extract(r"P(\d)_")[0].astype(int)
    assert (found["patient_id"] == (100 + stems).astype(str)).all()
    assert (found["category"] == stems.map(lambda patient: "ab"[patient % 2])).all()
    assert done.understood.unused == ["Size"]


def test_a_table_of_patients_is_found_by_names_of_images(folder, tmp_path):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))
    rows = "".join(f"P{patient};{'ab'[patient % 2]}\n" for patient in range(8))
    (tmp_path / "t.csv").write_text("Patient;Diagnosis\n" + rows)
    import_dataset(source, tmp_path / "d", patients=str(tmp_path / "t.csv"))
    table = DatasetFolder.open(tmp_path / "d").table
    assert (table["patient_id"] == table["image_file_name"].str.extract(r"(P\d)_")[0]).all()
    assert set(table["category"]) == {"a", "b"}


def test_numbers_of_patients_are_not_taken_for_names_of_images(tmp_path):
    for number in range(1, 9):
        image, objects = tissue(number)
        save(tmp_path / "s" / f"{number}.png", image)
        save(tmp_path / "s" / f"{number}_mask.png", (objects > 0).astype(np.uint8))
    # The patients' column comes first, and all that is in it is the name of an image.
    rows = "".join(f"{(number + 1) // 2},{number}\n" for number in range(1, 9))
    (tmp_path / "s" / "t.csv").write_text("patient,slice\n" + rows)
    import_dataset(tmp_path / "s", tmp_path / "d")
    table = DatasetFolder.open(tmp_path / "d").table
    numbers = table["image_file_name"].str.extract(r"(\d)\.png")[0].astype(int)
    assert (table["patient_id"].astype(int) == (numbers + 1) // 2).all()


def _pairs(root: Path, names: list[str]) -> Path:
    """Images and masks of one class in two folders, under these names."""
    for number, name in enumerate(names):
        image, objects = tissue(number)
        save(root / "images" / f"{name}.png", image)
        save(root / "masks" / f"{name}.png", (objects > 0).astype(np.uint8))
    return root


def _patients(source: Path, text: str) -> dict[str, str]:
    (source.parent / "t.csv").write_text(text)
    people = find_people(source, open_source(source).images, str(source.parent / "t.csv"))
    return {key: facts["patient_id"] for key, facts in people.facts.items()}


def test_the_number_of_an_image_is_not_taken_for_a_patient(tmp_path):
    """Patient 1's second image went to patient 2."""
    source = _pairs(tmp_path / "s", ["1_1", "1_2", "2_1", "2_2"])
    with pytest.raises(StedmError, match=r"several patients of column patient are part of the name of 1_2, 2_1;"):
        _patients(source, "patient,grade\n1,a\n2,b\n")
    # An id that is a part of another one is no doubt.
    longer = _pairs(tmp_path / "l" / "s", ["A_0", "A-1_0", "A-1_A-1"])
    assert _patients(longer, "patient\nA\nA-1\n") == {"A_0": "A", "A-1_0": "A-1", "A-1_A-1": "A-1"}


@pytest.mark.parametrize("head", ["image,patient_age,case_id", "image,Patient sex,Patient"])
def test_what_is_known_of_a_patient_is_not_taken_for_its_id(tmp_path, head):
    source = _pairs(tmp_path / "s", ["0", "1"])
    assert _patients(source, f"{head}\n0.png,50,C0\n1.png,50,C1\n") == {"0": "C0", "1": "C1"}


def test_a_table_may_name_images_by_their_folders(tmp_path):
    source = _pairs(tmp_path / "s", ["A/1", "A/2", "B/1"])
    for folder in ("images/", "./images/", "C:\\data\\images\\", str(source / "images") + "/"):
        rows = [f"{folder}{name}.png,P{name[0]}" for name in ("A/1", "A/2", "B/1")]
        assert _patients(source, "\n".join(["file,patient", *rows])) == {"A/1": "PA", "A/2": "PA", "B/1": "PB"}


def test_of_several_tables_in_the_folder_the_one_with_patients_is_taken(tmp_path):
    source = _pairs(tmp_path / "s", ["0", "1"])
    (source / "features.csv").write_text("image,area\n0,7\n1,8\n")
    (source / "~$patients.xlsx").write_bytes(b"what Excel keeps beside an open table")
    (source / "patients.csv").write_text("image,patient\n0,X\n1,X\n")
    people = find_people(source, open_source(source).images, None)
    assert people.facts == {"0": {"patient_id": "X"}, "1": {"patient_id": "X"}}


MISTAKES = {
    "a row is missing": ("image,patient\nP0_0,1\nP0_1,1\nP1_0,2\n", "no row for P1_1"),
    "no patient in a row": ("image,patient\nP0_0,1\nP0_1,1\nP1_0,2\nP1_1,\n", "no patient for P1_1"),
    "an image twice": ("image,patient\nP0_0,1\nP0_0,2\nP0_1,1\nP1_0,2\nP1_1,2\n", "P0_0 is in 2 rows"),
    "no image, no patient": ("a,b\n1,2\n", "no column names images"),
    "too long a row": ("image,patient\nP0_0,1,3\n", "not readable as a table"),
    "no rows": ("image,patient\n", "no rows"),
    "a column twice": ("image;patient;patient\nP0_0;1;2\n", "column patient is there twice"),
    "a split of its own": ("image,patient,split\nP0_0,1,x\nP0_1,1,x\nP1_0,2,x\nP1_1,2,x\n", "none of train"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_in_tables_are_named(folder, tmp_path, kind):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)), n_patients=2)
    text, message = MISTAKES[kind]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(StedmError) as refused:
        import_dataset(source, tmp_path / "d", patients=str(tmp_path / "t.csv"))
    assert message in str(refused.value).splitlines()[0]


def test_without_patients_each_image_is_one_and_a_warning_says_so(folder, tmp_path):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)), n_patients=3)
    done = import_dataset(source, tmp_path / "d", mpp=40)
    assert len(DatasetFolder.open(tmp_path / "d").patients()) == 6
    assert "each image counts as one" in " ".join(done.warnings)
    assert "40 microns per pixel, by --mpp: a magnification?" in " ".join(done.warnings)


# ---- splits -------------------------------------------------------------------------------------------------------


def test_a_proposed_split_is_by_patient_balanced_and_drawn_by_its_seed(folder, tmp_path):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))
    rows = "".join(f"P{patient},{'ab'[patient % 2]}\n" for patient in range(8))
    (tmp_path / "t.csv").write_text("patient,grade\n" + rows)
    told = {"patients": str(tmp_path / "t.csv")}
    splits = []
    for number, options in enumerate(({}, {}, {"seed": 1}, {"split": "4/0/2/2"})):
        import_dataset(source, tmp_path / f"d{number}", **told, **options)
        splits.append(DatasetFolder.open(tmp_path / f"d{number}").table.set_index("image_file_name")["split"])
    assert (splits[0] == splits[1]).all()
    assert (splits[0] != splits[2]).any()
    table = DatasetFolder.open(tmp_path / "d3").table.drop_duplicates("patient_id")
    assert table.groupby(["split", "category"]).size().to_dict() == {
        (split, category): n for split, n in (("train", 2), ("val", 1), ("test", 1)) for category in "ab"
    }
    with pytest.raises(StedmError, match=r"makes 9 patients, and there are 8 .*; give numbers that make 8"):
        import_dataset(source, tmp_path / "e", **told, split="4/1/2/2")


def test_a_split_that_the_source_says_is_kept_where_patients_are_whole(folder, tmp_path):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))
    said = ["training", "training", "unlabelled", "unlabelled", "validation", "Test", "Test", "test"]
    rows = "".join(f"P{patient},{said[patient]}\n" for patient in range(8))
    (tmp_path / "t.csv").write_text("patient,set\n" + rows)
    import_dataset(source, tmp_path / "d", patients=str(tmp_path / "t.csv"))
    table = DatasetFolder.open(tmp_path / "d").table.drop_duplicates("patient_id").set_index("patient_id")["split"]
    assert table.tolist() == ["train", "train", "unlabeled", "unlabeled", "val", "test", "test", "test"]


def test_a_split_that_is_left_aside_is_said(tmp_path):
    source = _pairs(tmp_path / "s", [f"P{number}" for number in range(8)])
    rows = "".join(f"P{number},{'' if number == 3 else ('train', 'test')[number % 2]}\n" for number in range(8))
    (source / "t.csv").write_text(f"image,split\n{rows}")
    said = understand(open_source(source)).notes
    assert "the split by t.csv, column split is not taken: it has none for P3; one by patient is proposed" in said
    assert not any("is not taken" in note for note in understand(open_source(source), split="propose").notes)
    folds = _pairs(tmp_path / "f", ["train/P1_0", "fold/P2_0"])
    with pytest.raises(StedmError, match=r"'fold' of P2_0\.png is none of train, unlabeled, val, test"):
        understand(open_source(folds), patients="{split}/{patient}_*")


# ---- how they are stored ------------------------------------------------------------------------------------------


def test_large_images_are_reduced_and_cut(tmp_path):
    for number in range(4):
        image, objects = (np.kron(part, np.ones((4, 4) + (1,) * (part.ndim - 2), np.uint8)) for part in tissue(number))
        save(tmp_path / "s" / f"P{number}.png", image)
        save(tmp_path / "s" / f"P{number}_mask.png", (objects > 0).astype(np.uint8))
    import_dataset(tmp_path / "s", tmp_path / "d", mpp=0.25, tile_px=32, tile_mpp=0.5)
    table = DatasetFolder.open(tmp_path / "d", allow_unlabeled_masks=True).table
    of_one = table[table["slide_id"] == "P0"]
    # 256 x 192 px of 0.25 microns are 128 x 96 of 0.5: four by three tiles of 32.
    assert sorted(zip(of_one["x"], of_one["y"], strict=True)) == [
        (x, y) for x in (0, 64, 128, 192) for y in (0, 64, 128)
    ]
    assert set(table["mpp"]) == {0.5}
    assert set(table["slide_mpp"]) == {0.25}
    whole = np.zeros((96, 128), np.uint8)
    for name, mask in masks_of(tmp_path / "d").items():
        if name.startswith("P0_"):
            x, y = (int(part) // 2 for part in name.split("_")[1:])
            whole[y : y + 32, x : x + 32] = mask
    assert (whole == np.kron(tissue(0)[1] > 0, np.ones((2, 2)))).all()
    with pytest.raises(StedmError, match=r"finer ones can't be had; give 0.25 or more"):
        import_dataset(tmp_path / "s", tmp_path / "e", mpp=0.25, tile_mpp=0.1)
    with pytest.raises(StedmError, match="aren't known"):
        import_dataset(tmp_path / "s", tmp_path / "e", tile_mpp=0.5)


def test_tiles_in_which_nothing_is_annotated_are_left_out_but_for_unlabeled_patients(tmp_path):
    """Annotated in part, as large images are: the other tiles would be drawn in training and teach nothing."""
    for number in range(4):
        image, objects = tissue(number)
        mask = (objects > 0).astype(np.uint8)
        mask[:, SIDE + 16 - 32 :] = 255
        save(tmp_path / "s" / f"P{number}.png", image)
        save(tmp_path / "s" / f"P{number}_mask.png", mask)
    said = []
    classes = "background=0,gland=1,ignore=255"
    how = {"classes": classes, "split": "1/1/1/1", "tile_px": 32, "say": said.append}
    import_dataset(tmp_path / "s", tmp_path / "d", **how)
    table = DatasetFolder.open(tmp_path / "d", allow_unlabeled_masks=True).table
    # 64 x 48 px: two columns of two tiles, the right one without annotation.
    assert table.groupby("split").size().to_dict() == {"train": 2, "unlabeled": 4, "val": 2, "test": 2}
    assert set(table["x"][table["split"] != "unlabeled"]) == {0}
    assert said[-1] == "6 tiles are left out: nothing is annotated in them"
    assert not examine(tmp_path / "d").problems


def test_a_dry_run_writes_the_sheet_alone_and_other_files_are_not_written_over(folder, tmp_path, capsys):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))
    verb = ["data", "import", str(source), "-o", str(tmp_path / "d"), "--patients", "{patient}_*"]
    main_without_exit([*verb, "--dry-run"])
    assert "not written" in capsys.readouterr().out
    assert not (tmp_path / "d").exists()
    assert (tmp_path / "d.png").is_file()
    main_without_exit(verb)
    assert (tmp_path / "d" / "metadata.csv").is_file()
    said = capsys.readouterr().out
    assert re.search("licence +not said; fill it in in dataset.yaml\n", said)
    assert f"{tmp_path / 'd' / 'dataset.yaml'}: fill in license and citation of the images" in said
    for path, message in (("d", "not empty"), ("e", "stedm did not write it"), ("source/d", "lies in the folder")):
        save(tmp_path / "e.png", np.zeros((4, 4), np.uint8))
        with pytest.raises(SystemExit):
            main([*verb[:4], str(tmp_path / path), *verb[5:]])
        assert message in capsys.readouterr().err


def test_the_folder_that_one_is_in_is_refused_in_a_line(tmp_path, monkeypatch):
    source = _pairs(tmp_path / "s", ["0", "1"])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StedmError, match="has no name of its own; give a new folder for the dataset"):
        import_dataset(source, Path("."))


def test_a_disk_that_is_full_once_the_dataset_is_written_says_so(folder, tmp_path, monkeypatch):
    source = folder(lambda path, objects: save(path, (objects > 0).astype(np.uint8)))

    def full(root, sheet):
        raise DiskError(f"{sheet}: No space left on device; run the same command again")

    monkeypatch.setattr("stedm.exchange.api.write_contact_sheet", full)
    with pytest.raises(StedmError, match=r"d\.png: No space left on device; .*/d is complete: draw it with"):
        import_dataset(source, tmp_path / "d", patients="{patient}_*")
    assert (tmp_path / "d" / "metadata.csv").is_file()


def test_names_that_would_be_taken_for_splits_or_that_no_disk_takes_are_changed(tmp_path):
    for number, name in enumerate(("test 1", "Gewebe für é, [x]", "ta/a", "ta_b/a")):
        image, objects = tissue(number)
        save(tmp_path / "s" / f"{name}.png", image)
        save(tmp_path / "s" / f"{name}_mask.png", (objects > 0).astype(np.uint8))
    import_dataset(tmp_path / "s", tmp_path / "d", split="1/1/1/1")
    names = set(DatasetFolder.open(tmp_path / "d").table["image_file_name"])
    assert names == {"images/xtest 1.png", "images/Gewebe für é_ _x.png", "images/ta/a.png", "images/ta_b/a.png"}


# ---- nnU-Net, COCO, QuPath ----------------------------------------------------------------------------------------


def test_nnunet_of_both_versions(tmp_path):
    for version, labels in {1: {"0": "stroma", "1": "tumour"}, 2: {"stroma": 0, "tumour": 1, "ignore": 2}}.items():
        root = tmp_path / f"Dataset{version}"
        for number in range(6):
            image, objects = tissue(number)
            end = "Tr" if number < 4 else "Ts"
            save(root / f"images{end}" / f"case{number}_0000.png", image)
            save(root / f"labels{end}" / f"case{number}.png", np.minimum(objects, version))
        (root / "dataset.json").write_text(json.dumps({"labels": labels, "licence": "CC0", "file_ending": ".png"}))
        said = []
        done = import_dataset(root, tmp_path / f"d{version}", say=said.append)
        dataset = DatasetFolder.open(tmp_path / f"d{version}")
        assert dataset.info.classes == ["stroma", "tumour"]
        assert dataset.info.licence == "CC0"
        assert re.search("licence +CC0\n", said[0])
        assert "fill in license" not in closing_text(done, tmp_path)
        assert dataset.table["split"].tolist() == ["train"] * 4 + ["test"] * 2
        expected = np.asarray([0, 1, 255])[np.minimum(tissue(5)[1], version)]
        assert (masks_of(tmp_path / f"d{version}")["case5"] == expected).all()
    (tmp_path / "none" / "imagesTr").mkdir(parents=True)
    (tmp_path / "none" / "dataset.json").write_text((root / "dataset.json").read_text())
    with pytest.raises(StedmError, match="no image in it; put images there"):
        import_dataset(tmp_path / "none", tmp_path / "e")
    (root / "imagesTr" / "case0_0001.png").write_bytes((root / "imagesTr" / "case0_0000.png").read_bytes())
    with pytest.raises(StedmError, match="several channels"):
        import_dataset(root, tmp_path / "e")


def test_two_images_of_one_name_are_refused_before_anything_is_written(tmp_path):
    root = tmp_path / "s"
    for number, end in enumerate(("Tr", "Ts")):  # numbered from 0 in both
        image, objects = tissue(number)
        save(root / f"images{end}" / "case_0_0000.png", image)
        save(root / f"labels{end}" / "case_0.png", (objects > 0).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "gland": 1}}))
    with pytest.raises(StedmError, match=r"s: case_0 is an image twice in it; keep one, or rename the other"):
        open_source(root)


def test_coco_files_of_another_machine_lead_to_their_own_images(tmp_path):
    """Both were taken for the first file of that name."""
    pytest.importorskip("pycocotools.mask")
    for number, folder in enumerate("AB"):
        save(tmp_path / folder / "1.png", tissue(number)[0])

    def opened(*names: str):
        images = [{"id": i, "file_name": name, "height": 8, "width": 8} for i, name in enumerate(names)]
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "gland"}]}
        licences = [{"id": 1, "url": "https://creativecommons.org"}, "MIT", None, {"name": "CC0"}]
        (tmp_path / "c.json").write_text(json.dumps(content | {"licenses": licences}))
        return open_source(tmp_path)

    source = opened("/there/A/1.png", "D:\\there\\b\\1.png")
    assert [image.path.parent.name for image in source.images] == ["A", "B"]
    assert source.licence == "CC0"
    with pytest.raises(StedmError, match=r"image there/1\.png may be A/1\.png, B/1\.png; write into file_name which"):
        opened("there/1.png")


def test_coco_polygons_and_run_lengths(tmp_path):
    library = pytest.importorskip("pycocotools.mask")
    images, annotations, expected = [], [], {}
    for number in range(5):
        image, objects = tissue(number)
        save(tmp_path / "s" / "pictures" / f"P{number}.png", image)
        images.append(
            {"id": number, "file_name": f"P{number}.png", "height": SIDE, "width": SIDE + 16, "patient_id": number}
        )
        if number == 4:  # nobody annotated it
            continue
        (top, left), (bottom, right) = np.argwhere(objects == 1).min(0), np.argwhere(objects == 1).max(0) + 1
        ring = [left, top, right, top, right, bottom, left, bottom]
        whole = np.asfortranarray(objects == 2, np.uint8)
        packed = library.encode(whole)
        counts = packed["counts"].decode() if number % 2 else _plain_counts(whole)
        run = {"size": [SIDE, SIDE + 16], "counts": counts}
        for category, segmentation in ((7, [list(map(float, ring))]), (3, run)):
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "segmentation": segmentation}
            )
        expected[f"P{number}"] = np.asarray([0, 2, 1, 0])[np.minimum(objects, 3)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "gland"}, {"id": 3, "name": "fat"}],
    }
    (tmp_path / "s" / "labels.json").write_text(json.dumps(content))
    for source, split in ((tmp_path / "s", "2/1/1/1"), (tmp_path / "s" / "labels.json", "1/2/1/1")):
        output = tmp_path / f"d{split[0]}"
        import_dataset(source, output, split=split)
        dataset = DatasetFolder.open(output)
        assert dataset.info.classes == ["background", "fat", "gland"]
        assert dataset.table["split"].iloc[4] == "unlabeled"
        found = masks_of(output)
        assert found.pop("P4") is None
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).all() for name in expected)
    for changed, message in (
        ({"segmentation": {"size": [1, 2], "counts": [2]}}, "annotation 0: no polygon and no run lengths"),
        ({"segmentation": {**run, "counts": "garbage"}}, "its runs make .* pixels, the image has 3072.; export"),
        ({"segmentation": {**run, "counts": [5]}}, "its runs make 5 pixels, the image has 3072"),
        ({"segmentation": {**run, "counts": [-1, 3073]}}, "no run lengths"),
        ({"segmentation": {**run, "counts": counts[:-2]}}, "no run lengths"),
        ({"segmentation": [[1, 1, 2, 2]]}, "three points"),
        ({"segmentation": []}, "a box alone"),
        ({"category_id": 9}, "category 9 is not .*; export"),
        ({"image_id": 99}, "image_id 99, .*; export"),
        ({"image_id": [1]}, "a list where an id belongs"),
    ):
        wrong = {**content, "annotations": [content["annotations"][0] | changed, *content["annotations"][1:]]}
        (tmp_path / "s" / "labels.json").write_text(json.dumps(wrong))
        with pytest.raises(StedmError, match=message):
            import_dataset(tmp_path / "s", tmp_path / "e")


def _plain_counts(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *ends, flat.size]).tolist()


def test_tiles_that_qupath_exports(tmp_path):
    tiles = {}
    for slide in "ABCD":
        for x in (0, 128):
            image, objects = tissue(ord(slide) + x)
            name = f"slide {slide} [d=2,x={x},y=0,w=128,h=96]"
            save(tmp_path / "s" / "tiles" / f"{name}.jpg", image, quality=95)
            save(tmp_path / "s" / "tiles" / f"{name}.png", np.asarray([0, 5, 9], np.uint8)[np.minimum(objects, 2)])
            tiles.setdefault(slide, []).append({"image": f"{name}.jpg", "labels": f"{name}.png", "region": {}})
    save(tmp_path / "s" / "data" / "1" / "thumbnail.jpg", tissue(0)[0])
    (tmp_path / "s" / "project.qpproj").write_text("{}")
    # By names alone, and by the lists that QuPath writes on demand.
    import_dataset(tmp_path / "s", tmp_path / "d0", classes="background=0,tumour=5,fat=9", mpp=1.0)
    for slide, entries in tiles.items():
        labels = [{"classification": "Tumor", "label": 5}, {"classification": "Ignore*", "label": 9}]
        content = {"qupath_version": "0.6", "labels": labels, "tiles": entries}
        (tmp_path / "s" / "tiles" / f"slide {slide}-tiles.json").write_text(json.dumps(content))
    import_dataset(tmp_path / "s", tmp_path / "d1", mpp=1.0)
    for number, (last, classes) in enumerate(((2, ["background", "tumour", "fat"]), (255, ["background", "Tumor"]))):
        dataset = DatasetFolder.open(tmp_path / f"d{number}")
        assert dataset.info.classes == classes
        assert dataset.patients() == [f"slide {slide}" for slide in "ABCD"]
        assert sorted(set(dataset.table["x"])) == [0, 128]
        assert set(dataset.table["slide_mpp"]) == {0.5}
        expected = np.asarray([0, 1, last])[np.minimum(tissue(ord("A"))[1], 2)]
        assert (next(iter(masks_of(tmp_path / f"d{number}").values())) == expected).all()


# ---- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["nnunet", "coco", "imagefolder"])
def test_what_was_exported_comes_back_the_same(tiny_dataset, tmp_path, to, capsys):
    root = tiny_dataset()
    ignored = root / "masks" / "trainP0-0.png"
    with Image.open(ignored) as opened:
        mask = np.array(opened)
    mask[:4] = 255
    save(ignored, mask)
    main_without_exit(["data", "export", str(root), "--to", to, "-o", str(tmp_path / "out")])
    assert "27 images" in capsys.readouterr().out
    import_dataset(tmp_path / "out", tmp_path / "back")
    before, after = DatasetFolder.open(root), DatasetFolder.open(tmp_path / "back")
    assert after.info.classes == before.info.classes
    columns = ["patient_id", "slide_id", "split", "category"]
    tables = [
        dataset.table.assign(name=[Path(name).stem for name in dataset.table["image_file_name"]])
        .set_index("name")
        .sort_index()
        for dataset in (before, after)
    ]
    assert (tables[0].index == tables[1].index).all()
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])
    assert (tables[1]["mask_file_name"] == "").equals(tables[1]["split"] == "unlabeled")
    rows = {Path(row["image_file_name"]).stem: row for row in after}
    for row in before:
        found = rows[Path(row["image_file_name"]).stem]
        assert (found["image"] == row["image"]).all()
        assert (found["mask"] is None) == (row["mask"] is None)
        assert row["mask"] is None or (found["mask"] == row["mask"]).all()


@pytest.mark.parametrize("to", ["nnunet", "coco", "imagefolder"])
def test_columns_of_ones_own_are_exported_too(tiny_dataset, tmp_path, to):
    """Of parquet's whole numbers some may be missing; a column `image` is not the names of the exported files."""
    root = tiny_dataset()
    table = pd.read_csv(root / "metadata.csv", dtype=str, keep_default_na=False)
    ages = pd.array([50, *[None] * (len(table) - 1)], dtype="Int64")
    table.assign(age=ages, image="as scanned").to_parquet(root / "metadata.parquet")
    (root / "metadata.csv").unlink()
    export_dataset(root, tmp_path / "out", to)
    written = pd.read_csv(tmp_path / "out/patients.csv", dtype=str, keep_default_na=False)
    assert written["image"].tolist() == [Path(name).stem for name in table["image_file_name"]]
    assert [float(age) for age in written["age"] if age] == [50]


def test_an_exported_image_folder_is_read_by_hugging_face_with_its_splits(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    main_without_exit(["data", "export", str(tiny_dataset()), "--to", "imagefolder", "-o", str(tmp_path / "out")])
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 6, "unlabeled": 9, "val": 6, "test": 6}
    row = found["train"][0]
    assert row["image"].size == row["mask"].size == (32, 32)
    assert row["patient_id"].startswith("trainP")
