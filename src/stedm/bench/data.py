"""The data stream: reading, style sampling, recolouring, putting batches together."""

from typing import get_args

import torch
from torch.utils.data import default_collate

from stedm.bench.effort import Effort
from stedm.bench.measure import Turns
from stedm.bench.result import Result, Row
from stedm.bench.setting import Setting, few
from stedm.config import StyleConfig
from stedm.data.cache import ImageCache
from stedm.diffusion.train import DiffusionSamples
from stedm.errors import StedmError
from stedm.seeds import torch_generator
from stedm.style.recolour import recolour_together

SAMPLINGS = get_args(StyleConfig.model_fields["sampling"].annotation)


def run(setting: Setting, effort: Effort) -> Result:
    """Time the parts of the stream of training samples, all in turns."""
    config, batch = setting.config.diffusion, setting.config.diffusion.batch
    samples = _samples(setting, config.style.sampling)
    items = [samples[i] for i in range(batch)]
    together = default_collate(items)
    recolour = config.recolour.model_copy(update={"probability": 1.0})

    def recoloured() -> None:
        recolour_together(together["image"], together["style"], recolour, torch_generator(0, "bench recolour"))

    some = few(setting.annotated)
    parts = {
        "read from files": lambda: _read(ImageCache(some, setting.image_px), batch),
        "samples, images in memory": lambda: [samples[i] for i in range(batch)],
        "collate": lambda: default_collate(items),
        "recolour, all samples": recoloured,
    }
    kinds = {name: stream for name in SAMPLINGS if (stream := _stream(setting, name)) is not None}
    styles = {
        f"style sampling {name}": (lambda s=stream: [s[i] for i in range(batch)]) for name, stream in kinds.items()
    }
    turns = Turns({**parts, **styles}, effort.repeats, torch.device("cpu"))
    stream_s = turns.median("samples, images in memory") + turns.median("collate")
    rows: list[Row] = [
        {"part": name, "ms_per_batch": 1e3 * turns.median(name), "ratio_to_samples": turns.ratio(name, _SAMPLES)}
        for name in parts
    ]
    kind_rows: list[Row] = [
        {
            "sampling": name,
            "ms_per_sample": 1e3 * turns.median(f"style sampling {name}") / batch,
            "ratio_to_samples": turns.ratio(f"style sampling {name}", _SAMPLES),
        }
        for name in kinds
    ]
    figures = {
        "batch": batch,
        "style_images": config.style.n_images,
        "image_px": setting.image_px,
        "samples_per_s": batch / stream_s,
        "style_sampling": config.style.sampling,
    }
    notes = [f"ratio_to_samples: against `{_SAMPLES}`, the stream as configured. read from files: images and masks."]
    return Result("data", figures, {"parts": rows, "style sampling": kind_rows}, notes)


_SAMPLES = "samples, images in memory"


def _samples(setting: Setting, sampling: str) -> DiffusionSamples:
    config = setting.config.diffusion
    config = config.model_copy(update={"style": config.style.model_copy(update={"sampling": sampling})})
    samples = DiffusionSamples(config, few(setting.annotated), few(setting.unlabeled), setting.image_px, seed=0)
    for i in range(32):
        samples[i]  # decodes
    return samples


def _stream(setting: Setting, sampling: str) -> DiffusionSamples | None:
    """None where the images can't be sampled in this way."""
    try:
        return _samples(setting, sampling)
    except StedmError:
        return None


def _read(cache: ImageCache, n: int) -> None:
    for row in range(n):
        cache.image(row % len(cache))
        cache.mask(row % len(cache))
