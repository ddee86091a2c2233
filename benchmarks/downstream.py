"""What segmentation gains from each choice: variants of a run over label budgets, draws of patients and seeds.

    python benchmarks/downstream.py run SPEC.yaml -o FOLDER [--only NAME ...] [--shard I/N]
    python benchmarks/downstream.py table FOLDER -o results/NAME [--keep]
    python benchmarks/downstream.py curve FOLDER -o results/NAME [--keep]   a figure: IoU against patients
    python benchmarks/downstream.py headline FOLDER -o results/NAME [--keep]   a report over all draws

`run` trains and scores what is missing and can be stopped and started at any time, or in several shards at once. What
two runs have in common (a diffusion model, what voters see, a synthetic set, segmenters without synthetic images) is
made once:

With --keep a table is added to: counts that results/NAME has of runs that are not in FOLDER stay.

FOLDER/spec.yaml                         the specification, paths made absolute
FOLDER/shared/{teachers,models,votes,sets,segmenters}/  what runs have in common, each a run folder of its own
FOLDER/VARIANT/patients-B/draw-D/        a run folder, with its report

A variant with the key `control` has a set that lacks one thing on purpose (see controls.py).
Choose on `evaluation.split: val`; `test` is for the final table.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from pydantic import Field

from controls import DRAWN, NEEDED, Control, Gate, copy_images, gate, shuffle_layouts
from downstream_tables import BASE, write_curve, write_headline, write_table
from judging import RunSpec, claim, locked, read_run_spec
from stedm.config import (
    DiffusionConfig,
    PredictedConfig,
    RoundsConfig,
    RunConfig,
    SegmentationConfig,
    SynthesisConfig,
    uses_self_training,
    uses_synthetic,
)
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.experiment.experiment import Experiment
from stedm.experiment.resolve import resolve
from stedm.experiment.rounds import FIRST_VOTER_STEPS, Round, self_training_voters
from stedm.io.files import fingerprint
from stedm.progress import Reporter
from stedm.workers.pool import parse_shard

CONTROLS = get_args(Control)
CONTROL = "control"
"""Key of a variant that is no key of a configuration."""
VOTES, MODEL = ("predictors", "predicted_layouts", "agreement.csv"), ("model", "pseudo_labels")
"""What a round has before it paints: of its voters, and of its diffusion model where it has its own."""


# ---- specification ------------------------------------------------------------------------------------------------


class Spec(RunSpec):
    """A base configuration and variants of it, over label budgets and draws of annotated patients."""

    budgets: list[int] = Field(min_length=1, description="annotated patients")
    draws: list[int] = [0]
    baseline: str = "real+stain"
    """The arm of `base` that others are compared with."""
    compare: list[tuple[str, str]] = []
    """Further comparisons, as VARIANT/ARM (new, baseline)."""
    names: dict[str, str] = {}
    """What arms are called in a headline, as VARIANT/ARM: NAME; by default ARM."""

    def config(self, variant: str, budget: int, draw: int) -> RunConfig:
        """The configuration of one run; `StedmError` for keys that stedm doesn't know."""
        own = {key: value for key, value in self.variants[variant].items() if key != CONTROL}
        return self._config(variant, {"data.annotated_patients": budget, "data.draw": draw, **own})

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
            predicted = config.rounds.predicted
            if self.control(variant) == "unpainted-images" and (
                config.rounds.last == 1 or predicted is None or predicted.fraction < 1
            ):
                raise StedmError(f"variant {variant}: set rounds.predicted.fraction to 1; other layouts have no image")
        if self.baseline not in self.config(BASE, self.budgets[0], self.draws[0]).segmentation.arms:
            raise StedmError(f"baseline: {self.baseline} is not an arm of {BASE}")


def read_spec(path: Path) -> Spec:
    """Read and check a specification; a relative data.path is relative to the file."""
    return read_run_spec(path, Spec)


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
        config = resolve(self.spec.config(cell.variant, cell.budget, cell.draw))
        experiment = Experiment(config, cell.folder(self.folder), reporter)
        experiment.check()
        if any(map(uses_synthetic, config.segmentation.arms)):
            shared = self._synthetic(config, self.spec.control(cell.variant), reporter)
            _link_parts(experiment.folder, shared, ("model", "plan.parquet", "synthetic"))
        for arm in config.segmentation.arms:
            if not uses_synthetic(arm):
                _link(experiment.folder / "segmenters" / arm, self._segmenters(config, arm, reporter))
        experiment.train_segmenters()
        experiment.report()

    def _synthetic(self, config: RunConfig, control: Control | None, reporter: Reporter) -> Path:
        """Run folder of the synthetic set that `config` and `control` ask for."""
        drawn = config.model_copy(update={"name": "shared", "segmentation": _labelling(config)})
        with self._shared("sets", drawn) as folder:
            if control == "copied-images":
                self._link_first_model(drawn, folder, reporter)
            else:
                experiment = Experiment(drawn, folder, reporter)
                if not experiment.last_round.is_drawn:
                    self._link_to_paint(drawn, folder, reporter)
                NEEDED.get(control, Round.synthetic)(experiment.last_round)
        return self._without(control, drawn, folder, reporter) if control else folder

    def _link_to_paint(self, drawn: RunConfig, folder: Path, reporter: Reporter) -> None:
        """Make what a run has before its last round paints that of the runs which have the same."""
        self._link_before(drawn, folder, reporter)
        if drawn.rounds.last == 2:  # with more, what is done with votes is done in the rounds before the last, too
            votes, agreed = self._votes(drawn, reporter)
            _link_parts(folder, votes, VOTES)
            if drawn.fine_tunes:
                _link_parts(folder, self._second_model(drawn, votes, agreed, reporter), MODEL)

    def _votes(self, drawn: RunConfig, reporter: Reporter) -> tuple[Path, pd.DataFrame]:
        """Run folder of the voters of a second round, whatever is done with what they see; and their agreement."""
        unused = {"agreement": 0.0, "predicted": PredictedConfig(start=1), "fine_tune": None}
        seen = drawn.model_copy(update={"rounds": drawn.rounds.model_copy(update=unused)})
        with self._shared("votes", seen) as folder:
            experiment = Experiment(seen, folder, reporter)
            if not (folder / "agreement.csv").is_file():
                self._link_before(seen, folder, reporter)
            return folder, experiment.last_round.agreement()

    def _second_model(self, drawn: RunConfig, votes: Path, agreed: pd.DataFrame, reporter: Reporter) -> Path:
        """Run folder of the diffusion model of a second round, whatever it paints."""
        # The least agreement doesn't matter, but whom it leaves out.
        left = agreed["agreement"][~(agreed["agreement"] < drawn.rounds.agreement)].min()
        unused = {"agreement": 1.0 if np.isnan(left) else float(left), "predicted": None}
        trained = drawn.model_copy(update={"rounds": drawn.rounds.model_copy(update=unused)})
        with self._shared("second_models", trained) as folder:
            experiment = Experiment(trained, folder, reporter)
            if not (folder / "model/model_index.json").is_file():
                self._link_before(trained, folder, reporter)
                _link_parts(folder, votes, VOTES)
            experiment.last_round.model()
        return folder

    def _link_before(self, drawn: RunConfig, folder: Path, reporter: Reporter) -> None:
        """Make the first model and all rounds before the last those of other runs."""
        self._link_first_model(drawn, folder, reporter)
        if drawn.rounds.last > 1:
            self._link_rounds_before(drawn, folder, reporter)

    def _link_first_model(self, drawn: RunConfig, folder: Path, reporter: Reporter) -> None:
        """Make the diffusion model of the first round that of the other runs."""
        shared = self._first_model(drawn, reporter)
        _link_parts(folder / "rounds/1" if drawn.fine_tunes else folder, shared, MODEL)
        _link_parts(folder, shared, ("teachers", "self_training"))

    def _first_model(self, drawn: RunConfig, reporter: Reporter) -> Path:
        """Run folder of the diffusion model of the first round."""
        labels = drawn.rounds.labels
        once = drawn.model_copy(update={"rounds": RoundsConfig(number=1, voters=drawn.rounds.voters, labels=labels)})
        trained = once.model_copy(update={"synthesis": SynthesisConfig(), "segmentation": _labelling(once)})
        with self._shared("models", trained) as folder:
            experiment = Experiment(trained, folder, reporter)
            if labels and labels.arm == "self-training":
                _link(folder / "self_training", self._self_training(trained, reporter))
            experiment.last_round.model()
        return folder

    def _link_rounds_before(self, drawn: RunConfig, folder: Path, reporter: Reporter) -> None:
        """Make the rounds before the last those of the run that ends with them."""
        number, rounds = drawn.rounds.last - 1, drawn.rounds.model_copy(update={"number": drawn.rounds.last - 1})
        if number == 1:
            # What concerns later rounds alone is no difference.
            rounds = RoundsConfig(number=1, voters=rounds.voters, labels=rounds.labels)
        shared = self._synthetic(drawn.model_copy(update={"rounds": rounds}), None, reporter)
        parts = (*VOTES, *(MODEL if drawn.fine_tunes else ()), "plan.parquet", "synthetic")
        for earlier in range(1, number + 1):
            there = shared if earlier == number else shared / "rounds" / str(earlier)
            _link_parts(folder / "rounds" / str(earlier), there, parts)

    def _without(self, control: Control, drawn: RunConfig, whole: Path, reporter: Reporter) -> Path:
        """Run folder of a set that lacks something, made beside the whole one."""
        px, seed, target = drawn.data.side, drawn.seed, whole.with_name(f"{whole.name}-{control}")
        with _Locked(target) as folder:
            experiment = Experiment(drawn, folder, reporter)
            experiment.round_type = DRAWN.get(control, Round)
            shared = ("model", "pseudo_labels", "self_training", "rounds/*/model", "rounds/*/pseudo_labels")
            if control == "unpainted-images":
                shared += ("predictors", "predicted_layouts", "agreement.csv", "rounds/*/synthetic")
            for part in (path for pattern in shared for path in whole.glob(pattern)):
                _link(folder / part.relative_to(whole), part)
            synthetic = folder / "synthetic"
            if control in DRAWN:
                experiment.last_round.synthetic()
            elif not (synthetic / "metadata.csv").is_file():
                images = None if control == "copied-images" else DatasetFolder.open(whole / "synthetic")
                if control == "shuffled-layouts":
                    shuffle_layouts(images, synthetic, image_px=px, seed=seed)
                elif control in get_args(Gate):
                    voters = Experiment(drawn, whole, reporter).last_round.first.voters.models()
                    gate(images, voters, control, synthetic, image_px=px)
                else:
                    copy_images(
                        experiment.context.annotated, drawn.synthesis.n_images, synthetic, image_px=px, seed=seed
                    )
        return folder

    def _segmenters(self, config: RunConfig, arm: str, reporter: Reporter) -> Path:
        """Folder of the segmenters of an arm without synthetic images, all seeds."""
        trained = self._alone(config, arm)
        with self._shared("segmenters", trained) as folder:
            experiment = Experiment(trained, folder, reporter)
            if arm == "self-training":
                _link(folder / "self_training", self._self_training(config, reporter))
            experiment.train_segmenters()
            experiment.counts()
        return folder / "segmenters" / arm

    def _self_training(self, config: RunConfig, reporter: Reporter) -> Path:
        """Folder `self_training` of the run that the teachers of arm self-training are trained in."""
        trained = self._alone(config.model_copy(update={"segmentation": _free(config.segmentation)}), "self-training")
        with self._shared("teachers", trained) as folder:
            self_training_voters(Experiment(trained, folder, reporter).context, "self-training").models()
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
                "rounds": RoundsConfig(number=1, voters=config.rounds.voters, labels=None),
                "diffusion": DiffusionConfig(),
                "segmentation": alone,
            }
        )

    def _shared(self, kind: str, config: RunConfig) -> "_Locked":
        return _Locked(self.folder / "shared" / kind / fingerprint(config.model_dump(mode="json")))


def _free(segmentation: SegmentationConfig) -> SegmentationConfig:
    """How segmenters are trained, but not which are compared."""
    plain = SegmentationConfig()
    return segmentation.model_copy(update={"arms": plain.arms, "seeds": plain.seeds})


def _labelling(config: RunConfig) -> SegmentationConfig:
    """What a synthetic set depends on of how segmenters are trained: it is seen by voters."""
    labels, free = config.rounds.labels, _free(config.segmentation)
    if config.rounds.last > 1 or (labels and labels.arm == "self-training"):
        return free
    plain = SegmentationConfig()
    if labels is None:
        return plain
    steps = min(free.steps, FIRST_VOTER_STEPS)
    return free.model_copy(update={"steps": steps, "synthetic_fraction": plain.synthetic_fraction})


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


def _link_parts(folder: Path, shared: Path, parts: Iterable[str]) -> None:
    """Those that are in `shared`; what the folder has of its own stays."""
    for part in parts:
        if (shared / part).exists() and not (folder / part).exists():
            _link(folder / part, shared / part)


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
