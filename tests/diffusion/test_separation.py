"""The point of the method: the layout decides where things are, the style how they look, and neither does the other.

A brief real training on blobs (half of the area, darker by the same step everywhere) in the patient's hue. Then
images are asked for whose layouts nobody has seen, in the hues of patients nobody annotated.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from stedm.config import DenoiserConfig, DiffusionConfig, MachineConfig, RecolourConfig, StyleConfig
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.diffusion.train import train_diffusion
from stedm.seeds import numpy_generator

PX, N_HUES, N = 16, 9, 24
UNANNOTATED_HUES = (1, 4, 7)


def _layout(*ids: str | int) -> np.ndarray:
    smooth = gaussian_filter(numpy_generator(0, "layout", *ids).standard_normal((PX, PX)), 3, mode="wrap")
    return (smooth > np.median(smooth)).astype(np.uint8)


def _colour(hue: int) -> np.ndarray:
    """RGB of zero sum, so that neither class nor brightness tells it."""
    return 40 * np.cos(2 * np.pi * (hue / N_HUES - np.arange(3) / 3))


def _paint(layout: np.ndarray, hue: int, *ids: str | int) -> np.ndarray:
    noise = numpy_generator(0, "noise", *ids).normal(0, 4, (PX, PX, 3))
    return np.clip(128 + _colour(hue) + np.where(layout[..., None] == 1, -35, 35) + noise, 0, 255).astype(np.uint8)


def _cohort(root: Path, n_patients: int, n_images: int) -> DatasetFolder:
    rows = []
    for patient in range(n_patients):
        hue = patient % N_HUES
        for i in range(n_images):
            name, layout = f"p{patient}_{i}.png", _layout(patient, i)
            write_png(root / "images" / name, _paint(layout, hue, patient, i))
            write_png(root / "masks" / name, layout)
            split = "unlabeled" if hue in UNANNOTATED_HUES else "train"
            files = {"image_file_name": f"images/{name}", "mask_file_name": f"masks/{name}"}
            rows.append({**files, "patient_id": f"p{patient}", "split": split})
    write_metadata(root, DatasetInfo("hues", ["light", "dark"]), pd.DataFrame(rows))
    return DatasetFolder.open(root)


def _train(root: Path, sampling: str, n_patients: int, n_images: int):
    dataset = _cohort(root / "data", n_patients, n_images)
    machine = MachineConfig(precision="fp32")
    config = DiffusionConfig(
        denoiser=DenoiserConfig(channels=[16, 32], norm_groups=8, layout_channels=4),
        style=StyleConfig(dim=32, n_images=2, sampling=sampling),
        unlabeled_fraction=0.3,
        steps=200,
        batch=16,
        lr=5e-3,
        ema_decay=0.98,
        time_shift=1.0,
    )
    return train_diffusion(
        config,
        dataset.split("train"),
        dataset.split("unlabeled"),
        root / "run",
        image_px=PX,
        machine=machine,
        recolour=RecolourConfig(probability=0),
    )


def _agreement(images: np.ndarray, layouts: np.ndarray) -> float:
    """Part of the pixels whose class, read from the brightness, is the layout's; 0.5 = chance."""
    grey = images.astype(float).mean(axis=3)
    return float(((grey < np.median(grey, axis=(1, 2), keepdims=True)) == layouts).mean())


def _hue_accuracy(images: np.ndarray, hues: np.ndarray) -> float:
    """Part of the images whose mean colour is nearest to that of the hue."""
    mean = images.astype(float).mean(axis=(1, 2))
    colour = mean - mean.mean(axis=1, keepdims=True)
    candidates = np.stack([_colour(hue) for hue in range(N_HUES)])
    nearest = np.linalg.norm(colour[:, None] - candidates, axis=2).argmin(axis=1)
    return float((nearest == hues).mean())


@pytest.mark.parametrize(("sampling", "n_patients", "n_images"), [("cohort", N_HUES, 8), ("augmented", 72, 1)])
def test_layout_and_style_are_separate(tmp_path, sampling, n_patients, n_images):
    model = _train(tmp_path, sampling, n_patients, n_images)
    layouts = np.stack([_layout("asked", i) for i in range(N)])
    hues = np.array([UNANNOTATED_HUES[i % 3] for i in range(N)])
    styles = [[_paint(_layout("style", i), hues[i], "style", i)] for i in range(N)]
    other = np.roll(np.arange(N), 1)

    def draw(layouts: np.ndarray, styles: list[list[np.ndarray]]) -> np.ndarray:
        return model.generate(layouts, styles, guidance=1.5, steps=8, seed=list(range(N)))

    as_asked = draw(layouts, styles)
    assert _agreement(as_asked, layouts) > 0.75
    assert _hue_accuracy(as_asked, hues) > 0.7

    shuffled_layouts = draw(layouts[other], styles)
    assert _agreement(shuffled_layouts, layouts[other]) > 0.75
    assert _agreement(shuffled_layouts, layouts) < 0.6
    assert _hue_accuracy(shuffled_layouts, hues) > 0.7

    shuffled_styles = draw(layouts, [styles[i] for i in other])
    assert _agreement(shuffled_styles, layouts) > 0.75
    assert _hue_accuracy(shuffled_styles, hues[other]) > 0.7
    assert _hue_accuracy(shuffled_styles, hues) < 0.2
