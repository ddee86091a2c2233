"""`stedm quality`: noise is called noise, copies are found, real images are neither."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from stedm.cli import main
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.errors import StedmError
from stedm.evaluation.assessment import Parts, assess
from stedm.evaluation.memorisation import nearest, rate
from stedm.evaluation.quality_files import FILE, PICTURE, measured, remembered
from stedm.evaluation.quality_text import quality_text
from stedm.seeds import numpy_generator

SPLITS = {"train": 3, "unlabeled": 4, "val": 3, "test": 4}
IMAGES, PX = 6, 32
INFO = DatasetInfo(name="cells", classes=["background", "cell"])


def tissue(patient: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark cells on bright stroma, both in the patient's hue, with a gradient: uint8 RGB (32, 32, 3) and mask."""
    generator, own = numpy_generator(0, patient, index), numpy_generator(0, patient)
    y, x = np.mgrid[:PX, :PX]
    mask = np.zeros((PX, PX), np.uint8)
    for _ in range(4):
        centre, radius = generator.uniform(0, PX, 2), generator.uniform(3, 6)
        mask[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = 1
    colours = np.array([[190, 160, 190], [90, 60, 100]]) + own.integers(-25, 25, (2, 3))
    slope = generator.normal(0, 0.6, 2)
    light = slope[0] * (y - PX / 2) + slope[1] * (x - PX / 2)
    image = colours[mask] + light[..., None] + generator.normal(0, 6, (PX, PX, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def written(root, rows: list[tuple[np.ndarray, np.ndarray | None, dict]]) -> DatasetFolder:
    """A dataset folder of images, masks and further columns."""
    table = []
    for number, (image, mask, columns) in enumerate(rows):
        names = {"image_file_name": f"images/{number}.png", "mask_file_name": f"masks/{number}.png"}
        write_png(root / names["image_file_name"], image)
        if mask is None:
            names["mask_file_name"] = ""
        else:
            write_png(root / names["mask_file_name"], mask)
        table.append({**names, "slide_id": "", "split": "train", "category": "a", **columns})
    write_metadata(root, INFO, pd.DataFrame(table))
    return DatasetFolder.open(root)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> DatasetFolder:
    rows = [
        (*tissue(f"{split}P{patient}", index), {"patient_id": f"{split}P{patient}", "split": split})
        for split, n in SPLITS.items()
        for patient in range(n)
        for index in range(IMAGES)
    ]
    return written(tmp_path_factory.mktemp("real"), rows)


@pytest.fixture
def against(real, tmp_path):
    """Function: the parts for a synthetic set of some rows."""

    def parts(rows, name: str = "synthetic") -> Parts:
        synthetic = written(tmp_path / name, rows)
        return Parts(synthetic, real.annotated, real.split("unlabeled"), real.split("val"))

    return parts


def new_images(n: int = 6, style: str = "unlabeledP{}") -> list:
    """Tissue that nobody has seen, of the unannotated patients: what a perfect model paints."""
    return [
        (*tissue(style.format(patient), 100 + index), {"patient_id": f"unlabeledP{patient}"})
        for index in range(n)
        for patient in range(SPLITS["unlabeled"])
    ]


class Dark(nn.Module):
    """A segmenter that knows that cells are dark; it stands for one that has learned from real images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = images.mean(dim=1)
        return torch.stack([light, -light], dim=1) * self.weight


def jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# ---- layouts ------------------------------------------------------------------------------------------------------


def noise_in_the_right_colours(rows: list) -> list:
    """Every image with its pixels in another order."""
    return [
        (numpy_generator(1, "noise", i).permutation(image.reshape(-1, 3)).reshape(image.shape), *rest)
        for i, (image, *rest) in enumerate(rows)
    ]


@pytest.mark.parametrize("network", [None, Dark()], ids=["without a segmenter", "with one"])
def test_noise_in_the_right_colours_is_called_noise_and_real_images_are_not(real, against, network):
    good, _ = assess(against(new_images(), "good"), PX, network)
    assert good["layout"]["verdict"] == "followed"
    assert good["warnings"] == []
    noise, _ = assess(against(noise_in_the_right_colours(new_images()), "noise"), PX, network)
    assert noise["layout"]["verdict"] == "ignored"
    assert "ignore their layouts" in noise["warnings"][0]
    assert "warning: The synthetic images ignore" in quality_text(noise)
    if network is not None:
        assert good["layout"]["synthetic"]["iou"] > 0.8 > 0.3 > noise["layout"]["synthetic"]["iou"]
        assert good["layout"]["real"]["images"] == "held_out"
        assert set(good["layout"]["per_patient"]) == {f"unlabeledP{i}" for i in range(4)}
        assert set(good["layout"]["synthetic"]["per_class"]) == {"cell"}
    # Annotated images with their own masks, as the issue asks.
    rows = [(real.annotated.read_image(i), real.annotated.read_mask(i), {"patient_id": "trainP0"}) for i in range(6)]
    copies, _ = assess(against(rows, "annotated"), PX, network)
    assert copies["layout"]["verdict"] == "followed"


def test_layouts_of_other_images_are_ignored(against):
    rows = new_images()
    masks = [mask for _, mask, _ in rows]
    swapped = [(image, masks[i - 5], columns) for i, (image, _, columns) in enumerate(rows)]
    assert assess(against(swapped), PX, Dark())[0]["layout"]["verdict"] == "ignored"


def test_a_segmenter_that_fails_on_a_style_does_not_make_noise_of_its_images(against):
    inverted = [(255 - image, mask, columns) for image, mask, columns in new_images()]
    layout = assess(against(inverted), PX, Dark())[0]["layout"]
    assert layout["share"] < 0.1
    assert layout["verdict"] == "weak"


def test_without_masks_nothing_is_said_of_layouts(against):
    result = assess(against([(image, None, columns) for image, _, columns in new_images()]), PX)[0]
    assert result["layout"]["verdict"] == "unknown"
    assert "unknown" in quality_text(result)


# ---- styles -------------------------------------------------------------------------------------------------------


def test_images_in_the_style_of_other_patients_do_not_lead_to_their_own(against):
    own = assess(against(new_images(), "own"), PX)[0]
    assert own["style"]["verdict"] == "followed"
    assert own["style"]["chance"] < own["style"]["mrr"] <= 1
    rows = new_images()
    moved = [(image, mask, {"patient_id": f"unlabeledP{(i + 1) % 4}"}) for i, (image, mask, _) in enumerate(rows)]
    other = assess(against(moved, "other"), PX)[0]
    assert other["style"]["verdict"] == "ignored"
    assert "don't look like the patients" in other["warnings"][0]
    assert own["stain_distance"]["value"] < 0.5 < other["stain_distance"]["value"]
    assert own["stain_distance"]["real"] < 0.5 < own["stain_distance"]["next_patient"]


def test_what_the_model_was_shown_does_not_count_for_its_patient(real, against):
    """Copies of the only style image that a patient has would retrieve it for nothing."""
    unannotated = real.split("unlabeled")
    table = unannotated.table
    rows = []
    for patient in unannotated.patients():
        own = table.index[table["patient_id"] == patient]
        shown = ";".join(table["image_file_name"][own])
        columns = {"patient_id": patient, "style_image_file_names": shown}
        rows += [(unannotated.read_image(int(row)), None, columns) for row in own[:2]]
    style = assess(against(rows), PX)[0]["style"]
    assert style["verdict"] == "unknown"
    assert style["n_patients"] == 0


# ---- copies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(real):
    """Copies of training images: turned, mirrored, with noise, as JPEG; annotated and unannotated ones."""
    known = real.annotated.followed_by(real.split("unlabeled"))
    names = known.table["image_file_name"].tolist()

    def image(row: int) -> np.ndarray:
        return known.read_image(row)

    noise = numpy_generator(2, "noise").normal(0, 5, (PX, PX, 3))
    made = {
        names[3]: image(3),
        names[8]: image(8)[:, ::-1],
        names[20]: np.clip(image(20) + noise, 0, 255).astype(np.uint8),
        names[25]: jpeg(image(25)),
        names[30]: jpeg(np.ascontiguousarray(np.rot90(image(30)))),
    }
    rows = [(np.ascontiguousarray(copy), tissue("x", i)[1]) for i, copy in enumerate(made.values())]
    return list(made), [(*row, {"patient_id": "unlabeledP0"}) for row in rows]


def test_planted_copies_are_found_and_nothing_else(against, planted):
    names, copies = planted
    clean, _ = assess(against(new_images(), "clean"), PX)
    assert clean["memorisation"]["verdict"] == "none found"
    assert clean["memorisation"]["spaces"]["pixels"]["copies"] == 0
    found, picture = assess(against(new_images() + copies), PX)
    pixels = found["memorisation"]["spaces"]["pixels"]
    assert found["memorisation"]["verdict"] == "copies"
    assert (pixels["copies"], pixels["n"]) == (5, 29)
    assert pixels["ci"][0] < pixels["rate"] == 5 / 29 < pixels["ci"][1]
    assert pixels["held_out"]["copies"] == 0
    assert {pair["training_image"] for pair in found["closest"][:5]} == set(names)
    assert [pair["of_limit"] < 1 for pair in found["closest"]] == [True] * 5 + [False] * 5
    assert {pair["image"] for pair in found["closest"][:5]} == {f"images/{i}.png" for i in range(24, 29)}
    assert "5 of 29 synthetic images are copies" in found["warnings"][0]
    assert picture.shape == (2 * (PX + 4), 10 * (PX + 4), 3)
    assert pixels["distance"]["synthetic"]["annotated"] > 0
    assert pixels["auth_pct"] < clean["memorisation"]["spaces"]["pixels"]["auth_pct"]
    # The other space sees the exact and the mirrored one, wherever the rest of the set lies.
    assert found["memorisation"]["spaces"]["texture"]["copies"] >= 2


def test_one_copy_in_a_set_is_enough(against, planted):
    found, _ = assess(against(new_images() + planted[1][1:2]), PX)
    assert found["memorisation"]["verdict"] == "copies"
    assert found["closest"][0]["image"] == "images/24.png"


def test_images_begun_at_a_real_one_are_counted_by_themselves(against, planted):
    begun = [(image, mask, {**columns, "start": 0.8}) for image, mask, columns in planted[1]]
    others = [(image, mask, {**columns, "start": 1.0}) for image, mask, columns in new_images()]
    copies = assess(against(others + begun), PX)[0]["memorisation"]
    assert copies["verdict"] == "none found"
    assert (copies["n_images"], copies["n_begun_at_real"]) == (24, 5)
    assert copies["spaces"]["pixels"]["begun_at_real_copies"] == 5


def test_closeness_is_the_distance_to_the_nearest_of_that_to_the_next():
    distances = np.array([[1.0, 2.0, 4.0, 6.0], [np.inf, 3.0, 3.0, 3.0]])
    found = nearest(distances, n_annotated=1)
    assert found.closeness.tolist() == [0.25, 1.0]
    assert (found.annotated[0], found.unannotated.tolist()) == (1.0, [2.0, 3.0])
    assert np.isnan(nearest(distances[:, :1], 1).closeness).all()


def test_rates_have_exact_intervals():
    assert rate(0, 10)["ci"] == [0.0, pytest.approx(0.3085, abs=1e-4)]  # 1 - 0.025 ** (1 / 10)
    assert rate(0, 0) == {"copies": 0, "n": 0, "rate": None, "ci": [None, None]}


# ---- files, verb --------------------------------------------------------------------------------------------------


def test_results_are_remembered_until_the_set_changes(against, tmp_path):
    parts, folder = against(new_images(3)), tmp_path / "out"
    quality = measured(parts, PX, None, folder)
    assert remembered(parts, PX, None, folder) == quality == json.loads((folder / FILE).read_text())["quality"]
    assert (folder / PICTURE).is_file()
    assert remembered(against(new_images(2), "other"), PX, None, folder) is None
    (folder / FILE).write_text((folder / FILE).read_text().replace("followed", "ignored!"))
    with pytest.raises(StedmError, match=rf"{FILE}: damaged"):
        remembered(parts, PX, None, folder)


def test_the_verb_measures_a_folder_against_a_dataset(real, against, tmp_path, capsys):
    synthetic = against(noise_in_the_right_colours(new_images(3))).synthetic.root
    with pytest.raises(SystemExit) as stop:
        main(["quality", str(synthetic), "--against", str(real.root), "-o", str(tmp_path / "out")])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "warning: The synthetic images ignore their layouts" in shown
    assert "copies of training images" in shown
    assert json.loads((tmp_path / "out" / FILE).read_text())["quality"]["layout"]["verdict"] == "ignored"


def test_sets_that_cannot_be_measured_are_one_line(real, against, tmp_path):
    parts = against(new_images(1))
    with pytest.raises(StedmError, match="and unlabeled are needed to measure against"):
        Parts(parts.synthetic, parts.annotated, parts.annotated.select([]), parts.held_out)
    other = DatasetFolder(parts.synthetic.root, DatasetInfo("x", ["background", "gland"]), parts.synthetic.table)
    with pytest.raises(StedmError, match="its classes are not those"):
        Parts(other, parts.annotated, parts.unannotated, parts.held_out)


def test_without_patients_of_val_real_images_are_those_left_out(against):
    parts = against(new_images(1))
    result, _ = assess(Parts(parts.synthetic, parts.annotated, parts.unannotated, parts.held_out.select([])), PX)
    assert result["n_looked_at"]["held_out"] == 0
    pixels = result["memorisation"]["spaces"]["pixels"]
    assert (pixels["held_out"]["n"], result["memorisation"]["verdict"]) == (0, "none found")
    assert pixels["left_out"]["n"] > 0


def test_large_sets_are_sampled(against, monkeypatch):
    for name in ("MOST_SYNTHETIC", "MOST_KNOWN", "MOST_LAYOUTS"):
        monkeypatch.setattr(f"stedm.evaluation.assessment.{name}", 10)
    result = assess(against(new_images()), PX)[0]
    assert result["n_images"] == 24
    assert result["n_looked_at"] == {"synthetic": 10, "annotated": 10, "unannotated": 10, "held_out": 10}
    assert result["layout"]["synthetic"]["n_images"] == 10
