"""The data stream: reading, style sampling, recolouring, putting batches together."""

from typing import Any, get_args

import torch
from torch.utils.data import default_collate

from stedm.colour.recolour import recolour_together
from stedm.config import StyleConfig
from stedm.data.cache import ImageCache
from stedm.diffusion.train import DiffusionSamples
from stedm.errors import StedmError

from .effort import Effort
from .measure import Turns
from .setting import Setting, few

SAMPLINGS = get_args(StyleConfig.model_fields["sampling"].annotation)
_SAMPLES = "samples, images in memory"


def run(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Time the parts of the stream of training samples, all in turns."""
    config, batch = setting.config.diffusion, setting.config.diffusion.batch
    samples = _samples(setting, config.style.sampling)
    items = [samples[i] for i in range(batch)]
    together = default_collate(items)
    some, factors = few(setting.annotated), torch.full((batch, 3), 1.1)
    parts = {
        "read from files": lambda: _read(ImageCache(some, setting.image_px), batch),
        _SAMPLES: lambda: [samples[i] for i in range(batch)],
        "collate": lambda: default_collate(items),
        "recolour, all samples": lambda: recolour_together(together["image"], together["style"], factors),
    }
    streams = {f"style sampling {name}": stream for name in SAMPLINGS if (stream := _stream(setting, name))}
    kinds = {name: lambda stream=stream: [stream[i] for i in range(batch)] for name, stream in streams.items()}
    turns = Turns({**parts, **kinds}, effort.repeats, torch.device("cpu"))
    rows = [
        {
            "part": name,
            "ms_per_sample": 1e3 * turns.median(name) / batch,
            "ratio_to_samples": turns.ratio(name, _SAMPLES),
        }
        for name in (*parts, *kinds)
    ]
    figures = {
        "batch": batch,
        "style_images": config.style.n_images,
        "image_px": setting.image_px,
        "samples_per_s": batch / (turns.median(_SAMPLES) + turns.median("collate")),
        "style_sampling": config.style.sampling,
    }
    notes = [f"ratio to samples: against `{_SAMPLES}`, the stream as configured. read from files: images and masks."]
    return {"figures": figures, "tables": {"parts": rows}, "notes": notes}


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
