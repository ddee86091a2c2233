"""CATCH from a miniature with the published structure: names, separators and fields as in the paper's repository."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from stedm.cli import main
from stedm.errors import StedmError
from stedm.public.catch import CATCH_CLASSES, CATCH_TISSUES, CATCH_TUMOURS, make_catch
from stedm.slides.annotations import read_annotation

SPLIT = {
    "Melanoma_01_1.svs": "train",
    "Melanoma_01_2.svs": "train",
    "Melanoma_02_1.svs": "train",
    "Melanoma_03_1.svs": "val",
    "MCT_01_1.svs": "train",
    "MCT_02_1.svs": "train",
    "SCC_04_1.svs": "test",
}
CATEGORIES = [*CATCH_TISSUES, "Melanoma", "Plasmacytoma", "Mast Cell Tumor", "PNST", "SCC", "Trichoblastoma"]
CATEGORIES += ["Histiocytoma"]


def annotation(number, image, name, flat):
    xs, ys = flat[::2], flat[1::2]
    bbox = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {
        "segmentation": flat,
        "iscrowd": 0,
        "image_id": image,
        "category_id": CATEGORIES.index(name) + 1,
        "id": number,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
    }


def coco() -> dict:
    tumour = {"Melanoma": "Melanoma", "MCT": "Mast Cell Tumor", "SCC": "SCC"}
    annotations = []
    for image, name in enumerate(SPLIT, start=1):
        outer, inner = [10, 10, 90, 10, 90, 60, 10, 60], [20, 20, 30, 20, 30, 40, 20, 40]
        annotations.append(annotation(2 * image, image, tumour[name.split("_")[0]], outer))
        annotations.append(annotation(2 * image + 1, image, "Inflamm/Necrosis", inner))
    return {
        "info": {"description": "Pan-Tumor", "version": "1.0", "year": 2021},
        "licenses": [{"id": 1, "name": "x", "url": "y"}],
        "categories": [
            {"id": i, "name": name, "supercategory": "Tissue" if name in CATCH_TISSUES else "Tumor"}
            for i, name in enumerate(CATEGORIES, start=1)
        ],
        "images": [{"license": 1, "file_name": n, "id": i, "width": 100, "height": 80} for i, n in enumerate(SPLIT, 1)],
        "annotations": annotations,
    }


def split_csv(split=SPLIT) -> str:
    return "Slide;Dataset;Scanner\n" + "".join(f"{name};{to};ScanScope v1\n" for name, to in split.items())


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "CATCH"
    for name in SPLIT:
        path = folder / name.split("_")[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"II*\0")
    (folder / "CATCH.json").write_text(json.dumps(coco()))
    (folder / "datasets.csv").write_text(split_csv())
    return folder


def test_table_of_slides(published, tmp_path):
    """Patients are the middle number, categories the beginning of the name, splits those of the CSV file."""
    make_catch(published, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "slides.csv", dtype=str, keep_default_na=False)
    assert table.columns.tolist() == ["slide_id", "patient_id", "split", "image", "annotation", "mpp", "category"]
    assert dict(zip(table["slide_id"] + ".svs", table["split"], strict=True)) == SPLIT
    assert table["patient_id"].nunique() == 6
    row = table.set_index("slide_id").loc["Melanoma_01_2"]
    assert (row["patient_id"], row["category"], row["mpp"]) == ("Melanoma_01", "Melanoma", "")
    assert row["image"] == str(published / "Melanoma" / "Melanoma_01_2.svs")


def test_annotations_and_mapping_read_as_classes(published, tmp_path):
    """The written GeoJSON under the written mapping: tumour, and on it the necrosis drawn inside; equal to the COCO."""
    out = tmp_path / "out"
    table = make_catch(published, out)
    mapping = out / "classes.yaml"
    assert yaml.safe_load(mapping.read_text())["classes"] == list(CATCH_CLASSES)
    for slide_id, name in zip(table["slide_id"], table["annotation"], strict=True):
        tile = read_annotation(out / name, list(CATCH_CLASSES), mapping).rasterise(0, 0, 100, 1)
        assert [(tile == value).sum() for value in (0, 1, 255)] == [200, 4000 - 200, 10000 - 4000]
        direct = read_annotation(
            published / "CATCH.json", list(CATCH_CLASSES), mapping, image_name=f"{slide_id}.svs"
        ).rasterise(0, 0, 100, 1)
        np.testing.assert_array_equal(tile, direct)


def test_label_budget_leaves_the_other_train_patients_unlabeled(published, tmp_path):
    """One patient a type, all slides of it; val and test as they were."""
    table = make_catch(published, tmp_path / "out", annotated_patients=1)
    train = table[table["split"] == "train"]
    assert train.groupby("category")["patient_id"].nunique().to_dict() == {"MCT": 1, "Melanoma": 1}
    assert table.groupby("patient_id")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "unlabeled", "val", "test"}
    assert len(table) == len(SPLIT)
    with pytest.raises(StedmError, match="3 annotated patients a type asked for, MCT has 2"):
        make_catch(published, tmp_path / "other", annotated_patients=3)


def test_copies_of_macos_are_no_slides(published, tmp_path):
    for name in ("Melanoma/._Melanoma_01_1.svs", "._CATCH.json", "._datasets.csv"):
        (published / name).write_bytes(b"\0\5\x16\7")
    assert len(make_catch(published, tmp_path / "out")) == len(SPLIT)


def test_a_part_of_the_slides_is_enough(published, tmp_path):
    (published / "MCT" / "MCT_01_1.svs").unlink()
    assert "MCT_01_1" not in set(make_catch(published, tmp_path / "out")["slide_id"])


def test_command_line(published, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "catch", str(published), str(tmp_path / "out"), "--annotated", "1"])
    assert stop.value.code == 0
    assert f"{tmp_path / 'out' / 'slides.csv'}: 7 slides of 6 patients" in capsys.readouterr().out


def without(content: dict, slide: str) -> dict:
    return content | {
        "images": [image for image in content["images"] if image["file_name"] != slide],
        "annotations": [],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    {
        "no coco": ("CATCH.json", "{}", "no COCO file"),
        "damaged coco": ("CATCH.json", "{", "CATCH.json: not complete JSON"),
        "no split": ("datasets.csv", "a;b\n1;2\n", "no table with columns Slide and Dataset"),
        "patient twice": (
            "datasets.csv",
            split_csv(SPLIT | {"Melanoma_01_2.svs": "test"}),
            "patient Melanoma_01 is in",
        ),
        "slide twice": ("datasets.csv", split_csv() + "SCC_04_1.svs;test;x\n", "SCC_04_1.svs is there twice"),
        "other split": ("datasets.csv", split_csv(SPLIT | {"SCC_04_1.svs": "holdout"}), "has split 'holdout'"),
        "other name": ("datasets.csv", split_csv() + "Lipoma_01_1.svs;train;x\n", "'Lipoma_01_1.svs' is not TYPE_CASE"),
        "table with the older names": (
            "datasets.csv",
            "Slide;Dataset\n4495_13b_Melanoma_MF.svs;train\n",
            "'4495_13b_Melanoma_MF.svs' is not TYPE_CASE",
        ),
        "slide without a row": ("SCC_09_1.svs", "II*", "has no row for SCC_09_1.svs"),
        "slide without annotation": (
            "CATCH.json",
            json.dumps(without(coco(), "MCT_02_1.svs")),
            "no image MCT_02_1.svs",
        ),
        "same slide twice": ("copy/MCT_02_1.svs", "II*", "there is another slide of this name"),
        "unknown category": (
            "CATCH.json",
            json.dumps(coco() | {"categories": [*coco()["categories"], {"id": 14, "name": "Fat"}]}),
            "unknown categories Fat",
        ),
    }.values(),
)
def test_what_is_not_as_published_is_refused_in_one_line(published, tmp_path, name, content, message):
    path = published / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(StedmError, match=message) as error:
        make_catch(published, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_separators_and_older_tables(published, tmp_path):
    """Commas, no column Scanner, another file name."""
    (published / "datasets.csv").unlink()
    lines = ["Slide,Dataset", *(f"{name},{to}" for name, to in SPLIT.items())]
    (published / "split.csv").write_text("\ufeff" + "\n".join(lines))
    assert len(make_catch(published, tmp_path / "out")) == len(SPLIT)
    with pytest.raises(StedmError, match="not empty"):
        make_catch(published, tmp_path / "out")


def test_all_tumour_types_have_a_published_category():
    assert set(CATCH_TUMOURS.values()) == set(CATEGORIES) - set(CATCH_TISSUES)
