"""`stedm train ...`: one stage of a run, with what it needs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from stedm.cli.options import ConfigPath, Device, Overrides, Preset, Quiet, RunFolder, with_device

train_app = typer.Typer(help="One training stage of a run.", no_args_is_help=True)


def _stage(name: str, do: Callable[[Any], object], made: str, help_text: str) -> None:
    """A verb that does a part of an experiment and says where it is written."""

    @train_app.command(name, help=help_text)
    def train(
        config: ConfigPath,
        output: RunFolder,
        preset: Preset = None,
        overrides: Overrides = None,
        device: Device = None,
        quiet: Quiet = False,
    ) -> None:
        with _checked(config, output, preset, with_device(overrides, device), quiet) as experiment:
            do(experiment)
        typer.echo(str(output / made))


_stage(
    "diffusion",
    lambda experiment: experiment.last_round.model(),
    "model",
    "Train the diffusion model of a run, and before it what it needs; it is written to RUN/model.",
)
_stage(
    "segmenter",
    lambda experiment: experiment.train_segmenters(),
    "segmenters",
    "Train the segmenters of a run, every arm and seed, and before them what they need.",
)


@contextlib.contextmanager
def _checked(config: Path, output: Path, preset: str | None, overrides: list[str] | None, quiet: bool) -> Iterator[Any]:
    from stedm.config import load_config
    from stedm.experiment.experiment import Experiment
    from stedm.io.files import alone_in
    from stedm.progress import Reporter

    experiment = Experiment(load_config(config, overrides, preset), output, Reporter(quiet))
    with alone_in(output):
        experiment.check()
        yield experiment
