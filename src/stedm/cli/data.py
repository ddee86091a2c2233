"""`stedm data ...`: dataset folders from elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from stedm.cli.options import Overrides

data_app = typer.Typer(help="Make or convert a dataset folder.", no_args_is_help=True)


@data_app.command("phantom")
def data_phantom(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    config: Annotated[Path | None, typer.Option(help="Take data.phantom of this configuration.")] = None,
    overrides: Overrides = None,
) -> None:
    """A procedural cohort with known layouts and known patient parameters."""
    from stedm.config import load_phantom_config
    from stedm.phantom.cohort import make_phantom

    make_phantom(load_phantom_config(config, overrides), output)
    typer.echo(str(output))


@data_app.command("flowers102")
def data_flowers102(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    archives: Annotated[
        Path | None, typer.Option(help="Folder of the downloaded archives; what is missing is downloaded into it.")
    ] = None,
) -> None:
    """Oxford Flowers-102 (about 520 MB of downloads): 48 annotated and 54 unseen categories, as in the paper."""
    from stedm.public.flowers102 import make_flowers102

    make_flowers102(output, archives=archives)
    typer.echo(str(output))


@data_app.command("catch")
def data_catch(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the published slides, COCO and CSV file.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    annotated: Annotated[
        int | None, typer.Option(min=1, help="Annotated train patients a tumour type; the others become unlabeled.")
    ] = None,
) -> None:
    """CATCH (canine skin tumours): slides.csv, classes.yaml and one GeoJSON a slide, from the published files."""
    from stedm.public.catch import make_catch

    table = make_catch(folder, output, annotated_patients=annotated)
    typer.echo(f"{output / 'slides.csv'}: {len(table)} slides of {table['patient_id'].nunique()} patients")
