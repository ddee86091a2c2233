"""The machine in words, and the rate it reaches in a matrix product, which is what networks are made of."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stedm.training.precision import resolve_precision
from stedm.version import __version__

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def describe(device: torch.device, precision: str) -> dict[str, Any]:
    """Processor, cores, threads, versions, device, arithmetic, and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": resolve_precision(precision, device),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stedm": __version__,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait for what was handed to a GPU, so that a clock read now is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class MatmulPeak:
    """FLOP/s of square matrix products, sampled between the things that are compared with it.

    A machine shared with others is not equally fast all the time; what is measured between two samples is therefore
    divided by these and not by a number of another minute.
    """

    def __init__(self, device: torch.device, precision: str, n: int | None = None):
        self.device = device
        self.n = n or (4096 if device.type == "cuda" else 1024)
        dtype = _DTYPES[resolve_precision(precision, device)]
        self._matrix = torch.full((self.n, self.n), 0.5, dtype=dtype, device=device)
        self.samples: list[float] = []
        self.sample()
        self.samples.clear()  # the first one warms up

    def sample(self, times: int = 3) -> float:
        """FLOP/s of the fastest of some products, a multiply-add as two."""
        seconds = min(timed(lambda: torch.mm(self._matrix, self._matrix), self.device) for _ in range(times))
        self.samples.append(2.0 * self.n**3 / seconds)
        return self.samples[-1]

    @property
    def flop_per_s(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronize(device)
    started = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - started
