"""A whole run on images that are not square: trained, painted and scored in squares of the right aspect."""

import numpy as np
import pandas as pd
import pytest

import stedm
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata
from stedm.io.images import write_png
from stedm.segmentation.model import load_segmenter

SMALL = {
    "data.image_px": 16,
    "diffusion.steps": 2,
    "diffusion.batch": 2,
    "diffusion.denoiser.channels": [16, 16],
    "diffusion.denoiser.norm_groups": 8,
    "diffusion.style.dim": 16,
    "rounds.voters": 1,
    "rounds.fine_tune.steps": 2,
    "synthesis.n_images": 4,
    "synthesis.sampling.steps": 2,
    "segmentation.encoder": "tu-test_resnet",
    "segmentation.encoder_depth": 3,
    "segmentation.decoder_channels": [16, 8, 8],
    "segmentation.steps": 2,
    "segmentation.batch": 2,
    "segmentation.seeds": [0],
    "segmentation.arms": ["real", "self-training", "real+stain+synthetic", "upper"],
}


@pytest.fixture
def oblong(tmp_path):
    """GlaS-like: 48 x 32 px, a few of 32 x 32; half of each is tissue, at the right end."""
    rows = []
    for split, patients in {
        "train": ("A0", "A1"),
        "unlabeled": ("U0", "U1"),
        "val": ("V0",),
        "test": ("T0", "T1"),
    }.items():
        for patient in patients:
            for image in range(2):
                generator, width = np.random.default_rng(len(rows)), 32 if (patient, image) == ("T1", 1) else 48
                mask = np.zeros((32, width), np.uint8)
                mask[:, width // 2 :] = 1
                pixels = np.where(mask[..., None], (120, 60, 140), (220, 200, 215)) + generator.normal(
                    0, 6, (32, width, 3)
                )
                name = f"{patient}-{image}.png"
                write_png(tmp_path / "data" / "images" / name, pixels.clip(0, 255).astype(np.uint8))
                write_png(tmp_path / "data" / "masks" / name, mask)
                files = {"image_file_name": f"images/{name}", "mask_file_name": f"masks/{name}"}
                rows.append({**files, "patient_id": patient, "split": split, "mpp": 0.5})
    write_metadata(tmp_path / "data", DatasetInfo("oblong", ["glass", "gland"]), pd.DataFrame(rows))
    return tmp_path / "data"


def test_a_run_on_oblong_images(oblong, tmp_path, capsys):
    stedm.run(oblong, tmp_path / "run", overrides=SMALL)
    said = capsys.readouterr().err
    assert "images of 2 sizes, 32 x 32 to 48 x 32 px: reduced 2 times, cut into 1 to 2 squares" in said
    plan = pd.read_parquet(tmp_path / "run" / "plan.parquet")
    assert plan["layout_image_file_name"].str.contains("#[12]of2").any()
    synthetic = DatasetFolder.open(tmp_path / "run" / "synthetic")
    assert synthetic.read_mask(0).shape == (16, 16)
    counts = pd.read_parquet(tmp_path / "run" / "segmenters" / "real" / "seed-0" / "counts-test.parquet")
    of_class = counts[counts["class"] == "gland"].set_index("patient_id")
    pixels = of_class[["tp", "fp", "fn", "tn"]].sum(axis=1)
    assert pixels.to_dict() == {"T0": 2 * 24 * 16, "T1": (24 + 16) * 16}  # every pixel once
    assert of_class["n_pictures"].to_dict() == {"T0": 2, "T1": 2}
    assert (of_class[["tp", "fn"]].sum(axis=1) == pixels / 2).all()
    _, info = load_segmenter(tmp_path / "run" / "segmenters" / "real" / "seed-0" / "model")
    assert (info.mpp, info.source_px) == (1.0, [32, 32])
