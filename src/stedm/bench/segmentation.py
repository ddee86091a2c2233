"""Prediction of masks: batch sizes, and image files to mask files."""

from collections.abc import Callable

import numpy as np
import torch

from stedm.bench.effort import Effort
from stedm.bench.machine import MatmulPeak
from stedm.bench.measure import PhaseClock, Turns, counted_as, replaced
from stedm.bench.result import Result, Row
from stedm.bench.setting import Setting
from stedm.experiment.cost import flops_of
from stedm.io.images import write_png
from stedm.segmentation.model import build_segmenter, load_segmenter, save_segmenter
from stedm.segmentation.predict import predict_masks, segment_folder

_BATCHES = (1, 8, 64)
_IMAGES = 64


def run(setting: Setting, effort: Effort) -> Result:
    """Segment a batch of images in several batch sizes, in turns; then from file to file."""
    config, info = setting.config.segmentation, setting.dataset.info
    network = build_segmenter(config, len(info.classes)).to(setting.device).eval()
    images = setting.images(_IMAGES)
    variants = {f"batch {batch}": _predict(network, images, batch) for batch in _BATCHES}
    peak = MatmulPeak(setting.device, "fp32", effort.matmul_n)
    turns = Turns(variants, effort.repeats, setting.device, peak)
    stride = network.encoder.output_stride
    side = -(-setting.image_px // stride) * stride
    with torch.no_grad():
        flops = flops_of(lambda: network(torch.zeros(1, 3, side, side, device=setting.device)))
    rows: list[Row] = [
        {
            "batch": batch,
            "ms_per_image": 1e3 * turns.median(f"batch {batch}") / _IMAGES,
            "ratio_to_batch_1": turns.ratio(f"batch {batch}", "batch 1"),
            "share_of_matmul_peak": turns.share_of_peak(f"batch {batch}", flops * _IMAGES),
        }
        for batch in _BATCHES
    ]
    folder_s, outside = _from_files(setting, network, images)
    figures = {
        "image_px": setting.image_px,
        "gflop_per_image": flops / 1e9,
        "gflop_per_s_matmul_peak": peak.flop_per_s / 1e9,
        "files_ms_per_image": 1e3 * folder_s / _IMAGES,
        "files_share_outside_network": outside,
    }
    notes = ["files: `stedm segment` of a folder, with reading the model, reading images and writing masks."]
    return Result("segmentation", figures, {"batches": rows}, notes)


def _predict(network: torch.nn.Module, images: np.ndarray, batch: int) -> Callable[[], object]:
    return lambda: predict_masks(network, images, batch=batch)


def _from_files(setting: Setting, network: torch.nn.Module, images: np.ndarray) -> tuple[float, float]:
    """Seconds of `segment_folder`, and the part of it that is not the network's."""
    folder = setting.folder / "bench-segmentation"
    config, info = setting.config.segmentation, setting.dataset.info
    save_segmenter(folder / "model", network, config, info, image_px=setting.image_px, mirror=config.mirror)
    for number, image in enumerate(images):
        write_png(folder / "images" / f"{number:03d}.png", image)
    clock = PhaseClock(torch.device("cpu"))
    kind = type(load_segmenter(folder / "model")[0])
    with replaced(kind, "forward", counted_as(clock, "network")), clock.within("outside"):
        segment_folder(folder / "model", folder / "images", folder / "masks")
    seconds = clock.take()
    total = sum(seconds.values())
    return total, seconds["outside"] / total
