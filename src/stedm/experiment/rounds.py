"""Rounds of a run: labels of unannotated images, the diffusion model that learns from them, its synthetic images.

RUN itself is the last round, RUN/rounds/R are those before. What is there isn't made again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock

from stedm.config import Arm, PseudoLabelConfig, first_teacher, uses_synthetic
from stedm.data.folder import DatasetFolder
from stedm.data.squares import in_squares
from stedm.experiment.agreement import agreement, contradicted, read_agreement, write_agreement
from stedm.experiment.context import RunContext
from stedm.experiment.segmenters import fit_segmenter, is_trained
from stedm.seeds import seed_for
from stedm.segmentation.pseudo_labels import write_pseudo_labels
from stedm.style.sampling import unannotated_tissue
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan, read_plan, write_plan
from stedm.synthesis.style_bank import StyleBank
from stedm.training.checkpoint import discard_checkpoints
from stedm.workers.group import together

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion

FIRST_VOTER_STEPS = 400
"""Most steps of the segmenters that label in the first round."""
SELF_TRAINING_ROUNDS = 2


class Round:
    """One round. `before` is the round whose synthetic images its segmenters have learned from; None in the first."""

    def __init__(self, context: RunContext, number: int):
        self.context, self.config, self.number = context, context.config, number
        last = self.config.rounds.last
        self.folder = context.folder if number == last else context.folder / "rounds" / str(number)
        self.suffix = f", round {number}" if last > 1 else ""
        self.before = type(self)(context, number - 1) if number > 1 else None

    # ---- labels ---------------------------------------------------------------------------------------------------

    @cached_property
    def voters(self) -> "Voters":
        """The segmenters that label in this round."""
        if self.before is not None:
            name = f"predicted layouts{self.suffix}"
            return Voters(
                self.context,
                self.folder / "predictors",
                "real+stain+synthetic",
                name,
                ("predictor", self.number),
                synthetic=self.before,
            )
        arm = (self.config.rounds.labels or PseudoLabelConfig()).arm or "real+stain"
        if arm == "self-training":
            return self_training_voters(self.context, arm)
        return Voters(
            self.context,
            self.context.folder / "teachers",
            arm,
            f"teacher {arm}",
            ("segmenter",),
            most_steps=FIRST_VOTER_STEPS,
        )

    def pseudo_labels(self) -> DatasetFolder | None:
        """What the voters are sure of in the unannotated images, for the diffusion model of this round; None where it
        learns from no labels."""
        labels = self.config.rounds.labels
        if labels is None or not self.config.learns_from_labels or len(self.context.unlabeled) == 0:
            return None
        if self.before is not None and not self.config.fine_tunes:
            return self.before.pseudo_labels()
        suffix = self.suffix if self.config.fine_tunes else ""
        folder = self._model_home / "pseudo_labels"
        return self.voters.label(folder, f"pseudo-labels{suffix}", labels.confidence, unknown=self.contradicted)

    def predicted_layouts(self) -> DatasetFolder:
        """What the voters see in the unannotated images: pixel by pixel the most probable class."""
        return self.voters.label(self.folder / "predicted_layouts", f"predicted layouts{self.suffix}")

    def contradicted(self) -> list[str]:
        """Patients in whose images the voters don't see what those of the first round are sure of; none in the first
        round, where there are no others (`rounds.agreement`)."""
        least = self.config.rounds.agreement
        return contradicted(self.agreement(), least) if self.before is not None and least > 0 else []

    def agreement(self) -> pd.DataFrame:
        """How far the voters agree with those of the first round, by patient: `agreement.csv`."""
        path = self.folder / "agreement.csv"
        if not path.is_file():
            write_agreement(agreement(self.first.first_labels(), self.predicted_layouts()), path)
        return read_agreement(path, self.context.unlabeled.patients())

    @property
    def first(self) -> "Round":
        return self if self.before is None else self.before.first

    def first_labels(self) -> DatasetFolder:
        """What segmenters that have seen annotated images alone are sure of in the unannotated ones."""
        there = self.pseudo_labels()
        if there is not None:
            return there
        confidence = (self.config.rounds.labels or PseudoLabelConfig()).confidence
        return self.voters.label(self.context.folder / "first_labels", "first labels", confidence)

    # ---- diffusion model ------------------------------------------------------------------------------------------

    @property
    def _model_home(self) -> Path:
        return self.folder if self.config.fine_tunes else self.context.folder

    def model(self) -> "StyleDiffusion":
        """The diffusion model that paints in this round, trained if it isn't yet."""
        from stedm.diffusion.pipeline import StyleDiffusion
        from stedm.diffusion.train import train_diffusion

        if self.before is not None and not self.config.fine_tunes:
            return self.before.model()
        folder, context = self._model_home, self.context
        if not (folder / "model" / "model_index.json").is_file():
            labels, config, before = self.pseudo_labels(), self.config.diffusion, None
            # The 0 is that of runs published before this line. Going on with the samples that a model has just
            # learned from would be a repetition.
            role: tuple[str | int, ...] = ("diffusion", 0)
            if self.before is not None and self.config.rounds.fine_tune is not None:
                before, role = self.before.model(), (*role, "round", self.number)
                config = config.model_copy(update=self.config.rounds.fine_tune.model_dump())
            suffix = self.suffix if self.config.fine_tunes else ""
            with context.reporter.stage(f"train diffusion model{suffix}", config.batch) as tick:
                together(
                    train_diffusion,
                    config,
                    context.annotated,
                    context.unlabeled,
                    folder,
                    machine=self.config.machine,
                    recolour=self.config.recolour,
                    image_px=self.config.data.side,
                    seed=seed_for(self.config.seed, *role),
                    pseudo_labels=labels,
                    style_sources=in_squares(unannotated_tissue(context.dataset, context.annotated)),
                    # The others get the weights of the first.
                    first={"init_from": before, "on_progress": tick},
                )
            context.note_seconds()
        discard_checkpoints(folder)
        return StyleDiffusion.from_pretrained(folder / "model").on(self.config.machine)

    def style_bank(self) -> StyleBank:
        """The style vectors of the unannotated patients under the model of this round."""
        path, model = self._model_home / "style_bank.parquet", self.model()
        if not path.is_file():
            with self.context.reporter.stage("embed styles") as tick:
                StyleBank.embed(model, self.context.unlabeled, on_progress=tick).save(path)
        return StyleBank.load(path, model)

    # ---- synthetic images -----------------------------------------------------------------------------------------

    def plan(self) -> pd.DataFrame:
        """Which layout is painted in whose style."""
        path = self.folder / "plan.parquet"
        if not path.is_file():
            config, predicted = self.config, self.config.rounds.predicted
            write_plan(
                make_plan(
                    config.synthesis,
                    self.context.annotated,
                    self.style_source,
                    seed=config.seed if self.before is None else seed_for(config.seed, "round", self.number),
                    image_px=config.data.side,
                    predicted=self._layouts_to_paint() if self.before is not None and predicted else None,
                    predicted_config=predicted,
                ),
                path,
            )
        plan = read_plan(path)
        # Run folder and data may have moved since.
        plan.attrs["dataset"] = str(self.context.dataset.root.resolve())
        if "predicted_layouts" in plan.attrs:
            plan.attrs["predicted_layouts"] = str((self.folder / "predicted_layouts").resolve())
        return plan

    @property
    def style_source(self) -> DatasetFolder:
        """Where the plan takes its style images from."""
        return self.context.unlabeled

    def _layouts_to_paint(self) -> DatasetFolder:
        """The predicted layouts of patients about whom the segmenters don't contradict each other."""
        layouts, doubted = self.predicted_layouts(), self.contradicted()
        return layouts.select(~layouts.table["patient_id"].isin(doubted).to_numpy())

    @property
    def is_drawn(self) -> bool:
        """Whether the synthetic set is complete."""
        return (self.folder / "synthetic" / "metadata.csv").is_file()

    def synthetic(self) -> DatasetFolder:
        """The synthetic set, drawn as far as it isn't yet."""
        root, context = self.folder / "synthetic", self.context
        if not self.is_drawn:
            model, plan = self.model(), self.plan()
            with context.reporter.stage(f"draw synthetic images{self.suffix}", 1) as tick:
                synthesize(model, plan, root, memory=context.memory, on_progress=tick)
            context.note_seconds()
        return DatasetFolder.open(root, memory=context.memory)


@dataclass(frozen=True)
class Voters:
    """Segmenters that label unannotated images together, trained when their labels are first asked for.

    Several processes may ask at the same time: the first to come makes what all of them need.
    """

    context: RunContext
    folder: Path
    arm: Arm
    name: str
    role: tuple[str | int, ...]
    synthetic: Round | None = None
    """The round whose images an arm with synthetic images learns from."""
    teachers: "Voters | None" = None
    """Of a self-training arm: those whose labels it learns from."""
    most_steps: int | None = None

    def models(self) -> list[Path]:
        """Their model folders."""
        with _alone(self.folder):
            return [self._model(k) for k in range(self.context.config.rounds.voters)]

    def _model(self, k: int) -> Path:
        folder, synthetic, pseudo_labeled = self.folder / f"seed-{k}", None, None
        if not is_trained(folder):
            synthetic = self.synthetic.synthetic() if self.synthetic and uses_synthetic(self.arm) else None
            pseudo_labeled = self.teachers.labels() if self.teachers else None
        return fit_segmenter(
            self.context,
            folder,
            self.arm,
            stage=f"{self.name}, segmenter {k}",
            role=(*self.role, k),
            synthetic=synthetic,
            pseudo_labeled=pseudo_labeled,
            most_steps=self.most_steps,
        )

    def labels(self) -> DatasetFolder:
        """Their labels, every pixel its most probable class, beside them."""
        return self.label(self.folder.with_name("labels"), self.name)

    def label(
        self, folder: Path, stage: str, confidence: float = 0.0, unknown: Callable[[], list[str]] = list
    ) -> DatasetFolder:
        """Their labels of the unannotated images, where they are sure; of the patients in `unknown` none."""
        with _alone(folder):
            if not (folder / "metadata.csv").is_file():
                models, hidden = self.models(), unknown()
                with self.context.reporter.stage(stage, 1) as tick:
                    write_pseudo_labels(
                        models,
                        self.context.unlabeled,
                        folder,
                        image_px=self.context.config.data.side,
                        confidence=confidence,
                        unknown=hidden,
                        machine=self.context.config.machine,
                        on_progress=tick,
                    )
                self.context.note_seconds()
        return DatasetFolder.open(folder, memory=self.context.memory)


def self_training_voters(
    context: RunContext, arm: Arm, synthetic: Round | None = None, number: int = SELF_TRAINING_ROUNDS
) -> Voters:
    """The teachers of a round of self-training: the first are of the same arm without it, later ones have learned from
    the labels of those before."""
    return Voters(
        context,
        context.folder / "self_training" / arm / f"round-{number}" / "predictors",
        first_teacher(arm) if number == 1 else arm,
        f"labels for {arm}, round {number}",
        (arm, number),
        synthetic=synthetic,
        teachers=self_training_voters(context, arm, synthetic, number - 1) if number > 1 else None,
    )


def _alone(folder: Path) -> FileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))
