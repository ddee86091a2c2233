"""The style bank: embedded once, read back equal, refused for another model; neighbours, interpolation."""

import numpy as np
import pandas as pd
import pytest
import torch

from stedm import StyleBank, StyleDiffusion
from stedm.config import DenoiserConfig, DiffusionConfig, StyleConfig
from stedm.data.folder import DatasetFolder
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError


def _model(seed: int = 0, **style) -> StyleDiffusion:
    config = DiffusionConfig(
        denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8),
        style=StyleConfig(**{"dim": 16, "n_images": 2, **style}),
    )
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=seed, image_px=16)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)
    model.precision = "fp32"
    return model


@pytest.fixture
def model():
    return _model()


@pytest.fixture
def cohort(tiny_dataset):
    """The unannotated patients, each in colours of its own; their masks are not to be opened."""
    root = tiny_dataset(patients={"train": 2, "unlabeled": 6}, images=4, image_px=16)
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    return DatasetFolder.open(root).split("unlabeled")


@pytest.fixture
def bank(model, cohort):
    return StyleBank.embed(model, cohort)


def _images(cohort, patient):
    return [cohort.read_image(row, 16) for row in np.flatnonzero(cohort.table["patient_id"] == patient)]


def test_vectors_are_what_the_model_makes_of_the_images(model, cohort, bank):
    assert sorted(bank.table["image_file_name"]) == sorted(cohort.table["image_file_name"])
    assert bank.patients == cohort.patients()
    patient = bank.patients[2]
    images = _images(cohort, patient)
    whole, first = model.style_vectors([images, images[:1]]).numpy()
    np.testing.assert_allclose(bank.patient_vector(patient), whole, atol=1e-5)
    name = cohort.table.loc[cohort.table["patient_id"] == patient, "image_file_name"].iloc[0]
    row = bank.table["image_file_name"].tolist().index(name)
    np.testing.assert_allclose(bank.vectors[row], first, atol=1e-5)
    with pytest.raises(StedmError, match="no patient nobody"):
        bank.patient_vector("nobody")


@pytest.mark.parametrize("aggregation", ["linear", "set-vit", "attention", "max", "none"])
def test_every_aggregation_gives_a_vector_to_a_patient_with_more_images_than_in_training(cohort, aggregation):
    model = _model(aggregation=aggregation)
    bank = StyleBank.embed(model, cohort)
    images = _images(cohort, bank.patients[0])
    seen = images if model.largest_style_set is None else [images[0], images[-1]]
    expected = model.style_vectors([seen])[0].numpy()
    np.testing.assert_allclose(bank.patient_vector(bank.patients[0]), expected, atol=1e-5)


def test_the_encoder_sees_each_image_once(model, cohort, monkeypatch):
    seen = []
    forward = type(model.denoiser.style_encoder).forward
    monkeypatch.setattr(
        type(model.denoiser.style_encoder),
        "forward",
        lambda self, images: seen.append(len(images)) or forward(self, images),
    )
    StyleBank.embed(model, cohort)
    assert sum(seen) == len(cohort)


def test_saved_and_loaded_banks_are_equal_and_anyone_can_read_them(model, bank, tmp_path):
    bank.save(tmp_path / "bank.parquet")
    again = StyleBank.load(tmp_path / "bank.parquet", model)
    pd.testing.assert_frame_equal(again.table, bank.table)
    assert np.array_equal(again.vectors, bank.vectors)
    assert np.array_equal(again.patient_vectors, bank.patient_vectors)
    assert again.vectors.dtype == again.patient_vectors.dtype == np.float32
    assert again.patients == bank.patients
    table = pd.read_parquet(tmp_path / "bank.parquet")
    assert table.attrs["model_fingerprint"] == model.fingerprint
    assert (table["image_file_name"] == "").sum() == len(bank.patients)


def test_another_models_bank_and_other_files_are_refused(bank, cohort, tmp_path):
    bank.save(tmp_path / "bank.parquet")
    other = _model(seed=1)
    with pytest.raises(StedmError, match="embed again"):
        StyleBank.load(tmp_path / "bank.parquet", other)
    with pytest.raises(StedmError, match="embed again"):
        bank.nearest(_images(cohort, bank.patients[0]), model=other)
    with pytest.raises(StedmError, match="no such style bank"):
        StyleBank.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(StedmError, match="not a readable parquet"):
        StyleBank.load(tmp_path / "text.parquet")
    bank.table.to_parquet(tmp_path / "table.parquet")
    with pytest.raises(StedmError, match="not a style bank"):
        StyleBank.load(tmp_path / "table.parquet")


def test_nearest_finds_the_patient_whose_colours_they_are(model, cohort, bank):
    for patient in bank.patients:
        images = _images(cohort, patient)
        found = bank.nearest(images[:2], k=4, model=model)
        assert set(found["patient_id"]) == {patient}
        assert found["distance"].is_monotonic_increasing
        assert set(bank.nearest(bank.patient_vector(patient), k=3)["patient_id"]) == {patient}
    assert bank.nearest(torch.from_numpy(bank.vectors[5]), k=1)["distance"][0] == 0.0
    with pytest.raises(StedmError, match="give the model"):
        bank.nearest(images)
    with pytest.raises(StedmError, match="length 16, the query 3"):
        bank.nearest(np.zeros(3))


def test_the_farthest_pair_are_the_patients_whose_styles_differ_most(bank):
    first, second = bank.farthest_pair()
    vectors = bank.patient_vectors
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    found = distances[bank.patients.index(first), bank.patients.index(second)]
    assert found == pytest.approx(distances.max(), rel=1e-5)
    assert first != second


def test_an_interpolation_begins_and_ends_with_the_patients_and_passes_through_both_together(model, cohort, bank):
    a, b = bank.patients[0], bank.patients[3]
    vectors = bank.interpolate(a, b, 5)
    assert vectors.shape == (5, 16)
    assert np.array_equal(vectors[0], bank.patient_vector(a))
    assert np.array_equal(vectors[-1], bank.patient_vector(b))
    together = model.style_vectors([_images(cohort, a) + _images(cohort, b)])[0].numpy()
    np.testing.assert_allclose(vectors[2], together, atol=1e-5)
    layouts = np.zeros((5, 16, 16), np.uint8)
    drawn = model.generate(layouts, style_vectors=vectors, steps=2, seed=[0] * 5)
    ends = model.generate(layouts[:2], [_images(cohort, a), _images(cohort, b)], steps=2, seed=[0, 0])
    assert np.abs(drawn[[0, -1]].astype(int) - ends).max() <= 1
    with pytest.raises(StedmError, match="two ends"):
        bank.interpolate(a, b, 1)
