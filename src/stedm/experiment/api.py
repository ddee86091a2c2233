"""`stedm.run` and `stedm.check`: the command line's verbs of the same name, from Python."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stedm.config import RunConfig, load_config, resolve_paths
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.experiment.experiment import Experiment
from stedm.experiment.parallel import run_side_by_side
from stedm.io.files import alone_in
from stedm.progress import Reporter
from stedm.workers.group import as_one
from stedm.workers.pool import make_pool

Overrides = Mapping[str, Any] | Sequence[str]


def run(
    dataset_or_config: str | Path | DatasetFolder | RunConfig,
    output: str | Path,
    *,
    preset: str | None = None,
    overrides: Overrides | None = None,
    workers: int = 1,
    engine: str = "local",
    pseudonymise: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """The whole experiment: diffusion model, synthetic images, segmenters, report. Call it again to resume.

    Args:
        dataset_or_config: dataset folder, which runs with all defaults; or a configuration, as file or as object.
        output: the run folder; `output/report/report.html` is the result.
        preset: `cpu`, `gpu` or `paper`: sizes that follow from the machine.
        overrides: `{"diffusion.steps": 500}` or `["diffusion.steps=500"]`, over file and preset.
        workers: processes that train networks at the same time; engine: `local` or `ray`.
        pseudonymise: write `output/report_pseudonymised` too, a report without ids of patients and without paths.
        quiet: show no progress.

    Returns:
        The summary: arms with their scores over patients, and their comparisons; as `output/report/summary.json`.

    Raises:
        StedmError: wrong configuration or data, or a run folder of another run.
    """
    config = _config(dataset_or_config, preset, overrides)
    how = {"workers": workers, "engine": engine, "pseudonymise": pseudonymise, "quiet": quiet}
    return as_one(partial(_run, config, output, **how))


def _run(
    config: RunConfig, output: str | Path, *, workers: int, engine: str, pseudonymise: bool, quiet: bool
) -> dict[str, Any]:
    experiment = Experiment(config, output, Reporter(quiet), pseudonymise=pseudonymise)
    if not os.access(output, os.W_OK) and (summary := experiment.finished()) is not None:
        return summary  # to be read only, as an archive is
    with alone_in(output), make_pool(engine, workers, patient=False) as pool:
        return experiment.run() if pool.is_here else run_side_by_side(experiment, pool)


def check(dataset: str | Path | DatasetFolder) -> list[str]:
    """All problems of a dataset folder, one line each (what, which file, what to do); [] = fine."""
    return check_dataset(_folder(dataset))


def _config(
    given: str | Path | DatasetFolder | RunConfig, preset: str | None, overrides: Overrides | None
) -> RunConfig:
    if not isinstance(given, RunConfig):
        return load_config(_folder(given), _as_list(overrides or {}), preset)
    if overrides or preset:
        raise StedmError(
            "run: a preset and overrides are for a dataset folder or a file, not for a RunConfig; leave them out"
        )
    return resolve_paths(given, Path())  # the run folder may be gone on with from elsewhere


def _as_list(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value, default=str, ensure_ascii=False)}" for key, value in overrides.items()]
    return list(overrides)


def _folder(dataset: str | Path | DatasetFolder) -> Path:
    return dataset.root if isinstance(dataset, DatasetFolder) else Path(dataset)
