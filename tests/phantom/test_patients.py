"""The phantom: what its patients' parameters promise is what its images show."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from stedm.config import PhantomConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.phantom import patients as phantom
from stedm.phantom import render
from stedm.phantom.cohort import make_phantom
from stedm.phantom.patients import draw_layout, draw_patient
from stedm.phantom.render import render_patient_image

SMALL = {"train": 2, "unlabeled": 3, "val": 0, "test": 4}


def generator(*ids: int) -> np.random.Generator:
    return np.random.default_rng(ids)


def patient_of(category: str, seed: int = 0, stain: str = "her2") -> phantom.Patient:
    return draw_patient(PhantomConfig(stain=stain), category, generator(seed))


def without_camera(patient: phantom.Patient) -> phantom.Patient:
    """The same tissue through perfect optics, so that densities can be read back from the image."""
    return replace(patient, noise=0.0, blur_um=0.01)


def densities(patient: phantom.Patient, image: np.ndarray) -> np.ndarray:
    """Invert Beer-Lambert with the patient's own stain vectors: (H, W, 2) haematoxylin and second stain."""
    od = -np.log10(np.maximum(image, 1) / (255 * np.asarray(patient.white)))
    return od @ np.linalg.pinv(np.asarray(patient.stain_vectors))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    make_phantom(PhantomConfig(patients=SMALL, images_per_patient=3, train_categories=["3", "1"]), root)
    return root


def test_the_same_seed_gives_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    config = PhantomConfig(patients=SMALL, images_per_patient=3, train_categories=["3", "1"])
    make_phantom(config, tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(cohort)

    make_phantom(config.model_copy(update={"seed": 1}), tmp_path / "other")
    other, first = files_of(tmp_path / "other"), files_of(cohort)
    assert all(other[name] != first[name] for name in first if name.endswith(".png"))


def test_a_patient_does_not_depend_on_the_size_of_the_cohort(cohort: Path, tmp_path: Path) -> None:
    small = PhantomConfig(patients={"test": 1}, images_per_patient=1)
    make_phantom(small, tmp_path / "one")
    name = "images/T00_000.png"
    assert (tmp_path / "one" / name).read_bytes() == (cohort / name).read_bytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library
def test_hugging_face_reads_the_cohort(cohort: Path, hugging_face) -> None:
    assert set(hugging_face(cohort)["patient_id"]) == set(DatasetFolder.open(cohort).patients())


def test_table_truth_and_files_agree(cohort: Path) -> None:
    table = pd.read_csv(cohort / "metadata.csv", dtype={"category": str})
    truth = json.loads((cohort / "patients.json").read_text())["patients"]

    assert table.groupby("split").patient_id.nunique().to_dict() == {"train": 2, "unlabeled": 3, "test": 4}
    assert (table.groupby("patient_id").size() == 3).all()
    assert table.groupby("patient_id")[["split", "category"]].first().to_dict("index") == {
        p["patient_id"]: {"split": p["split"], "category": p["category"]} for p in truth
    }
    assert [p["category"] for p in truth if p["split"] == "train"] == ["3", "1"]
    assert [p["category"] for p in truth if p["split"] == "test"] == ["0", "1", "2", "3"]
    for row in table.itertuples():
        with Image.open(cohort / row.image_file_name) as image, Image.open(cohort / row.mask_file_name) as mask:
            assert (image.mode, mask.mode, image.size, mask.size) == ("RGB", "P", (64, 64), (64, 64))
            assert set(np.unique(np.asarray(mask))) == {0, 1}


def test_brown_inside_the_tumour_rises_with_the_score() -> None:
    inside = []
    for score in ("0", "1", "2", "3"):
        patient = without_camera(patient_of(score))
        layout = draw_layout(patient, 96, 2.0, generator(1))
        dab = densities(patient, render_patient_image(patient, layout, 2.0, generator(2)))[..., 1]
        inside.append(dab[layout == 1].mean())
        assert abs(dab[layout == 0].mean()) < 0.06
    assert inside[0] < 0.06
    assert inside[1] > inside[0] + 0.05
    assert inside[2] > 1.5 * inside[1]
    assert inside[3] > 1.5 * inside[2]


@pytest.mark.parametrize("seed", range(3))
def test_tumour_nuclei_are_larger_rounder_and_closer_together(seed: int) -> None:
    patient = without_camera(patient_of("0", seed))
    measured = {}
    for value, name in enumerate(("stroma", "tumour")):
        layout = np.full((160, 160), value, np.uint8)
        blue = densities(patient, render_patient_image(patient, layout, 0.5, generator(seed, 3)))[..., 0]
        tissue = patient.tissues[name]
        nuclei, count = ndimage.label(blue > patient.concentrations[0] * tissue.nucleus_od / 2)
        measured[name] = count, (nuclei > 0).sum() / max(count, 1)
    assert measured["tumour"][0] > 1.2 * measured["stroma"][0]
    assert measured["tumour"][1] > 1.8 * measured["stroma"][1]
    assert patient.tissues["tumour"].elongation < 2 < patient.tissues["stroma"].elongation


def test_layouts_follow_the_fraction_and_scale_of_the_patient() -> None:
    for fraction in (0.2, 0.5, 0.7):
        patient = replace(patient_of("0"), tumour_fraction=fraction)
        shares = [(draw_layout(patient, 64, 2.0, generator(4, i)) == 1).mean() for i in range(40)]
        assert np.mean(shares) == pytest.approx(fraction, abs=0.05)
        assert min(shares) > 0.05
        assert np.std(shares) > 0.05

    def border(nest_um: float) -> float:
        patient = replace(patient_of("0"), nest_um=nest_um)
        return float(
            np.mean([np.abs(np.diff(draw_layout(patient, 64, 2.0, generator(5, i)))).mean() for i in range(8)])
        )

    assert border(20.0) > 1.5 * border(80.0)


def test_patients_differ_in_stain_and_optics() -> None:
    patients = [patient_of("2", seed) for seed in range(30)]
    assert np.ptp([p.concentrations[0] for p in patients]) > 0.5
    assert all(np.allclose(np.linalg.norm(p.stain_vectors, axis=1), 1.0) for p in patients)
    assert len({p.stain_vectors for p in patients}) == len({p.white for p in patients}) == 30


def test_more_blur_and_less_noise_show_in_the_image() -> None:
    patient = patient_of("0")
    layout = np.ones((64, 64), np.uint8)

    def roughness(**changes: float) -> float:
        image = render_patient_image(replace(patient, **changes), layout, 2.0, generator(6))
        return float(np.abs(np.diff(image.astype(float), axis=0)).mean())

    assert roughness(noise=0.0, blur_um=0.5) > 1.2 * roughness(noise=0.0, blur_um=2.5)
    assert roughness(noise=20.0) > 1.2 * roughness(noise=0.0)


def test_a_large_image_has_no_seams_between_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = replace(patient_of("3"), noise=0.0)
    layout = draw_layout(patient, (40, 112), 2.0, generator(7))
    whole = render_patient_image(patient, layout, 2.0, generator(8))
    monkeypatch.setattr(render, "_BLOCK_PX", 32)
    blocks = render_patient_image(patient, layout, 2.0, generator(8))

    assert whole.shape == blocks.shape == (40, 112, 3)
    # The grain is drawn per block; cells, fibres and stain must go on over the border.
    difference = np.abs(whole.astype(float) - blocks).mean(axis=(0, 2))
    assert difference.max() < 12
    assert difference[28:36].mean() < 1.5 * difference.mean()


def test_he_cohort_has_all_four_classes(tmp_path: Path) -> None:
    make_phantom(PhantomConfig(stain="he", patients={"train": 3, "test": 3}, images_per_patient=3), tmp_path / "he")
    table = pd.read_csv(tmp_path / "he" / "metadata.csv")
    masks = np.stack([np.asarray(Image.open(tmp_path / "he" / name)) for name in table.mask_file_name])
    assert (np.bincount(masks.ravel(), minlength=4) / masks.size > 0.03).all()
    assert masks.max() == 3
    assert sorted(set(table.category)) == ["grade1", "grade2", "grade3"]
    assert "inflammation" in (tmp_path / "he" / "dataset.yaml").read_text()


def test_he_classes_differ_in_nuclei_and_eosin() -> None:
    patient = without_camera(patient_of("grade2", stain="he"))
    blue, pink = {}, {}
    for value, name in enumerate(patient.tissues):
        layout = np.full((64, 64), value, np.uint8)
        stains = densities(patient, render_patient_image(patient, layout, 2.0, generator(9))).mean(axis=(0, 1))
        blue[name], pink[name] = stains
    assert blue["inflammation"] > blue["tumour"] > blue["stroma"]
    assert pink["necrosis"] > pink["tumour"] > pink["inflammation"]


def test_bad_requests_are_refused_with_one_line(tmp_path: Path, cohort: Path) -> None:
    with pytest.raises(StedmError, match="train_categories must be 4"):
        make_phantom(PhantomConfig(train_categories=["3", "1"]), tmp_path / "a")
    with pytest.raises(StedmError, match="train_categories must be 2"):
        make_phantom(PhantomConfig(patients=SMALL, train_categories=["3", "grade1"]), tmp_path / "a")
    with pytest.raises(StedmError, match="no patients"):
        make_phantom(PhantomConfig(patients={}), tmp_path / "a")
    with pytest.raises(StedmError, match="not empty"):
        make_phantom(PhantomConfig(), cohort)
    with pytest.raises(StedmError, match="class indices below 2"):
        render_patient_image(patient_of("0"), np.full((8, 8), 2, np.uint8), 2.0, generator(0))
    assert not (tmp_path / "a").exists()
