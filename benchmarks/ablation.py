"""The ablation table: one choice at a time around a base configuration, several seeds, judged independently.

    python benchmarks/ablation.py run SPEC.yaml -o FOLDER [--only NAME ...] [--shard I/N]
    python benchmarks/ablation.py table FOLDER -o results/NAME
    python benchmarks/ablation.py print results/NAME        the table of what is kept there, without any run

`run` trains what is missing, draws the same plan with every variant, measures the images (stedm.evaluation.quality)
and can be stopped and started at any time, or in several shards at once:

FOLDER/spec.yaml                    the specification, paths made absolute
FOLDER/data/                        the phantom, where the base asks for one; all runs share it
FOLDER/judge/                       segmenter, phantom cohort of its own, bounds.json (real images; chance)
FOLDER/VARIANT/seed-K/              a run folder, and measures.json

The measured patients are unannotated ones with many images. Some of these (`cohort.reference_images`) are held
back: they are never style images of the plan, and they are what synthetic images are compared with.
"""

import argparse
import json
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from judging import LOWER_IS_BETTER, MEASURES, Cohort, Jury, RunSpec, claim, interval, locked, read_run_spec, wrapped
from stedm.config import PhantomConfig, RunConfig, SegmentationConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.figures import COLOURS, INK, MUTED, colour_layout, save_png
from stedm.evaluation.quality import ColourSpace, ImageEncoder, ImageSet, Measure
from stedm.experiment.experiment import Experiment
from stedm.experiment.resolve import annotated_part, resolve
from stedm.experiment.rounds import Round
from stedm.io.files import replacing, write_json, write_text
from stedm.phantom.cohort import make_phantom
from stedm.progress import Reporter
from stedm.synthesis.plan import LIST_SEPARATOR
from stedm.workers.pool import parse_shard

BASE = "base"
FROM = "from"


# ---- specification ------------------------------------------------------------------------------------------------


class Spec(RunSpec):
    """A base configuration and named variants of it: {name: {"diffusion.style.aggregation": "max", ...}}.

    The key `from: NAME` in a variant takes the trained model of another one, so that only `synthesis` may differ.
    """

    seeds: list[int] = [0, 1, 2]
    cohort: Cohort = Cohort()
    colours: ColourSpace = "hed"
    judge: dict[str, Any] = Field(default={"steps": 600}, description="settings of the judging segmenter")
    phantom_patients: int = Field(
        default=96, description="patients that the judge of a phantom's parameters is fitted on"
    )

    def config(self, variant: str, seed: int) -> RunConfig:
        """The configuration of one run; `StedmError` for keys that stedm doesn't know."""
        return self._config(variant, {"seed": seed, **self._settings(variant)})

    def trained_as(self, variant: str) -> str:
        """The variant whose model this one uses: itself, or the one under `from`."""
        return self.variants[variant].get(FROM, variant)

    def _settings(self, variant: str) -> dict[str, Any]:
        own = {key: value for key, value in self.variants[variant].items() if key != FROM}
        source = self.trained_as(variant)
        return own if source == variant else {**self._settings(source), **own}

    def check(self) -> None:
        """Build every configuration before anything is trained."""
        if BASE not in self.variants:
            raise StedmError(f"variants: needs one called {BASE}, which the others are compared with")
        for variant in self.variants:
            source = self.trained_as(variant)
            if source not in self.variants or self.trained_as(source) != source:
                raise StedmError(f"variant {variant}: from {source}: is not a variant with a model of its own")
            ours, theirs = self.config(variant, 0), self.config(source, 0)
            if (ours.diffusion, ours.rounds, ours.data) != (theirs.diffusion, theirs.rounds, theirs.data):
                raise StedmError(
                    f"variant {variant}: from {source}: only synthesis.* may differ, the model is the same"
                )


def read_spec(path: Path) -> Spec:
    """Read and check a specification; a relative data.path is relative to the file."""
    return read_run_spec(path, Spec)


# ---- runs ---------------------------------------------------------------------------------------------------------


class Ablation:
    """All runs of a specification in one folder."""

    def __init__(self, spec: Spec, folder: Path, encoders: tuple[ImageEncoder, ImageEncoder] | None = None):
        self.spec, self.folder = spec, folder
        self._encoders = encoders

    def run(self, only: list[str] | None = None, shard: tuple[int, int] = (0, 1), quiet: bool = False) -> None:
        """Train, draw and measure what is missing; runs that share a model belong to the same shard."""
        unknown = sorted(set(only or []) - set(self.spec.variants))
        if unknown:
            raise StedmError(f"--only {unknown[0]}: no such variant; there are {', '.join(self.spec.variants)}")
        self._claim()
        models = sorted(
            {self.spec.trained_as(v) for v in only or self.spec.variants}, key=list(self.spec.variants).index
        )
        mine = [(seed, model) for seed in self.spec.seeds for model in models][shard[0] :: shard[1]]
        reporter = Reporter(quiet=quiet)
        self.bounds(reporter)
        for seed, model in mine:
            for variant in self.spec.variants:
                if self.spec.trained_as(variant) == model and (not only or variant in only):
                    self.measured(variant, seed, reporter)

    def measured(self, variant: str, seed: int, reporter: Reporter) -> dict[str, Any]:
        """The content of one run's measures.json, after making it if it is missing."""
        path = self.run_folder(variant, seed) / "measures.json"
        if not path.is_file():
            reporter.say(f"== {variant}, seed {seed}")
            started = time.monotonic()
            synthetic = self.synthetic(variant, seed, reporter)
            drawn = time.monotonic()
            images = ImageSet.read(synthetic, self.image_px, with_masks=True)
            measures = {name: measure.as_dict() for name, measure in self.measure(images).items()}
            seconds = {"train and draw": round(drawn - started, 1), "measure": round(time.monotonic() - drawn, 1)}
            write_json(path, {"variant": variant, "seed": seed, "measures": measures, "seconds": seconds})
        return json.loads(path.read_text(encoding="utf-8"))

    def synthetic(self, variant: str, seed: int, reporter: Reporter) -> DatasetFolder:
        """The synthetic set of one run, its model trained first or taken from the variant under `from`."""
        experiment = self._experiment(variant, seed, reporter)
        source = self.spec.trained_as(variant)
        model = experiment.folder / "model"
        if source != variant and not model.exists():
            self._experiment(source, seed, reporter).last_round.model()
            model.unlink(missing_ok=True)
            model.symlink_to(Path("..") / ".." / source / f"seed-{seed}" / "model", target_is_directory=True)
        return experiment.last_round.synthetic()

    def measure(self, images: ImageSet) -> dict[str, Measure]:
        """All measures of synthetic images whose masks are the layouts that were asked for."""
        return self.jury.measure(images)

    def bounds(self, reporter: Reporter) -> dict[str, dict[str, float]]:
        """{"real": ..., "chance": ...}: real images in the place of synthetic ones; guessing. Made once."""
        return self.jury.bounds(reporter)

    @cached_property
    def jury(self) -> Jury:
        """Judges that all runs share."""
        segmentation = {**self._config.segmentation.model_dump(), **self.spec.judge}
        return Jury(
            self.dataset,
            annotated_part(self.dataset, self._config),
            self.folder / "judge",
            image_px=self.image_px,
            cohort=self.spec.cohort,
            colours=self.spec.colours,
            segmentation=SegmentationConfig.model_validate(segmentation),
            phantom=self.phantom,
            phantom_patients=self.spec.phantom_patients,
            encoders=self._encoders,
        )

    # ---- data ---------------------------------------------------------------------------------------------------

    @property
    def image_px(self) -> int:
        return self._config.data.side

    @property
    def phantom(self) -> PhantomConfig | None:
        return self._config.data.phantom

    @cached_property
    def dataset(self) -> DatasetFolder:
        """The one dataset folder of all runs, made first if it is a phantom."""
        if self.phantom is None:
            assert self._config.data.path is not None
            return DatasetFolder.open(self._config.data.path)
        with locked(self.folder / ".data.lock"):
            if not (self.folder / "data" / "metadata.csv").is_file():
                make_phantom(self.phantom, self.folder / "data")
        return DatasetFolder.open(self.folder / "data")

    @property
    def pool(self) -> DatasetFolder:
        """Real images of the measured patients that a plan may give as style images."""
        return self.jury.pool

    @property
    def reference(self) -> DatasetFolder:
        """Real images of the measured patients that no plan gives."""
        return self.jury.reference

    @cached_property
    def _config(self) -> RunConfig:
        return resolve(self.spec.config(BASE, self.spec.seeds[0]))

    # ---- folders ------------------------------------------------------------------------------------------------

    def run_folder(self, variant: str, seed: int) -> Path:
        return self.folder / variant / f"seed-{seed}"

    def _experiment(self, variant: str, seed: int, reporter: Reporter) -> Experiment:
        config = self.spec.config(variant, seed)
        data = config.data.model_copy(update={"phantom": None, "path": self.dataset.root.resolve()})
        config = config.model_copy(update={"data": data})
        experiment = Experiment(config, self.run_folder(variant, seed), reporter)
        experiment.round_type = self._round_type
        return experiment

    @cached_property
    def _round_type(self) -> type[Round]:
        pool = self.pool

        class Pooled(Round):
            """A round whose plan leaves the reference images alone."""

            @property
            def style_source(self) -> DatasetFolder:
                return pool

        return Pooled

    def _claim(self) -> None:
        """Variants and seeds may be added later."""
        claim(self.folder, self.spec, may_change=("variants", "seeds"))


# ---- statistics ---------------------------------------------------------------------------------------------------


def collect(ablation: Ablation) -> pd.DataFrame:
    """variant, seed, measure, patient_id, value; patient_id "" where a measure has no value per patient."""
    rows = []
    for variant in ablation.spec.variants:
        for path in sorted(ablation.run_folder(variant, 0).parent.glob("seed-*/measures.json")):
            run = json.loads(path.read_text(encoding="utf-8"))
            for name, measure in run["measures"].items():
                patients = measure["per_patient"] or {"": measure["value"]}
                rows += [(variant, run["seed"], name, patient, value) for patient, value in patients.items()]
    if not rows:
        raise StedmError(f"{ablation.folder}: nothing is measured yet; run `ablation.py run` first")
    return pd.DataFrame(rows, columns=["variant", "seed", "measure", "patient_id", "value"]).astype({"value": float})


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """A row for each variant and measure: mean, interval, SD between seeds, and the same of the difference to base.

    The difference is taken patient by patient and seed by seed, over the seeds that both have: with the same seed, a
    variant and the base were given the same layouts and noise.
    """
    tables = {
        key: group.pivot(index="seed", columns="patient_id", values="value")
        for key, group in values.groupby(["variant", "measure"], sort=False)
    }
    rows = []
    for (variant, measure), table in tables.items():
        row: dict[str, Any] = {"variant": variant, "measure": measure, "seeds": len(table), **_columns("", table)}
        base = tables.get((BASE, measure))
        if base is not None and variant != BASE:
            row |= _columns("delta_", (table - base).dropna(how="all").dropna(how="all", axis=1))
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(prefix: str, table: pd.DataFrame) -> dict[str, float]:
    if table.empty:
        return {}
    low, high = interval(table.to_numpy(dtype=float))
    seed_sd = float(table.mean(axis=1).std(ddof=1)) if len(table) > 1 else float("nan")
    mean = float(np.nanmean(table.to_numpy(dtype=float)))
    return {f"{prefix}mean": mean, f"{prefix}low": low, f"{prefix}high": high, f"{prefix}seed_sd": seed_sd}


# ---- the table ----------------------------------------------------------------------------------------------------


def write_table(ablation: Ablation, target: Path) -> None:
    """TARGET/{table.md, measures.parquet, measures.png, grid.png}; measures.parquet holds all that is measured."""
    values, bounds = collect(ablation), ablation.bounds(Reporter(quiet=True))
    summary = summarise(values)
    write_measures(target / "measures.parquet", values, bounds)
    write_text(target / "table.md", markdown(ablation.spec.name, summary, bounds))
    shown = [name for name in MEASURES if name in set(summary["measure"])]
    save_png(target / "measures.png", measures_figure(summary, bounds, shown), dpi=110)
    save_png(target / "grid.png", grid_figure(ablation), dpi=110)


def write_measures(path: Path, values: pd.DataFrame, bounds: dict[str, dict[str, float]]) -> None:
    """Keep the table of `collect` in one file, and the bounds as variants `*real*` and `*chance*` without a seed."""
    rows = [(f"*{label}*", -1, name, "", value) for label, known in bounds.items() for name, value in known.items()]
    table = pd.concat([values, pd.DataFrame(rows, columns=values.columns)], ignore_index=True)
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


def read_measures(path: Path) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """What `write_measures` kept: the table of `collect` and the bounds."""
    if not path.is_file():
        raise StedmError(f"{path}: no such file; give a folder that `ablation.py table` wrote")
    table = pd.read_parquet(path)
    bound = table["seed"] == -1
    bounds = {
        label: table[bound & (table["variant"] == f"*{label}*")].set_index("measure")["value"].to_dict()
        for label in ("real", "chance")
    }
    return table[~bound], bounds


def kept_table(folder: Path) -> str:
    """`markdown` of what FOLDER/measures.parquet holds."""
    values, bounds = read_measures(folder / "measures.parquet")
    return markdown(folder.name, summarise(values), bounds)


def markdown(title: str, summary: pd.DataFrame, bounds: dict[str, dict[str, float]]) -> str:
    """Two tables, means and differences to base; a bold difference has an interval without 0."""
    names = [name for name in MEASURES if name in set(summary["measure"])]
    cells = summary.set_index(["variant", "measure"])
    variants = list(dict.fromkeys(summary["variant"]))
    arrows = [f"{MEASURES[name]} {'↓' if name.startswith(LOWER_IS_BETTER) else '↑'}" for name in names]
    head = ["| variant | seeds | " + " | ".join(arrows) + " |", "|---" * (len(names) + 2) + "|"]
    means, differences = list(head), list(head)
    for label in ("real", "chance"):
        known = [bounds[label].get(name) for name in names]
        shown = ["–" if value is None else f"{value:.3f}" for value in known]
        means.append(f"| *{label}* | | " + " | ".join(shown) + " |")
    for variant in variants:
        rows = [cells.loc[(variant, name)] for name in names]
        seeds = int(max(row["seeds"] for row in rows))
        means.append(f"| {variant} | {seeds} | " + " | ".join(_cell(row, "") for row in rows) + " |")
        if variant != BASE:
            differences.append(f"| {variant} | {seeds} | " + " | ".join(_cell(row, "delta_") for row in rows) + " |")
    notes = (
        "Mean [95 % interval]. Intervals: bootstrap over seeds and patients, both resampled (KID and correlations, "
        "which have no value per patient: Student's t over seeds). *real*: real images measured in the place of "
        "synthetic ones. *chance*: guessing; for the stain distance the images of another patient, for the layout "
        "shuffled layouts, for the parameters the mean of all patients. Differences are paired by seed and patient; "
        "bold: the interval leaves out 0."
    )
    return "\n".join([f"## {title}", "", *means, "", f"### Difference to {BASE}", "", *differences, "", notes, ""])


def _cell(row: pd.Series, prefix: str) -> str:
    mean, low, high = (row.get(f"{prefix}{part}", np.nan) for part in ("mean", "low", "high"))
    if np.isnan(mean):
        return "–"
    sign = "+" if prefix else ""
    text = f"{mean:{sign}.3f}" if np.isnan(low) else f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"**{text}**" if prefix and (low > 0 or high < 0) else text


def measures_figure(summary: pd.DataFrame, bounds: dict[str, dict[str, float]], measures: list[str]) -> Figure:
    """Dots and intervals, a panel a measure, a row a variant; dashed: real images, dotted: chance."""
    variants = list(dict.fromkeys(summary["variant"]))
    columns = min(5, len(measures))
    lines = -(-len(measures) // columns)
    size = (2.2 + 2.3 * columns, lines * (1.2 + 0.28 * len(variants)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for ax in axes[len(measures) :]:
        ax.set_axis_off()
    for ax, name in zip(axes, measures, strict=False):
        rows = summary[summary["measure"] == name].set_index("variant").reindex(variants)
        for y, (variant, row) in enumerate(rows.iterrows()):
            colour = COLOURS[3] if variant == BASE else COLOURS[0]
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.6)
            ax.plot(row["mean"], y, "o", color=colour, ms=5)
        for label, style in (("real", "--"), ("chance", ":")):
            if bounds[label].get(name) is not None:
                ax.axvline(bounds[label][name], color=INK, ls=style, lw=1)
        if BASE in rows.index:
            ax.axvline(rows.loc[BASE, "mean"], color=COLOURS[3], lw=0.8, alpha=0.5)
        better = "lower" if name.startswith(LOWER_IS_BETTER) else "higher"
        ax.set_title(wrapped(MEASURES[name]), fontsize=9)
        ax.set_xlabel(f"{better} is better", fontsize=8, color=MUTED)
        ax.set_yticks(range(len(variants)), variants)
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.grid(axis="x", color=MUTED, alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def grid_figure(ablation: Ablation, patients: int = 6, styles: int = 2) -> Figure:
    """Rows: patients; columns: style images, layout, then the same layout and noise with each variant."""
    seed = ablation.spec.seeds[0]
    folders = {name: ablation.run_folder(name, seed) / "synthetic" for name in ablation.spec.variants}
    sets = {name: DatasetFolder.open(path) for name, path in folders.items() if (path / "metadata.csv").is_file()}
    if BASE not in sets:
        raise StedmError(f"{folders[BASE]}: the grid shows seed {seed} of {BASE} first; run it")
    table = sets[BASE].table
    chosen = table.drop_duplicates("patient_id").sort_values("patient_id").index
    chosen = [int(chosen[i]) for i in np.linspace(0, len(chosen) - 1, min(patients, len(chosen))).round().astype(int)]
    row_of = {name: row for row, name in enumerate(ablation.dataset.table["image_file_name"])}
    headings = ["style"] + [""] * (styles - 1) + ["layout", *sets]
    width, height = 1.5 + 0.8 * len(headings), 1.0 + 0.8 * len(chosen)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(chosen), len(headings), squeeze=False)
    figure.subplots_adjust(0.7 / width, 0.05 / height, 1 - 0.8 / width, 1 - 0.95 / height, wspace=0.06, hspace=0.06)
    for row, line in zip(chosen, axes, strict=True):
        names = str(table["style_image_file_names"].iloc[row]).split(LIST_SEPARATOR)[:styles]
        shown = [ablation.dataset.read_image(row_of[name], ablation.image_px) for name in names]
        shown += [None] * (styles - len(names)) + [colour_layout(sets[BASE].read_mask(row))]
        for ax, image in zip(line, shown + [_same(made, table.iloc[row]) for made in sets.values()], strict=True):
            ax.set_axis_off()
            if image is not None:
                ax.imshow(image, interpolation="none")
        line[0].text(-0.1, 0.5, table["patient_id"].iloc[row], transform=line[0].transAxes, ha="right", fontsize=7)
    for ax, heading in zip(axes[0], headings, strict=True):
        ax.text(0.3, 1.05, heading, fontsize=7, rotation=35, ha="left", va="bottom", transform=ax.transAxes)
    return figure


def _same(made: DatasetFolder, planned: pd.Series) -> np.ndarray | None:
    """The image that another variant made of the same row of the plan."""
    rows = np.flatnonzero((made.table["image_id"] == planned["image_id"]) & (made.table["seed"] == planned["seed"]))
    return made.read_image(int(rows[0])) if len(rows) else None


# ---- command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One choice at a time around a base configuration.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train, draw and measure what is missing")
    run.add_argument("spec", type=Path)
    run.add_argument("-o", dest="folder", type=Path, required=True)
    run.add_argument("--only", nargs="+", metavar="NAME", help="these variants only")
    run.add_argument("--shard", default="1/1", help="I/N: the I-th of N parts of the work")
    table = verbs.add_parser("table", help="tables and figures of what is measured")
    table.add_argument("folder", type=Path)
    table.add_argument("-o", dest="target", type=Path, required=True)
    kept = verbs.add_parser("print", help="the table of a folder that `table` wrote")
    kept.add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "run":
            Ablation(read_spec(given.spec), given.folder).run(given.only, parse_shard(given.shard))
        elif given.verb == "print":
            print(kept_table(given.folder), end="")
        else:
            write_table(Ablation(read_spec(given.folder / "spec.yaml"), given.folder), given.target)
    except StedmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
