"""Images of phantom patients: a layout filled with cells under the Beer-Lambert law, block by block without seams."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from stedm.errors import StedmError
from stedm.layout.random_field import SmoothField
from stedm.phantom.patients import Patient, Tissue

_FINE_UM = 1.0  # cells are drawn at about this resolution and averaged down to the image's


_BLOCK_PX = 512


_MEMBRANE_UM = 1.3


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
