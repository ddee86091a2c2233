"""Options that several verbs have, and what stands on a command line to what a verb is given."""

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml|DATASET", help="Configuration file; a dataset folder: all defaults.")
]
RunFolder = Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Run folder; run again to resume.")]
EngineName = Annotated[
    str, typer.Option("--engine", metavar="local|ray", help="Who does the work; ray: a Ray cluster (RAY_ADDRESS).")
]
Shard = Annotated[str, typer.Option("--shard", metavar="I/N", help="Do part I of N (1/N .. N/N), for job arrays.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="auto: a GPU where there is one.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes; GPUs are dealt among them.")]
Preset = Annotated[
    str | None, typer.Option("--preset", metavar="cpu|gpu|paper", help="Sizes that follow from the machine.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that stedm did not write.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. seed=1.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: results and errors alone.")]
Pseudonymise = Annotated[bool, typer.Option("--pseudonymise", help="Numbers for ids of patients, and no paths.")]


def with_device(overrides: list[str] | None, device: str | None) -> list[str]:
    """Overrides with `--device` among them, which is a key of configurations."""
    return [*(overrides or []), *([] if device is None else [f"machine.device={device}"])]


def machine_of(device: str | None) -> Any:
    """What a verb without a configuration runs on."""
    from stedm.config import MachineConfig, checked

    return checked(MachineConfig, {"device": device or "auto"}, f"--device {device}")


def expand_lists(arguments: list[str]) -> list[str]:
    """Let `--style a.png b.png` and `--set a=1 b=2` take several values: each gets the option's name before it.

    Click's options take one value at a time. A value after `--set` is recognised by its "="; a value after `--style`
    by standing behind the MODEL argument.
    """
    expanded: list[str] = []
    open_option = None
    for position, argument in enumerate(arguments):
        if argument.startswith("-"):
            many = argument == "--set" or (argument == "--style" and position >= 2 and arguments[1][:1] != "-")
            open_option = argument if many else None
        elif expanded and expanded[-1] != open_option and open_option == "--set" and "=" in argument:
            expanded.append("--set")
        elif expanded and expanded[-1] != open_option and open_option == "--style":
            expanded.append("--style")
        expanded.append(argument)
    return expanded
