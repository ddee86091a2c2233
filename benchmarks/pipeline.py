"""Does the stream of samples feed a GPU? Samples a second of one core, what a GPU needs, how long a run takes to start.

python benchmarks/pipeline.py                       every part
python benchmarks/pipeline.py stream -n 24          one of stream, need, start, png, imports

Rates are of processor time; a core that is shared makes fewer, so that the load is printed. Images are phantom tissue
(H&E) of the size that is measured, 48 a slide. `memory`: decoded before; `TIFF` (not compressed) and `PNG`: nothing is
held, each image is read and decoded again, out of the system's cache of files. Batches are put together as workers of
the data loader do it; their way to the training process is not in it.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import default_collate
from torchvision.io import decode_image

from stedm.config import DiffusionConfig, PhantomConfig, RecolourConfig, RunConfig, StyleConfig, load_config
from stedm.data.check import examine
from stedm.data.facts import RememberedFacts
from stedm.data.folder import DatasetFolder, write_metadata, write_png
from stedm.data.memory import CacheBudget
from stedm.data.squares import in_squares, squares_text
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.objective import Objective
from stedm.diffusion.train import DiffusionSamples, DrawnSamples
from stedm.experiment.cost import flops_of, on_shapes
from stedm.experiment.inputs import check_files
from stedm.io.images import read_image_file, write_tiff
from stedm.phantom.cohort import make_phantom
from stedm.style.deform import random_patch, tissue_fraction

PAPER = Path(__file__).parents[1] / "configs" / "paper" / "her2.yaml"
STYLES = {
    "paper": StyleConfig(sampling="multi-patch", n_images=10),
    "gpu": StyleConfig(sampling="cohort", n_images=4),
}
"""What the presets show: ten random tissue patches of the slide, or four images of the patient."""
GPUS = {"H200": (989e12, 0.35), "A100": (312e12, 0.40)}
"""FLOP/s in bfloat16 by the maker, without sparsity, and the part of them that training is assumed to reach."""
WORKERS = (4, 8)
BATCH = 8
SOURCES = ("memory", "TIFF", "PNG")


def processor_seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


# ---- samples a second -----------------------------------------------------------------------------------------------


def phantom(root: Path, px: int, images: int = 48) -> Path:
    """Two slides. With few images a slide, style patches would be cut from the same ones, each read once."""
    if not root.exists():
        make_phantom(PhantomConfig(stain="he", image_px=px, patients={"train": 2}, images_per_patient=images), root)
    return root


def as_tiff(root: Path) -> Path:
    """The same folder with images as TIFF."""
    folder, dataset = root.with_name(f"{root.name}-tiff"), DatasetFolder.open(root)
    if not folder.exists():
        shutil.copytree(root / "masks", folder / "masks")
        names = dataset.table["image_file_name"].str.replace(".png", ".tif")
        for row, name in enumerate(names):
            write_tiff(folder / name, dataset.read_image(row))
        write_metadata(folder, dataset.info, dataset.table.assign(image_file_name=names))
    return folder


def rate(root: Path, px: int, style: StyleConfig, n: int, source: str) -> float:
    """Samples a second of processor time."""
    config, in_memory = DiffusionConfig(style=style, batch=BATCH), source == "memory"
    root = as_tiff(root) if source == "TIFF" else root
    dataset = DatasetFolder.open(root, memory=CacheBudget(None if in_memory else 0))
    # The latent's noise is that of an autoencoder with a quarter of the side, of 3 channels.
    codec = SimpleNamespace(factor=4, latent_channels=3)
    samples = DiffusionSamples(config, dataset, None, px, seed=0)
    objective = Objective(config.objective, config.loss, config.time_shift)
    drawn = DrawnSamples(samples, RecolourConfig(), objective, codec, px)
    if in_memory:
        for row in range(len(dataset)):
            samples._annotated.cache.image(row), samples._annotated.cache.mask(row)
    drawn[0]
    batches = [range(first, min(first + BATCH, n)) for first in range(0, n, BATCH)]
    return n / processor_seconds(lambda: [default_collate([drawn[i] for i in batch]) for batch in batches])


def stream(folder: Path, n: int) -> dict[tuple[str, int, str], float]:
    found = {}
    print(f"\nsamples a second of one core ({n} samples)\n{'style images':34}{'px':>5}", end="")
    print("".join(f"{f'from {source}':>14}" for source in SOURCES))
    for (name, style), px in itertools.product(STYLES.items(), (256, 512)):
        for source in SOURCES:
            found[name, px, source] = rate(phantom(folder / str(px), px), px, style, n, source)
        title = f"{style.sampling} x {style.n_images} (preset {name})"
        print(f"{title:34}{px:5}" + "".join(f"{found[name, px, source]:14.1f}" for source in SOURCES))
    return found


# ---- what a GPU needs -----------------------------------------------------------------------------------------------


def configurations(folder: Path) -> dict[tuple[str, int], RunConfig]:
    """By preset and size. The autoencoder of `gpu` is taken as pixels folded eight times: its latents are cached."""
    (folder / "gpu.yaml").write_text("name: gpu\ndata: {phantom: {image_px: 256}, image_px: 256}\n")
    folded = ["diffusion.codec={kind: pixel, space_to_depth: 8}", "machine.cache_latents=false"]
    return {("paper", 512): load_config(PAPER, []), ("gpu", 256): load_config(folder / "gpu.yaml", folded, "gpu")}


def flops_per_sample(config: RunConfig) -> int:
    """As `stedm.experiment.cost.cost` counts them, without the memory, which takes longest."""
    with on_shapes(config, 2) as run:
        encoded = 0 if isinstance(run.codec, PixelCodec) else flops_of(lambda: run.encode(1))
        return encoded + flops_of(lambda: run.denoising_loss(1).backward())


def need(folder: Path, found: dict[tuple[str, int, str], float]) -> None:
    print("\nneeded / delivered: below 1 the GPU waits for nothing; delivered = workers x the rate of one core")
    print(f"{'preset':8}{'px':>4}{'GFLOP a sample':>16}{'GPU':>6}{'needs':>10}", end="")
    print("".join(f"{f'{n} workers, {where}':>19}" for n in WORKERS for where in SOURCES))
    for (name, px), config in configurations(folder).items():
        flops = flops_per_sample(config)
        for gpu, (peak, used) in GPUS.items():
            needed = peak * used / flops
            ratios = [needed / (n * found[name, px, where]) for n in WORKERS for where in SOURCES]
            print(f"{name:8}{px:4}{flops / 1e9:16,.0f}{gpu:>6}{needed:8.0f}/s", end="")
            print("".join(f"{ratio:19.2f}" for ratio in ratios))
    told = ", ".join(f"{gpu} {used:.0%} of {peak / 1e12:.0f} TFLOP/s" for gpu, (peak, used) in GPUS.items())
    print(f"needs: counted FLOPs at an assumed use of {told}; no GPU was measured")


# ---- how long a run takes to start ----------------------------------------------------------------------------------


def many_images(root: Path, n: int, px: int) -> None:
    """Noise in small blocks, no two alike; three masks of four."""
    generator, rows, side = np.random.default_rng(0), [], max(1, px // 16)
    for number in range(n):
        names = {f"{kind}_file_name": f"{kind}s/{number}.png" for kind in ("image", "mask")}
        colours = generator.integers(0, 256, (px // side, px // side, 3), np.uint8)
        write_png(root / names["image_file_name"], colours.repeat(side, 0).repeat(side, 1), compress_level=1)
        mask = generator.integers(0, 2, (px // side, px // side), np.uint8)
        write_png(root / names["mask_file_name"], mask.repeat(side, 0).repeat(side, 1), compress_level=1)
        split = ("train", "unlabeled", "val", "test")[number // 8 % 4]
        rows.append({**names, "patient_id": f"P{number // 8}", "split": split})
    info = DatasetFolder.open(phantom(root.parent / "64", 64, 1)).info
    write_metadata(root, info, pd.DataFrame(rows))


def begin(root: Path, run: Path) -> None:
    """What `Experiment.check` does with the files of a data set."""
    dataset, remembered = DatasetFolder.open(root), RememberedFacts(run / ".data_facts", root)
    parts = [in_squares(dataset.split(split)) for split in ("train", "unlabeled", "test")]
    found = examine(root, read_unlabeled_masks=False, remembered=remembered)
    assert not found.problems, found.problems[0]
    check_files(run, dataset, unlabeled_masks=False)
    squares_text(parts, 64)


def start(folder: Path, n: int) -> None:
    print(f"\nstart of a run: {n} images and their masks are looked at; extrapolated in proportion to 100,000")
    for px in (16, 512):
        root, run = folder / f"many-{px}", folder / f"run-{px}"
        many_images(root, n, px)
        run.mkdir()
        first, second = (processor_seconds(partial(begin, root, run)) for _ in range(2))
        more = 100_000 / n
        print(
            f"  {px:3} px: first {first:6.2f} s, again {second:6.2f} s of processor; 100,000 images: "
            f"{first * more:.0f} s, again {second * more:.0f} s"
        )


# ---- PNG, and tissue ------------------------------------------------------------------------------------------------


def ms(n: int, action: Callable[[], object]) -> float:
    return 1e3 * processor_seconds(lambda: [action() for _ in range(n)]) / n


def decoders() -> dict[str, Callable[[Path], object]]:
    """Others than the one that stedm uses, and that one alone, without what it looks at in the file's head."""
    found: dict[str, Callable[[Path], object]] = {
        "Pillow alone": lambda path: np.array(Image.open(path)),
        "torchvision": lambda path: decode_image(str(path)),
    }
    try:
        import imagecodecs  # with the extra `slides`

        found["imagecodecs"] = lambda path: imagecodecs.png_decode(path.read_bytes())
    except ImportError:
        pass
    return found


def png(folder: Path, n: int) -> None:
    generator = np.random.default_rng(0)
    smooth = DatasetFolder.open(phantom(folder / "one", 512, 1)).read_image(0)
    noisy = np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    path = folder / "one.png"
    print("\none image of 512 px, ms of processor")
    for title, image in (("phantom", smooth), ("phantom with noise of SD 12", noisy)):
        for level in (6, 1):
            write = ms(n, partial(write_png, path, image, compress_level=level))
            read = ms(n, partial(read_image_file, folder, "one.png"))
            print(
                f"  {title}, level {level}: write {write:6.1f}, read {read:5.1f}, {path.stat().st_size / 1e3:,.0f} kB; "
                + ", ".join(f"{name} {ms(n, partial(decode, path)):.1f}" for name, decode in decoders().items())
            )
        write = ms(n, partial(write_tiff, folder / "one.tif", image))
        read = ms(n, partial(read_image_file, folder, "one.tif"))
        size = (folder / "one.tif").stat().st_size / 1e3
        print(f"  {title}, TIFF:    write {write:6.1f}, read {read:5.1f}, {size:,.0f} kB")
    patch = random_patch(smooth, generator)
    print(f"  tissue of a patch: {ms(n, partial(tissue_fraction, patch)):.2f}")


# ---- imports --------------------------------------------------------------------------------------------------------


def imports() -> None:
    print("\nimport, in a process of its own")
    for module in ("torch", "stedm.experiment.experiment"):
        # Not ru_maxrss, which a process has from the one that started it.
        peak = "kb = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))"
        show = "print(f'{time.process_time():.1f} s of processor, {int(kb) / 1e6:.2f} GB')"
        code = f"import {module}, time; {peak}; {show}"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"  {module:30}{found.stdout.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("stream", "need", "start", "png", "imports"))
    parser.add_argument("-n", type=int, default=48, help="samples of a rate")
    parser.add_argument("--images", type=int, default=2000, help="of the data set that a run starts with")
    asked = parser.parse_args()
    print(f"one thread; load at start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.part in (None, "stream", "need"):
            found = stream(folder, asked.n)
            if asked.part != "stream":
                need(folder, found)
        if asked.part in (None, "png"):
            png(folder, max(4, asked.n // 4))
        if asked.part in (None, "imports"):
            imports()
        if asked.part in (None, "start"):
            start(folder, asked.images)


if __name__ == "__main__":
    main()
