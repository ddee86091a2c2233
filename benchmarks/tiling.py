"""Tiles per second of `Slide.read` and of rows read from slides, against a bare OpenSlide loop over the same tiles.

python benchmarks/tiling.py        about a minute and a half on one core

The loops take turns over the same chunks of tiles, so that a change of the machine's load meets all of them, and each
begins a turn with a file just opened, so that none reads what another left in OpenSlide's cache. The bare loop does
nothing but `read_region` of the level and pixels that hold the tile; it neither blends transparency, nor resamples, nor
gives RGB.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide

from stedm.config import PhantomConfig, TilingConfig
from stedm.data.folder import DatasetFolder
from stedm.data.tiles import tile_slides, write_tiles
from stedm.phantom.slides import make_phantom_slides
from stedm.slides.readers import forget
from stedm.slides.slide import Slide

SIZE_PX = (8192, 8192)
TILE_PX = 512
CHUNK, TURNS = 16, 12


def rates(loops: dict[str, Callable[[int], object]], reopen: Callable[[], None], n: int) -> dict[str, list[float]]:
    """Tiles per second of each loop in each turn, in which each loop does each tile of a chunk once."""
    found: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(TURNS):
        tiles = np.random.default_rng(turn).choice(n, CHUNK, replace=False).tolist()
        for name in list(loops) if turn % 2 else list(loops)[::-1]:
            reopen()
            started = time.perf_counter()
            for tile in tiles:
                loops[name](tile)
            found[name].append(CHUNK / (time.perf_counter() - started))
    return found


class Bare:
    """A loop of OpenSlide alone."""

    def __init__(self, path: Path, level: int, side_px: int, x: np.ndarray, y: np.ndarray):
        self.path, self.level, self.side_px, self.x, self.y = path, level, side_px, x.tolist(), y.tolist()

    def reopen(self) -> None:
        self.file = openslide.OpenSlide(self.path)

    def __call__(self, i: int) -> None:
        self.file.read_region((self.x[i], self.y[i]), self.level, (self.side_px, self.side_px))


def measure(root: Path, slide: Slide, mpp: float) -> None:
    """Print the rates at one resolution."""
    # Overlapping, for there to be many tiles.
    config = TilingConfig(tile_px=TILE_PX, mpp=mpp, stride_px=TILE_PX // 4)
    started = time.perf_counter()
    tile_slides(root / "slides.csv", root / f"table-{mpp}", config, table_only=True)
    seconds = time.perf_counter() - started
    dataset = DatasetFolder.open(root / f"table-{mpp}")
    table, level = dataset.table, slide._level(mpp)
    side_px = round(TILE_PX * mpp / slide.mpp / slide.downsamples[level])
    bare = Bare(slide.path, level, side_px, table["x"].to_numpy(), table["y"].to_numpy())

    def reopen() -> None:
        bare.reopen()
        forget(slide.path)
        slide.read(-1, -1, 1, mpp)

    row = {"image": str(slide.path), "mpp": slide.mpp, "annotation": ""}
    loops = {
        "bare OpenSlide": bare,
        "Slide.read": lambda i: slide.read(bare.x[i], bare.y[i], TILE_PX, mpp),
        "row of a table": dataset.read_image,
        "written as PNG": lambda i: write_tiles(row, table.iloc[[i]], config, root / f"{time.perf_counter_ns()}"),
    }
    found = rates(loops, reopen, len(dataset))
    print(f"\n{TILE_PX} px at {mpp} microns: {len(dataset)} tiles, the table alone in {seconds:.1f} s")
    for name, values in found.items():
        ratio = np.median(np.divide(values, found["bare OpenSlide"]))
        print(f"  {name:<16}{np.median(values):7.1f} tiles/s{ratio:7.2f} of the bare loop")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        started = time.perf_counter()
        make_phantom_slides(PhantomConfig(image_px=256, patients={"train": 1}), root, SIZE_PX)
        print(f"a slide of {SIZE_PX[0]} x {SIZE_PX[1]} px and its labels made in {time.perf_counter() - started:.1f} s")
        table = (root / "slides.csv").read_text().replace("annotations/A00.png", "")
        (root / "slides.csv").write_text(table)
        slide = Slide.open(root / "slides" / "A00.svs")
        for mpp in (0.5, 1.0, 2.0):
            measure(root, slide, mpp)


if __name__ == "__main__":
    main()
