"""Opening, reading and writing a dataset folder."""

import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stedm.data.budget import choose_annotated, choose_annotated_images
from stedm.data.check import examine
from stedm.data.folder import (
    DatasetFolder,
    DatasetInfo,
    hold_back,
    write_metadata,
    write_png,
)
from stedm.errors import StedmError
from stedm.io.names import has_split_word, without_split_words

INFO = DatasetInfo(name="mini", classes=["background", "gland"], licence="CC0", citation="Nobody, 2024")


def one_image(root, image_name="a.png", **columns):
    row = {"image_file_name": image_name, "mask_file_name": "", "patient_id": "P1", "split": "train", **columns}
    write_metadata(root, INFO, pd.DataFrame([row]))
    return DatasetFolder.open(root)


def test_written_metadata_opens_equal(tmp_path):
    table = pd.DataFrame(
        {
            "image_file_name": ["a.png", "b.png"],
            "mask_file_name": ["m/a.png", ""],
            "patient_id": ["007", "NA"],
            "slide_id": ["1e5", ""],
            "split": ["train", "unlabeled"],
            "category": ["3", "0"],
            "x": [1.5, np.nan],
            "seed": [2**62 + 1, 7],
            "style_patient_id": ["08", "09"],
            "note": ["free text, with comma", ""],
        }
    )
    write_metadata(tmp_path, INFO, table)
    dataset = DatasetFolder.open(tmp_path)
    assert dataset.info == INFO
    pd.testing.assert_frame_equal(dataset.table, table, check_dtype=False)
    assert dataset.table["seed"].tolist() == table["seed"].tolist()
    assert dataset.patients() == ["007", "NA"]
    assert dataset.patients("unlabeled") == ["NA"]
    assert yaml.safe_load((tmp_path / "dataset.yaml").read_text())["license"] == "CC0"


def test_parquet_reads_as_csv_does(tmp_path):
    dataset = one_image(tmp_path, patient_id="007", mpp=0.5)
    (tmp_path / "metadata.csv").unlink()
    dataset.table.assign(slide_id=[None]).to_parquet(tmp_path / "metadata.parquet")
    again = DatasetFolder.open(tmp_path)
    pd.testing.assert_frame_equal(again.table, dataset.table, check_dtype=False)
    assert again.fingerprint == dataset.fingerprint


def test_both_spellings_of_licence(tmp_path):
    one_image(tmp_path)
    for key in ("licence", "license"):
        (tmp_path / "dataset.yaml").write_text(f"name: x\nclasses: [a, b]\n{key}: MIT\n")
        assert DatasetFolder.open(tmp_path).info.licence == "MIT"


def test_yaml_cannot_run_code(tmp_path):
    one_image(tmp_path)
    (tmp_path / "dataset.yaml").write_text("name: !!python/object/apply:os.getcwd []\nclasses: [a]\n")
    with pytest.raises(StedmError, match="not readable as YAML"):
        DatasetFolder.open(tmp_path)


def test_select_and_split_keep_rows_and_numbering(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    val = dataset.split("val")
    assert (len(dataset), len(val)) == (27, 6)
    assert val.table.index.tolist() == list(range(6))
    first = np.flatnonzero(dataset.table["split"] == "val")[0]
    np.testing.assert_array_equal(val.read_image(0), dataset.read_image(first))
    assert val.select([3, 1]).table["image_file_name"].tolist() == val.table["image_file_name"].iloc[[3, 1]].tolist()
    assert len(val.select([])) == 0
    with pytest.raises(StedmError, match="unknown split"):
        dataset.split("validation")


def test_fingerprint_follows_table_and_classes(tiny_dataset):
    root = tiny_dataset()
    dataset = DatasetFolder.open(root)
    assert dataset.fingerprint == DatasetFolder.open(root).fingerprint
    assert dataset.fingerprint != dataset.split("val").fingerprint
    write_metadata(root, DatasetInfo(name="tiny", classes=["disc", "background"]), dataset.table)
    assert dataset.fingerprint != DatasetFolder.open(root).fingerprint


def test_masks_of_unlabeled_rows_are_guarded(tiny_dataset):
    root = tiny_dataset()
    for path in (root / "masks").glob("unlabeled*"):
        path.write_bytes(b"never to be read")
    dataset = DatasetFolder.open(root)
    rows = np.flatnonzero(dataset.table["split"] == "unlabeled")
    with pytest.raises(StedmError, match="allow_unlabeled_masks"):
        dataset.read_mask(rows[0])
    with pytest.raises(StedmError, match="allow_unlabeled_masks"):
        dataset.split("unlabeled").read_mask(0)
    with pytest.raises(StedmError, match="not a readable PNG"):
        DatasetFolder.open(root, allow_unlabeled_masks=True).read_mask(rows[0])


@pytest.mark.parametrize(
    ("stored", "suffix", "expected"),
    [
        (Image.new("RGB", (2, 2), (10, 20, 30)), "png", (10, 20, 30)),
        (Image.new("RGB", (2, 2), (10, 20, 30)), "tiff", (10, 20, 30)),
        (Image.new("RGB", (2, 2), (90, 90, 90)), "jpg", (90, 90, 90)),
        (Image.new("L", (2, 2), 70), "png", (70, 70, 70)),
        (Image.new("RGB", (2, 2), (10, 20, 30)).quantize(2), "png", (10, 20, 30)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "png", (255, 255, 255)),
        (Image.new("LA", (2, 2), (70, 255)), "png", (70, 70, 70)),
        (Image.new("1", (2, 2), 1), "png", (255, 255, 255)),
    ],
    ids=["rgb-png", "rgb-tiff", "jpeg", "grey", "palette", "transparent", "grey-alpha", "bilevel"],
)
def test_images_become_rgb(tmp_path, stored, suffix, expected):
    stored.save(tmp_path / f"a.{suffix}")
    image = one_image(tmp_path, f"a.{suffix}").read_image(0)
    assert (image.dtype, image.shape) == (np.uint8, (2, 2, 3))
    assert tuple(image[1, 1]) == expected


def png_of_16_bits(width, height):
    """RGB PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x12\x34" * 3 * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 3000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(StedmError, match="convert it to 8 bits"):
        one_image(tmp_path).read_image(0)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(2, 2))
    with pytest.raises(StedmError, match="convert it to 8 bits"):
        one_image(tmp_path).read_image(0)


def test_images_are_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert one_image(tmp_path, "a.jpg").read_image(0).shape == (4, 2, 3)


def test_resizing_averages_images_and_keeps_indices(tmp_path):
    columns = np.tile([[0, 200], [0, 200]], (2, 4)).astype(np.uint8)
    write_png(tmp_path / "a.png", np.stack([columns] * 3, axis=2))
    mask = np.array([[0, 0, 255, 255], [0, 0, 255, 255], [1, 1, 0, 0], [1, 1, 0, 0]], np.uint8)
    write_png(tmp_path / "m.png", mask)
    dataset = one_image(tmp_path, mask_file_name="m.png")
    assert np.unique(dataset.read_image(0, 4)).tolist() in ([100], [0, 200])
    assert np.all(dataset.read_image(0, 2) == 100)
    np.testing.assert_array_equal(dataset.read_mask(0), mask)
    np.testing.assert_array_equal(dataset.read_mask(0, 2), [[0, 255], [1, 0]])
    np.testing.assert_array_equal(dataset.read_mask(0, 8), mask.repeat(2, 0).repeat(2, 1))


def test_masks_with_a_palette_keep_their_indices(tmp_path):
    mask = Image.fromarray(np.array([[0, 1]], np.uint8))
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / "m.png")
    dataset = one_image(tmp_path, mask_file_name="m.png")
    np.testing.assert_array_equal(dataset.read_mask(0), [[0, 1]])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[0, 7]], np.uint8), "class indices 7 are out of range"),
        (np.zeros((2, 2, 3), np.uint8), "single-channel 8-bit"),
    ],
)
def test_bad_masks_are_refused(tmp_path, mask, message):
    write_png(tmp_path / "m.png", mask)
    with pytest.raises(StedmError, match=message):
        one_image(tmp_path, mask_file_name="m.png").read_mask(0)


def test_image_without_mask_has_no_mask(tmp_path):
    with pytest.raises(StedmError, match="has no mask"):
        one_image(tmp_path).read_mask(0)


@pytest.mark.parametrize("name", ["../a.png", "images/../../a.png", "/etc/hostname", "C:/a.png", "..\\a.png"])
def test_paths_that_leave_the_folder_do_not_open(tmp_path, name):
    one_image(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"image_file_name,patient_id,split\n{name},P1,train\n")
    with pytest.raises(StedmError, match="leaves the dataset folder"):
        DatasetFolder.open(tmp_path)


def test_links_that_leave_the_folder_are_not_followed(tmp_path):
    write_png(tmp_path / "outside.png", np.zeros((2, 2, 3), np.uint8))
    root = tmp_path / "data"
    dataset = one_image(root, "link.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(StedmError, match="link that leaves the dataset folder"):
        dataset.read_image(0)


def test_open_names_the_first_problem_and_counts_the_others(tmp_path):
    one_image(tmp_path)
    (tmp_path / "metadata.csv").write_text("image_file_name,patient_id,split\na.png,P1,training\nb.png,,train\n")
    with pytest.raises(StedmError, match=r"row 2 has no patient_id; fill it \(and 1 more: run `stedm check"):
        DatasetFolder.open(tmp_path)


def test_write_metadata_refuses_what_open_would_refuse(tmp_path):
    table = pd.DataFrame({"image_file_name": ["a", "b"], "patient_id": ["P1", "P1"], "split": ["train", "test"]})
    with pytest.raises(StedmError, match="patient P1 is in several splits"):
        write_metadata(tmp_path, INFO, table)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_every_row_is_not_a_page_of_lines(tmp_path):
    patients = [f"P{i // 2}" for i in range(60)]
    table = pd.DataFrame(
        {"image_file_name": map(str, range(60)), "patient_id": patients, "split": ["train", "test"] * 30}
    )
    with pytest.raises(StedmError) as error:
        write_metadata(tmp_path, INFO, table)
    assert len(str(error.value).splitlines()) == 11
    assert str(error.value).endswith("... and 20 more problems")


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros(3, np.uint8)])
def test_write_png_refuses_other_arrays(tmp_path, array):
    with pytest.raises(ValueError, match="expected uint8"):
        write_png(tmp_path / "a.png", array)


def cohort(categories: list[list[str]]) -> DatasetFolder:
    """A train patient with one annotated image of each listed category, for each list."""
    rows = [
        {"patient_id": f"P{number:02}", "category": category, "split": "train", "mask_file_name": "m.png"}
        for number, some in enumerate(categories)
        for category in some
    ]
    rows.append({"patient_id": "Q", "category": "z", "split": "unlabeled", "mask_file_name": "m.png"})
    rows.append({"patient_id": "bare", "category": "y", "split": "train", "mask_file_name": ""})
    table = pd.DataFrame(rows).assign(image_file_name=[f"{number:02}.png" for number in range(len(rows))])
    return DatasetFolder(None, INFO, table)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(0, 2**31))
def test_annotated_patients_are_nested_balanced_and_repeatable(categories, draw):
    dataset = cohort([[category] for category in categories])
    everyone = choose_annotated(dataset, None, draw)
    assert sorted(everyone) == [f"P{number:02}" for number in range(len(categories))]
    # The order of rows in the table is no part of the draw.
    assert everyone == choose_annotated(dataset.select(np.arange(len(dataset))[::-1]), None, draw)
    available = {name: categories.count(name) for name in categories}
    for n in range(1, len(categories) + 1):
        chosen = choose_annotated(dataset, n, draw)
        assert chosen == everyone[:n]
        counts = {name: sum(categories[int(patient[1:])] == name for patient in chosen) for name in available}
        not_exhausted = [counts[name] for name in available if counts[name] < available[name]]
        assert not not_exhausted or max(counts.values()) <= min(not_exhausted) + 1


def test_annotated_patients_differ_between_draws():
    dataset = cohort([["a"], ["a"], ["a"], ["b"], ["b"], ["b"]])
    assert len({tuple(choose_annotated(dataset, 2, draw)) for draw in range(30)}) > 5


def test_patient_counts_under_its_most_frequent_category():
    dataset = cohort([["a", "b", "b"], ["b"], ["a"], ["b", "a"]])
    # P00 and P01 are b; P02 is a; P03 is even and goes to a.
    for draw in range(10):
        assert len(set(choose_annotated(dataset, 2, draw)) & {"P00", "P01"}) == 1


@pytest.mark.parametrize("n_patients", [0, 3])
def test_impossible_budgets_are_refused(n_patients):
    with pytest.raises(StedmError, match="split train has 2"):
        choose_annotated(cohort([["a"], ["b"]]), n_patients, 0)


def test_no_annotated_patient_at_all():
    dataset = cohort([["a"]])
    assert choose_annotated(dataset.select(dataset.table["mask_file_name"] == ""), None, 0) == []


# The library leaves metadata.csv open; the collection at the end lets the warning come while it is filtered.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_hugging_face_reads_the_folder(tiny_dataset, hugging_face):
    root = tiny_dataset(images=1)
    dataset = DatasetFolder.open(root)
    table = dataset.table.copy()
    table.loc[table["split"] == "unlabeled", "mask_file_name"] = ""
    write_metadata(root, dataset.info, table)
    loaded = hugging_face(root)
    assert {"image", "mask", "patient_id", "split", "category"} <= set(loaded.column_names)
    rows = {row["patient_id"]: row for row in loaded}
    assert len(rows) == 9
    np.testing.assert_array_equal(np.asarray(rows["trainP0"]["image"]), dataset.read_image(0))
    np.testing.assert_array_equal(np.asarray(rows["trainP0"]["mask"]), dataset.read_mask(0))
    assert rows["unlabeledP0"]["mask"] is None


@pytest.mark.parametrize(
    "name", ["train_1", "test", "images of val", "a-dev.b", "x/eval/y", "training 3", "xtest", "xxval-1"]
)
def test_names_that_hugging_face_takes_for_splits(name):
    """What ours makes of them is none, and other names stay other names."""
    made = without_split_words(name)
    assert not has_split_word(made)
    assert has_split_word(name) or name.startswith("x")
    assert without_split_words(made) != made
    assert without_split_words("trainP0-0/contest_1") == "trainP0-0/contest_1"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", ["train_1", "my test", "A-val.2", "trainP0", "latest_1", "dev", "evaluation 7"])
def test_check_says_which_names_hugging_face_takes_for_splits(tiny_dataset, hugging_face, name):
    root = tiny_dataset(images=1)
    path = root / "metadata.csv"
    path.write_text(path.read_text().replace("images/testP1-0", f"images/{name}"))
    (root / "images" / "testP1-0.png").rename(root / "images" / f"{name}.png")
    notes = examine(root).notes
    loaded = hugging_face(root) if name in ("trainP0", "latest_1") else None
    assert bool(notes) == (loaded is None)
    assert loaded is None or "patient_id" in loaded.column_names
    assert not notes or f"images/{name}.png" in notes[0]


def test_columns_that_name_images_elsewhere_have_other_names_in_the_file(tiny_dataset):
    root = tiny_dataset(images=1)
    dataset = DatasetFolder.open(root)
    columns = {"layout_image_file_name": "001", "source_image_file_name": "images/a.png"}
    write_metadata(root, dataset.info, dataset.table.assign(**columns))
    assert {"layout_of", "source_of"} <= set(pd.read_csv(root / "metadata.csv").columns)
    read = DatasetFolder.open(root).table
    assert read[list(columns)].iloc[0].to_dict() == columns
    # As they were written before.
    read.to_csv(root / "metadata.csv", index=False)
    pd.testing.assert_frame_equal(DatasetFolder.open(root).table, read)


def test_train_patients_of_unseen_categories_count_as_unlabeled(tiny_dataset):
    root = tiny_dataset(patients={"train": 4, "unlabeled": 1, "val": 2, "test": 2})
    plain, dataset = DatasetFolder.open(root), DatasetFolder.open(root, unseen_categories=["b"])
    assert dataset.patients("train") == ["trainP0", "trainP2"]
    assert dataset.patients("unlabeled") == ["trainP1", "trainP3", "unlabeledP0"]
    assert dataset.patients("test") == plain.patients("test")
    assert dataset.fingerprint != plain.fingerprint
    part = dataset.split("unlabeled").select([0])
    assert (part.table["patient_id"].iloc[0], part.unseen_categories) == ("trainP1", ("b",))
    with pytest.raises(StedmError, match="unlabeled image"):
        part.read_mask(0)
    DatasetFolder.open(root, unseen_categories=["b"], allow_unlabeled_masks=True).split("unlabeled").read_mask(0)
    with pytest.raises(StedmError, match=r"no image of category roses; correct data\.unseen_categories"):
        DatasetFolder.open(root, unseen_categories=["b", "roses"])


def test_a_patient_with_one_image_of_an_unseen_category_is_held_back_whole():
    dataset = cohort([["a"], ["a", "b", "a"], ["a"]])
    held_back = hold_back(dataset.table, ["b"])
    splits = held_back.groupby("patient_id")["split"].unique().map(list).to_dict()
    assert [splits[patient] for patient in ("P00", "P01", "P02")] == [["train"], ["unlabeled"], ["train"]]


@pytest.mark.parametrize("draw", range(3))
def test_annotated_images_per_category_are_nested_and_repeatable(draw):
    dataset = cohort([["a"]] * 7 + [["b"]] * 5 + [["a", "b"]])
    chosen = [set(choose_annotated_images(dataset, k, draw).tolist()) for k in (1, 3, 5)]
    assert chosen[0] < chosen[1] < chosen[2]
    for k, rows in zip((1, 3, 5), chosen, strict=True):
        assert dataset.table["category"].iloc[sorted(rows)].value_counts().to_dict() == {"a": k, "b": k}
    shuffled = dataset.select(np.random.default_rng(0).permutation(len(dataset)))
    again = shuffled.table["image_file_name"].iloc[choose_annotated_images(shuffled, 3, draw)]
    assert set(again) == set(dataset.table["image_file_name"].iloc[sorted(chosen[1])])
    with pytest.raises(StedmError, match=r"7 annotated images a category asked for, 'b' has 6"):
        choose_annotated_images(dataset, 7, draw)


def test_annotated_images_differ_between_draws():
    dataset = cohort([["a"]] * 20)
    assert len({tuple(choose_annotated_images(dataset, 3, draw)) for draw in range(10)}) > 5


def _with_columns(root, **columns):
    """Two images of 64 x 64 px."""
    names = ["a.png", "b.png"]
    for name in names:
        write_png(root / name, np.zeros((64, 64, 3), np.uint8))
    table = pd.DataFrame({"image_file_name": names, "patient_id": "P1", "split": "train", **columns})
    write_metadata(root, INFO, table)
    return DatasetFolder.open(root)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"mpp": 2.0}, 4.0),  # 64 px shown as 32
        ({"mpp": [2.0, 4.0], "tile_px": [64, 32]}, 4.0),
        ({"mpp": [0.25, 0.2527]}, 0.5027),
        ({"mpp": [2.0, 1.0]}, None),
        ({"mpp": [2.0, ""]}, None),
        ({"mpp": ["?", "x"]}, None),
        ({"mpp": 0.0}, None),
        ({"mpp": 2.0, "tile_px": [64, ""]}, None),
        ({}, None),
    ],
)
def test_resolution_that_all_images_have_in_common(tmp_path, columns, expected):
    assert _with_columns(tmp_path, **columns).common_mpp(32) == pytest.approx(expected)


def test_a_folder_is_a_dataset_whose_samples_keep_unlabeled_masks_closed(tiny_dataset):
    root = tiny_dataset()
    for path in (root / "masks").glob("unlabeled*"):
        path.write_bytes(b"never to be read")
    dataset = DatasetFolder.open(root)
    samples = list(dataset)
    assert len(samples) == len(dataset) == 27
    for row, sample in enumerate(samples):
        assert sample["patient_id"] == dataset.table["patient_id"][row]
        assert {key: sample[key] for key in ("split", "category", "slide_id", "image_file_name")} == {
            key: dataset.table[key][row] for key in ("split", "category", "slide_id", "image_file_name")
        }
        assert np.array_equal(sample["image"], dataset.read_image(row))
        if sample["split"] == "unlabeled":
            assert sample["mask"] is None
        else:
            assert np.array_equal(sample["mask"], dataset.read_mask(row))
    assert np.array_equal(dataset[-1]["image"], samples[-1]["image"])
    with pytest.raises(IndexError):
        dataset[27]


def test_a_row_without_a_mask_and_masks_that_were_opened(tiny_dataset):
    root = tiny_dataset()
    bare = DatasetFolder(root, INFO, DatasetFolder.open(root).table.assign(mask_file_name=""))
    assert bare[0]["mask"] is None
    opened = DatasetFolder.open(root, allow_unlabeled_masks=True).split("unlabeled")
    assert opened[0]["mask"].shape == (32, 32)


def test_annotated_rows_are_those_a_network_may_learn_from(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset(), allow_unlabeled_masks=True)
    table = dataset.table.copy()
    table.loc[table["patient_id"] == "trainP0", "mask_file_name"] = ""
    found = DatasetFolder(dataset.root, dataset.info, table, allow_unlabeled_masks=True).annotated
    assert set(found.table["patient_id"]) == {"trainP1"}
    assert len(found) == 3


def test_torch_loads_a_folder_one_by_one_and_in_batches(tiny_dataset):
    import torch
    from torch.utils.data import DataLoader

    dataset = DatasetFolder.open(tiny_dataset())
    masks = [sample["mask"] for sample in DataLoader(dataset, batch_size=None)]
    assert sum(mask is None for mask in masks) == len(dataset.split("unlabeled"))
    batches = list(DataLoader(dataset.annotated, batch_size=4, shuffle=True))
    assert [len(batch["image"]) for batch in batches] == [4, 2]
    assert batches[0]["image"].shape == (4, 32, 32, 3)
    assert batches[0]["mask"].dtype == torch.uint8
    assert sorted(name for batch in batches for name in batch["image_file_name"]) == sorted(
        dataset.annotated.table["image_file_name"]
    )
