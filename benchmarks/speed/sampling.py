"""Drawing images: samplers, guidance and batch sizes."""

from collections.abc import Callable
from typing import Any

import torch

from stedm.config import Guidance, Sampling
from stedm.diffusion.sampler import SAMPLERS
from stedm.experiment.cost import flops_of

from .effort import Effort
from .machine import MatmulPeak
from .measure import PhaseClock, Turns, spans_of, watching
from .setting import Setting

_STEPS = 6
_BATCH = 8
_BATCHES = (1, 8, 32)
GUIDANCES = {
    "none": Guidance(style=1.0),
    "style": Guidance(style=1.5),
    "style and layout": Guidance(style=1.5, layout=2.0),
}


def run(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Time an image under each sampler, guidance and batch size, all in turns."""
    base = ("dpm++", "style", _BATCH)
    kinds = [(sampler, "style", _BATCH) for sampler in SAMPLERS[setting.config.diffusion.objective]]
    kinds += [("dpm++", guidance, _BATCH) for guidance in GUIDANCES]
    kinds += [("dpm++", "style", batch) for batch in _BATCHES]
    variants = {kind: _draw(setting, *kind) for kind in kinds}
    peak = MatmulPeak(setting.device, setting.precision, effort.matmul_n)
    turns = Turns(variants, effort.repeats, setting.device, peak)
    flops = flops_of_call(setting)
    rows = []
    for kind in variants:
        sampler, guidance, batch = kind
        calls = _sampling(sampler, guidance).nfe
        rows.append(
            {
                "sampler": sampler,
                "guidance": guidance,
                "batch": batch,
                "network_calls": calls,
                "ms_per_image": 1e3 * turns.median(kind) / batch,
                "ms_per_call_and_image": 1e3 * turns.median(kind) / batch / calls,
                "ratio_to_base": turns.ratio(kind, base) * _BATCH / batch,
                "share_of_matmul_peak": turns.share_of_peak(kind, flops * calls * batch),
            }
        )
    figures = {
        "steps": _STEPS,
        "gflop_per_call_and_image": flops / 1e9,
        "gflop_per_s_matmul_peak": peak.flop_per_s / 1e9,
        "share_outside_denoiser": _share_outside(setting, variants[base], effort.repeats),
    }
    notes = [f"ratio to base: time an image against {base}. Style vectors and decoding are part of every time."]
    return {"figures": figures, "tables": {"samplers": rows}, "notes": notes}


def _draw(setting: Setting, sampler: str, guidance: str, batch: int) -> Callable[[], Any]:
    layouts = setting.layouts(batch)
    style = list(setting.images(setting.config.synthesis.style_images))[: setting.model.largest_style_set]
    return lambda: setting.model.generate(layouts, style, sampling=_sampling(sampler, guidance), batch=batch)


def _sampling(sampler: str, guidance: str) -> Sampling:
    return Sampling(guidance=GUIDANCES[guidance], sampler=sampler, steps=_STEPS)


def _share_outside(setting: Setting, draw: Callable[[], Any], repeats: int) -> float:
    """Part of the time of drawing that is not spent in the denoiser: scheduler, guidance, noise, style, decoding."""
    clock = PhaseClock(setting.device)
    with watching(clock, {"denoiser": spans_of(setting.model)["denoiser"]}):
        clock.enter("outside")
        for _ in range(repeats):
            draw()
    seconds = clock.take()
    return seconds["outside"] / sum(seconds.values())


def flops_of_call(setting: Setting) -> int:
    """FLOPs of one network call for one image."""
    model, side = setting.model, setting.image_px // setting.codec.factor
    noisy = torch.zeros(1, setting.codec.latent_channels, side, side, device=setting.device)
    layout = torch.zeros(1, setting.image_px, setting.image_px, dtype=torch.long, device=setting.device)
    timestep = torch.zeros(1, device=setting.device)
    style = model.denoiser.null_style.detach()[None]
    # Training mode: the fused layers of inference are invisible to the counter.
    model.denoiser.train()
    with torch.no_grad():
        flops = flops_of(lambda: model.denoiser.denoise(noisy, timestep, layout, style))
    model.denoiser.eval()
    return flops
