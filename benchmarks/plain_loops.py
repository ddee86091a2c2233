"""What stedm's loops cost beside loops written by hand with the same libraries: four ratios of processor time.

python benchmarks/plain_loops.py                    all four
python benchmarks/plain_loops.py training -n 12     one of training, segmenter, tiling, inference; 12 pairs

| pair | stedm | by hand |
|---|---|---|
| training | a step of the diffusion model, 64 px | the same U-Net of diffusers, AdamW, EMA, DataLoader |
| segmenter | a step of a segmenter, stain augmentation and all | the same network of smp, flips, AdamW, DataLoader |
| tiling | `tile_slides`: tissue, table, PNG | OpenSlide: read a grid, keep what isn't bright, save by Pillow |
| inference | `segment_slide`: blended, areas and polygons | OpenSlide and smp: overlapping tiles, blended, a PNG |

A pair is one after the other, the order changes from pair to pair, and the ratio of a pair is stedm's seconds by those
by hand: below 1, stedm takes less. Each loop works once before it is measured. By hand means without what stedm's loops
are for: nothing resumes, and the plain diffusion model reads no style images; it is measured a second time with a style
encoder in it.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from speed.measure import PhaseClock
from speed.setting import Setting, few
from speed.train import _training
from stedm.config import (
    MachineConfig,
    PhantomConfig,
    RecolourConfig,
    RunConfig,
    SegmentationConfig,
    SlideSegmentationConfig,
    TilingConfig,
    parse_config,
)
from stedm.data.folder import DatasetFolder, DatasetInfo
from stedm.data.tiles import tile_slides
from stedm.diffusion.train import make_denoiser
from stedm.diffusion.unet import make_unet
from stedm.experiment.resolve import resolve
from stedm.phantom.slides import make_phantom_slides
from stedm.segmentation.model import SegmentationLoss, SegmenterInfo, build_segmenter
from stedm.segmentation.samples import MixedSamples
from stedm.segmentation.train import augment_batch
from stedm.segmentation.whole_slide import segment_slide
from stedm.slides.slide import Slide
from stedm.training.device import place
from stedm.training.precision import autocast
from stedm.training.trainer import WEIGHT_DECAY, Trainer

CPU = torch.device("cpu")
STEPS = 1_000_000
"""More than are measured."""
SLIDE_PX, SLIDE_MPP, TILE_PX = 2048, 0.5, 256


def compare(title: str, ours: Callable[[], object], others: dict[str, Callable[[], object]], pairs: int) -> None:
    """Print the median and the quartiles of the ratios of pairs."""
    loops = {"stedm": ours, **others}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(pairs + 1):
        for name in list(loops) if turn % 2 else reversed(loops):
            started = time.process_time()
            loops[name]()
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - started)
    for name, own in list(seconds.items())[1:]:
        ratios = [one / other for one, other in zip(seconds["stedm"], own, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if pairs > 1 else 3 * ratios
        print(
            f"{title:10} / {name:38}{statistics.median(ratios):6.3f}  ({low:.3f} to {high:.3f}, n {pairs}; "
            f"{1e3 * statistics.median(seconds['stedm']):.0f} and {1e3 * statistics.median(own):.0f} ms)",
            flush=True,
        )


# ---- training of a diffusion model ----------------------------------------------------------------------------------


def small_run() -> RunConfig:
    """The default networks at 64 px, on a phantom."""
    values = {"name": "plain", "data": {"phantom": {"image_px": 64}, "image_px": 64}, "diffusion": {"steps": STEPS}}
    return resolve(parse_config(values, "plain"))


class InMemory(Dataset):
    """Images and layouts in memory, mirrored at random."""

    def __init__(self, dataset: DatasetFolder, px: int):
        self.images = [dataset.read_image(row, px) for row in range(len(dataset))]
        self.masks = [dataset.read_mask(row, px) for row in range(len(dataset))]

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row, flip = index % len(self.images), np.random.rand(2) < 0.5
        image, mask = self.images[row], self.masks[row]
        for axis in np.flatnonzero(flip):
            image, mask = np.flip(image, axis), np.flip(mask, axis)
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1
        return image, torch.from_numpy(np.ascontiguousarray(mask)).long()


def plain_diffusion(setting: Setting, style_encoder: nn.Module | None = None) -> Iterator[None]:
    """Flow matching of space-to-depth pixels with a U-Net of the same size; the layout is concatenated one-hot."""
    config, codec = setting.config.diffusion, setting.codec
    n_classes, channels = len(setting.dataset.info.classes), config.denoiser.layout_channels
    unet = make_unet(
        config.denoiser,
        codec.latent_channels + channels,
        codec.latent_channels,
        config.style.injection,
        config.style.dim,
    )
    learned = nn.Parameter(torch.zeros(4 * config.denoiser.channels[0]))
    modules = nn.ModuleDict({"unet": unet} | ({} if style_encoder is None else {"encoder": style_encoder}))
    parameters = [*modules.parameters(), learned]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    ema = EMAModel(parameters, decay=config.ema_decay, foreach=True)
    images = InMemory(few(setting.annotated), setting.image_px)
    shown = torch.stack([images[row][0] for row in range(config.batch * config.style.n_images)])
    for image, mask in DataLoader(images, batch_size=config.batch):
        latent = F.pixel_unshuffle(image, codec.factor)
        one_hot = F.one_hot(mask.clamp(max=n_classes), n_classes + 1).permute(0, 3, 1, 2).float()
        layout = F.avg_pool2d(one_hot, codec.factor)[:, :channels]
        layout = F.pad(layout, (0, 0, 0, 0, 0, channels - layout.shape[1]))
        noise, t = torch.randn_like(latent), torch.rand(len(latent), 1, 1, 1)
        noisy = torch.cat([torch.lerp(latent, noise, t), layout], dim=1)
        with autocast(setting.precision, CPU):
            style = learned.expand(len(latent), -1)
            if style_encoder is not None:
                vectors = style_encoder(shown).unflatten(0, (len(latent), -1)).mean(dim=1)
                style = style + F.pad(vectors, (0, style.shape[1] - vectors.shape[1]))
            predicted = unet(noisy, 1000 * t.flatten(), class_labels=style).sample
        F.mse_loss(predicted.float(), noise - latent).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        ema.step(parameters)
        yield


def training(folder: Path, pairs: int) -> None:
    setting = Setting(small_run(), folder)
    diffusion = setting.config.diffusion
    machine = MachineConfig(checkpoint_every_steps=STEPS)
    steps = _training(setting, diffusion, machine, PhaseClock(CPU), [], counted=range(0))
    encoder = make_denoiser(diffusion, setting.codec, 2, 0, setting.image_px).style_encoder
    plain, styled = plain_diffusion(setting), plain_diffusion(setting, encoder)
    with_ours = f"diffusers, and a style encoder of {diffusion.style.n_images} images"
    compare("training", lambda: next(steps), {"diffusers": lambda: next(plain), with_ours: lambda: next(styled)}, pairs)


# ---- training of a segmenter ----------------------------------------------------------------------------------------


def our_segmenter(config: SegmentationConfig, annotated: DatasetFolder, folder: Path, px: int) -> Iterator[None]:
    """The loop of stedm.segmentation.train, written out."""
    loss_of, recolour = SegmentationLoss(config.dice_weight), RecolourConfig()
    network = build_segmenter(config, len(annotated.info.classes))
    trainer = Trainer(network, folder, config, MachineConfig(checkpoint_every_steps=STEPS), seed=0)
    for batch in trainer.batches(MixedSamples(annotated, image_px=px, seed=0)):
        images, masks = augment_batch(batch["image"], batch["mask"], trainer.generator, config, recolour, "real+stain")
        with trainer.autocast():
            logits = trainer.network(images)
        trainer.step(loss_of(logits.float(), masks))
        yield


def plain_segmenter(config: SegmentationConfig, annotated: DatasetFolder, px: int) -> Iterator[None]:
    network = smp.create_model(
        config.architecture,
        encoder_name=config.encoder,
        encoder_weights=None,
        encoder_depth=config.encoder_depth,
        decoder_channels=config.decoder_channels,
        classes=len(annotated.info.classes),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    dice = smp.losses.DiceLoss("multiclass", from_logits=True)
    for images, masks in DataLoader(InMemory(annotated, px), batch_size=config.batch):
        with autocast("auto", CPU):
            logits = network(images)
        loss = 0.1 * F.cross_entropy(logits.float(), masks) + 0.9 * dice(logits.float(), masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        yield


def segmenter(folder: Path, pairs: int) -> None:
    setting = Setting(small_run(), folder)
    config = setting.config.segmentation.model_copy(update={"steps": STEPS})
    ours = our_segmenter(config, few(setting.annotated), folder / "segmenter", 64)
    plain = plain_segmenter(config, few(setting.annotated), 64)
    compare("segmenter", lambda: next(ours), {"segmentation_models_pytorch": lambda: next(plain)}, pairs)


# ---- slides ---------------------------------------------------------------------------------------------------------


def phantom_slide(folder: Path) -> Path:
    """`slides.csv` of one slide without annotations."""
    if not (folder / "slides.csv").is_file():
        make_phantom_slides(PhantomConfig(image_px=256, patients={"train": 1}), folder, (SLIDE_PX, SLIDE_PX))
        table = (folder / "slides.csv").read_text(encoding="utf-8").replace("annotations/A00.png", "")
        (folder / "slides.csv").write_text(table, encoding="utf-8")
    return folder / "slides.csv"


def read_tile(slide: openslide.OpenSlide, x: int, y: int, side: int) -> np.ndarray:
    """A square of level 0 reduced to TILE_PX."""
    region = slide.read_region((x, y), 0, (side, side)).convert("RGB")
    return np.asarray(region.resize((TILE_PX, TILE_PX), Image.Resampling.BOX))


def grid(slide: openslide.OpenSlide, side: int, stride: int) -> Iterator[tuple[int, int]]:
    width, height = slide.dimensions
    yield from ((x, y) for y in range(0, height - side + 1, stride) for x in range(0, width - side + 1, stride))


def side_of(slide: openslide.OpenSlide, mpp: float) -> int:
    return round(TILE_PX * mpp / float(slide.properties[openslide.PROPERTY_NAME_MPP_X]))


def plain_tiling(path: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with openslide.OpenSlide(path) as slide:
        side = side_of(slide, SLIDE_MPP)
        for x, y in grid(slide, side, side):
            tile = read_tile(slide, x, y, side)
            if tile.mean() < 220:
                Image.fromarray(tile).save(folder / f"{x}_{y}.png")


def tiling(folder: Path, pairs: int) -> None:
    table, made = phantom_slide(folder), folder / "tiles"
    config = TilingConfig(tile_px=TILE_PX, mpp=SLIDE_MPP)

    def ours() -> None:
        shutil.rmtree(made, ignore_errors=True)
        tile_slides(table, made, config)

    slide = folder / "slides" / "A00.svs"
    compare("tiling", ours, {"OpenSlide": lambda: plain_tiling(slide, folder / "plain")}, pairs)
    counts = [len(list(found.rglob("*.png"))) for found in (made, folder / "plain")]
    print(f"           tiles kept: {counts[0]} and {counts[1]}, by different rules of what is tissue")


def plain_inference(network: nn.Module, path: Path, result: Path, n_classes: int, batch: int) -> None:
    """A quarter of the side is shared with the next tile and blended; the last row and column end at the border."""
    with openslide.OpenSlide(path) as slide:
        side = side_of(slide, SLIDE_MPP)
        width, height = (edge * TILE_PX // side for edge in slide.dimensions)
        total, weight = np.zeros((n_classes, height, width), np.float32), np.zeros((height, width), np.float32)
        ramp = np.minimum(np.arange(TILE_PX) + 1, TILE_PX - np.arange(TILE_PX)).clip(max=TILE_PX // 4) / (TILE_PX // 4)
        window = np.outer(ramp, ramp).astype(np.float32)
        places = [(x, y) for x in starts(width) for y in starts(height)]
        for first in range(0, len(places), batch):
            chosen = places[first : first + batch]
            tiles = [read_tile(slide, x * side // TILE_PX, y * side // TILE_PX, side) for x, y in chosen]
            images = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                probabilities = network(images).float().softmax(dim=1).numpy()
            for (x, y), values in zip(chosen, probabilities, strict=True):
                total[:, y : y + TILE_PX, x : x + TILE_PX] += values * window
                weight[y : y + TILE_PX, x : x + TILE_PX] += window
    Image.fromarray((total / weight).argmax(axis=0).astype(np.uint8)).save(result)


def starts(length: int) -> list[int]:
    return sorted({*range(0, length - TILE_PX, TILE_PX * 3 // 4), length - TILE_PX})


class InRegions(nn.Module):
    """Logits that are equal in squares of 32 px, as if trained: outlines of noise would be most of what is measured."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(F.avg_pool2d(self.network(images), 32), scale_factor=32)


def inference(folder: Path, pairs: int) -> None:
    phantom_slide(folder)
    path, classes = folder / "slides" / "A00.svs", ["other", "tumour"]
    config = SegmentationConfig(mirror=False)
    network, plain = (InRegions(build_segmenter(config, len(classes))).eval() for _ in range(2))
    plain.to(memory_format=torch.contiguous_format)
    for each in (network, plain):
        place(each, MachineConfig())  # both in the precision that this machine is fast at
    info = SegmenterInfo(
        architecture=config.architecture,
        encoder=config.encoder,
        encoder_depth=config.encoder_depth,
        decoder_channels=config.decoder_channels,
        classes=classes,
        image_px=TILE_PX,
        mpp=SLIDE_MPP,
    )
    settings = SlideSegmentationConfig(batch=8)
    assert DatasetInfo("plain", classes).ignore_index == info.ignore_index

    def ours() -> None:
        segment_slide(network, info, Slide.open(path), folder / "ours.geojson", settings)

    def by_hand() -> None:
        plain_inference(plain, path, folder / "plain.png", len(classes), settings.batch)

    compare("inference", ours, {"OpenSlide and smp": by_hand}, pairs)


PAIRS = {training: 8, segmenter: 8, tiling: 4, inference: 3}
"""Few: all take forty seconds of processor together, and end in minutes where others have most of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="?", choices=[pair.__name__ for pair in PAIRS])
    parser.add_argument("-n", type=int, help="pairs that are measured")
    asked = parser.parse_args()
    print(
        f"processor seconds of stedm / by hand: median (quartiles); torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread, load at start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    for pair, n in PAIRS.items():
        if asked.pair in (None, pair.__name__):
            with tempfile.TemporaryDirectory() as folder:
                pair(Path(folder), asked.n or n)


if __name__ == "__main__":
    main()
