"""SIGKILL at random moments and at random file operations; run again, and all files are as if nothing had happened."""

from collections.abc import Sequence

from stedm.seeds import numpy_generator

from .compare import contents, differences, leftovers
from .trials import SEED, Outcome, Trial
from .workshop import STAGES, Workshop

GOOD = ("survived",)
MOST_KILLS = 4
"""In one trial, one after the other."""
TRIALS = {"run": 16, "run, latents": 8, "train diffusion": 10, "generate": 3, "plan": 3, "compare": 4}
OTHERS = 8


def trials(seed: int) -> Sequence[Trial]:
    return [Trial("kills", name, number) for name in STAGES for number in range(TRIALS.get(name, OTHERS))]


def run(trial: Trial, workshop: Workshop) -> Outcome:
    """Kill a stage a few times, let it end, and compare its folder with that of one which was let alone."""
    outcome, stage = Outcome(), trial.group
    expected, whole = workshop.reference(stage)
    room, generator = workshop.fresh(stage), numpy_generator(SEED, "soak", str(trial))
    kills, points = 0, []
    for _ in range(int(generator.integers(1, MOST_KILLS + 1))):
        at_operation = generator.random() < 0.5
        if at_operation:
            how = {"kill_at_operation": int(generator.integers(1, max(whole.operations, 1) + 1))}
        else:
            how = {"kill_after_s": float(generator.uniform(0, whole.seconds))}
        ended = workshop.do(stage, **how)
        if not ended.was_killed:
            break
        kills, points = kills + 1, [*points, how]
    ended = workshop.do(stage)
    other = differences(expected, contents(room))
    # Killed when everything was written, it may say that it is there.
    if other or (ended.status and STAGES[stage].again):
        text = ended.err.strip()[-300:] if ended.status else "; ".join(other[:5])
        _lost(outcome, trial, kills, text, points)
        return outcome
    outcome.add("survived", kills)
    if left := leftovers(room):
        outcome.figures["leftovers"] = len(left)
        outcome.find(trial, "leftovers", stage, ", ".join(left[:3]))
    return outcome


def _lost(outcome: Outcome, trial: Trial, kills: int, text: str, points: list) -> None:
    outcome.add("lost", max(kills, 1))
    outcome.find(trial, "lost", trial.group, f"{text} after {points}")
