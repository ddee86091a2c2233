"""Processes that `torchrun` or `accelerate launch` started together: one does the work, all of them train.

The first process runs the command. The others wait for what it hands out, which is the training of networks, and do
nothing else: only the first writes files, takes locks and prints, and no stage but training needs to know of the
others. What is handed out goes over the store at which torch.distributed lets processes meet; the gradients are
Accelerate's.
"""

import contextlib
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from stedm.errors import Interrupted, StedmError, Terminated

_Result = TypeVar("_Result")
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOOK_SECONDS = 0.1
"""How often a process that waits looks for something to do: a signal reaches it in between."""
_MEET_SECONDS, _ANSWER_SECONDS, _END_SECONDS = 300.0, 120.0, 5.0
_PART_BYTES = 1 << 20
"""The store takes no value above 8 MB."""


def group_size() -> int:
    """How many processes were started together; 1 = this one alone."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, _VARIABLES)) else 1


def leave_group() -> None:
    """Forget who this process was started with: processes that it starts itself are no part of the group."""
    for name in (*_VARIABLES, "LOCAL_RANK"):
        os.environ.pop(name, None)


def as_one(work: Callable[[], _Result], *, at_end: bool = False) -> _Result:
    """Do `work` in the first process of the group, while the others do what it gives to `together`.

    Returns what `work` returns, in all of them. Where it ends with an error, the others end with its exit status and
    without a word. Within such work, and in a process of its own, this is a plain call. `at_end`: nothing is trained
    together any more.
    """
    global _group
    if group_size() == 1 or (_group is not None and _group.is_at_work):
        return work()
    if _group is None:
        _group = _Group()
    group = _group
    group.is_at_work = True
    try:
        return group.lead(work, at_end) if group.rank == 0 else group.follow(at_end)
    finally:
        group.is_at_work = False


def together(function: Callable[..., _Result], *args: Any, first: dict[str, Any], **kwargs: Any) -> _Result:
    """Call a function in all processes of the group at the same time, with the same arguments, which must be picklable.

    first: further arguments, of the first process alone. Returns what the function returns there.
    """
    if _group is not None and _group.is_at_work:
        return _group.hand_out(function, args, kwargs, first)
    return function(*args, **kwargs, **first)


class _Group:
    def __init__(self) -> None:
        # It would tell of each lost connection with a page of addresses.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from torch.distributed import PrefixStore, rendezvous

        self.rank, self.size = int(os.environ["RANK"]), group_size()
        with _losses():
            store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=_MEET_SECONDS)))
        self.store = PrefixStore("stedm", store)
        self.number, self.is_at_work = 0, False

    # ---- the first process ----------------------------------------------------------------------------------------

    def lead(self, work: Callable[[], _Result], at_end: bool) -> _Result:
        result, status = None, 1
        try:
            result = work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        finally:
            # The others may be gone, or stay in what they do until this process is.
            with contextlib.nullcontext() if status == 0 else contextlib.suppress(StedmError):
                self._tell((status, result), _ANSWER_SECONDS if status == 0 else _END_SECONDS)
            _leave(at_end and status == 0)
        return result

    def hand_out(self, function: Callable[..., _Result], args: tuple, kwargs: dict, first: dict) -> _Result:
        self._tell((function, args, kwargs), _ANSWER_SECONDS)
        with _losses():
            return function(*args, **kwargs, **first)

    def _tell(self, message: tuple, seconds: float) -> None:
        """Put a message into the store and wait until all have taken it."""
        # Pickled, as torch.distributed's own messages are: who can reach the store of a job is trusted with it.
        data = zlib.compress(pickle.dumps(message), 1)
        self.number += 1
        parts = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
        with _losses():
            for number, part in enumerate(parts):
                self.store.set(f"{self.number}/{number}", part)
            self.store.set(f"{self.number}", str(len(parts)))
            until = time.monotonic() + seconds
            while self.store.add(f"{self.number}/taken", 0) < self.size - 1:
                if time.monotonic() > until:
                    raise StedmError(f"one of the {self.size} processes does not answer; {_AGAIN}")
                time.sleep(_LOOK_SECONDS)
            for number in range(len(parts)):
                self.store.delete_key(f"{self.number}/{number}")

    # ---- the others -----------------------------------------------------------------------------------------------

    def follow(self, at_end: bool) -> Any:
        try:
            while True:
                what, *rest = self._hear()
                if isinstance(what, int):
                    _leave(at_end and what == 0)
                    if what:
                        raise SystemExit(what)
                    return rest[0]
                try:
                    with _losses():
                        what(*rest[0], **rest[1])
                except StedmError as error:
                    with contextlib.suppress(StedmError):
                        self._hear(_END_SECONDS)
                        # The first has met an error too, and one line is enough.
                        raise SystemExit(1) from None
                    raise error
        except _LostError:
            if self.rank > 1:
                raise SystemExit(1) from None
            raise
        except KeyboardInterrupt as error:
            # Of Ctrl-C the first process tells; a SIGTERM may mean that it is gone.
            interrupted = Interrupted(error)
            if self.rank > 1 or not isinstance(error, Terminated):
                raise SystemExit(interrupted.status) from None
            raise interrupted from error

    def _hear(self, seconds: float = float("inf")) -> tuple:
        """The next message of the first process."""
        self.number += 1
        until = time.monotonic() + seconds
        with _losses():
            while not self.store.check([f"{self.number}"]):
                if time.monotonic() > until:
                    raise StedmError(f"the first process does not answer; {_AGAIN}")
                time.sleep(_LOOK_SECONDS)
            parts = [self.store.get(f"{self.number}/{part}") for part in range(int(self.store.get(f"{self.number}")))]
            self.store.add(f"{self.number}/taken", 1)
        return pickle.loads(zlib.decompress(b"".join(parts)))


class _LostError(StedmError):
    """Another process is gone."""


_group: _Group | None = None
_AGAIN = "run the same command again: it resumes, with any number of processes"


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    """Turn the errors of a connection whose other end is gone into one line."""
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DistError) or "gloo" in str(error) or "closed by peer" in str(error):
            raise _LostError(f"a process of this command has ended before the others; {_AGAIN}") from error
        raise


def _leave(is_over: bool) -> None:
    import torch.distributed

    if is_over and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
