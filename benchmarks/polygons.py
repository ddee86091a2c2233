"""Label maps to GeoJSON and back: IoU and size by tolerance; time and peak memory by height of the map.

python benchmarks/polygons.py        (one thread, about a minute)
"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from stedm.seeds import numpy_generator
from stedm.slides.annotations import read_annotation
from stedm.slides.write_geojson import write_geojson

CLASSES = ["background", "tumour", "stroma"]
BAND_ROWS = 512


def random_map(shape: tuple[int, int], sigma_px: float) -> np.ndarray:
    """The largest of three smoothed noise fields; it continues over its borders."""
    fields = [
        gaussian_filter(numpy_generator(0, "field", i).normal(size=shape), sigma_px, mode="wrap") for i in range(3)
    ]
    return np.argmax(fields, axis=0).astype(np.uint8)


def worst_iou(a: np.ndarray, b: np.ndarray) -> float:
    return min(((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in range(len(CLASSES)))


def round_trips(path: Path) -> None:
    print("| sigma (px) | tolerance (px) | worst IoU | size |\n|---|---|---|---|")
    for sigma_px in (9, 20, 40):
        array = random_map((512, 512), sigma_px)
        exact_bytes = None
        for tolerance in (0.0, 0.75, 1.0, 2.0):
            bands = [array[top : top + 128] for top in range(0, len(array), 128)]
            write_geojson(path, bands, CLASSES, downsample=4, mpp=1.0, tolerance_um=tolerance)
            back = read_annotation(path, CLASSES, unannotated="background").rasterise(0, 0, array.shape, 4)
            exact_bytes = exact_bytes or path.stat().st_size
            size = path.stat().st_size / exact_bytes
            print(f"| {sigma_px} | {tolerance:g} | {worst_iou(array, back):.4f} | {size:.2f} |")


def heights(path: Path) -> None:
    """Peak memory of the process never falls: that of a higher map shows only if it needs more."""
    block = np.kron(random_map((512, 512), 6), np.ones((8, 8), np.uint8))
    print("\n| rows x columns | write (s) | peak memory (MB) | tile of 512 px (ms) |\n|---|---|---|---|")
    for rows in (len(block), 4 * len(block)):
        bands = (block[top % len(block) :][:BAND_ROWS] for top in range(0, rows, BAND_ROWS))
        start = time.perf_counter()
        write_geojson(path, bands, CLASSES, downsample=4, mpp=1.0, tolerance_um=1.0)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        annotation = read_annotation(path, CLASSES)
        corners = [(x, y) for y in range(0, 4 * rows - 2048, 8192) for x in range(0, 4 * block.shape[1], 2048)]
        start = time.perf_counter()
        for x, y in corners:
            annotation.rasterise(x, y, 512, 4)
        tile_ms = (time.perf_counter() - start) / len(corners) * 1e3
        print(f"| {rows} x {block.shape[1]} | {seconds:.1f} | {peak:.0f} | {tile_ms:.1f} |")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        round_trips(Path(folder) / "map.geojson")
        heights(Path(folder) / "map.geojson")
