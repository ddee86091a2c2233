"""Seconds that `stedm check` takes for a folder of noise: `python -m benchmarks.check_speed [IMAGES] [SIDE_PX]`.

Noise is the slowest PNG to decode; images of tissue take about half of it.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.data.check import examine
from stedm.data.folder import DatasetInfo, write_metadata, write_png


def make(root: Path, n_images: int, side_px: int) -> None:
    generator, rows = np.random.default_rng(0), []
    for number in range(n_images):
        names = {f"{kind}_file_name": f"{kind}s/{number}.png" for kind in ("image", "mask")}
        write_png(root / names["image_file_name"], generator.integers(0, 256, (side_px, side_px, 3), np.uint8))
        mask = np.kron(generator.integers(0, 2, (8, 8)), np.ones((side_px // 8, side_px // 8))).astype(np.uint8)
        write_png(root / names["mask_file_name"], mask)
        rows.append({**names, "patient_id": f"P{number // 8}", "split": ("train", "val", "test")[number // 8 % 3]})
    write_metadata(root, DatasetInfo("noise", ["background", "block"]), pd.DataFrame(rows))


def main(n_images: int = 2000, side_px: int = 224) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), n_images, side_px)
        wall, cpu = time.perf_counter(), time.process_time()
        found = examine(folder)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{n_images} images of {side_px} px: {wall:.1f} s, {cpu:.1f} s of processors; {len(found.problems)} problems")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
