"""Pseudonyms: stable, in order, and nothing left of ids and paths."""

import pandas as pd

from stedm.data.folder import DatasetFolder
from stedm.data.pseudonyms import Pseudonyms, without_paths


def test_patients_are_numbered_in_the_order_of_their_ids_over_the_whole_dataset(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset(patients={"train": 2, "unlabeled": 9, "test": 2}, images=1))
    names = Pseudonyms(dataset)
    ids = dataset.patients()
    renamed = names.patients(ids)
    assert renamed == sorted(renamed) == [f"patient-{number:02}" for number in range(1, 14)]
    assert Pseudonyms(dataset).patients(ids) == renamed
    test = names.dataset(dataset.split("test"))
    assert test.patients() == names.patients(dataset.split("test").patients())
    assert (test.read_image(0) == dataset.split("test").read_image(0)).all()


def test_a_table_names_patients_and_source_images_no_more(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset(images=1))
    first, second = dataset.table["image_file_name"][:2]
    plan = pd.DataFrame(
        {
            "patient_id": dataset.patients()[:1],
            "style_patient_id": dataset.patients()[:1],
            "layout_patient_id": dataset.patients()[1:2],
            "layout_image_file_name": [first],
            "style_image_file_names": [f"{first};{second}"],
            "seed": [3],
        }
    )
    text = Pseudonyms(dataset).table(plan).to_csv()
    assert not any(name in text for name in [*dataset.patients(), first, second])
    assert "patient-1,patient-1,patient-2,image-" in text


def test_of_paths_the_last_part_stays():
    values = {"a": ["/data/Smith/cohort", "C:\\Users\\smith\\x.csv", "relative/name", 3], "b": {"c": "/x/y.yaml"}}
    assert without_paths(values) == {"a": ["cohort", "x.csv", "relative/name", 3], "b": {"c": "y.yaml"}}
