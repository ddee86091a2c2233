"""How much memory decoded images may take.

A cohort may be larger than the memory of the machine: caches of images (stedm.data.cache) ask here how much they
may hold, and read the rest from files or slides each time it is needed. Nothing but speed depends on it.
"""

import os
from pathlib import Path

from stedm.errors import StedmError
from stedm.workers.pool import processes_here

_SHARE = 0.5
"""Of the machine's memory, where nobody says how much: the rest is for networks, moments and what else runs."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class CacheBudget:
    """Bytes that all caches with this budget may hold together.

    Args:
        megabytes: of 10^6 bytes; 0 = nothing is held; None = half of the memory of the machine (of the container, if
            that has less), divided by the processes that `torchrun` or `accelerate launch` started on it.
    """

    def __init__(self, megabytes: float | None = None):
        if megabytes is not None and megabytes < 0:
            raise StedmError(f"machine.cache_mb: must not be below 0, got {megabytes}")
        self.free_bytes = default_bytes() if megabytes is None else int(megabytes * 1e6)

    def take(self, n_items: int, bytes_each: int) -> int:
        """Reserve room for as many of `n_items` as fit; returns how many."""
        fitting = min(n_items, max(0, self.free_bytes) // max(bytes_each, 1))
        self.free_bytes -= fitting * bytes_each
        return fitting

    def give_back(self, n_bytes: int) -> None:
        self.free_bytes += n_bytes


def default_bytes() -> int:
    """A half of the memory at hand, for each of the processes that work together on this machine."""
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return int(_SHARE * memory_bytes() / (processes * processes_here()))


def memory_bytes() -> int:
    """Memory of the machine, or of the container where that has a limit; 8 GB where neither is known."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # other systems
        found = 8 * 10**9
    for path in _CGROUP_LIMITS:
        try:
            found = min(found, int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


_everywhere: CacheBudget | None = None


def common_budget() -> CacheBudget:
    """The budget of all folders that were opened without one of their own."""
    global _everywhere
    if _everywhere is None:
        _everywhere = CacheBudget()
    return _everywhere
