"""A training step of the diffusion model: where its time goes, and what it reaches of the machine's matrix products.

The loop is that of `stedm.diffusion.train.train_diffusion` with a clock between its lines, `Trainer.step` in its two
halves. A handful of images is used, so that after the steps that warm up all of them are decoded, as after the first
pass over the data of a real run; no step writes a checkpoint.
"""

import contextlib
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from stedm.colour.recolour import recolour_together
from stedm.config import DiffusionConfig, MachineConfig
from stedm.data.symmetry import to_signed
from stedm.diffusion.objective import Objective
from stedm.diffusion.train import DiffusionSamples, DrawnSamples, encode, make_denoiser, open_cache
from stedm.training.trainer import Trainer

from .effort import Effort
from .machine import MatmulPeak
from .measure import PhaseClock, profiler
from .setting import Setting, few

PHASES = {
    "data": "data stream (waiting for the next batch)",
    "prepare": "recolour, codec, noise",
    "forward": "forward and loss",
    "backward": "backward",
    "optimiser": "clipping, optimiser, EMA, log",
}
_OPERATORS = 12


def run(setting: Setting, effort: Effort) -> dict[str, Any]:
    """Train `effort.steps` steps and divide their time."""
    first, n = effort.warm_up_steps, effort.steps
    steps = first + n + effort.profiled_steps
    config = setting.config.diffusion.model_copy(update={"steps": steps + 1})
    machine = setting.config.machine.model_copy(update={"checkpoint_every_steps": steps + 1, "accumulate": 1})
    clock, profiled = PhaseClock(setting.device), profiler(setting.device)
    flops: list[int] = []
    peak = MatmulPeak(setting.device, setting.precision, effort.matmul_n)
    measured: list[dict[str, float]] = []
    # The very first step may compile and allocate; styles drop out at random, so several steps are counted.
    for done in _training(setting, config, machine, clock, flops, counted=range(1, first)):
        seconds = clock.take()
        if first < done <= first + n:
            measured.append({phase: seconds[phase] for phase in PHASES})
            peak.sample(1)
        if done == first + n:
            profiled.start()
        if done == steps:
            profiled.stop()
            break
    operators = _operators(profiled, effort.profiled_steps)
    return _result(config.batch, measured, peak, statistics.mean(flops), operators)


def _training(
    setting: Setting,
    config: DiffusionConfig,
    machine: MachineConfig,
    clock: PhaseClock,
    flops: list[int],
    counted: range,
) -> Iterator[int]:
    """Train; yield the number of steps done after each, while no phase runs."""
    px, codec = setting.image_px, setting.codec
    samples = DiffusionSamples(config, few(setting.annotated), few(setting.unlabeled), px, seed=0)
    denoiser = make_denoiser(config, codec, len(setting.dataset.info.classes), 0, px)
    objective = Objective(config.objective, config.loss, config.time_shift)
    if machine.activation_checkpointing:
        denoiser.checkpoint_activations()
    trainer = Trainer(denoiser, setting.folder / "run", config, machine, ema_decay=config.ema_decay, seed=0)
    recolour = setting.config.recolour
    cache = open_cache(trainer, codec, samples, px) if machine.cache_latents else None
    clock.enter("data")
    for batch in trainer.batches(DrawnSamples(samples, recolour, objective, codec, px)):
        clock.enter("prepare")
        if recolour.probability > 0:
            image, style = recolour_together(batch["image"], batch["style"], batch["stain_factors"])
        else:
            image, style = to_signed(batch["image"]), to_signed(batch["style"])
        with trainer.autocast():
            latent = encode(image, batch, codec, cache)
        noisy, target, timestep = objective.corrupt(latent, batch["noise"], batch["time"])
        with FlopCounterMode(display=False) if trainer.step_done in counted else contextlib.nullcontext() as counter:
            clock.enter("forward")
            with trainer.autocast():
                predicted = trainer.network(noisy, timestep, batch["layout"].long(), style, batch["valid"])
            loss = objective(predicted.float(), target)
            clock.enter("backward")
            trainer.backward(loss)
        if counter:
            flops.append(counter.get_total_flops())
        clock.enter("optimiser")
        trainer.update()
        clock.enter(None)
        yield trainer.step_done
        clock.enter("data")


def _result(
    batch: int, steps: list[dict[str, float]], peak: MatmulPeak, flops: float, operators: list[dict[str, Any]]
) -> dict[str, Any]:
    totals = [sum(step.values()) for step in steps]
    low, high = (sorted(totals)[round(q * (len(totals) - 1))] for q in (0.25, 0.75))
    # The middle half of the steps: on a shared machine some are interrupted.
    usual = [step for step, total in zip(steps, totals, strict=True) if low <= total <= high]
    seconds = {phase: statistics.mean(step[phase] for step in usual) for phase in PHASES}
    total = sum(seconds.values())
    network = [step["forward"] + step["backward"] for step in steps]
    figures = {
        "batch": batch,
        "steps_measured": len(steps),
        "step_ms": 1e3 * statistics.median(totals),
        "images_per_s": batch / statistics.median(totals),
        "share_forward_and_backward": (seconds["forward"] + seconds["backward"]) / total,
        "gflop_forward_and_backward": flops / 1e9,
        "gflop_per_s_forward_and_backward": flops / statistics.median(network) / 1e9,
        "gflop_per_s_matmul_peak": peak.flop_per_s / 1e9,
        "share_of_matmul_peak": statistics.median(
            flops / one / rate for one, rate in zip(network, peak.samples, strict=True)
        ),
    }
    phases = [
        {"phase": phase, "what": what, "ms": 1e3 * seconds[phase], "share": seconds[phase] / total}
        for phase, what in PHASES.items()
    ]
    notes = [
        "Shares are of the middle half of the steps by their time. The matmul peak is sampled after each step. "
        "Operators: self time over all of a step, from torch.profiler in steps of their own."
    ]
    return {"figures": figures, "tables": {"phases": phases, "operators": operators}, "notes": notes}


def _operators(profiled: torch.profiler.profile, steps: int) -> list[dict[str, Any]]:
    """The operators that take most of the time."""
    events = profiled.key_averages()
    kind = "self_device_time_total" if any(event.self_device_time_total for event in events) else "self_cpu_time_total"
    seconds = {event.key: getattr(event, kind) / 1e6 / steps for event in events}
    return [
        {
            "operator": event.key,
            "share": seconds[event.key] / sum(seconds.values()),
            "ms_per_step": 1e3 * seconds[event.key],
            "calls_per_step": event.count / steps,
        }
        for event in sorted(events, key=lambda event: seconds[event.key], reverse=True)[:_OPERATORS]
    ]
