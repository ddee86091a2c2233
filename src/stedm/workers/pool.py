"""Who does a long job piece by piece: this process, several, or the nodes of a Ray cluster (stedm.workers.ray_pool).

A piece is work that needs no other piece and writes its own finished files under a temporary name and renames them.
So it does no harm to do a piece twice, a killed worker leaves nothing half-done, and a pool has only to see that
every piece is done. What is done already is not given to it.
"""

import multiprocessing
import os
import platform
import signal
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, ClassVar, Protocol

from stedm.errors import StedmError
from stedm.workers.group import leave_group

Work = Callable[[Any], Any]


class Job(Protocol):
    """What a kind of pieces has in common, as paths and settings: it is pickled and sent to worker processes."""

    uses_gpu: ClassVar[bool]

    def open(self) -> Work:
        """Load what all pieces need, such as a model: once in each process. Returns the function that does a piece."""
        ...


class Pool(ABC):
    """Does pieces of work, in any order. Use it in a `with` statement."""

    @property
    def is_here(self) -> bool:
        """Whether there is no worker but this process: who asks may as well do the work directly."""
        return False

    @abstractmethod
    def run(self, job: Job, pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Number (place in `pieces`) and result of each piece, as they get done.

        Raises what a piece raises, and `StedmError` where workers die again and again. Pieces that were begun by then
        may still be done.
        """

    def __enter__(self) -> "Pool":
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Let go of the workers."""


class LocalPool(Pool):
    """This process alone, or several beside it.

    Args:
        processes: how many; 1 = this one.
        patient: after an error or an interrupt let pieces that have begun be finished; false = end them, for pieces
            that take long and go on where they were.
    """

    def __init__(self, processes: int = 1, *, patient: bool = True):
        self.processes, self.patient = processes, patient
        self._pool: ProcessPoolExecutor | None = None
        self._not_ours: set[object] = set()

    @property
    def is_here(self) -> bool:
        return self.processes == 1

    def run(self, job: Job, pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        if self.is_here or len(pieces) < 2:
            work = job.open() if pieces else None
            yield from ((number, work(piece)) for number, piece in enumerate(pieces))
            return
        if self._pool is None:
            self._not_ours = set(multiprocessing.active_children())
            # Not forked: threads of numerical libraries and open slides don't survive that.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.processes, mp_context=context, initializer=_begin, initargs=(self.processes, context.Value("i", 0))
            )
        name = new_name()
        try:
            waiting = {self._pool.submit(do_piece, name, job, piece): number for number, piece in enumerate(pieces)}
            yield from ((waiting[future], future.result()) for future in as_completed(waiting))
        except BrokenProcessPool as error:
            line = "a worker process died, probably of too little memory; run again with fewer --workers"
            raise StedmError(line) from error

    def __exit__(self, *error: object) -> None:
        if not self._pool:
            return
        if any(error) and not self.patient:
            for process in multiprocessing.active_children():
                if process not in self._not_ours:
                    process.terminate()
        self._pool.shutdown(cancel_futures=True)


def make_pool(name: str, processes: int = 1, *, patient: bool = True) -> Pool:
    """`local` (see `LocalPool`) or `ray`. `StedmError` for other names, and where Ray can't be had."""
    if name == "local":
        return LocalPool(processes, patient=patient)
    if name == "ray":
        from stedm.workers.ray_pool import RayPool

        return RayPool()
    raise StedmError(f"--engine {name}: give local or ray")


def parse_shard(text: str) -> tuple[int, int]:
    """`3/8` (the third of eight) to (2, 8)."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise StedmError(f"--shard {text}: write it as I/N with 1 <= I <= N, for example 3/8")
    return int(first) - 1, int(second)


def check_shared(path: Path) -> None:
    """In a worker: complain where it does not see a file that is there for who started it."""
    if not path.exists():
        raise StedmError(
            f"{path}: not there on node {platform.node()}; all nodes need the same files under the same paths"
        )


# ---- in worker processes ------------------------------------------------------------------------------------------

_processes, _number = 1, 0
_opened: tuple[str, Work] | None = None
"""The job that this process did last, ready for its next piece."""


def processes_here() -> int:
    """How many processes of a pool share this machine with this one, itself included; 1 outside of a pool."""
    return _processes


def number_here() -> int:
    """Which of these processes this one is, from 0, or of those of torchrun on this machine: what there are several of,
    such as GPUs, is dealt by it."""
    return int(os.environ.get("LOCAL_RANK") or _number)


def new_name() -> str:
    """For one run of a job, so that no process takes for it what an earlier run has loaded."""
    return uuid.uuid4().hex


def do_piece(name: str, job: Job, piece: Any) -> Any:
    """A piece of the job called `name`, which is opened where this process has not done so before."""
    global _opened
    if _opened is None or _opened[0] != name:
        _opened = None  # two models may not fit into memory
        _opened = name, job.open()
    return _opened[1](piece)


def _begin(processes: int, begun: Any) -> None:
    """`begun`: a shared counter of the pool's processes."""
    global _processes, _number
    with begun.get_lock():
        _processes, _number, begun.value = max(1, processes), begun.value, begun.value + 1
    leave_group()
    # Interrupts are the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _share_cores(processes)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _share_cores(processes: int) -> None:
    """Threads of numerical libraries: as `OMP_NUM_THREADS` says, else a part of the cores."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):  # too late for the variable
        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """Workers of a killed command would go on for hours, beside those of its next start."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
