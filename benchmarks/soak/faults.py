"""A full disk and a folder that may not be written: one line, and resumed to the bit when there is room again.

The disk is a tmpfs mounted over the stage's folder, which needs root; without it the trials say so.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from stedm.seeds import numpy_generator

from .compare import contents, differences
from .trials import SEED, Outcome, Trial
from .workshop import STAGES, Workshop

GOOD = ("one line, resumed", "fitted")
EACH = {"run": 6, "run, latents": 3}
OTHERS = 3
_PAGE = 4096


def trials(seed: int) -> Sequence[Trial]:
    return [
        Trial("faults", f"{fault}: {name}", number)
        for name in STAGES
        for fault in ("full disk", "read-only")
        for number in range(EACH.get(name, OTHERS))
    ]


def run(trial: Trial, workshop: Workshop) -> Outcome:
    outcome = Outcome()
    if os.geteuid() != 0:
        outcome.add("not tried (needs root)")
        return outcome
    fault, stage = trial.group.split(": ", 1)
    expected, whole = workshop.reference(stage)
    generator = numpy_generator(SEED, "soak", str(trial))
    # Files take whole pages.
    size = sum(-(-len(content) // _PAGE) for content in expected.values()) * _PAGE
    room = workshop.fresh(stage)
    with _disk(room) as resize:
        if fault == "full disk":
            resize(f"size={int(generator.uniform(0.02, 0.98) * size)}")
        else:
            if generator.random() < 0.7:
                workshop.do(stage, kill_at_operation=int(generator.integers(1, max(whole.operations, 1) + 1)))
            resize("size=2g,ro")
        ended = workshop.do(stage)
        resize("size=2g,rw")
        again = workshop.do(stage) if ended.status or STAGES[stage].again else ended
        _judge(outcome, trial, ended, again, differences(expected, contents(room)))
    return outcome


def _judge(outcome: Outcome, trial: Trial, ended, again, other: list[str]) -> None:
    if ended.status == 0 and not other and again.status == 0:
        outcome.add("fitted")
    elif ended.status == 0 and other:
        outcome.add("accepted")
        outcome.find(trial, "accepted", trial.group, "; ".join(other[:5]))
    elif again.status or other:
        outcome.add("not resumed")
        outcome.find(trial, "not resumed", trial.group, again.err.strip()[-300:] if again.status else "; ".join(other))
    elif ended.status != 1 or ended.complaint:
        outcome.add("not one line")
        outcome.find(trial, "not one line", trial.group, f"status {ended.status}: {ended.complaint}")
    else:
        outcome.add("one line, resumed")


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator:
    """A disk of memory over a folder; yields what changes its options."""
    subprocess.run(["umount", "-q", str(folder)], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(folder)], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
