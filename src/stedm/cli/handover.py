"""`stedm export` and `stedm doctor`: to other programs, and what this machine has."""

from pathlib import Path
from typing import Annotated

import typer

from stedm.cli.options import Device, Overwrite
from stedm.errors import StedmError

FIRST_LINES = """\
see it work: stedm demo (made-up patients, minutes on a CPU), then open runs/demo/report/report.html
your images: stedm data import FOLDER -o DATASET, stedm check DATASET, stedm run DATASET -o RUN
all else:    stedm --help lists the verbs; stedm doctor says what this machine has and lacks"""
"""What `stedm` says without arguments."""


def export(
    model: Annotated[Path, typer.Argument(metavar="SEGMENTER", help="Segmenter folder.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="FILE.onnx, FILE.pt (TorchScript), or a folder: both.")
    ],
    overwrite: Overwrite = False,
) -> None:
    """Write a segmenter for other programs (QuPath, bioimage.io, ONNX Runtime), with a card of how to use it."""
    from stedm.segmentation.segmenter import Segmenter

    for path in Segmenter.from_pretrained(model).export(output, overwrite=overwrite):
        typer.echo(str(path))


def doctor(device: Device = None) -> None:
    """What is installed, on which machine, and what to install for what is missing; exit status 0 or 1."""
    from stedm.experiment.doctor import examine_machine

    found = examine_machine(device or "auto")
    typer.echo(found.text)
    if found.problems:
        raise StedmError("\n".join(found.problems))
