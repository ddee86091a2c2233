"""The phantom: a procedural cohort of patients whose layouts and appearance are known exactly.

`her2` imitates HER2 immunohistochemistry (haematoxylin + DAB, 2 classes, category = score 0..3); `he` imitates a
haematoxylin and eosin stain (4 classes, category = grade). A patient is a set of numbers (`Patient`), a layout is drawn
at the patient's own scale and fractions, and an image is the layout filled with cells under the Beer-Lambert law.
Everything is linear in the number of pixels, and a large image is rendered block by block without seams, so the same
functions make a 64 px image and a whole slide.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from stedm.config import PhantomConfig
from stedm.data.folder import DatasetInfo, write_metadata, write_png
from stedm.errors import StedmError
from stedm.io.files import replacing, write_json
from stedm.layout.random_field import SmoothField
from stedm.seeds import numpy_generator

CLASSES = {"her2": ["stroma", "tumour"], "he": ["stroma", "tumour", "necrosis", "inflammation"]}
CATEGORIES = {"her2": ["0", "1", "2", "3"], "he": ["grade1", "grade2", "grade3"]}
DAB_OD = {"0": 0.03, "1": 0.25, "2": 0.6, "3": 1.2}
"""Optical density (base 10) of DAB on the tumour cell membrane, by HER2 score."""

HAEMATOXYLIN = (0.65, 0.70, 0.29)  # Ruifrok & Johnston 2001, as are the two below
EOSIN = (0.07, 0.99, 0.11)
DAB = (0.27, 0.57, 0.78)

_FINE_UM = 1.0  # cells are drawn at about this resolution and averaged down to the image's
_BLOCK_PX = 512
_MEMBRANE_UM = 1.3


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

    second = DAB if config.stain == "her2" else EOSIN
    level = CATEGORIES[config.stain].index(category)
    tissues = _her2_tissues if config.stain == "her2" else _he_tissues
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
    dab = near(DAB_OD[str(score)], 0.12)
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


class _Cells:
    """Cells on a jittered grid over the image; a pixel finds its cell among the 3 x 3 nearest grid squares."""

    def __init__(self, tissue: Tissue, height_um: float, width_um: float, generator: np.random.Generator):
        self.spacing = tissue.cell_spacing_um
        rows, self.columns = (int(np.ceil(side / self.spacing)) + 4 for side in (height_um, width_um))
        i, j = np.divmod(np.arange(rows * self.columns), self.columns)
        jitter = generator.uniform(-0.36, 0.36, (2, i.size))
        # Every second row is moved by half a square: closer to the hexagonal packing of epithelium.
        self.y = ((i - 1.5 + jitter[0]) * self.spacing).astype(np.float32)
        self.x = ((j - 1.5 + 0.25 * (-1.0) ** i + jitter[1]) * self.spacing).astype(np.float32)
        radius = tissue.nucleus_radius_um * np.exp(generator.normal(0.0, tissue.size_spread, i.size))
        stretch = np.sqrt(1.0 + (tissue.elongation - 1.0) * generator.uniform(0.6, 1.4, i.size))
        self.long = (radius * stretch).astype(np.float32)
        self.short = (radius / stretch).astype(np.float32)
        self.turn = generator.uniform(0.0, np.pi, i.size).astype(np.float32)
        if tissue.elongation > 2.0:
            self.turn *= 0.2  # along the fibres
        self.tone = np.exp(generator.normal(0.0, 0.15, i.size)).astype(np.float32)
        self.present = generator.uniform(size=i.size) < tissue.occupancy

    def nearest(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the cell at each point, and the distance in um from the border to the neighbouring cell."""
        home = (np.floor(y / self.spacing).astype(np.int32) + 2) * self.columns
        home += np.floor(x / self.spacing).astype(np.int32) + 2
        first = np.full(y.shape, np.inf, np.float32)
        second, index = first.copy(), home.copy()
        for step in (0, -1, 1, -self.columns, self.columns):
            for extra in (0, -1, 1) if abs(step) == self.columns else (0,):
                candidate = home + step + extra
                distance = (y - self.y[candidate]) ** 2 + (x - self.x[candidate]) ** 2
                closer = distance < first
                second = np.where(closer, first, np.minimum(second, distance))
                index[closer] = candidate[closer]
                first = np.minimum(first, distance)
        return index, (np.sqrt(second) - np.sqrt(first)) / 2


class _Scene:
    """Everything random of one image but its noise, so that each block of it can be rendered on its own."""

    def __init__(self, patient: Patient, layout: np.ndarray, mpp: float, generator: np.random.Generator):
        self.patient, self.layout, self.mpp = patient, layout, mpp
        height_um, width_um = layout.shape[0] * mpp, layout.shape[1] * mpp
        self.direction = generator.uniform(0.0, np.pi)
        self.warp = SmoothField(height_um, width_um, 25.0, generator)
        self.patches = SmoothField(height_um, width_um, 18.0, generator)
        self.cells = [_Cells(tissue, height_um, width_um, generator) for tissue in patient.tissues.values()]
        for value, cells in enumerate(self.cells):
            row = np.clip(cells.y / mpp, 0, layout.shape[0] - 1).astype(int)
            column = np.clip(cells.x / mpp, 0, layout.shape[1] - 1).astype(int)
            cells.present &= layout[row, column] == value

    def densities(self, y: np.ndarray, x: np.ndarray, grain: np.ndarray) -> np.ndarray:
        """Density of the two stains, float32 (2, n, m), on the grid of rows y (n,) and columns x (m,) in um.

        `grain` is white noise (n, m).
        """
        result = np.zeros((2, *grain.shape), np.float32)
        warp, patches = self.warp(y, x), self.patches(y, x)
        layout = self.layout[np.ix_((y / self.mpp).astype(np.int32), (x / self.mpp).astype(np.int32))]
        for value, (tissue, cells) in enumerate(zip(self.patient.tissues.values(), self.cells, strict=True)):
            where = np.nonzero(layout == value)
            if where[0].size:
                result[:, *where] = self._tissue(
                    tissue, cells, y[where[0]], x[where[1]], warp[where], patches[where], grain[where]
                )
        return result

    def _tissue(
        self,
        tissue: Tissue,
        cells: _Cells,
        y: np.ndarray,
        x: np.ndarray,
        warp: np.ndarray,
        patches: np.ndarray,
        grain: np.ndarray,
    ) -> np.ndarray:
        """Densities (2, n) of one tissue at its points."""
        index, border_um = cells.nearest(y, x)
        nucleus, radius = self._nuclei(cells, index, y, x)
        across = x * np.sin(self.direction) - y * np.cos(self.direction) + 7.0 * warp
        phase = across * (2 * np.pi / self.patient.fibre_um)
        # A slower wave breaks the stripes into bundles of unequal strength.
        fibre = (0.5 + 0.5 * np.sin(phase)) * (0.6 + 0.4 * np.sin(0.37 * phase + 2.5 * patches)) * (1.0 + 0.3 * grain)
        membrane = np.exp(-((border_um / _MEMBRANE_UM) ** 2))
        uneven = cells.tone[index] * np.clip(1.0 + 0.2 * patches + 0.15 * grain, 0.2, None)
        chromatin = 1.0 + tissue.vesicular * (np.minimum(radius, 1.0) ** 2 - 0.6) + 0.15 * grain
        plasma = (tissue.cytoplasm_od + tissue.membrane_od * membrane) * uneven
        first = tissue.diffuse_od * (1.0 + 0.3 * grain) * (1.0 - nucleus)
        first += tissue.nucleus_od * nucleus * chromatin * cells.tone[index]
        # A section is thinner than a cell: some cytoplasm lies above and below most nuclei.
        second = plasma * (1.0 - 0.7 * nucleus) + self.patient.background_od
        if self.patient.stain == "he":
            second += tissue.fibre_od * fibre
        else:
            first += tissue.fibre_od * fibre
        if tissue.gaps > 0:
            gap = _step((patches + 0.3 * warp - ndtri(1.0 - tissue.gaps)) / 0.15) * (1.0 - nucleus)
            first, second = first * (1.0 - gap), second * (1.0 - gap)
        return np.maximum(np.stack([first, second]), 0.0)

    def _nuclei(self, cells: _Cells, index: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far each point lies in a nucleus (0..1), and its distance from the centre in units of the radius."""
        angle = self.direction + cells.turn
        sine, cosine = np.sin(angle)[index], np.cos(angle)[index]
        dy, dx = y - cells.y[index], x - cells.x[index]
        long, short = cells.long[index], cells.short[index]
        radius = np.hypot((dx * cosine + dy * sine) / long, (dy * cosine - dx * sine) / short)
        return cells.present[index] * _step((1.0 - radius) * short / 0.35), radius


def _step(values: np.ndarray) -> np.ndarray:
    """Soft step from 0 to 1."""
    return 0.5 + 0.5 * np.tanh(values)


def render_patient_image(
    patient: Patient, layout: np.ndarray, mpp: float, generator: np.random.Generator
) -> np.ndarray:
    """Image, uint8 RGB (H, W, 3), of a layout (uint8 class indices (H, W), `mpp` um per pixel) in a patient's style.

    Beer-Lambert: intensity = white * 10^-(sum over stains of concentration * density * stain vector). Cells are drawn
    at about 1 um and averaged down; large images are made in blocks, so memory stays small.
    """
    if layout.ndim != 2 or layout.max(initial=0) >= len(patient.tissues):
        raise StedmError(f"phantom: a layout is a 2-d map of class indices below {len(patient.tissues)}")
    scene = _Scene(patient, layout, mpp, generator)
    image = np.empty((*layout.shape, 3), np.uint8)
    for rows, columns in _blocks(*layout.shape):
        image[rows, columns] = _render_block(scene, rows, columns, generator)
    return image


def _blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, _BLOCK_PX):
        for left in range(0, width, _BLOCK_PX):
            yield slice(top, min(top + _BLOCK_PX, height)), slice(left, min(left + _BLOCK_PX, width))


def _render_block(scene: _Scene, rows: slice, columns: slice, generator: np.random.Generator) -> np.ndarray:
    patient, mpp = scene.patient, scene.mpp
    per_px = max(1, round(mpp / _FINE_UM))
    fine_um = mpp / per_px
    margin = int(np.ceil(3 * patient.blur_um / mpp))  # the blur looks over the block's edge
    y, x = (
        # Beyond the image its last row or column is repeated.
        np.clip(
            (np.arange((s.start - margin) * per_px, (s.stop + margin) * per_px, dtype=np.float32) + 0.5) * fine_um,
            fine_um / 2,
            side_px * mpp - fine_um / 2,
        )
        for s, side_px in zip((rows, columns), scene.layout.shape, strict=True)
    )
    densities = scene.densities(y, x, generator.standard_normal((y.size, x.size), np.float32))
    amounts = densities * np.asarray(patient.concentrations, np.float32)[:, None, None]
    od = np.tensordot(amounts, np.asarray(patient.stain_vectors, np.float32), axes=(0, 0))
    light = np.asarray(patient.white, np.float32) * np.exp(-np.log(10.0).astype(np.float32) * od)
    light = gaussian_filter(light, (patient.blur_um / fine_um,) * 2 + (0.0,), truncate=3.0)
    height, width = (points.size // per_px for points in (y, x))
    light = light.reshape(height, per_px, width, per_px, 3).mean(axis=(1, 3))
    light = light[margin : height - margin, margin : width - margin]
    noise = generator.standard_normal(light.shape, np.float32) * np.float32(patient.noise)
    return np.clip(np.round(255.0 * light + noise), 0, 255).astype(np.uint8)


def make_phantom(config: PhantomConfig, root: str | Path) -> None:
    """Write a cohort as a dataset folder, with `patients.json` (the true parameters of every patient) beside it.

    The folder appears whole or not at all. Images of split `unlabeled` have masks too, as in a real dataset whose
    annotations are held back; only the fully supervised upper bound may read them. Each patient is a pure function of
    (seed, split, number in the split), each image of that and its own number. `StedmError` if `root` holds files.
    """
    root = Path(root)
    if root.is_dir() and any(root.iterdir()):
        raise StedmError(f"{root}: the folder is not empty; give a new one for the phantom")
    rows, truth = [], []
    with replacing(root) as folder:
        for split, n_patients in config.patients.items():
            for number, category in enumerate(patient_categories(config, split)):
                name = f"{_LETTER_OF[split]}{number:0{max(2, len(str(n_patients - 1)))}d}"
                patient = draw_patient(config, category, numpy_generator(config.seed, "phantom", split, number))
                truth.append({"patient_id": name, "split": split, **asdict(patient)})
                rows += _write_images(config, patient, split, number, name, folder)
        if not rows:
            raise StedmError("phantom: no patients; give data.phantom.patients at least one in a split")
        info = DatasetInfo(
            name=f"phantom-{config.stain}",
            classes=CLASSES[config.stain],
            licence="CC0-1.0",
            citation="Procedural images made by stedm; no patient data.",
        )
        write_metadata(folder, info, pd.DataFrame(rows))
        write_json(folder / "patients.json", {"config": config.model_dump(mode="json"), "patients": truth})


# Letters, not names: Hugging Face's ImageFolder takes words like "train" in file names for its own splits.
_LETTER_OF = {"train": "A", "unlabeled": "U", "val": "V", "test": "T"}


def patient_categories(config: PhantomConfig, split: str) -> list[str]:
    """Category of each patient of a split: balanced, or as `train_categories` says."""
    names, n_patients = CATEGORIES[config.stain], config.patients.get(split, 0)
    if split != "train" or config.train_categories is None:
        return [names[number % len(names)] for number in range(n_patients)]
    unknown = set(config.train_categories) - set(names)
    if unknown or len(config.train_categories) != n_patients:
        raise StedmError(
            f"phantom: train_categories must be {n_patients} of {', '.join(names)} (one per train patient), "
            f"not {config.train_categories}"
        )
    return list(config.train_categories)


def _write_images(
    config: PhantomConfig, patient: Patient, split: str, number: int, name: str, folder: Path
) -> list[dict[str, str | int | float]]:
    rows: list[dict[str, str | int | float]] = []
    for image in range(config.images_per_patient):
        layout = draw_layout(
            patient,
            config.image_px,
            config.mpp,
            numpy_generator(config.seed, "phantom", split, number, image, "layout"),
        )
        rendered = render_patient_image(
            patient, layout, config.mpp, numpy_generator(config.seed, "phantom", split, number, image, "render")
        )
        file_name = f"{name}_{image:03d}.png"
        write_png(folder / "images" / file_name, rendered)
        write_png(folder / "masks" / file_name, layout)
        rows.append(
            {
                "image_file_name": f"images/{file_name}",
                "mask_file_name": f"masks/{file_name}",
                "patient_id": name,
                "slide_id": f"{name}-slide",
                "split": split,
                "category": patient.category,
                "x": image * config.image_px,
                "y": 0,
                "mpp": config.mpp,
            }
        )
    return rows
