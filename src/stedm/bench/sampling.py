"""Drawing images: samplers, guidance and batch sizes."""

from collections.abc import Callable
from typing import Any

import torch

from stedm.bench.effort import Effort
from stedm.bench.machine import MatmulPeak
from stedm.bench.measure import PhaseClock, Turns, counted_as, replaced
from stedm.bench.result import Result, Row
from stedm.bench.setting import Setting
from stedm.config import Guidance
from stedm.diffusion.sampler import SAMPLERS
from stedm.experiment.cost import flops_of

_STEPS = 6
_BATCH = 8
_BATCHES = (1, 8, 32)
GUIDANCES = {
    "none": Guidance(style=1.0),
    "style": Guidance(style=1.5),
    "style, half of the steps": Guidance(style=1.5, interval=(0.25, 0.75)),
    "style and layout": Guidance(style=1.5, layout=2.0),
}


def run(setting: Setting, effort: Effort) -> Result:
    """Time an image under each sampler, guidance and batch size, all in turns."""
    base = _variant("dpm++", "style", _BATCH)
    settings = [(sampler, "style", _BATCH) for sampler in SAMPLERS[setting.config.diffusion.objective]]
    settings += [("dpm++", guidance, _BATCH) for guidance in GUIDANCES]
    settings += [("dpm++", "style", batch) for batch in _BATCHES]
    variants = {_variant(*of): _draw(setting, *of) for of in dict.fromkeys(settings)}
    peak = MatmulPeak(setting.device, setting.precision, effort.matmul_n)
    turns = Turns(variants, effort.repeats, setting.device, peak)
    flops_per_call = flops_of_call(setting)
    rows: list[Row] = []
    for sampler, guidance, batch in dict.fromkeys(settings):
        name = _variant(sampler, guidance, batch)
        calls = GUIDANCES[guidance].network_calls(_STEPS, sampler)
        rows.append(
            {
                "sampler": sampler,
                "guidance": guidance,
                "batch": batch,
                "network_calls": calls,
                "ms_per_image": 1e3 * turns.median(name) / batch,
                "ms_per_call_and_image": 1e3 * turns.median(name) / batch / calls,
                "ratio_to_base": turns.ratio(name, base) * _BATCH / batch,
                "share_of_matmul_peak": turns.share_of_peak(name, flops_per_call * calls * batch),
            }
        )
    figures = {
        "steps": _STEPS,
        "gflop_per_call_and_image": flops_per_call / 1e9,
        "gflop_per_s_matmul_peak": peak.flop_per_s / 1e9,
        "share_outside_network": _share_outside(setting, variants[base], effort.repeats),
    }
    notes = [f"ratio_to_base: time an image against {base}. Style vectors and decoding are part of every time."]
    return Result("sampling", figures, {"samplers": rows}, notes)


def _variant(sampler: str, guidance: str, batch: int) -> str:
    return f"{sampler}, guidance {guidance}, batch {batch}"


def _draw(setting: Setting, sampler: str, guidance: str, batch: int) -> Callable[[], Any]:
    layouts = setting.layouts(batch)
    style = list(setting.images(setting.config.synthesis.style_images))
    if setting.model.largest_style_set is not None:
        style = style[: setting.model.largest_style_set]
    return lambda: setting.model.generate(
        layouts, style, guidance=GUIDANCES[guidance], steps=_STEPS, sampler=sampler, batch=batch
    )


def _share_outside(setting: Setting, draw: Callable[[], Any], repeats: int) -> float:
    """Part of the time of drawing that is not spent in the denoiser: scheduler, guidance, noise, style, decoding."""
    clock = PhaseClock(setting.device)
    with replaced(setting.model.denoiser, "denoise", counted_as(clock, "network")):
        for _ in range(repeats):
            with clock.within("outside"):
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
