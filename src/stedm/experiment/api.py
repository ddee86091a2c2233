"""The run of an experiment as one function: what `stedm run` and `stedm.run` call."""

from pathlib import Path
from typing import Any

from stedm.config import RunConfig, load_config
from stedm.experiment.experiment import Experiment
from stedm.experiment.parallel import run_side_by_side
from stedm.io.files import alone_in
from stedm.workers.pool import make_pool


def run(
    config: str | Path | RunConfig,
    output: str | Path,
    *,
    preset: str | None = None,
    overrides: list[str] | None = None,
    workers: int = 1,
    engine: str = "local",
) -> dict[str, Any]:
    """The whole experiment: diffusion model, synthetic images, segmenters, report. Call it again to resume.

    Args:
        config: a dataset folder (everything as recommended), a YAML file, or a `RunConfig`.
        output: run folder; its report is `output/report/report.html`.
        preset: `cpu`, `gpu` or `paper`: sizes that follow from the machine.
        overrides: `"a.b=c"` each, over file and preset.
        workers: processes that train networks at the same time; engine: `local` or `ray`.

    Returns:
        The summary, as in `output/report/summary.json`.

    Raises:
        StedmError: with one line per problem, before anything is trained.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config, overrides, preset)
    experiment = Experiment(config, output)
    with alone_in(output), make_pool(engine, workers, patient=False) as pool:
        return experiment.run() if pool.is_here else run_side_by_side(experiment, pool)
