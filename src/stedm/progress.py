"""Progress of long stages: bars on a terminal, a line now and then in a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Tick = Callable[..., None]
"""Called with (done, total) or (done, total, latest loss)."""

_LOG_EVERY_SECONDS = 30.0


class Reporter:
    """Show stages of a run on stderr: bars on a terminal, unless `bars` is false (several processes write to it)."""

    def __init__(self, quiet: bool = False, *, bars: bool = True):
        self.quiet, self.bars = quiet, bars
        self.seconds: dict[str, float] = {}
        """Wall time of each stage that ran here."""

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Tick]:
        """Show a stage while its block runs; yields the function to call with progress."""
        started = time.monotonic()
        show = _bar if self.bars and sys.stderr.isatty() and not self.quiet else self._lines
        with show(name) as tick:
            yield tick
        self.seconds[name] = round(time.monotonic() - started, 1)

    @contextlib.contextmanager
    def _lines(self, name: str) -> Iterator[Tick]:
        started = last = time.monotonic()
        self.say(f"{name} ...")

        def tick(done: int, total: int, loss: float | None = None) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_EVERY_SECONDS:
                last = time.monotonic()
                self.say(f"  {name}: {done}/{total}{_loss(loss)}, {last - started:.0f} s")

        yield tick
        self.say(f"{name}: done in {time.monotonic() - started:.0f} s")


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None, loss="")
        yield lambda done, total, loss=None: progress.update(task, completed=done, total=total, loss=_loss(loss))


def _loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {loss:.4f}"
