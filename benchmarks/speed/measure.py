"""Ways to measure: in turns, by phases of a loop, memory, growth."""

import contextlib
import itertools
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stedm.diffusion.pipeline import StyleDiffusion

from .machine import MatmulPeak, synchronize, timed


class Turns:
    """Seconds of several variants, measured in turns: a slow minute of the machine then hits all of them.

    Args:
        variants: name to a call without arguments. Each is called once before anything is measured.
        peak: sampled once a round, so that `share_of_peak` compares within a round.
    """

    def __init__(
        self,
        variants: Mapping[str, Callable[[], object]],
        repeats: int,
        device: torch.device,
        peak: MatmulPeak | None = None,
    ):
        self.seconds: dict[str, list[float]] = {name: [] for name in variants}
        self.peaks: list[float] = []
        for action in variants.values():
            action()
        for turn in range(repeats):
            if peak is not None:
                self.peaks.append(peak.sample())
            # Another one begins in each round, lest one always runs after the same neighbour.
            names = list(variants)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                self.seconds[name].append(timed(variants[name], device))

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over rounds of the time of a variant by that of another in the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def share_of_peak(self, name: str, flops: float) -> float | None:
        """Median over rounds of FLOPs per second by the matrix products' of the round; None without FLOPs."""
        if not flops or not self.peaks:
            return None
        pairs = zip(self.seconds[name], self.peaks, strict=True)
        return statistics.median(flops / seconds / peak for seconds, peak in pairs)


class PhaseClock:
    """Wall time divided into phases: at each moment exactly one runs, so that shares sum to 1."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    def enter(self, phase: str | None) -> str | None:
        """Begin a phase (None: nothing is counted), ending the one before, which is returned."""
        synchronize(self.device)
        now, before = time.perf_counter(), self._phase
        if before is not None:
            self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before

    def take(self) -> dict[str, float]:
        """The seconds so far; counting begins anew."""
        self.enter(self._phase)
        taken, self.seconds = self.seconds, {}
        return taken


Span = tuple[nn.Module, nn.Module]
"""From the call of a module to the return of a module, which may be the same one."""


@contextlib.contextmanager
def watching(clock: PhaseClock, spans: Mapping[str, Sequence[Span]]) -> Iterator[None]:
    """In the block the time within the spans counts as their phase, by hooks on the modules."""
    handles, before = [], []
    for phase, pairs in spans.items():
        for first, last in pairs:

            def begin(*_: Any, phase: str = phase) -> None:
                before.append(clock.enter(phase))

            def end(*_: Any) -> None:
                clock.enter(before.pop())

            handles += [first.register_forward_pre_hook(begin), last.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def spans_of(model: StyleDiffusion) -> dict[str, list[Span]]:
    """The networks of a diffusion model: `denoiser`, `style` and the decoder of the codec."""
    denoiser, decoder = model.denoiser, getattr(getattr(model.codec, "autoencoder", None), "decoder", None)
    alone = {"style": [denoiser.style_encoder, denoiser.aggregate], "codec": [decoder]}
    return {
        "denoiser": [(denoiser.layout_embedding, denoiser.unet.conv_out)],
        **{phase: [(module, module) for module in modules if module is not None] for phase, modules in alone.items()},
    }


def profiler(device: torch.device, **options: Any) -> torch.profiler.profile:
    """torch's profiler of the processor and the device, without its own talk on stderr."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, **options)


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Most memory that a call holds beyond what was there: of tensors, and of NumPy and Python at their own peak.

    On a GPU that of the device alone. Workspaces that libraries allocate for themselves are not seen.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    tracemalloc.start()
    try:
        with profiler(device, profile_memory=True) as profiled:
            action()
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return python + max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def exponent(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Slope of log value against log size, by least squares: 1 = grows as the size, 2 = as its square."""
    known = [(size, value) for size, value in zip(sizes, values, strict=True) if value is not None and value > 0]
    if len(known) < 2:
        return None
    x, y = np.log(np.array(known, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])
