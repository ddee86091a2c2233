"""What segmentation gains from each choice: variants of a run over label budgets, draws of patients and seeds.

    python benchmarks/downstream.py run SPEC.yaml -o FOLDER [--only NAME ...] [--shard I/N]
    python benchmarks/downstream.py table FOLDER -o results/NAME [--keep]
    python benchmarks/downstream.py curve FOLDER -o results/NAME [--keep]   a figure: IoU against patients
    python benchmarks/downstream.py headline FOLDER -o results/NAME [--keep]   a report over all draws

`run` trains and scores what is missing and can be stopped and started at any time, or in several shards at once. What
two runs have in common (a diffusion model, a synthetic set, segmenters without synthetic images) is made once:

With --keep a table is added to: counts that results/NAME has of runs that are not in FOLDER stay.

FOLDER/spec.yaml                         the specification, paths made absolute
FOLDER/shared/{models,sets,segmenters}/  what runs have in common, each a run folder of its own
FOLDER/VARIANT/patients-B/draw-D/        a run folder, with its report

A variant with the key `control` has a set that lacks one thing on purpose (see controls.py).
Choose on `evaluation.split: val`; `test` is for the final table.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import OmegaConf
from pydantic import Field, ValidationError

from controls import DRAWN, Control, Gate, copy_images, gate, shuffle_layouts
from downstream_tables import BASE, write_curve, write_headline, write_table
from judging import Part, claim, locked
from stedm.config import (
    RunConfig,
    SegmentationConfig,
    SynthesisConfig,
    parse_config,
    uses_self_training,
    uses_synthetic,
)
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.experiment import labelling
from stedm.experiment.experiment import Experiment
from stedm.io.files import fingerprint
from stedm.layout.recipe import PREDICTED
from stedm.progress import Reporter
from stedm.workers.pool import parse_shard

CONTROLS = get_args(Control)
CONTROL = "control"
"""Key of a variant that is no key of a configuration."""


# ---- specification ------------------------------------------------------------------------------------------------


class Spec(Part):
    """A base configuration, and variants of it: {name: {"synthesis.time_shift": 4, ...}}."""

    name: str
    base: dict[str, Any]
    budgets: list[int] = Field(min_length=1, description="annotated patients")
    draws: list[int] = [0]
    baseline: str = "real+stain"
    """The arm of `base` that others are compared with."""
    compare: list[tuple[str, str]] = []
    """Further comparisons, as VARIANT/ARM (new, baseline)."""
    names: dict[str, str] = {}
    """What arms are called in a headline, as VARIANT/ARM: NAME; by default ARM."""
    variants: dict[str, dict[str, Any]]

    def config(self, variant: str, budget: int, draw: int) -> RunConfig:
        """The configuration of one run; `StedmError` for keys that stedm doesn't know."""
        values = OmegaConf.create({"name": f"{self.name}, {variant}", **self.base})
        given = {"data.annotated_patients": budget, "data.draw": draw, **self.variants[variant]}
        for key, value in given.items():
            if key == CONTROL:
                continue
            OmegaConf.update(values, key, value, merge=False)
        return parse_config(OmegaConf.to_container(values, resolve=True), source=f"variant {variant}")

    def control(self, variant: str) -> Control | None:
        """What the variant's synthetic set lacks on purpose."""
        return self.variants[variant].get(CONTROL)

    def check(self) -> None:
        """Build every configuration before anything is trained."""
        if BASE not in self.variants:
            raise StedmError(f"variants: needs one called {BASE}, which the others are compared with")
        for variant in self.variants:
            if self.control(variant) not in (None, *CONTROLS):
                known = ", ".join(CONTROLS)
                raise StedmError(f"variant {variant}: control is {self.control(variant)}, not one of {known}")
            config = self.config(variant, self.budgets[0], self.draws[0])
            if config.data.phantom is not None:
                raise StedmError("data.phantom: make the phantom first (stedm data phantom) and give data.path")
        if self.baseline not in self.config(BASE, self.budgets[0], self.draws[0]).segmentation.arms:
            raise StedmError(f"baseline: {self.baseline} is not an arm of {BASE}")


def read_spec(path: Path) -> Spec:
    """Read and check a specification; a relative data.path is relative to the file."""
    if not path.is_file():
        raise StedmError(f"{path}: no such specification")
    try:
        spec = Spec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise StedmError(f"{path}: {' '.join(str(error).split())}") from error
    if data_path := spec.base.get("data", {}).get("path"):
        spec.base["data"]["path"] = str((path.parent / data_path).resolve())
    spec.check()
    return spec


# ---- runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run."""

    variant: str
    budget: int
    draw: int

    def folder(self, root: Path) -> Path:
        return root / self.variant / f"patients-{self.budget}" / f"draw-{self.draw}"


class Comparison:
    """All runs of a specification in one folder."""

    def __init__(self, spec: Spec, folder: Path):
        self.spec, self.folder = spec, folder

    @property
    def cells(self) -> list[Cell]:
        """Draw by draw, so that a table can be made early."""
        spec = self.spec
        return [Cell(v, b, d) for d in spec.draws for b in spec.budgets for v in spec.variants]

    def run(self, only: list[str] | None = None, shard: tuple[int, int] = (0, 1), quiet: bool = False) -> None:
        """Train and score what is missing."""
        if unknown := sorted(set(only or []) - set(self.spec.variants)):
            raise StedmError(f"--only {unknown[0]}: no such variant; there are {', '.join(self.spec.variants)}")
        claim(self.folder, self.spec, may_change=("variants", "budgets", "draws", "compare", "names"))
        reporter = Reporter(quiet=quiet)
        for cell in [cell for cell in self.cells if not only or cell.variant in only][shard[0] :: shard[1]]:
            reporter.say(f"== {cell.variant}, {cell.budget} annotated patients, draw {cell.draw}")
            self.run_cell(cell, reporter)

    def run_cell(self, cell: Cell, reporter: Reporter) -> None:
        """One run, on what it shares with others."""
        config = self.spec.config(cell.variant, cell.budget, cell.draw)
        experiment = Experiment(config, cell.folder(self.folder), reporter)
        experiment.check()
        if any(map(uses_synthetic, config.segmentation.arms)):
            shared = self._synthetic(config, self.spec.control(cell.variant), reporter)
            for name in ("model", "plan.parquet", "synthetic"):
                if (shared / name).exists():
                    _link(experiment.folder / name, shared / name)
        for arm in config.segmentation.arms:
            if not uses_synthetic(arm):
                _link(experiment.folder / "segmenters" / arm, self._segmenters(config, arm, reporter))
        experiment.train_segmenters()
        experiment.report()

    def _synthetic(self, config: RunConfig, control: Control | None, reporter: Reporter) -> Path:
        """Run folder of the synthetic set that `config` and `control` ask for."""
        plain, pseudo_labels = SegmentationConfig(), config.diffusion.pseudo_labels
        self_trained = pseudo_labels is not None and pseudo_labels.arm == "self-training"
        # With pseudo-labels the model depends on how segmenters are trained, but not on which are compared.
        which = ("arms", "seeds") if self_trained else ("arms", "seeds", "steps", "synthetic_fraction")
        compared = {key: getattr(plain, key) for key in which}
        segmentation = config.segmentation.model_copy(update=compared) if config.diffusion.pseudo_labels else plain
        shared = {"name": "shared", "segmentation": segmentation}
        whole = config.model_copy(update=shared)
        # The first model of a run that trains one in every round is that of a run with one round.
        once = pseudo_labels and pseudo_labels.model_copy(update={"every_round": False, "fine_tuning": None})
        trained = whole.model_copy(
            update={
                "synthesis": SynthesisConfig(),
                "diffusion": config.diffusion.model_copy(update={"pseudo_labels": once}),
            }
        )
        self_training = self._self_training(config, reporter) if self_trained else None
        with self._shared("models", trained) as model:
            experiment = Experiment(trained, model, reporter)
            if self_training:
                _link(model / "self_training", self_training)
            experiment.train_diffusion()
        drawn = whole
        if PREDICTED in config.synthesis.layout_weights or config.retrains:
            # The segmenters that predict are trained as those that are compared.
            free = {key: getattr(plain, key) for key in ("arms", "seeds")}
            drawn = drawn.model_copy(update={"segmentation": config.segmentation.model_copy(update=free)})
        with self._shared("sets", drawn) as folder:
            experiment = Experiment(drawn, folder, reporter)
            for part in ("model", "pseudo_labels"):
                if (model / part).exists():
                    _link(folder / ("rounds/1" if config.retrains else "") / part, model / part)
            if self_training:
                _link(folder / "self_training", self_training)
            if config.synthesis.rounds > 1 and not control:
                self._link_rounds_before(config, folder, reporter)
            if control in (None, "shuffled-layouts", *get_args(Gate)):
                experiment.synthesize()
        teachers = sorted((model / "teachers").glob("seed-*/model"))
        if self_training:
            last = f"round-{labelling.SELF_TRAINING_ROUNDS}"
            teachers = sorted((self_training / "self-training" / last).glob("predictors/*/model"))
        return self._without(control, drawn, folder, teachers, reporter) if control else folder

    def _link_rounds_before(self, config: RunConfig, folder: Path, reporter: Reporter) -> None:
        """Make the rounds before the last those of the run that ends with them."""
        number, pseudo_labels = config.synthesis.rounds - 1, config.diffusion.pseudo_labels
        if pseudo_labels and number == 1:
            pseudo_labels = pseudo_labels.model_copy(update={"every_round": False, "fine_tuning": None})
        synthesis = config.synthesis if number > 1 else config.synthesis.of_round(1)
        # They concern later rounds alone.
        first = {"first_layouts": None, "agreement": SynthesisConfig().agreement} if number == 1 else {}
        before = config.model_copy(
            update={
                "synthesis": synthesis.model_copy(update={"rounds": number, **first}),
                "diffusion": config.diffusion.model_copy(update={"pseudo_labels": pseudo_labels}),
            }
        )
        shared = self._synthetic(before, None, reporter)
        parts = ["predictors", "predicted_layouts", "agreement.csv", "plan.parquet", "synthetic"]
        parts += ["model", "pseudo_labels"] if config.retrains else []
        for earlier in range(1, config.synthesis.rounds):
            there = shared if earlier == number else shared / "rounds" / str(earlier)
            for part in parts:
                link = folder / "rounds" / str(earlier) / part
                # Runs from before this was shared have folders of their own.
                if (there / part).exists() and not link.exists():
                    _link(link, there / part)

    def _without(
        self, control: Control, drawn: RunConfig, whole: Path, teachers: list[Path], reporter: Reporter
    ) -> Path:
        """Run folder of a set that lacks something, made beside the whole one."""
        px, seed, target = drawn.data.image_px, drawn.seed, whole.with_name(f"{whole.name}-{control}")
        with _Locked(target) as folder:
            experiment = DRAWN.get(control, Experiment)(drawn, folder, reporter)
            shared = ("model", "pseudo_labels", "self_training", "rounds/*/model", "rounds/*/pseudo_labels")
            for part in (path for pattern in shared for path in whole.glob(pattern)):
                _link(folder / part.relative_to(whole), part)
            synthetic = folder / "synthetic"
            if control in DRAWN:
                experiment.synthesize()
            elif not (synthetic / "metadata.csv").is_file():
                images = None if control == "copied-images" else DatasetFolder.open(whole / "synthetic")
                if control == "shuffled-layouts":
                    shuffle_layouts(images, synthetic, image_px=px, seed=seed)
                elif control in get_args(Gate):
                    gate(images, teachers, control, synthetic, image_px=px)
                else:
                    n = drawn.synthesis.n_images
                    copy_images(experiment.annotated, n, synthetic, image_px=px, seed=seed)
        return folder

    def _segmenters(self, config: RunConfig, arm: str, reporter: Reporter) -> Path:
        """Folder of the segmenters of an arm without synthetic images, all seeds."""
        trained = self._alone(config, arm)
        with self._shared("segmenters", trained) as folder:
            experiment = Experiment(trained, folder, reporter)
            experiment.train_segmenters()
            experiment.counts()
        return folder / "segmenters" / arm

    def _self_training(self, config: RunConfig, reporter: Reporter) -> Path:
        """Folder `self_training` of the run that the segmenters of arm self-training are trained in."""
        trained = self._alone(config, "self-training")
        with self._shared("segmenters", trained) as folder:
            Experiment(trained, folder, reporter).teacher_labels("self-training")
        return folder / "self_training"

    def _alone(self, config: RunConfig, arm: str) -> RunConfig:
        """What the segmenters of an arm without synthetic images depend on."""
        alone = config.segmentation.model_copy(update={"arms": [arm]})
        if not uses_self_training(arm):
            # Runs that differ in it have the same segmenters.
            alone = alone.model_copy(update={"synthetic_fraction": SegmentationConfig().synthetic_fraction})
        return config.model_copy(
            update={
                "name": "shared",
                "synthesis": SynthesisConfig(),
                "diffusion": type(config.diffusion)(),
                "segmentation": alone,
            }
        )

    def _shared(self, kind: str, config: RunConfig) -> "_Locked":
        return _Locked(self.folder / "shared" / kind / fingerprint(config.model_dump(mode="json")))


class _Locked:
    """A folder that one process at a time works in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = locked(folder.with_name(f".{folder.name}.lock"))

    def __enter__(self) -> Path:
        self._lock.__enter__()
        return self.folder

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target.resolve())


# ---- command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What segmentation gains from each choice.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and score what is missing")
    run.add_argument("spec", type=Path)
    run.add_argument("-o", dest="folder", type=Path, required=True)
    run.add_argument("--only", nargs="+", help="variants, by default all")
    run.add_argument("--shard", default="1/1", help="I/N: the I-th of N parts of the work")
    table = verbs.add_parser("table", help="tables of what is scored")
    table.add_argument("folder", type=Path)
    curve = verbs.add_parser("curve", help="IoU against the number of annotated patients")
    curve.add_argument("folder", type=Path)
    headline = verbs.add_parser("headline", help="a report over all draws, arms under their plain names")
    headline.add_argument("folder", type=Path)
    for verb in (table, curve, headline):
        verb.add_argument("-o", dest="target", type=Path, required=True)
        verb.add_argument("--keep", action="store_true", help="keep what -o has of runs that are not in the folder")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "run":
            Comparison(read_spec(given.spec), given.folder).run(given.only, parse_shard(given.shard))
        else:
            write = {"table": write_table, "curve": write_curve, "headline": write_headline}[given.verb]
            comparison = Comparison(read_spec(given.folder / "spec.yaml"), given.folder)
            print(write(comparison, given.target, kept=given.target if given.keep else None) or "", end="")
    except StedmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
