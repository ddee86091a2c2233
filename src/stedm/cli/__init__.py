"""The command line: verbs parse, call one function each, and hold no logic.

Heavy imports stand inside the verbs, so that `stedm --help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from stedm.cli.data import data_app
from stedm.cli.handover import FIRST_LINES, doctor, export
from stedm.cli.options import (
    ConfigPath,
    Device,
    EngineName,
    Overrides,
    Overwrite,
    Preset,
    Pseudonymise,
    Quiet,
    RunFolder,
    Shard,
    Workers,
    expand_lists,
    machine_of,
    with_device,
)
from stedm.cli.studio import studio
from stedm.cli.train import train_app
from stedm.errors import Interrupted, StedmError, disk_problem, terminable
from stedm.version import __version__
from stedm.workers.group import as_one

_AGAIN = {
    **dict.fromkeys(("run", "demo", "train", "tile", "synthesize"), " to resume"),
    "segment": ": slides that are done are skipped, images are done anew",
}
_ANEW = ": it begins anew"
"""What an interrupted verb does when it is called again."""


class _Verbs(TyperGroup):
    """Interrupts leave by a way of their own: Typer makes exits without a word of them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(error, ctx.invoked_subcommand) from error


app = typer.Typer(
    name="stedm",
    cls=_Verbs,
    help="Style-extracting diffusion models for semi-supervised histopathology segmentation.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(config_app, name="config")


@app.command()
def demo(output: RunFolder = Path("runs/demo"), device: Device = None, quiet: Quiet = False) -> None:
    """Phantom patients, end to end, on a CPU, in minutes: prints the table, writes report.html."""
    from importlib.resources import as_file, files

    with as_file(files("stedm") / "demo.yaml") as path:
        _run(path, output, device=device, quiet=quiet)


@app.command()
def run(
    config: ConfigPath,
    output: RunFolder,
    preset: Preset = None,
    overrides: Overrides = None,
    device: Device = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    pseudonymise: Pseudonymise = False,
    quiet: Quiet = False,
) -> None:
    """The whole experiment: diffusion model, synthetic images, segmenters, report. Run again to resume."""
    how = {"workers": workers, "engine": engine, "pseudonymise": pseudonymise, "quiet": quiet}
    _run(config, output, preset, overrides, device, **how)


def _run(config: Path, output: Path, preset=None, overrides=None, device=None, **options: Any) -> None:
    from stedm.evaluation.text import closing_text, summary_text
    from stedm.experiment.api import run

    summary = run(config, output, preset=preset, overrides=with_device(overrides, device), **options)
    folder = "report_pseudonymised" if options.get("pseudonymise") else "report"
    typer.echo(f"{summary_text(summary)}\n\n{closing_text(summary, str(output))}")
    typer.echo(f"report: {output / folder / 'report.html'}")


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    sheet: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw an image of every patient with its mask's outlines.")
    ] = None,
) -> None:
    """Show what is in a dataset and verify it: files, sizes, classes, patient leakage; exit status 0 or 1."""
    from stedm.data.check import examine
    from stedm.data.contact_sheet import write_contact_sheet
    from stedm.data.summary import summary_text

    found = examine(dataset)
    if found.splits:
        typer.echo(summary_text(found.splits))
    if sheet is not None:
        typer.echo(write_contact_sheet(dataset, sheet))
    for line in (warnings := [*found.warnings, *found.notes]):
        typer.echo(f"warning: {line}", err=True)
    if found.problems:
        total = [f"{dataset}: {len(found.problems)} problems"] if found.problems[1:] else []
        raise StedmError("\n".join(found.problems + total))
    images, patients = (sum(getattr(part, name) for part in found.splits) for name in ("images", "patients"))
    warned = f", {len(warnings)} to look at" if warnings else ""
    typer.echo(f"{dataset}: {images} images of {patients} patients, no problem found{warned}")


@app.command()
def tile(
    slides: Annotated[Path, typer.Argument(metavar="SLIDES.csv", help="Table of slides.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DATASET", help="Dataset folder to write.")],
    tile_px: Annotated[int | None, typer.Option(min=1, help="Side of the tiles; 512 unless configured.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Microns per pixel; 1.0 unless configured.")] = None,
    config: Annotated[Path | None, typer.Option(help="Stride, tissue, classes, class mapping: YAML.")] = None,
    overrides: Overrides = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="No images: training reads the slides.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 = one a CPU.")] = 0,
    engine: EngineName = "local",
    shard: Shard = "1/1",
    quiet: Quiet = False,
) -> None:
    """Find the tissue of slides and cut it into tiles; run again to resume."""
    import os

    from stedm.config import load_tiling_config
    from stedm.data.tiles import tile_slides
    from stedm.progress import Reporter
    from stedm.workers.pool import make_pool, parse_shard

    given = [f"{key}={value}" for key, value in (("tile_px", tile_px), ("mpp", mpp)) if value is not None]
    settings = load_tiling_config(config, [*(overrides or []), *given])
    reporter, part = Reporter(quiet), parse_shard(shard)
    with make_pool(engine, workers or os.cpu_count() or 1) as pool:
        done = tile_slides(slides, output, settings, table_only=table_only, pool=pool, shard=part, reporter=reporter)
    for note in done.notes:
        reporter.say(note)
    for slide_id in done.without_tissue:
        reporter.say(f"slide {slide_id}: no tile with enough tissue")
    for line in done.warnings:
        reporter.say(f"warning: {line}")
    rest = "" if done.complete else f"; shard {shard} done, others are missing"
    typer.echo(f"{output}: {done.tiles} tiles of {done.slides} slides{rest}")
    if done.failures:
        raise StedmError("\n".join(done.failures))


@app.command()
def plan(
    config: ConfigPath,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="plan.parquet")],
    preset: Preset = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Decide which layout is painted in whose style, a row an image; as in the first round of a run."""
    from stedm.config import load_config
    from stedm.experiment.planning import plan_images
    from stedm.io.ownership import check_outputs
    from stedm.synthesis.plan import MARK, write_plan

    check_outputs({output: MARK}, [config], overwrite=overwrite)
    write_plan(plan_images(load_config(config, overrides, preset), n), output)
    typer.echo(str(output))


@app.command()
def synthesize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    plan: Annotated[Path, typer.Argument(metavar="PLAN.parquet")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DATASET", help="Dataset folder to write.")],
    shard: Shard = "1/1",
    device: Device = None,
    workers: Workers = 1,
    engine: EngineName = "local",
    pseudonymise: Pseudonymise = False,
    quiet: Quiet = False,
) -> None:
    """Paint the images of a plan; run again to resume."""
    from stedm.diffusion.pipeline import StyleDiffusion
    from stedm.progress import Reporter
    from stedm.synthesis.generate import synthesize as draw
    from stedm.synthesis.plan import read_plan
    from stedm.workers.pool import make_pool, parse_shard

    part, machine = parse_shard(shard), machine_of(device)
    painter, rows = StyleDiffusion.from_pretrained(model), read_plan(plan)
    with make_pool(engine, workers) as pool, Reporter(quiet).stage("draw synthetic images", 1) as tick:
        how = {"shard": part, "pool": pool, "model_folder": model, "machine": machine, "pseudonymise": pseudonymise}
        complete = draw(painter.on(machine) if pool.is_here else painter, rows, output, **how, on_progress=tick)
    typer.echo(str(output) if complete else f"{output}: shard {shard} done, others are missing")


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    layout: Annotated[Path, typer.Option(help="Mask, 8-bit PNG of class indices.")],
    style: Annotated[list[Path], typer.Option(help="Style image; give it several times for several.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.png")],
    guidance: Annotated[float | None, typer.Option(help="On style; the recommended one unless given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The recommended number unless given.")] = None,
    seed: int = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Paint one layout in the style of given images."""
    from stedm.diffusion.pipeline import StyleDiffusion
    from stedm.io.files import require_input
    from stedm.io.images import read_image_file, read_mask_file, synthetic_by, write_png
    from stedm.io.ownership import PAINTED, check_outputs

    for path in (layout, *style):
        require_input(path)
    check_outputs({output: PAINTED}, [layout, *style], overwrite=overwrite)
    if output.suffix.lower() != ".png":
        raise StedmError(f"{output}: images are written as PNG; give OUT.png")
    mask = read_mask_file(layout.parent, layout.name)
    images = [read_image_file(path.parent, path.name) for path in style]
    painter = StyleDiffusion.from_pretrained(model).on(machine_of(device))
    image = painter.generate(mask, images, guidance=guidance, steps=steps, seed=seed)[0]
    write_png(output, image, software=PAINTED, description=synthetic_by(painter.fingerprint))
    typer.echo(str(output))


@app.command()
def segment(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Segmenter folder.")],
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES|SLIDE", help="An image, a slide, a folder of either, or slides.csv.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Folder, or FILE.geojson for one slide.")
    ],
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel: of the images; of slides that at which they are seen.")
    ] = None,
    tolerance_um: Annotated[float | None, typer.Option(help="Slides: detail of the outlines to give up.")] = None,
    label_map: Annotated[bool, typer.Option("--label-map", help="Slides: an OME-TIFF of class indices too.")] = False,
    device: Device = None,
    engine: EngineName = "local",
    shard: Shard = "1/1",
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment images (8-bit PNG masks of class indices) or slides (GeoJSON for QuPath, areas as CSV).

    Images and slides are seen at the resolution of the training images, large ones in tiles. Slides that are done in
    the folder are skipped: run again to resume.
    """
    from stedm.segmentation.predict import segment_folder
    from stedm.segmentation.scale import coarseness_text
    from stedm.segmentation.slide_sources import is_plain_image, slides_in
    from stedm.segmentation.whole_slide import load_slide_config, segment_slides
    from stedm.workers.pool import make_pool, parse_shard

    flags = {
        "mpp": None if is_plain_image(images) else mpp,
        "tolerance_um": tolerance_um,
        "label_map": label_map or None,
    }
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = load_slide_config([*(overrides or []), *given])
    part, machine, slides = parse_shard(shard), machine_of(device), slides_in(images, output, mpp)
    if slides is None:
        if tolerance_um is not None or label_map or overrides or engine != "local" or part != (0, 1):
            flags = "--tolerance-um, --label-map, --engine, --shard and --set"
            raise StedmError(f"{images}: no slides; {flags} are for slides: leave them out")
        how = {"machine": machine, "say": typer.echo, "overwrite": overwrite}
        masks = segment_folder(model, images, output, mpp, **how)
        typer.echo(f"{output}: {len(masks)} masks")
        return
    with make_pool(engine) as pool:
        how = {"machine": machine, "pool": pool, "shard": part, "inputs": [images], "overwrite": overwrite}
        done = segment_slides(model, slides, output, config, **how)
    rest = "" if done.complete else f"; shard {shard} done, others are missing"
    if done.written:
        typer.echo(coarseness_text(done.mpp, slides[0].mpp if len(slides) == 1 else None))
    is_image = is_plain_image(images) and not done.failures
    typer.echo(f"{output}: {images.name if is_image else f'{len(done.written)} of {len(slides)} slides'}{rest}")
    if done.failures:
        raise StedmError("\n".join(done.failures))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Segmenter folder.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REPORT", help="Report folder.")],
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    device: Device = None,
    pseudonymise: Pseudonymise = False,
    overwrite: Overwrite = False,
) -> None:
    """Score a segmenter on a dataset, patient by patient."""
    from stedm.evaluation.scoring import evaluate_segmenter
    from stedm.evaluation.text import summary_text

    how = {"machine": machine_of(device), "overwrite": overwrite, "pseudonymise": pseudonymise}
    typer.echo(summary_text(evaluate_segmenter(model, dataset, split, output, **how)))


@app.command()
def quality(
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTHETIC", help="Dataset folder of synthetic images.")],
    against: Annotated[Path, typer.Option(metavar="DATASET", help="The dataset that they were painted for.")],
    segmenter: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="A segmenter folder that has learned from real images alone.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Write quality.json and the closest pairs.")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Do synthetic images show their layouts and their patients' styles, and are some of them copies of real ones?"""
    from stedm.evaluation.quality_files import measure_folder
    from stedm.evaluation.quality_text import quality_text
    from stedm.progress import Reporter

    with Reporter().stage("look at synthetic images", images=1) as tick:
        how = {"segmenter": segmenter, "output": output, "machine": machine_of(device), "overwrite": overwrite}
        found = measure_folder(synthetic, against, **how, on_progress=tick)
    typer.echo(quality_text(found))


@app.command()
def compare(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT REPORT ...", help="Report folders, or runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="report.html")],
    overwrite: Overwrite = False,
) -> None:
    """Compare reports on the patients they share."""
    from stedm.evaluation.compare import compare_reports
    from stedm.evaluation.text import summary_text

    typer.echo(summary_text(compare_reports(reports, output, overwrite=overwrite)))


app.command("app")(studio)
app.command("export")(export)
app.command("doctor")(doctor)


@config_app.command("show")
def config_show(
    config: ConfigPath,
    preset: Preset = None,
    overrides: Overrides = None,
    cost: Annotated[bool, typer.Option("--cost", help="Parameters, FLOPs, time and training memory instead.")] = False,
) -> None:
    """The configuration with every default filled in, or what it costs."""
    from stedm.config import load_config, to_yaml
    from stedm.experiment.resolve import resolve_if_there

    loaded = resolve_if_there(load_config(config, overrides, preset))
    if cost:
        from stedm.experiment.cost_text import cost_tables

        typer.echo("counts, then runs each network for a moment: seconds, minutes on a busy machine", err=True)
        for text in cost_tables(loaded):
            typer.echo(f"{text}\n")
    else:
        typer.echo(to_yaml(loaded))


@config_app.command("schema")
def config_schema() -> None:
    """JSON schema of configurations, for editors."""
    import json

    from stedm.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(FIRST_LINES)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: bad input becomes one clear line on stderr and status 1."""
    given = expand_lists(sys.argv[1:] if arguments is None else arguments)
    try:
        with terminable():
            # By its name also where it runs as `python -m stedm`: completion goes by it.
            return as_one(lambda: app(given, prog_name="stedm"), at_end=True)
    except Interrupted as interrupted:
        _end(f"interrupted; run the same command again{_AGAIN.get(interrupted.verb, _ANEW)}", interrupted.status)
    except Exception as error:
        problem = error if isinstance(error, StedmError) else disk_problem(error)
        if problem is None:
            raise
        _end(str(problem), 1)


def _end(text: str, status: int) -> NoReturn:
    for line in text.splitlines():
        print(f"stedm: {line}", file=sys.stderr)
    sys.exit(status)
