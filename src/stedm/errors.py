"""The one exception that reaches users: a single clear line (what, which file, what to do); and how else a command ends
before its time, by a disk or by a signal."""

import contextlib
import errno
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST_LINES = 10
_AGAIN = "run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"free space on this disk and {_AGAIN}",
    errno.EDQUOT: f"free some of your quota and {_AGAIN}",
    errno.EFBIG: f"allow larger files (ulimit -f) and {_AGAIN}",
    errno.EROFS: f"give another -o, or make it writable and {_AGAIN}",
    errno.EACCES: f"give another path, or the permission and {_AGAIN}",
    errno.EPERM: f"give another path, or the permission and {_AGAIN}",
    errno.EIO: f"look after this disk and {_AGAIN}",
}
# Writers in C and Rust name the error in words; NumPy tells only how much it has written, torch where it is.
_NUMBER = re.compile(r"\b(?:os error|errno|Os \{ code:) (\d+)\b", re.IGNORECASE)
_FULL = re.compile(r"No space left|unexpected pos \d+ vs \d+|\d+ requested and \d+ written")


class StedmError(Exception):
    """Bad input or an impossible request.

    The command line prints `str(error)` on one line (or one line a problem) and exits with status 1.
    """

    @classmethod
    def of(cls, problems: Sequence[str], hint: str = "") -> "StedmError":
        """One line a problem for the first ones, and how many more there are: a wrong column is wrong in every row.

        `hint` says where all of them can be seen.
        """
        shown = list(problems[:MOST_LINES])
        if more := len(problems) - len(shown):
            shown.append(f"... and {more} more problems{hint and f'; {hint}'}")
        return cls("\n".join(shown))


class DiskError(StedmError):
    """A disk is full, read-only or closed to the user: nothing is wrong with what was being worked on."""


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """A Ctrl-C, or the SIGTERM of a job scheduler, on its way to the command's end; `status` is the exit status, `verb`
    what was interrupted."""

    def __init__(self, reason: KeyboardInterrupt, verb: str | None = None):
        self.status, self.verb = 143 if isinstance(reason, Terminated) else 130, verb


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: nothing half-written stays."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` when this process gets a SIGTERM; the second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == process:
            raise Terminated
        os.kill(os.getpid(), signal.SIGTERM)  # a forked child has nothing to tidy up

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def disk_problem(error: BaseException, path: str | os.PathLike | None = None) -> DiskError | None:
    """What a disk has to do with an error; None = nothing.

    `path` is what was being written; the error itself may name something elsewhere.
    """
    for cause in _chain(error):
        if (number := _disk_error_number(cause)) is not None:
            named = getattr(cause, "filename", None)
            elsewhere = named and not (path and Path(os.fsdecode(named)).is_relative_to(Path(path).parent))
            where = named if elsewhere else path or Path.cwd()
            return DiskError(f"{where}: {os.strerror(number)}; {_REMEDIES[number]}")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_error_number(error: BaseException) -> int | None:
    number = getattr(error, "errno", None)
    if number is None:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else errno.ENOSPC if _FULL.search(str(error)) else None
    return number if number in _REMEDIES else None
