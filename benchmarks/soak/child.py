"""A piece of work in a forked process: with a limit, and killed at a random moment if asked.

Forked, so that it has everything imported: a verb of the command line then takes what it does and not what Python
needs to start. The parent must have run no network before.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WRITES = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True)
class Ended:
    """How it ended: exit status (negative = killed by that signal), what it said, how long it took."""

    status: int
    out: str
    err: str
    seconds: float
    operations: int

    @property
    def was_killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def complaint(self) -> str:
        """`` where the only complaint on stderr is in stedm's one line; else what is wrong with it."""
        lines = [line for line in self.err.splitlines() if line.startswith("stedm: ")]
        if "Traceback (most recent call last)" in self.err:
            return "traceback: " + self.err.strip().splitlines()[-1]
        if len(lines) != 1:
            return f"{len(lines)} lines of complaint, expected 1"
        return ""


def run(
    work: Callable[[], object],
    folder: Path,
    *,
    limit_s: float = 900,
    kill_after_s: float | None = None,
    kill_at_operation: int | None = None,
) -> Ended:
    """Do `work` in a child of this process; what it prints goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("out", "err", "operations")}
    for file in files.values():
        file.write_text("")
    started = time.monotonic()
    pid = fork()
    if pid == 0:
        _be_the_child(work, files, kill_at_operation)
    status = _wait(pid, min(limit_s, kill_after_s if kill_after_s is not None else limit_s))
    said = {name: file.read_text(encoding="utf-8", errors="replace") for name, file in files.items()}
    return Ended(status, said["out"], said["err"], time.monotonic() - started, int(said["operations"] or 0))


def fork() -> int:
    """As `os.fork`, which warns where libraries have threads: ours wait for work that the parent never gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def stedm(*arguments: object) -> Callable[[], object]:
    """The work of a command line."""

    def work() -> object:
        from stedm.cli import main

        return main([str(argument) for argument in arguments])

    return work


def _wait(pid: int, limit_s: float) -> int:
    """Exit status of a child, which is killed with all its own children when the time is over."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _be_the_child(work: Callable[[], object], files: dict[str, Path], kill_at: int | None) -> None:
    """Never returns."""
    status = 70
    try:
        os.setsid()
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_APPEND), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        counted = _count_operations(kill_at)
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else (0 if end.code is None else 1)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        files["operations"].write_text(str(counted()))
    finally:
        os._exit(status)


def _count_operations(kill_at: int | None) -> Callable[[], int]:
    """Count what Python does to files, and die just before one of them. (Libraries in C and Rust write unseen.)"""
    done = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in _WRITES or (event == "open" and _is_write(*arguments)):
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: done


def _is_write(path: object, mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def warm_up() -> None:
    """Import what the children need, so that each is there at once."""
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import stedm.cli
        import stedm.data.tiles
        import stedm.experiment.api
        import stedm.segmentation.segmenter
        import stedm.slides.annotations  # noqa: F401
