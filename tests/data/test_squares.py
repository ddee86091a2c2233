"""Images of any shape are learned from and scored in squares, in their own aspect; square ones as ever."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata
from stedm.data.pieces import corner, n_squares, own_part, parsed, piece_name
from stedm.data.positions import SlidePositions
from stedm.data.squares import files_of, in_squares, shorter_sides, squares_text, with_squares, without_others_part
from stedm.evaluation import scoring
from stedm.io.images import write_png
from stedm.segmentation.model import SegmenterInfo
from stedm.style.sampling import StyleSampler


@pytest.mark.parametrize(
    ("size", "n"),
    [
        ((64, 64), 1),
        ((775, 522), 2),
        ((522, 775), 2),
        ((256, 255), 1),
        ((101, 100), 1),
        ((110, 100), 2),
        ((200, 100), 2),
        ((201, 100), 2),
        ((300, 100), 3),
        ((100, 301), 3),
        ((1000, 10), 100),
    ],
)
def test_the_fewest_squares_cover_the_image_and_share_its_pixels_out(size, n):
    assert n_squares(size) == n
    side, seen, owned = min(size), np.zeros(size[::-1], int), np.zeros(size[::-1])
    for number in range(1, n + 1):
        left, top = corner(size, number, n)
        seen[top : top + side, left : left + side] += 1
        assert left + side <= size[0]
        assert top + side <= size[1]
        (first_row, last_row), (first_column, last_column) = own_part(size, number, n)
        rows = slice(top + round(first_row * side), top + round(last_row * side))
        owned[rows, left + round(first_column * side) : left + round(last_column * side)] += 1
    assert (seen > 0).mean() > 0.98
    assert (owned <= 1).all()
    assert (owned == 1).mean() > 0.98
    if n > 1 and max(size) <= n * side:
        assert (seen > 0).all()
        assert (owned == 1).all()


@pytest.fixture
def oblong(tmp_path):
    """Four images of 48 x 32 px and one of 32 x 32; a disc in each, on a slide with known positions."""
    rows, (y, x) = [], np.mgrid[:32, :48]
    for number, patient in enumerate(("A", "A", "B", "C")):
        width = 48 if number != 1 else 32
        mask = ((y - 16) ** 2 + (x - 30) ** 2 < 81).astype(np.uint8)[:, :width]
        image = np.where(mask[..., None], 60, 220).astype(np.uint8).repeat(3, axis=2)
        image[..., 0] = np.arange(width)  # says where a pixel is from
        write_png(tmp_path / "images" / f"{number}.png", image)
        write_png(tmp_path / "masks" / f"{number}.png", mask)
        rows.append(
            {
                "image_file_name": f"images/{number}.png",
                "mask_file_name": f"masks/{number}.png",
                "patient_id": patient,
                "slide_id": patient,
                "split": {"A": "train", "B": "unlabeled", "C": "test"}[patient],
                "x": 1000 * number,
                "y": 0,
                "mpp": 1.0,
                "slide_mpp": 0.5,
            }
        )
    write_metadata(tmp_path, DatasetInfo("oblong", ["glass", "disc"]), pd.DataFrame(rows))
    return DatasetFolder.open(tmp_path)


def test_squares_are_rows_of_their_own(oblong):
    cut = in_squares(oblong.split("train"))
    names = ["images/0.png#1of2", "images/0.png#2of2", "images/1.png"]
    assert cut.table["image_file_name"].tolist() == names
    assert files_of(cut).tolist() == ["images/0.png", "images/0.png", "images/1.png"]
    assert cut.size == "1 patients (2 images)"
    whole = oblong.read_image(0)
    assert whole.shape == (32, 48, 3)
    for row, left in ((0, 0), (1, 16)):
        assert np.array_equal(cut.read_image(row), whole[:, left : left + 32])
        assert np.array_equal(cut.read_mask(row), oblong.read_mask(0)[:, left : left + 32])
        small = cut.read_image(row, 16)
        assert np.abs(small[:, :, 0].mean(axis=0) - (left + 2 * np.arange(16) + 0.5)).max() <= 0.5
        assert cut.read_mask(row, 16).shape == (16, 16)
    assert [cut.image_size(row) for row in range(3)] == [(32, 32)] * 3
    assert cut.table["x"].tolist() == [0, 32, 1000]  # level 0 has two pixels for one of the image
    assert cut.common_mpp(16) == 2.0
    assert shorter_sides(cut) == [32, 32]


def test_an_oblong_image_that_nobody_cut_gives_its_middle_rather_than_another_aspect(oblong):
    assert np.array_equal(oblong.read_image(0, 32), oblong.read_image(0)[:, 8:40])
    assert np.array_equal(oblong.read_mask(0, 32), oblong.read_mask(0)[:, 8:40])


def test_square_images_are_as_they_were(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    assert in_squares(dataset) is dataset
    assert with_squares(dataset, dataset.table["image_file_name"]) is dataset
    with Image.open(dataset.root / dataset.table["image_file_name"][0]) as stored:
        expected = stored.resize((16, 16), Image.Resampling.BOX)
    assert np.array_equal(dataset.read_image(0, 16), np.array(expected))


def test_a_plan_addresses_squares_by_their_names(oblong):
    assert parsed(piece_name("a/b.png", 2, 3)) == ("a/b.png", 2, 3)
    assert parsed("a/b.png") == ("a/b.png", 0, 1)
    found = with_squares(oblong, ["images/2.png#2of2", "images/0.png", "images/9.png#1of2", "images/2.png#2of2"])
    assert found.table["image_file_name"].tolist()[len(oblong) :] == ["images/2.png#2of2"]
    assert np.array_equal(found.read_image(len(oblong)), oblong.read_image(2)[:, 16:])


def test_the_style_of_a_square_is_of_other_images(oblong):
    cut = in_squares(oblong.split("train"))
    for dataset in (cut, DatasetFolder(cut.root, cut.info, cut.table.drop(columns=["x", "y"]))):
        sampler = StyleSampler(ImageCache(dataset, 16), "cohort", 2)
        assert sampler.others_of_patient(0).tolist() == [2]
        assert sampler.others_of_slide(2).tolist() == [0, 1]
    assert SlidePositions(cut).overlapping(0, np.array([1])).tolist() == [True]


def test_scores_count_every_pixel_once(oblong, monkeypatch):
    info = SegmenterInfo(architecture="x", classes=["glass", "disc"], image_px=32)
    monkeypatch.setattr(scoring, "load_segmenter", lambda folder, machine: (None, info))
    monkeypatch.setattr(scoring, "predict_masks", lambda network, images: (images[..., 1] < 128).astype(np.uint8))
    cut = in_squares(oblong.split("test"))
    counts = scoring.count_dataset(oblong.root, ImageCache(cut, 32), arm="real", seed=0)
    disc = counts[counts["class"] == "disc"].iloc[0]
    truth = oblong.read_mask(3)
    assert (disc["tp"], disc["fp"], disc["fn"], disc["tn"]) == (truth.sum(), 0, 0, truth.size - truth.sum())
    assert disc["n_pictures"] == 1
    assert (without_others_part(cut, 0, np.zeros((32, 32), np.uint8))[0] == 255).tolist() == [False] * 24 + [True] * 8


def test_what_happens_to_the_images_in_a_line(oblong, tiny_dataset):
    square = DatasetFolder.open(tiny_dataset())
    assert squares_text([square], 16) == "images of 32 x 32 px: reduced 2 times"
    assert squares_text([square], 32) == "images of 32 x 32 px: as they are"
    assert squares_text([square], 64) == "images of 32 x 32 px: enlarged 2 times"
    parts = [in_squares(oblong.split("unlabeled")), in_squares(oblong.split("test"))]
    assert squares_text(parts, 16) == "images of 48 x 32 px: reduced 2 times, cut into 2 squares"
    both = squares_text([*parts, in_squares(oblong.split("train"))], 16)
    assert both == "images of 2 sizes, 32 x 32 to 48 x 32 px: reduced 2 times, cut into 1 to 2 squares"
