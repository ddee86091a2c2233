"""`stedm data ...`: dataset folders from elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from stedm.cli.options import Overrides, Quiet

data_app = typer.Typer(help="Make or convert a dataset folder.", no_args_is_help=True)


@data_app.command("import")
def data_import(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of images and masks, nnU-Net, QuPath's tiles; COCO file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DATASET", help="Dataset folder to make.")],
    classes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="background,gland; or with values: background=0,gland=1-9.")
    ] = None,
    masks: Annotated[
        str | None, typer.Option(metavar="FOLDER|ENDING", help="Where masks lie or what their names end with.")
    ] = None,
    patients: Annotated[
        str | None, typer.Option(metavar="TABLE|PATTERN", help="CSV or Excel; or names, as {patient}_*.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="propose|N/N/N/N", help="Patients of train/unlabeled/val/test.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the proposed split.")] = 0,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel of the images.")] = None,
    tile_px: Annotated[int | None, typer.Option(min=16, help="Cut larger images into tiles of this side.")] = None,
    tile_mpp: Annotated[float | None, typer.Option(help="Reduce images to these microns per pixel first.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is understood; write the sheet alone.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a dataset folder from images and masks as you have them; shows what it understood."""
    from stedm.exchange.api import closing_text, import_dataset
    from stedm.progress import Reporter

    told = {"classes": classes, "masks": masks, "patients": patients, "split": split, "seed": seed, "mpp": mpp}
    how = {"tile_px": tile_px, "tile_mpp": tile_mpp, "dry_run": dry_run, "reporter": Reporter(quiet)}
    done = import_dataset(source, output, **told, **how, say=typer.echo)
    for line in done.warnings:
        typer.echo(f"warning: {line}", err=True)
    typer.echo(closing_text(done, output))
    done.refuse()


@data_app.command("export")
def data_export(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    to: Annotated[str, typer.Option(metavar="nnunet|coco|imagefolder", help="The format.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to make.")],
    quiet: Quiet = False,
) -> None:
    """Write a dataset folder as others read it; masks of unlabeled patients stay closed."""
    from stedm.exchange.exporting import export_dataset
    from stedm.progress import Reporter

    with Reporter(quiet).stage("write images") as tick:
        n = export_dataset(dataset, output, to, tick)
    typer.echo(f"{output}: {n} images")


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
