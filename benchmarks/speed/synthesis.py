"""Execution of a plan: how much of its time is spent outside of the networks."""

import time
from typing import Any

from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan

from .effort import Effort
from .measure import PhaseClock, spans_of, watching
from .setting import Setting

PHASES = {
    "denoiser": "network: denoiser",
    "style": "network: style encoder and aggregation",
    "codec": "network: decoder of the first stage",
    "outside": "guidance, scheduler, noise; reading, layouts, waiting for PNG files; checks and tables",
}


def run(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Plan and draw `effort.images` images with `stedm.synthesis.generate.synthesize` under a clock."""
    model, config = setting.model, setting.config.synthesis
    style_images = min(config.style_images, model.largest_style_set or config.style_images)
    config = config.model_copy(update={"n_images": effort.images, "style_images": style_images})
    started = time.perf_counter()
    plan = make_plan(config, setting.annotated, setting.unlabeled, image_px=setting.image_px)
    plan_s = time.perf_counter() - started
    model.generate(setting.layouts(1), list(setting.images(1)), steps=1)  # allocates and chooses kernels
    clock = PhaseClock(setting.device)
    with watching(clock, spans_of(model)):
        clock.enter("outside")
        synthesize(model, plan, setting.folder / "speed-synthesis")
    seconds = clock.take()
    total = sum(seconds.values())
    figures = {
        "images": effort.images,
        "network_calls_per_image": config.sampling.nfe,
        "total_s": total,
        "ms_per_image": 1e3 * total / effort.images,
        "share_outside_network": seconds["outside"] / total,
        "outside_ms_per_image": 1e3 * seconds["outside"] / effort.images,
        "plan_s": plan_s,
    }
    rows = [
        {"phase": phase, "what": what, "ms_per_image": 1e3 * s / effort.images, "share": s / total}
        for phase, what in PHASES.items()
        if (s := seconds.get(phase))
    ]
    notes = [
        "The share outside falls with the size of the network: compare ms an image. Making the plan comes before and "
        "is not part of the total."
    ]
    return {"figures": figures, "tables": {"phases": rows}, "notes": notes}
