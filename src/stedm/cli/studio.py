"""`stedm app`: the verb, in a file of its own, so that the command line stays short."""

from pathlib import Path
from typing import Annotated

import typer

from stedm.cli.options import Device, machine_of
from stedm.errors import StedmError


def studio(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|MODEL]", help="Run, model or segmenter folder; the newest below runs/ if left out."
        ),
    ] = None,
    slides: Annotated[
        list[Path] | None, typer.Option(metavar="SLIDES", help="A slide, a folder of slides or a slides.csv to show.")
    ] = None,
    device: Device = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free.")] = 8765,
) -> None:
    """Paint, look at results patient by patient and at slides, in a browser on this machine."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise StedmError('the app needs Starlette and Uvicorn: pip install "stedm[app]"') from error
    from stedm.app.server import serve

    serve(folder, slides or [], machine_of(device), host, port)
