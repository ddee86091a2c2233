"""A diffusion configuration so small that a step takes milliseconds, and the datasets it trains on."""

import pytest

from stedm.config import DenoiserConfig, DiffusionConfig, StyleConfig
from stedm.data.folder import DatasetFolder


def small_diffusion(**changes) -> DiffusionConfig:
    values = {
        "denoiser": DenoiserConfig(channels=[16, 24], norm_groups=8, layout_channels=4),
        "style": StyleConfig(dim=16, channels=[8, 12], n_pictures=2),
        "steps": 4,
        "batch": 4,
        "warmup_steps": 0,
        "checkpoint_every_steps": 2,
        "precision": "fp32",
    }
    return DiffusionConfig(**{**values, **changes})


@pytest.fixture
def diffusion_config():
    """Function: the small configuration with changes."""
    return small_diffusion


@pytest.fixture
def cohort(tiny_dataset):
    """(annotated, unlabeled) parts of a tiny dataset with 16 px pictures."""
    dataset = DatasetFolder.open(tiny_dataset(picture_px=16))
    return dataset.split("train"), dataset.split("unlabeled")
