"""Mutated inputs for every reader, in worker processes with limits of time and memory.

unharmed    the value is that of the whole file (the damage lay where nothing is said)
changed     another value, of a file that users make: they may change it
refused     a StedmError
silent      another value, although stedm wrote the file and can know that this isn't it
traceback   any other error
hang        more than CPU_S of processor time, or WALL_S of waiting
memory      more than MEMORY_MB
died        the process, such as by a signal of a library
"""

import contextlib
import functools
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stedm.seeds import numpy_generator

from .child import fork
from .mutate import damage, remove
from .readers import READERS, Reader
from .trials import SEED, Outcome, Trial
from .workshop import Workshop

GOOD = ("unharmed", "changed", "refused")
BATCH = 100
CPU_S, WALL_S, MEMORY_MB = 20, 30, 1500
_ADDRESS_SPACE = 4 << 30
MOST_LINES = 100
"""Of an error; it has one a problem."""


def trials(seed: int) -> Sequence[Trial]:
    # Batch by batch, so that a soak that is stopped has tried all readers.
    most = max(reader.batches for reader in READERS.values())
    return [
        Trial("fuzz", name, number)
        for number in range(most)
        for name, reader in READERS.items()
        if number < reader.batches
    ]


def run(trial: Trial, workshop: Workshop) -> Outcome:
    """Try a batch of inputs; where a process dies or must be ended, another goes on with the next."""
    outcome, at, end = Outcome(), trial.number * BATCH, (trial.number + 1) * BATCH
    while at < end:
        at = _in_a_process(trial, at, end, workshop, outcome)
    return outcome


def _in_a_process(trial: Trial, at: int, end: int, workshop: Workshop, outcome: Outcome) -> int:
    """Try inputs from `at` on; returns the number of the one to go on with."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(reading)
        _be_the_worker(trial.group, at, end, workshop, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        told, ended, trying = b"", None, ""
        while ended is None:
            ready, *_ = select.select([pipe], [], [], WALL_S)
            part = pipe.read(1 << 16) if ready else b""
            if not part:
                ended = "died" if ready else "hang"
            told += part
            *lines, told = told.split(b"\n")
            for line in lines:
                number, name, done, place, text = json.loads(line)
                if name == "trying":
                    trying = done
                    continue
                if name == "control":
                    raise RuntimeError(f"{trial}: a whole file is not read: {text}")
                _count(outcome, trial.group, number, name, f"{place} ({done})", text)
                at = number + 1
                if name == "memory":
                    # This process stays large: the next input gets another.
                    ended = "large"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if at < end and ended in ("died", "hang"):
        _count(outcome, trial.group, at, ended, trying, f"status of the process {status}")
        at += 1
    return at


def _count(outcome: Outcome, group: str, number: int, name: str, place: str, text: str) -> None:
    outcome.add(name)
    if name not in GOOD:
        outcome.find(Trial("fuzz", group, number), name, place, text)


# ---- in the worker ------------------------------------------------------------------------------------------------


class _LateError(BaseException):
    pass


def _be_the_worker(name: str, at: int, end: int, workshop: Workshop, writing: int) -> None:
    """Never returns. A line an input: its number, class, what was done, where it was noticed, and what was said."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        warnings.simplefilter("ignore")
        _limit()
        reader, room = READERS[name], workshop.work / "fuzz" / str(os.getpid())

        def tell(*values: Any) -> None:
            os.write(writing, json.dumps(values).encode() + b"\n")

        try:
            whole = digest(read_copy(reader, room, workshop))
        except BaseException:
            tell(at, "control", "", "", traceback.format_exc()[-1500:])
            os._exit(1)
        for number in range(at, end):
            notify = functools.partial(tell, number, "trying")
            tell(number, *attempt(reader, name, number, room, workshop, whole, notify=notify))
        shutil.rmtree(room, ignore_errors=True)
    finally:
        os._exit(0)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def late(*_: Any) -> None:
        raise _LateError

    signal.signal(signal.SIGPROF, late)


def attempt(
    reader: Reader,
    name: str,
    number: int,
    room: Path,
    workshop: Workshop,
    whole: str,
    *,
    raises: bool = False,
    notify: Callable[[str, str, str], None] = lambda *_: None,
) -> tuple[str, str, str, str]:
    """Damage a copy and read it: class, what was done, where it was noticed, and what was said."""
    done, largest = "", _largest_mb()
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        folder = copy_of(reader, room, workshop)
        if reader.begin:
            reader.begin(folder, workshop)
        done = damage_one(reader, folder, numpy_generator(SEED, "soak", name, number))
        notify(done, "", "")
        value = digest(reader.read(folder, workshop))
        found = ("unharmed" if value == whole else "silent" if reader.ours else "changed", done, "", "")
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if raises:
            print(f"damaged by: {done}", file=sys.stderr)
            raise
        found = (_class_of(error), done, _place(error), f"{type(error).__name__}: {error}"[:300])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if found[0] in (*GOOD, "silent") and _largest_mb() - largest > MEMORY_MB:
        return "memory", done, "", f"{_largest_mb() - largest:.0f} MB"
    return found


def _class_of(error: BaseException) -> str:
    from stedm.errors import StedmError

    if isinstance(error, _LateError):
        return "hang"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "memory"
    if isinstance(error, StedmError):
        return "refused" if 0 < len(str(error).splitlines()) <= MOST_LINES else "long"
    return "traceback"


def _place(error: BaseException) -> str:
    """The last line of stedm that the error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/stedm/" in frame.filename]
    return f"{frames[-1].filename.rsplit('/stedm/')[-1]}:{frames[-1].lineno}" if frames else "outside of stedm"


def _largest_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def copy_of(reader: Reader, room: Path, workshop: Workshop) -> Path:
    """A fresh copy of what is read, in a room of its own."""
    shutil.rmtree(room, ignore_errors=True)
    source, folder = workshop.at(reader.source), room / "copy"
    room.mkdir(parents=True)
    if source.is_file():
        folder.mkdir()
        shutil.copyfile(source, folder / source.name)
    else:
        ignored = shutil.ignore_patterns("checkpoints") if reader.source == "run" else None
        shutil.copytree(source, folder, ignore=ignored, copy_function=shutil.copyfile if reader.copies else os.link)
    return folder


def read_copy(reader: Reader, room: Path, workshop: Workshop) -> Any:
    folder = copy_of(reader, room, workshop)
    if reader.begin:
        reader.begin(folder, workshop)
    return reader.read(folder, workshop)


def damage_one(reader: Reader, folder: Path, rng: np.random.Generator) -> str:
    """Change one of the files that are read; returns which and how."""
    files = sorted({path for pattern in reader.files for path in folder.glob(pattern) if path.is_file()})
    files = [path for path in files if path.name != ".lock" and path.stat().st_size]
    # By kind first: a folder has many images and one table.
    kinds = sorted({path.suffix for path in files})
    kind = kinds[int(rng.integers(len(kinds)))]
    alike = [path for path in files if path.suffix == kind]
    path = alike[int(rng.integers(len(alike)))]
    content = path.read_bytes()
    remove(path)  # it may be a link to the materials
    path.write_bytes(content)
    time_of = path.stat().st_mtime_ns
    done = damage(path, rng)
    if path.is_file() and path.stat().st_mtime_ns == time_of:
        os.utime(path, ns=(time_of, time_of + 1))
    return f"{path.relative_to(folder)}, {done}"


# ---- equal values -------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Names a value: equal for what is equal to the bit."""
    made = hashlib.sha256()
    _add(made, value)
    return made.hexdigest()


def _add(made: Any, value: Any) -> None:
    import pandas as pd
    import torch

    made.update(type(value).__name__.encode() + b"(")
    if isinstance(value, torch.nn.Module):
        _add(made, dict(value.state_dict()))
    elif isinstance(value, torch.Tensor):
        made.update(str((value.dtype, tuple(value.shape))).encode())
        _add(made, value.detach().cpu().reshape(-1).view(torch.uint8).numpy() if value.numel() else None)
    elif isinstance(value, np.ndarray):
        made.update(str((value.dtype, value.shape)).encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, pd.DataFrame):
        made.update(value.to_csv(index=False).encode("utf-8", "replace") + str(list(value.dtypes)).encode())
    elif is_dataclass(value) and not isinstance(value, type):
        _add(made, asdict(value))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _add(made, key)
            _add(made, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _add(made, item)
    else:
        made.update(repr(value).encode("utf-8", "replace"))
    made.update(b")")


def repeat(trial: Trial, workshop: Workshop) -> None:
    """One input again, in this process, with its traceback; `trial.number` is that of the input."""
    reader, room = READERS[trial.group], workshop.work / "fuzz" / "repeated"
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    whole, started = digest(read_copy(reader, room, workshop)), time.monotonic()
    found = attempt(reader, trial.group, trial.number, room, workshop, whole, raises=True)
    print(f"{found[0]} in {time.monotonic() - started:.1f} s; damaged by: {found[1]}; kept in {room / 'copy'}")
