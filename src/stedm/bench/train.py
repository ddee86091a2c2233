"""A training step of the diffusion model: where its time goes, and what it reaches of the machine's matrix products.

The loop that is measured is `stedm.diffusion.train.train_diffusion` itself, watched at the seams of its engine. A
handful of images is used, so that after the steps that warm up all of them are decoded, as after the first pass over
the data of a real run; checkpoints are left out.
"""

import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.utils.flop_counter import FlopCounterMode

from stedm.bench.effort import Effort
from stedm.bench.machine import MatmulPeak
from stedm.bench.measure import PhaseClock, profiler, replaced
from stedm.bench.result import Result, Row
from stedm.bench.setting import Setting, few
from stedm.diffusion.train import train_diffusion
from stedm.training.trainer import Engine

PHASES = {
    "data": "data stream (waiting for the next batch)",
    "prepare": "recolour, codec, noise",
    "forward": "forward and loss",
    "backward": "backward",
    "optimiser": "clipping, optimiser, EMA",
    "other": "log and the rest",
}
_OPERATORS = 12


def run(setting: Setting, effort: Effort) -> Result:
    """Train `effort.steps` steps and divide their time."""
    config = setting.config.diffusion
    steps = effort.warm_up_steps + effort.steps + effort.profiled_steps + 1  # the last one holds the checkpoint
    config = config.model_copy(update={"steps": steps, "checkpoint_every_steps": steps})
    if config.trains_codec:
        _ = setting.codec  # left in the run folder, untrained
    watch = _Watch(setting, effort)
    with watch.watching():
        train_diffusion(config, few(setting.annotated), few(setting.unlabeled), setting.run, image_px=setting.image_px)
    return watch.result(config.batch)


# What the counter sees as one operator runs under the name of a library.
_COUNTED_AS = {"mkldnn_convolution": "convolution", "cudnn_convolution": "convolution"}


class _Watch:
    """Divides the steps of a training loop into phases, counts FLOPs in the first ones and profiles the last ones."""

    def __init__(self, setting: Setting, effort: Effort):
        self.effort, self.clock = effort, PhaseClock(setting.device)
        self.peak = MatmulPeak(setting.device, setting.precision, effort.matmul_n)
        self.steps: list[dict[str, float]] = []
        self.peaks: list[float] = []
        self.flops: list[int] = []
        self.flops_by_operator: Counter[str] = Counter()
        self._counter: FlopCounterMode | None = None
        self.profiler = profiler(setting.device)
        self._begun = -1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with (
            replaced(Engine, "batches", self._batches),
            replaced(Engine, "autocast", self._autocast),
            replaced(torch.Tensor, "backward", self._backward),
            replaced(EMAModel, "step", self._average),
        ):
            yield

    # ---- the seams ----------------------------------------------------------------------------------------------

    def _batches(self, original: Callable) -> Callable:
        def batches(engine: Engine, samples: Any) -> Iterator[Any]:
            stream = original(engine, samples)
            while True:
                self._between_steps()
                self.clock.enter("data")
                batch = next(stream, None)
                if batch is None:
                    self.clock.enter(None)
                    return
                self.clock.enter("prepare")
                yield batch

        return batches

    def _autocast(self, original: Callable) -> Callable:
        def autocast(engine: Engine) -> Any:
            self.clock.enter("forward")
            # The very first step may compile and allocate; styles drop out at random, so several steps are counted.
            if 1 <= self._begun < self.effort.warm_up_steps:
                self._counter = FlopCounterMode(display=False)
                self._counter.__enter__()
            return original(engine)

        return autocast

    def _backward(self, original: Callable) -> Callable:
        def backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            self.clock.enter("backward")
            original(loss, *args, **kwargs)
            if self._counter is not None:
                self._counter.__exit__(None, None, None)
                self.flops.append(self._counter.get_total_flops())
                for operator, flops in self._counter.get_flop_counts()["Global"].items():
                    self.flops_by_operator[str(operator).removeprefix("aten.")] += flops
                self._counter = None
            self.clock.enter("optimiser")

        return backward

    def _average(self, original: Callable) -> Callable:
        def step(average: EMAModel, parameters: Any) -> None:
            original(average, parameters)
            self.clock.enter("other")

        return step

    def _between_steps(self) -> None:
        self.clock.enter(None)
        measured, first = self.clock.take(), self.effort.warm_up_steps
        if measured and first <= self._begun < first + self.effort.steps:
            self.steps.append({phase: measured.get(phase, 0.0) for phase in PHASES})
            self.peaks.append(self.peak.sample(1))
        self._begun += 1
        if self._begun == first + self.effort.steps:
            self.profiler.start()
        elif self._begun == first + self.effort.steps + self.effort.profiled_steps:
            self.profiler.stop()

    # ---- what comes out -----------------------------------------------------------------------------------------

    def result(self, batch: int) -> Result:
        totals = [sum(step.values()) for step in self.steps]
        low, high = (_quantile(totals, q) for q in (0.25, 0.75))
        # The middle half of the steps: on a shared machine some are interrupted.
        usual = [step for step, total in zip(self.steps, totals, strict=True) if low <= total <= high]
        seconds = {phase: sum(step[phase] for step in usual) for phase in PHASES}
        total = sum(seconds.values())
        flops = statistics.mean(self.flops)
        network = [step["forward"] + step["backward"] for step in self.steps]
        of_peak = [flops / one / peak for one, peak in zip(network, self.peaks, strict=True)]
        figures = {
            "batch": batch,
            "steps_measured": len(self.steps),
            "step_ms": 1e3 * statistics.median(totals),
            "images_per_s": batch / statistics.median(totals),
            "share_forward_and_backward": (seconds["forward"] + seconds["backward"]) / total,
            "gflop_forward_and_backward": flops / 1e9,
            "gflop_per_s_forward_and_backward": flops / statistics.median(network) / 1e9,
            "gflop_per_s_matmul_peak": statistics.median(self.peaks) / 1e9,
            "share_of_matmul_peak": statistics.median(of_peak),
        }
        phases: list[Row] = [
            {"phase": phase, "what": what, "ms": 1e3 * seconds[phase] / len(usual), "share": seconds[phase] / total}
            for phase, what in PHASES.items()
        ]
        notes = [
            "Shares are of the middle half of the steps by their time. The matmul peak is sampled after each step. "
            "Operators: self time over all of a step, from torch.profiler in steps of their own; the FLOPs of "
            "their share of the peak are counted in other steps."
        ]
        return Result("train", figures, {"phases": phases, "operators": self._operators()}, notes)

    def _operators(self) -> list[Row]:
        events = self.profiler.key_averages()
        on_device = any(event.self_device_time_total for event in events)

        def own_us(event: Any) -> float:
            return event.self_device_time_total if on_device else event.self_cpu_time_total

        total = sum(map(own_us, events))
        steps = self.effort.profiled_steps
        return [
            {
                "operator": event.key,
                "share": own_us(event) / total,
                "ms_per_step": own_us(event) / 1e3 / steps,
                "calls_per_step": event.count / steps,
                "share_of_matmul_peak": self._share_of_peak(event.key, own_us(event) / 1e6 / steps),
            }
            for event in sorted(events, key=own_us, reverse=True)[:_OPERATORS]
        ]

    def _share_of_peak(self, operator: str, seconds_per_step: float) -> float | None:
        """FLOPs of an operator by its own time, against the matmul peak; None where it has none that count."""
        name = operator.removeprefix("aten::")
        flops = self.flops_by_operator[_COUNTED_AS.get(name, name)] / max(1, len(self.flops))
        return flops / seconds_per_step / statistics.median(self.peaks) if flops else None


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[round(q * (len(values) - 1))]
