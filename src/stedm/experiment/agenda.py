"""What a run has still to do, stage by stage, for whoever waits for it.

It follows the calls of `Round`, `Voters` and `Experiment` without doing anything: a test holds that the stages which
ran are those that were announced.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stedm.config import uses_self_training, uses_ssl, uses_synthetic
from stedm.experiment.rounds import Round, Voters, self_training_voters
from stedm.experiment.segmenters import is_trained
from stedm.progress import Stage

if TYPE_CHECKING:
    from stedm.experiment.experiment import Experiment

# Work on an image, about, where a step of the diffusion model on one is 1: until a kind has been measured in this run.
_SEGMENT, _CONSISTENCY, _PREDICT, _PAINT_EVALUATION, _EMBED = 0.3, 3.0, 0.15, 0.35, 0.15
_REPORT_PAINTED = 50
"""Images that the report has painted."""


@dataclass(frozen=True)
class Paces:
    """Seconds of an image in a training step of the diffusion model, of an evaluation of it in painting one, and of an
    image in a training step of a segmenter."""

    image: float
    evaluation: float
    segmented: float

    def seconds(self, stage: Stage) -> float:
        """Of a stage to come; what else there is to do, segmenters do."""
        own = {"diffusion": self.image, "draw": self.evaluation / _PAINT_EVALUATION}
        return stage.work * own.get(stage.kind, self.segmented / _SEGMENT)


def by_segmenters(seconds: float) -> dict[str, float]:
    """Seconds of a unit of work by kind of stage, for the kinds that segmenters do: `seconds` an image in a step of
    their training."""
    return dict.fromkeys(("segmenter", "label", "look"), seconds / _SEGMENT)


def agenda(experiment: "Experiment") -> list[Stage]:
    """The stages that `experiment.run()` will show, in their order."""
    return _Agenda(experiment).all()


class _Agenda:
    def __init__(self, experiment: "Experiment"):
        self.experiment, self.config = experiment, experiment.config
        self.context, self.folder = experiment.context, experiment.folder
        self._stages: dict[str, Stage] = {}

    def all(self) -> list[Stage]:
        last, paints = self.experiment.last_round, any(map(uses_synthetic, self.experiment.arms))
        if paints:
            self._synthetic(last)
            self._quality()
        for seed in self.config.segmentation.seeds:
            for arm in self.experiment.arms:
                if not is_trained(self.folder / "segmenters" / arm / f"seed-{seed}"):
                    if uses_self_training(arm):
                        voters = self_training_voters(self.context, arm, last)
                        self._labels(voters, voters.folder.with_name("labels"), voters.name)
                    self._add(f"segmenter {arm}, seed {seed}", "segmenter", self._training(arm))
        if paints and not (self.folder / "style_bank.parquet").is_file():
            self._add("embed styles", "embed", _EMBED * len(self.context.unlabeled))
        scored = len(self.context.held_out) * len(self.experiment.missing_segmenters())
        self._add("score and report", "score", _PREDICT * scored + (self._painting(_REPORT_PAINTED) if paints else 0))
        return list(self._stages.values())

    def _add(self, name: str, kind: str, work: float) -> None:
        self._stages.setdefault(name, Stage(name, kind, work))

    def _synthetic(self, of: Round) -> None:
        if of.is_drawn:
            return
        self._model(of)
        if of.before is not None and self.config.rounds.predicted:
            self._predicted(of)
        self._add(f"draw synthetic images{of.suffix}", "draw", self._painting(self.config.synthesis.n_images))

    def _quality(self) -> None:
        """The look at the images, and before it the segmenter that looks."""
        arm, seed = self.experiment.real_arm, self.config.segmentation.seeds[0]
        if arm is not None and not is_trained(self.folder / "segmenters" / arm / f"seed-{seed}"):
            self._add(f"segmenter {arm}, seed {seed}", "segmenter", self._training(arm))
        if not (self.folder / "quality.json").is_file():
            images = self.config.synthesis.n_images + len(self.context.annotated) + len(self.context.unlabeled)
            self._add("look at synthetic images", "look", _PREDICT * images)

    def _model(self, of: Round) -> None:
        before, rounds = of.before, self.config.rounds
        if before is not None and not self.config.fine_tunes:
            return self._model(before)
        home = of.folder if self.config.fine_tunes else self.folder
        if (home / "model" / "model_index.json").is_file():
            return None
        self._pseudo_labels(of)
        config, steps = self.config.diffusion, self.config.diffusion.steps
        if before is not None and rounds.fine_tune is not None:
            self._model(before)
            steps = rounds.fine_tune.steps
        suffix = of.suffix if self.config.fine_tunes else ""
        return self._add(f"train diffusion model{suffix}", "diffusion", float(steps * config.batch))

    def _pseudo_labels(self, of: Round) -> bool:
        """Whether there are any."""
        if self.config.rounds.labels is None or not self.config.learns_from_labels or not len(self.context.unlabeled):
            return False
        if of.before is not None and not self.config.fine_tunes:
            return self._pseudo_labels(of.before)
        home = of.folder if self.config.fine_tunes else self.folder
        if of.before is not None and not (home / "pseudo_labels" / "metadata.csv").is_file():
            self._agreement(of)
        suffix = of.suffix if self.config.fine_tunes else ""
        self._labels(of.voters, home / "pseudo_labels", f"pseudo-labels{suffix}")
        return True

    def _predicted(self, of: Round) -> None:
        self._labels(of.voters, of.folder / "predicted_layouts", f"predicted layouts{of.suffix}")
        self._agreement(of)

    def _agreement(self, of: Round) -> None:
        if self.config.rounds.agreement == 0 or (of.folder / "agreement.csv").is_file():
            return
        if not self._pseudo_labels(of.first):
            voters = of.first.voters
            self._labels(voters, self.folder / "first_labels", "first labels")
        self._labels(of.voters, of.folder / "predicted_layouts", f"predicted layouts{of.suffix}")

    def _labels(self, voters: Voters, folder: Path, stage: str) -> None:
        if (folder / "metadata.csv").is_file():
            return
        for k in range(self.config.rounds.voters):
            if is_trained(voters.folder / f"seed-{k}"):
                continue
            if voters.synthetic is not None and uses_synthetic(voters.arm):
                self._synthetic(voters.synthetic)
            if voters.teachers is not None:
                self._labels(voters.teachers, voters.teachers.folder.with_name("labels"), voters.teachers.name)
            self._add(f"{voters.name}, segmenter {k}", "segmenter", self._training(voters.arm, voters.most_steps))
        self._add(stage, "label", _PREDICT * self.config.rounds.voters * len(self.context.unlabeled))

    def _training(self, arm: str, most_steps: int | None = None) -> float:
        config = self.config.segmentation
        steps = min(config.steps, most_steps or config.steps)
        return _SEGMENT * (_CONSISTENCY if uses_ssl(arm) else 1.0) * steps * config.batch

    def _painting(self, images: int) -> float:
        return _PAINT_EVALUATION * self.config.synthesis.sampling.nfe * images
