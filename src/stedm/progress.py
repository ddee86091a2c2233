"""Progress of long stages: bars on a terminal, a line now and then in a log file; which stage of how many, how fast,
and how long the whole still takes where it is known what is to come (`Reporter.expect`)."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stedm.columns import fitted

Tick = Callable[..., None]
"""Called with (done, total) or (done, total, latest loss); of a training that is gone on with first with what was done
before, of which no loss was read (NaN)."""

_LOG_EVERY_SECONDS = 30.0
_NAME_COLUMNS = 44
_LEAST_SECONDS, _LEAST_PART = 5.0, 0.02
"""From which on the pace of a stage is known."""


@dataclass(frozen=True)
class Stage:
    """A stage to come: its name, of which kind it is, and how much work, in a unit that all kinds share about."""

    name: str
    kind: str
    work: float


class _Ahead:
    """What is to come of a run, and how long it takes at the pace of what has been done."""

    def __init__(self, stages: Sequence[Stage], paces: Mapping[str, float] | None = None):
        self.stages, self.number, self._is_known = list(stages), 0, bool(stages)
        self._expected = dict(paces or {})
        self._done: dict[str, tuple[float, float]] = {}

    def begin(self, name: str) -> None:
        """Stages may be left out; one that nobody announced is counted from now on."""
        later = [i for i, stage in enumerate(self.stages) if stage.name == name and i >= self.number]
        if not later:
            self.stages.insert(self.number, Stage(name, name, 0.0))
        self.number = (later or [self.number])[0] + 1

    def end(self, seconds: float) -> None:
        stage = self.stages[self.number - 1]
        work, spent = self._done.get(stage.kind, (0.0, 0.0))
        self._done[stage.kind] = (work + stage.work, spent + seconds)

    def label(self, name: str) -> str:
        return f"[{self.number}/{len(self.stages)}] {name}" if self._is_known else name

    def seconds_left(self, part: float, seconds: float) -> float | None:
        """Of this stage, of which a part is done after some seconds, and all later ones; None = not known yet."""
        if not self._is_known or seconds < _LEAST_SECONDS or part < _LEAST_PART:
            return None
        here = self.stages[self.number - 1]
        paces = self._expected | {kind: spent / work for kind, (work, spent) in self._done.items() if work > 0}
        if here.work > 0:
            paces[here.kind] = seconds / (part * here.work)
        if not paces:
            return None
        # What was never measured here goes at the mean pace, by the work that it is thought to be.
        worked = sum(work for work, _ in self._done.values()) + part * here.work
        mean = (sum(spent for _, spent in self._done.values()) + seconds) / worked if worked else 0.0
        later = sum(stage.work * paces.get(stage.kind, mean) for stage in self.stages[self.number :])
        return seconds * (1 - part) / part + later


class Reporter:
    """Show stages of a run on stderr: bars on a terminal, unless `bars` is false (several processes write to it)."""

    def __init__(self, quiet: bool = False, *, bars: bool = True):
        self.quiet, self.bars = quiet, bars
        self.seconds: dict[str, float] = {}
        """Wall time of each stage that ran here."""
        self._ahead = _Ahead([])

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def expect(self, stages: Sequence[Stage], paces: Mapping[str, float] | None = None) -> None:
        """What is to come, in order: stages are counted and the time that is left is told.

        paces: seconds of a unit of work by kind, for kinds that were measured before; until they are at work.
        """
        self._ahead = _Ahead(stages, paces)

    @contextlib.contextmanager
    def stage(self, name: str, images: int = 0) -> Iterator[Tick]:
        """Show a stage while its block runs; yields the function to call with progress.

        images: in each of the things that are counted, for the images a second; 0 = they are no images.
        """
        started = time.monotonic()
        self._ahead.begin(name)
        show = _bar if self.bars and sys.stderr.isatty() and not self.quiet else self._lines
        with show(self._ahead.label(name), _Pace(self._ahead, images)) as tick:
            yield tick
        self.seconds[name] = round(time.monotonic() - started, 1)
        self._ahead.end(time.monotonic() - started)

    @contextlib.contextmanager
    def _lines(self, name: str, pace: "_Pace") -> Iterator[Tick]:
        started = last = time.monotonic()
        self.say(f"{name} ...")

        def tick(done: int, total: int, loss: float | None = None) -> None:
            nonlocal last
            if pace.is_new and _was_there(loss):
                self.say(f"  {name}: goes on from step {done} of {total}")
            told = pace(done, total, loss)
            if time.monotonic() - last >= _LOG_EVERY_SECONDS:
                last = time.monotonic()
                self.say(f"  {name}: {', '.join(filter(None, [f'{done}/{total}', _loss(loss), *told]))}")

        yield tick
        self.say(f"{name}: done in {duration(time.monotonic() - started)}")


class _Pace:
    """Images a second and the time that is left, in words ("" = not known), each time that something is done."""

    def __init__(self, ahead: _Ahead, images: int):
        self.ahead, self.images = ahead, images
        self._started, self._before = time.monotonic(), None

    @property
    def is_new(self) -> bool:
        """Whether nothing was told yet."""
        return self._before is None

    def __call__(self, done: int, total: int, loss: float | None = None) -> tuple[str, str]:
        if self._before is None:
            # What was there when a resumed stage began took no time.
            self._before = done if _was_there(loss) else max(0, done - 1)
        seconds = time.monotonic() - self._started
        new, rest = done - self._before, total - self._before
        rate = f"{new * self.images / seconds:.3g} images/s" if self.images and seconds > 0 and new else ""
        left = self.ahead.seconds_left(new / rest if rest > 0 else 0.0, seconds)
        return rate, "" if left is None else f"about {duration(left)} left"


@contextlib.contextmanager
def _bar(name: str, pace: _Pace) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(width=_NAME_COLUMNS, no_wrap=True)),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(fitted(name, _NAME_COLUMNS), total=None, told="")

        def tick(done: int, total: int, loss: float | None = None) -> None:
            told = ", ".join(filter(None, [_loss(loss), *pace(done, total, loss)]))
            progress.update(task, completed=done, total=total, told=told)

        yield tick


def duration(seconds: float) -> str:
    """`47 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _was_there(loss: float | None) -> bool:
    """Whether a stage's first call is about what was done before."""
    return loss is not None and math.isnan(loss)


def _loss(loss: float | None) -> str:
    """A stage that was resumed has none before its next one is read."""
    return "" if loss is None or math.isnan(loss) else f"loss {loss:.4f}"
