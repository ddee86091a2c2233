"""Execution of a plan: how much of its time is spent outside of the network, and on what."""

import contextlib
import time

import stedm.synthesis.generate
from stedm.bench.effort import Effort
from stedm.bench.measure import PhaseClock, counted_as, replaced
from stedm.bench.result import Result, Row
from stedm.bench.setting import Setting
from stedm.data.cache import ImageCache
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan

PHASES = {
    "denoiser": "network: denoiser",
    "style": "network: style encoder and aggregation",
    "decode": "network: codec",
    "sampler": "guidance, scheduler, noise",
    "reading": "reading images and masks",
    "layouts": "making layouts",
    "writing": "waiting for PNG files to be written",
    "rest": "checks, fingerprints, tables",
}
NETWORK = ("denoiser", "style", "decode")


def run(setting: Setting, effort: Effort) -> Result:
    """Plan and draw `effort.images` images with `stedm.synthesis.generate.synthesize` under a clock."""
    config = setting.config.synthesis.model_copy(update={"n_images": effort.images})
    if (largest := setting.model.largest_style_set) is not None:
        config = config.model_copy(update={"style_images": min(config.style_images, largest)})
    started = time.perf_counter()
    plan = make_plan(config, setting.annotated, setting.unlabeled, image_px=setting.image_px)
    plan_s = time.perf_counter() - started
    _warm_up(setting)
    clock = PhaseClock(setting.device)
    with contextlib.ExitStack() as watch:
        model, runs = setting.model, stedm.synthesis.generate
        for owner, name, phase in (
            (model.denoiser, "denoise", "denoiser"),
            (model, "style_vectors", "style"),
            (model.codec, "decode", "decode"),
            (StyleDiffusion, "_draw", "sampler"),
            (ImageCache, "image", "reading"),
            (ImageCache, "mask", "reading"),
            (runs, "build_layout", "layouts"),
            (runs._Writer, "_wait", "writing"),
        ):
            watch.enter_context(replaced(owner, name, counted_as(clock, phase)))
        with clock.within("rest"):
            synthesize(model, plan, setting.folder / "bench-synthesis")
    seconds = clock.take()
    total = sum(seconds.values())
    inside = sum(seconds.get(phase, 0.0) for phase in NETWORK)
    figures = {
        "images": effort.images,
        "network_calls_per_image": config.network_calls,
        "total_s": total,
        "ms_per_image": 1e3 * total / effort.images,
        "inside_network_s": inside,
        "outside_network_s": total - inside,
        "share_outside_network": (total - inside) / total,
        "outside_ms_per_image": 1e3 * (total - inside) / effort.images,
        "plan_s": plan_s,
    }
    rows: list[Row] = [
        {
            "phase": phase,
            "what": what,
            "ms_per_image": 1e3 * seconds.get(phase, 0.0) / effort.images,
            "share": seconds.get(phase, 0.0) / total,
        }
        for phase, what in PHASES.items()
    ]
    notes = [
        "The share outside falls with the size of the network: compare ms an image. Making the plan comes before and "
        "is not part of the total."
    ]
    return Result("synthesis", figures, {"phases": rows}, notes)


def _warm_up(setting: Setting) -> None:
    """The first call of a network allocates and chooses kernels."""
    setting.model.generate(setting.layouts(1), list(setting.images(1)), steps=1)
