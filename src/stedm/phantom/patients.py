"""The phantom: a procedural cohort of patients whose layouts and appearance are known exactly.

`her2` imitates HER2 immunohistochemistry (haematoxylin + DAB, 2 classes, category = score 0..3), `chromogen` the same
in the colours of two laboratories (category), `he` a haematoxylin and eosin stain (4 classes, category = grade). A
patient is a set of numbers (`Patient`), a layout is drawn at the patient's own scale and fractions, and an image is the
layout filled with cells under the Beer-Lambert law.
Everything is linear in the number of pixels, and a large image is rendered block by block without seams, so the same
functions make a 64 px image and a whole slide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stedm.config import PhantomConfig
from stedm.errors import StedmError
from stedm.layout.random_field import SmoothField

CLASSES = {
    "her2": ["stroma", "tumour"],
    "chromogen": ["stroma", "tumour"],
    "he": ["stroma", "tumour", "necrosis", "inflammation"],
}
CATEGORIES = {
    "her2": ["0", "1", "2", "3"],
    "chromogen": ["brown", "green"],
    "he": ["grade1", "grade2", "grade3"],
}
DAB_OD = {"0": 0.03, "1": 0.25, "2": 0.6, "3": 1.2}
"""Optical density (base 10) of DAB on the tumour cell membrane, by HER2 score."""
HAEMATOXYLIN = (0.65, 0.70, 0.29)  # Ruifrok & Johnston 2001, as are the two below
EOSIN = (0.07, 0.99, 0.11)
DAB = (0.27, 0.57, 0.78)
METHYL_GREEN = (0.98, 0.14, 0.13)  # ImageJ, Colour Deconvolution
CHROMOGENS = {"brown": DAB, "green": METHYL_GREEN}


@dataclass(frozen=True)
class Tissue:
    """How the cells of one class look. Optical densities are base 10, before the patient's concentrations."""

    cell_spacing_um: float
    nucleus_radius_um: float
    """Geometric mean of the two semi-axes."""
    elongation: float
    """Long over short axis; above 2 the nuclei lie along the fibres."""
    occupancy: float
    """Part of the cells whose nucleus lies in the section."""
    size_spread: float
    """Standard deviation of the logarithm of nuclear size between cells."""
    nucleus_od: float
    """Haematoxylin in nuclei."""
    vesicular: float
    """0 = evenly dark nuclei, 1 = pale centre and dark rim."""
    diffuse_od: float
    """Haematoxylin outside nuclei."""
    cytoplasm_od: float
    """Second stain (DAB or eosin) in the cytoplasm."""
    membrane_od: float
    """Second stain on the membrane, on top of the cytoplasm."""
    fibre_od: float
    """Second stain (`he`) or haematoxylin (`her2`) of the fibres between the cells."""
    gaps: float
    """Part of the area that is empty (clefts, fat)."""


@dataclass(frozen=True)
class Patient:
    """The true parameters of one patient."""

    stain: str
    category: str
    tissues: dict[str, Tissue]
    """By class name, in the order of `CLASSES`."""
    nest_um: float
    """Scale of tumour nests."""
    tumour_fraction: float
    necrosis_fraction: float
    """Part of the tumour (`he` only)."""
    inflammation_fraction: float
    """Part of the stroma (`he` only)."""
    stain_vectors: tuple[tuple[float, ...], tuple[float, ...]]
    """Unit optical density vectors (RGB) of haematoxylin and of the second stain."""
    concentrations: tuple[float, float]
    """Amount of haematoxylin and of the second stain, 1 = usual."""
    background_od: float
    """Second stain that lies everywhere in tissue (unspecific)."""
    white: tuple[float, ...]
    """White balance: RGB of empty glass, 0..1."""
    blur_um: float
    """Standard deviation of the optical blur."""
    noise: float
    """Standard deviation of the camera noise in grey levels of 255."""
    fibre_um: float
    """Distance between stromal fibres."""


def draw_patient(config: PhantomConfig, category: str, generator: np.random.Generator) -> Patient:
    """Draw a patient of the stain `config.stain` and of the given category."""
    if category not in CATEGORIES[config.stain]:
        raise StedmError(f"phantom: category {category!r} is not one of {', '.join(CATEGORIES[config.stain])}")

    def near(value: float, spread: float) -> float:
        return float(value * np.exp(generator.normal(0.0, spread)))

    def between(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    second = {"her2": DAB, "he": EOSIN}.get(config.stain) or CHROMOGENS[category]
    level = CATEGORIES[config.stain].index(category)
    tissues = {"her2": _her2_tissues, "chromogen": _chromogen_tissues, "he": _he_tissues}[config.stain]
    return Patient(
        stain=config.stain,
        category=category,
        tissues=tissues(level, near, between),
        nest_um=between(32.0, 60.0),
        tumour_fraction=between(0.3, 0.6),
        necrosis_fraction=between(0.1, 0.2) + 0.04 * level if config.stain == "he" else 0.0,
        inflammation_fraction=between(0.12, 0.35) if config.stain == "he" else 0.0,
        stain_vectors=(_turned(HAEMATOXYLIN, 0.07, generator), _turned(second, 0.04, generator)),
        concentrations=(float(np.clip(near(1.0, 0.3), 0.55, 1.8)), float(np.clip(near(1.0, 0.15), 0.7, 1.4))),
        background_od=between(0.0, 0.03),
        white=tuple(float(v) for v in np.clip(between(0.87, 0.97) + generator.normal(0.0, 0.02, 3), 0.75, 1.0)),
        blur_um=between(0.5, 1.4),
        noise=between(1.0, 4.0),
        fibre_um=between(6.0, 10.0),
    )


def _her2_tissues(score: int, near: Callable, between: Callable) -> dict[str, Tissue]:
    return _stained_tumour(near(DAB_OD[str(score)], 0.12), near, between)


def _chromogen_tissues(_: int, near: Callable, between: Callable) -> dict[str, Tissue]:
    return _stained_tumour(near(0.5, 0.3), near, between)


def _stained_tumour(dab: float, near: Callable, between: Callable) -> dict[str, Tissue]:
    """Tissues whose tumour has a stain of optical density `dab` on its membranes and, weaker, in its cytoplasm."""
    spacing = between(10.0, 12.5)
    return {
        "stroma": Tissue(
            cell_spacing_um=between(14.0, 19.0),
            nucleus_radius_um=between(2.3, 2.8),
            elongation=between(2.6, 3.8),
            occupancy=0.75,
            size_spread=0.15,
            nucleus_od=near(0.55, 0.12),
            vesicular=0.0,
            diffuse_od=between(0.01, 0.05),
            cytoplasm_od=0.0,
            membrane_od=0.0,
            fibre_od=between(0.03, 0.09),
            gaps=between(0.0, 0.12),
        ),
        "tumour": Tissue(
            cell_spacing_um=spacing,
            nucleus_radius_um=spacing * between(0.36, 0.42),
            elongation=between(1.1, 1.4),
            occupancy=0.96,
            size_spread=between(0.1, 0.2),
            nucleus_od=near(0.42, 0.12),
            vesicular=between(0.2, 0.6),
            diffuse_od=between(0.03, 0.07),
            cytoplasm_od=0.4 * dab,
            membrane_od=0.6 * dab,
            fibre_od=0.0,
            gaps=0.0,
        ),
    }


def _he_tissues(grade: int, near: Callable, between: Callable) -> dict[str, Tissue]:
    spacing = between(9.5, 11.0) + 0.7 * grade
    return {
        "stroma": Tissue(
            cell_spacing_um=between(15.0, 20.0),
            nucleus_radius_um=between(2.3, 2.8),
            elongation=between(2.6, 3.8),
            occupancy=0.75,
            size_spread=0.15,
            nucleus_od=near(0.6, 0.12),
            vesicular=0.0,
            diffuse_od=0.02,
            cytoplasm_od=between(0.1, 0.2),
            membrane_od=0.0,
            fibre_od=between(0.08, 0.18),
            gaps=between(0.02, 0.15),
        ),
        "tumour": Tissue(
            cell_spacing_um=spacing,
            nucleus_radius_um=spacing * between(0.34, 0.4),
            elongation=between(1.2, 1.5),
            occupancy=0.96,
            size_spread=0.08 + 0.08 * grade,
            nucleus_od=near(0.5, 0.12),
            vesicular=0.15 + 0.2 * grade,
            diffuse_od=between(0.06, 0.12),
            cytoplasm_od=between(0.12, 0.2),
            membrane_od=0.03,
            fibre_od=0.0,
            gaps=0.0,
        ),
        "necrosis": Tissue(
            cell_spacing_um=between(9.0, 12.0),
            nucleus_radius_um=between(1.1, 1.5),
            elongation=1.3,
            occupancy=between(0.2, 0.4),
            size_spread=0.35,
            nucleus_od=near(0.7, 0.12),
            vesicular=0.0,
            diffuse_od=0.03,
            cytoplasm_od=between(0.26, 0.36),
            membrane_od=0.0,
            fibre_od=0.0,
            gaps=between(0.1, 0.2),
        ),
        "inflammation": Tissue(
            cell_spacing_um=between(6.6, 7.6),
            nucleus_radius_um=between(2.4, 2.8),
            elongation=1.1,
            occupancy=0.92,
            size_spread=0.08,
            nucleus_od=near(0.75, 0.1),
            vesicular=0.0,
            diffuse_od=0.05,
            cytoplasm_od=between(0.04, 0.09),
            membrane_od=0.0,
            fibre_od=0.03,
            gaps=0.0,
        ),
    }


def _turned(vector: tuple[float, ...], spread: float, generator: np.random.Generator) -> tuple[float, ...]:
    """A unit vector near `vector`: stain batches and scanners shift the hue of a stain."""
    turned = np.clip(np.asarray(vector) + generator.normal(0.0, spread, 3), 0.02, None)
    return tuple(float(v) for v in turned / np.linalg.norm(turned))


def draw_layout(
    patient: Patient, image_px: int | tuple[int, int], mpp: float, generator: np.random.Generator
) -> np.ndarray:
    """Class map, uint8 (H, W), of a square image or of one of (height, width) pixels.

    The tumour fraction varies from image to image around the patient's, but is never below 0.08.
    """
    height, width = (image_px, image_px) if isinstance(image_px, int) else image_px
    y, x = (np.arange(height) + 0.5) * mpp, (np.arange(width) + 0.5) * mpp
    coarse, fine, other = (
        SmoothField(height * mpp, width * mpp, scale * patient.nest_um, generator)(y, x) for scale in (0.8, 0.3, 0.6)
    )
    nests = coarse + 0.2 * fine
    fraction = np.clip(generator.normal(patient.tumour_fraction, 0.1), 0.08, 0.92)
    layout = (nests > np.quantile(nests, 1.0 - fraction)).astype(np.uint8)
    # Necrosis sits in the middle of nests, where the blood supply is worst; lymphocytes gather away from it.
    for inside, value, share, field in (
        (1, 2, patient.necrosis_fraction, nests + 0.5 * other),
        (0, 3, patient.inflammation_fraction, other),
    ):
        share *= generator.uniform(0.4, 1.6)
        region = layout == inside
        if share > 0 and region.any():
            layout[region & (field > np.quantile(field[region], 1.0 - share))] = value
    return layout
