"""A run by several workers: what needs nothing from each other is trained at the same time.

One piece of work is the diffusion model with its synthetic images, from pseudo-labels to drawing; each segmenter of
an arm and a seed, with its counts, is another. Segmenters without synthetic images don't wait for the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from stedm.config import Arm, RunConfig, uses_self_training, uses_ssl, uses_synthetic
from stedm.experiment.experiment import Experiment
from stedm.progress import Reporter
from stedm.workers.pool import Pool, Work, check_shared

Piece = tuple[Arm, int] | None
"""Arm and seed of a segmenter; None = the synthetic set, with the model that draws it."""


def run_side_by_side(experiment: Experiment, pool: Pool) -> dict[str, Any]:
    """As `Experiment.run`, by the workers of `pool`; returns the summary.

    Weights are those of one process that has as many threads as a worker.
    """
    experiment.check()
    job = StageJob(experiment.config, experiment.folder.resolve(), experiment.reporter.quiet)
    first, then = _pieces(experiment)
    for number, seconds in pool.run(job, first):
        _note(experiment, seconds)
        if first[number] is None:
            # While other pieces of the first kind are still being done.
            for _, more in pool.run(job, then):
                _note(experiment, more)
    return experiment.report()


def _pieces(experiment: Experiment) -> tuple[Sequence[Piece], Sequence[Piece]]:
    """What can be done at once, and what must wait for the synthetic set. Those that take longest come first."""
    missing = sorted(experiment.missing_segmenters(), key=partial(_turn, experiment.config.segmentation.seeds[0]))
    drawn = [pair for pair in missing if uses_synthetic(pair[0])]
    if experiment.last_round.is_drawn or not drawn:
        return missing, []
    return [None, *(pair for pair in missing if not uses_synthetic(pair[0]))], drawn


def _turn(first_seed: int, pair: tuple[Arm, int]) -> int:
    """When a segmenter is trained, small = early. The first of a self-training arm trains the teachers, and those of
    other seeds would wait for them: they come last."""
    arm, seed = pair
    if uses_self_training(arm):
        return 1 if seed == first_seed else 3
    return 0 if uses_ssl(arm) else 2


def _note(experiment: Experiment, seconds: dict[str, float]) -> None:
    experiment.reporter.seconds.update(seconds)
    experiment.context.note_seconds()


@dataclass(frozen=True)
class StageJob:
    """Stages of the run in `folder`, by worker processes."""

    config: RunConfig
    folder: Path
    quiet: bool = False
    uses_gpu: ClassVar[bool] = True

    def open(self) -> Work:
        check_shared(self.folder / "config.yaml")
        experiment = Experiment(self.config, self.folder, Reporter(self.quiet, bars=False))
        experiment.context.writes_provenance = False  # who started this worker does
        return partial(_do, experiment)


def _do(experiment: Experiment, piece: Piece) -> dict[str, float]:
    """Returns the seconds of the stages that ran."""
    experiment.reporter.seconds.clear()
    if piece is None:
        experiment.last_round.synthetic()
    else:
        experiment.train_segmenter(*piece)
        experiment.counts_of(*piece)
    return dict(experiment.reporter.seconds)
