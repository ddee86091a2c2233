"""CSV that spreadsheets don't execute and that reads back as it was."""

import pandas as pd
import pytest

from stedm.data.folder import DatasetFolder, write_metadata
from stedm.errors import StedmError
from stedm.io.artefacts import Column, read_csv_table
from stedm.io.tables import csv_text, read_csv, write_csv
from stedm.slides.table import slide_problems

TEXTS = [
    "=1+1",
    "+49 30",
    "-x",
    "@a",
    "\tx",
    "\rx",
    "'=x",
    "''=x",
    "'quoted",
    "007",
    "plain",
    "",
    "\uff1dx",
    "a,b",
    "-",
]
NUMBERS = ["-0.1", "+7", "-1e-5", "12"]


def test_texts_that_would_be_formulas_are_harmless_and_read_back(tmp_path):
    table = pd.DataFrame({"patient_id": TEXTS, "=head": TEXTS[::-1]})
    write_csv(tmp_path / "a.csv", table)
    cells = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    for column in cells:
        assert column[0] not in "=+-@"
        assert not cells[column].str.match("[=+\\-@\t\r\uff1d]").any()
    pd.testing.assert_frame_equal(read_csv(tmp_path / "a.csv"), table, check_dtype=False)


def test_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame({"text": NUMBERS, "number": [-0.5, 1e9, float("nan"), -3]})
    assert csv_text(table) == table.to_csv(index=False)
    write_csv(tmp_path / "a.csv", table.assign(text=pd.Categorical(["=a", "b", "=a", "c"])), float_format="%.2f")
    read = read_csv_table(tmp_path / "a.csv", {"text": Column("text")})
    assert read["text"].tolist() == ["=a", "b", "=a", "c"]
    assert read["number"].iloc[[0, 1, 3]].tolist() == [-0.5, 1e9, -3]


def test_patients_of_a_dataset_folder_keep_their_ids(tiny_dataset):
    root = tiny_dataset(images=1)
    dataset = DatasetFolder.open(root)
    table = dataset.table.assign(patient_id=[f"={number}+1" for number in range(9)])
    write_metadata(root, dataset.info, table)
    assert ",'=0+1," in (root / "metadata.csv").read_text()
    assert DatasetFolder.open(root).table["patient_id"].tolist() == table["patient_id"].tolist()


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "C:/a.png", "\\a.png", "a\\..\\b.png", "a\x00.png", "a\nb.png"])
def test_names_that_lead_elsewhere_are_refused_when_read(tiny_dataset, name):
    root = tiny_dataset(images=1)
    dataset = DatasetFolder.open(root)
    for column in ("image_file_name", "mask_file_name"):
        table = dataset.table.copy()
        table.loc[0, column] = name
        with pytest.raises(StedmError, match=r"leaves the dataset folder|control character"):
            write_metadata(root, dataset.info, table)
    slides = pd.DataFrame({"slide_id": [name], "patient_id": "A", "split": "train", "image": "a.svs", "mpp": ""})
    assert slide_problems(slides)
