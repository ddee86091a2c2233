"""Labels of the unannotated images of a run by the vote of segmenters, which are trained for it.

The diffusion model learns from them, half of the synthetic images may be painted to them, and self-training is them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock

from stedm.config import Arm, PseudoLabelConfig, RunConfig, first_teacher
from stedm.data.folder import DatasetFolder
from stedm.experiment.agreement import agreement, contradicted, read_agreement, write_agreement
from stedm.experiment.folder import Rounds
from stedm.progress import Reporter
from stedm.segmentation.pseudo_labels import write_pseudo_labels

SELF_TRAINING_ROUNDS = 2
"""The first teachers are of the same arm without self-training, those of `self-training` alone of real+stain; later
ones have learned from the labels of the round before. Four rounds gained 0.000 to 0.007 IoU more
(results/ebhi_few_patients/README.md)."""
SELF_TRAINING_TEACHERS = 3
"""Networks that vote for the labels of a round."""


@dataclass(frozen=True)
class Labelling:
    """Who labels the unannotated images of one run, and where the labels are; what is there isn't made again."""

    config: RunConfig
    rounds: Rounds
    unlabeled: DatasetFolder
    """The unannotated images; their own masks are never read."""
    fit: Callable[..., Path]
    """Trains a segmenter in a folder, if it isn't there (`Experiment.fit`)."""
    synthesize: Callable[[int], DatasetFolder]
    """The synthetic set of a round."""
    reporter: Reporter
    note_seconds: Callable[[], None]

    def for_diffusion(self, number: int | None = None) -> DatasetFolder | None:
        """Labels for the diffusion model of a round (None = the last); None if the configuration wants none."""
        of_model, config = self.rounds.of_model(number), self.config.diffusion.pseudo_labels
        if config is None or self.config.diffusion.unlabeled_fraction == 0 or len(self.unlabeled) == 0:
            return None
        return self._voted(
            self.rounds.model_home(number) / "pseudo_labels",
            partial(self._teachers, of_model, config),
            f"pseudo-labels{self.rounds.model_suffix(number)}",
            config.confidence,
            partial(self.contradicted, of_model),
        )

    def layouts_to_paint(self, number: int) -> DatasetFolder:
        """The predicted layouts of a round, of the patients about whom the segmenters don't contradict each other."""
        layouts, doubted = self.predicted_layouts(number), self.contradicted(number)
        return layouts.select(~layouts.table["patient_id"].isin(doubted).to_numpy())

    def contradicted(self, number: int) -> list[str]:
        """Patients in whose images the segmenters of a round don't see what those of the annotated images are sure
        of (`synthesis.agreement`); none in the first round, where there are no others."""
        least = self.config.synthesis.agreement
        if number == 1 or least == 0:
            return []
        return contradicted(self.agreement(number), least)

    def agreement(self, number: int) -> pd.DataFrame:
        """How far the segmenters of a round agree with those of the annotated images, by patient: `agreement.csv`."""
        path = self.rounds.folder(number) / "agreement.csv"
        if not path.is_file():
            write_agreement(agreement(self._first_labels(), self.predicted_layouts(number)), path)
        return read_agreement(path)

    def _first_labels(self) -> DatasetFolder:
        """What segmenters that have seen annotated images alone are sure of in the unannotated ones."""
        there = self.for_diffusion(1)
        if there is not None:
            return there
        config = self.config.diffusion.pseudo_labels or PseudoLabelConfig()
        folder, name = self.rounds.root / "first_labels", "first labels"
        return self._voted(folder, partial(self._teachers, 1, config), name, config.confidence)

    def predicted_layouts(self, number: int) -> DatasetFolder:
        """What the segmenters of a round see in the unannotated images: pixel by pixel the most probable class."""
        pseudo_labels = self.config.diffusion.pseudo_labels
        if number == 1 and pseudo_labels and pseudo_labels.arm == "self-training":
            return self.for_self_training("self-training")
        folder = self.rounds.folder(number) / "predicted_layouts"
        return self._voted(folder, partial(self._predictors, number), self._predicting(number))

    def for_self_training(self, arm: Arm, number: int | None = None) -> DatasetFolder:
        """The unannotated images as they are, labelled in a round of self-training of `arm` (None = the last)."""
        number = number or SELF_TRAINING_ROUNDS
        folder = self.rounds.root / "self_training" / arm / f"round-{number}" / "labels"
        name = f"labels for {arm}, round {number}"
        teachers = partial(
            self._train_voters,
            folder.with_name("predictors"),
            first_teacher(arm) if number == 1 else arm,
            SELF_TRAINING_TEACHERS,
            name,
            (arm, number),
            synthetic=partial(self.synthesize, self.rounds.last),
            labelled=partial(self.for_self_training, arm, number - 1),
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Networks of several seeds may be trained side by side; the first to come makes what all of them need.
        with FileLock(folder.parent / ".lock"):
            return self._voted(folder, teachers, name)

    def _teachers(self, number: int, config: PseudoLabelConfig) -> list[Path]:
        """Model folders of the segmenters that label for the diffusion model of a round."""
        if number > 1:
            return self._predictors(number)
        if config.arm == "self-training":
            return sorted(self.for_self_training(config.arm).root.parent.glob("predictors/*/model"))
        return [
            self.fit(
                self.rounds.root / "teachers" / f"seed-{seed}",
                config.arm,
                f"teacher {config.arm}, seed {seed}",
                ("segmenter", seed),
                steps=config.steps,
            )
            for seed in config.seeds
        ]

    def _predictors(self, number: int) -> list[Path]:
        """Model folders of the segmenters that see the layouts of a round."""
        return self._train_voters(
            self.rounds.folder(number) / "predictors",
            "real+stain" if number == 1 else "real+stain+synthetic",
            self.config.synthesis.predictors,
            self._predicting(number),
            ("predictor", number),
            synthetic=partial(self.synthesize, number - 1),
        )

    def _predicting(self, number: int) -> str:
        return f"predicted layouts{self.rounds.suffix(number)}"

    def _train_voters(
        self,
        folder: Path,
        arm: Arm,
        n: int,
        name: str,
        role: tuple[str | int, ...],
        *,
        synthetic: Callable[[], DatasetFolder],
        labelled: Callable[[], DatasetFolder] | None = None,
    ) -> list[Path]:
        """Model folders of `n` segmenters of `arm`."""
        return [
            self.fit(
                folder / f"seed-{k}",
                arm,
                f"{name}, segmenter {k}",
                (*role, k),
                synthetic=synthetic,
                labelled=labelled,
            )
            for k in range(n)
        ]

    def _voted(
        self,
        folder: Path,
        voters: Callable[[], list[Path]],
        name: str,
        confidence: float = 0.0,
        unknown: Callable[[], list[str]] = list,
    ) -> DatasetFolder:
        """Labels by the vote of segmenters, which are trained before if need be; none of the patients in `unknown`."""
        if not (folder / "metadata.csv").is_file():
            models, hidden = voters(), unknown()
            with self.reporter.stage(name) as tick:
                write_pseudo_labels(
                    models,
                    self.unlabeled,
                    folder,
                    image_px=self.config.data.image_px,
                    confidence=confidence,
                    unknown=hidden,
                    on_progress=tick,
                )
            self.note_seconds()
        return DatasetFolder.open(folder, memory=self.unlabeled.memory)
