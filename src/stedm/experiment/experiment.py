"""`stedm run`: the stages in order, each skipped when its artefact is complete.

RUN/config.yaml provenance.json     what ran, with which versions, on which data
RUN/data_files.parquet              the files of the data and their sums
RUN/data/                           the phantom, where the configuration asks for one
RUN/teachers/seed-K/                the segmenters of annotated images that label in the first round
RUN/rounds/R/                       what the rounds before the last made, with the same names as in RUN:
    metrics.jsonl model/                training of the diffusion model; its averaged weights
    checkpoints/                        beside any network until it is complete
    pseudo_labels/                      layouts of unannotated images as segmenters are sure of them
    predictors/seed-K/                  segmenters that have learned from the images of the round before
    predicted_layouts/ agreement.csv    what they see, sure or not; whether they contradict the first ones, by patient
    plan.parquet synthetic/             the plan and its images, a dataset folder
RUN/style_bank.parquet              style vectors of the unannotated patients under the last model
RUN/progress/                       images to look at, painted as the diffusion model trained
RUN/quality.json quality_closest.png
                                    what the synthetic images are worth: layouts, styles, copies
RUN/latents/                        cached latents of the training images, where asked for; may be deleted
RUN/self_training/ARM/round-R/      teachers of the self-training arms and their labels
RUN/segmenters/ARM/seed-K/          one network per arm and seed, with its counts
RUN/report/                         counts, per_patient.csv, summary.json, report.html
RUN/report_pseudonymised/           the same without ids and paths, where asked for
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.config import Arm, RunConfig, to_yaml, uses_self_training, uses_ssl, uses_synthetic
from stedm.data.cache import ImageCache
from stedm.data.check import examine
from stedm.data.facts import RememberedFacts
from stedm.data.pseudonyms import Pseudonyms, without_paths, yaml_without_paths
from stedm.data.squares import files_of, squares_text
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts, with_groups, write_counts
from stedm.evaluation.scoring import count_dataset
from stedm.evaluation.stats import ordered_arms
from stedm.experiment.agenda import agenda
from stedm.experiment.context import RunContext
from stedm.experiment.folder import (
    check_unchanged,
    claim,
    is_configured,
    nothing_left_if_refused,
    read_provenance,
    write_config,
)
from stedm.experiment.inputs import check_files
from stedm.experiment.resolve import check_first_stage, first_stage_text, resolve, sizes_text
from stedm.experiment.rounds import Round, self_training_voters
from stedm.experiment.segmenters import fit_segmenter, is_trained
from stedm.io.artefacts import read_json
from stedm.io.manifest import verify
from stedm.progress import Reporter
from stedm.segmentation.model import build_segmenter
from stedm.training.tracker import require_tracker

REAL_ARMS: tuple[Arm, ...] = ("real+stain", "real")
"""Of annotated images alone; the first that a run has judges its synthetic images."""


class Experiment:
    """One run folder. Every stage may be called at any time and does only what is missing.

    Args:
        pseudonymise: write RUN/report_pseudonymised too, for readers who must not learn ids of patients, nor paths.

    Raises:
        StedmError: the folder holds a run of another configuration, or of data that have changed since.
    """

    round_type: type[Round] = Round

    def __init__(
        self,
        config: RunConfig,
        folder: str | Path,
        reporter: Reporter | None = None,
        *,
        pseudonymise: bool = False,
    ):
        self.pseudonymise = pseudonymise
        self.config, self.folder, self.reporter = resolve(config), Path(folder), reporter or Reporter()
        claim(self.folder, self.config)
        self.context = RunContext(self.config, self.folder, self.reporter)

    @cached_property
    def last_round(self) -> Round:
        return self.round_type(self.context, self.config.rounds.last)

    def run(self) -> dict[str, Any]:
        """All stages; returns the summary."""
        self.check()
        self._expect()
        if any(map(uses_synthetic, self.arms)):
            self.last_round.synthetic()
            self.quality()
        self.train_segmenters()
        return self.report()

    def _expect(self) -> None:
        from stedm.experiment.timing import paces_ahead  # networks, which a finished run has no use for

        stages = agenda(self)
        is_told = not self.reporter.quiet
        paces = paces_ahead(self.config, len(self.context.dataset.info.classes), stages) if is_told else {}
        self.reporter.expect(stages, paces)

    def finished(self) -> dict[str, Any] | None:
        """The summary that is there, where the run is complete; None = not."""
        report = self.folder / "report"
        is_asked = is_configured(self.folder, self.config)  # else another split or unit may be reported there
        if not is_asked or not (report / "report.html").is_file() or self.missing_segmenters():
            return None
        try:
            verify(report, "summary.json")
            summary = read_json(report / "summary.json", dict[str, Any])
            return summary if list(summary["arms"]) == ordered_arms(self.arms) else None
        except (StedmError, KeyError, TypeError):
            return None

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms of the configuration, without `upper` where there are no masks but the annotated ones: it would be
        `real+stain` under another name."""
        arms, context = self.config.segmentation.arms, self.context
        if "upper" not in arms or len(context.with_all_masks) > len(context.annotated):
            return arms
        self.reporter.say(f"{context.dataset.root}: no masks of unlabeled patients; the arm upper is left out")
        if arms == ["upper"]:
            raise StedmError(f"{context.dataset.root}: no masks for the arm upper; name others in segmentation.arms")
        return [arm for arm in arms if arm != "upper"]

    def check(self) -> None:
        """Verify the dataset before anything is trained on it; masks of unlabeled patients stay closed."""
        begun = claim(self.folder, self.config)  # until now another process may have been at work here
        with nothing_left_if_refused(self.folder):
            if not begun:
                write_config(self.folder, self.config)
            self._check()
            write_config(self.folder, self.config)

    def _check(self) -> None:
        context = self.context
        root = context.dataset.root
        remembered = RememberedFacts(self.folder / ".data_facts", root)  # first: sizes are asked for from here on
        found = examine(
            root,
            read_unlabeled_masks="upper" in self.arms,
            unseen_categories=self.config.data.unseen_categories,
            annotated=set(files_of(context.annotated)),
            scored_split=self.config.evaluation.split,
            remembered=remembered,
        )
        for line in found.warnings:
            self.reporter.say(f"warning: {line}")
        if found.problems:
            raise StedmError.of(found.problems, f"`stedm check {root}` lists all")
        if len(context.unlabeled) == 0:
            for arm in self.arms:
                if uses_ssl(arm) or uses_self_training(arm) or uses_synthetic(arm):
                    raise StedmError(f"{root}: no unlabeled patients; leave {arm} out of segmentation.arms")
        require_tracker(self.config.machine.tracker)
        # An encoder that doesn't exist should stop the run now, not after hours of diffusion training.
        build_segmenter(self.config.segmentation, len(context.dataset.info.classes))
        if any(map(uses_synthetic, self.arms)) and not (self.folder / "model").is_dir():
            check_first_stage(self.config)
        check_unchanged(self.folder, context.dataset)
        check_files(self.folder, context.dataset, unlabeled_masks="upper" in self.arms)
        split, held_out = self.config.evaluation.split, context.held_out
        if len(held_out) == 0:
            raise StedmError(f"{root}: no image in split {split}; set evaluation.split to one that has some")
        self.reporter.say(
            f"{context.dataset.info.name}: {context.annotated.size} annotated, {context.unlabeled.size} unannotated, "
            f"{held_out.size} {split}"
        )
        self.reporter.say(sizes_text(self.config))
        if hint := first_stage_text(self.config):
            self.reporter.say(hint)
        parts = [context.annotated, context.unlabeled, held_out]
        self.reporter.say(squares_text(parts, self.config.data.side))

    def quality(self) -> dict[str, Any] | None:
        """What the synthetic images are worth, looked at once; None where there are none."""
        from stedm.evaluation.card_sections import fill_quality
        from stedm.experiment.quality import look_at_synthetic

        if not self.last_round.is_drawn:
            return None
        synthetic = self.last_round.synthetic()
        quality = look_at_synthetic(self.context, synthetic, self._segmenter_of_real_images())
        fill_quality([self.folder / "model", synthetic.root], quality)
        return quality

    @property
    def real_arm(self) -> Arm | None:
        """The arm of annotated images alone whose first segmenter judges synthetic images."""
        return next((arm for arm in REAL_ARMS if arm in self.arms), None)

    def _segmenter_of_real_images(self) -> Path | None:
        """One that has learned from annotated images alone: of an arm, trained now, or a voter of the first round."""
        if self.real_arm is not None:
            return self.train_segmenter(self.real_arm, self.config.segmentation.seeds[0])
        teacher = self.folder / "teachers" / "seed-0"
        return teacher / "model" if is_trained(teacher) and self.last_round.first.voters.arm in REAL_ARMS else None

    # ---- segmentation ---------------------------------------------------------------------------------------------

    def train_segmenters(self) -> None:
        """One network per seed and arm."""
        for seed in self.config.segmentation.seeds:
            for arm in self.arms:
                self.train_segmenter(arm, seed)

    def train_segmenter(self, arm: Arm, seed: int) -> Path:
        """The segmenter of an arm and a seed, trained if it isn't yet; returns its model folder."""
        folder, synthetic, pseudo_labeled = self._segmenter(arm, seed), None, None
        if not is_trained(folder):
            synthetic = self.last_round.synthetic() if uses_synthetic(arm) else None
            if uses_self_training(arm):
                pseudo_labeled = self_training_voters(self.context, arm, self.last_round).labels()
        return fit_segmenter(
            self.context,
            folder,
            arm,
            stage=f"segmenter {arm}, seed {seed}",
            role=("segmenter", seed),
            synthetic=synthetic,
            pseudo_labeled=pseudo_labeled,
        )

    def counts(self) -> pd.DataFrame:
        """Pixel counts of every arm and seed on the evaluation split."""
        tables = [self.counts_of(arm, seed) for seed in self.config.segmentation.seeds for arm in self.arms]
        return with_groups(pd.concat(tables, ignore_index=True), set(self.context.annotated.table["category"]))

    def counts_of(self, arm: Arm, seed: int) -> pd.DataFrame:
        """Pixel counts of one trained segmenter."""
        path = self._counts_file(arm, seed)
        if not path.is_file():
            model = self._segmenter(arm, seed) / "model"
            write_counts(path, count_dataset(model, self._held_out, arm=arm, seed=seed, machine=self.config.machine))
        return read_counts(path)

    def missing_segmenters(self) -> list[tuple[Arm, int]]:
        """Arms and seeds that are not trained and counted."""
        pairs = [(arm, seed) for seed in self.config.segmentation.seeds for arm in self.arms]
        return [pair for pair in pairs if not self._counts_file(*pair).is_file()]

    def _counts_file(self, arm: Arm, seed: int) -> Path:
        return self._segmenter(arm, seed) / f"counts-{self.config.evaluation.split}.parquet"

    def _segmenter(self, arm: str, seed: int) -> Path:
        return self.folder / "segmenters" / arm / f"seed-{seed}"

    @cached_property
    def _held_out(self) -> ImageCache:
        return ImageCache(self.context.held_out, self.config.data.side)

    # ---- report ---------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Score, compare and write the report; returns the summary."""
        if (self.folder / "model").is_dir():
            self.last_round.style_bank()  # a stage of its own
        self.quality()  # where several workers painted, nobody has looked yet
        with self.reporter.stage("score and report"):
            summary = self._report(self.folder / "report")
            self._score_cards(summary)
            if self.pseudonymise:
                self._report(self.folder / "report_pseudonymised", Pseudonyms(self.context.dataset))
        return summary

    def _score_cards(self, summary: dict[str, Any]) -> None:
        from stedm.evaluation.card_sections import fill_scores

        for arm, scores in summary["arms"].items():
            folders = [self._segmenter(arm, seed) / "model" for seed in scores["seeds"]]
            fill_scores(folders, arm, scores, self.config.evaluation.split)

    def _report(self, folder: Path, pseudonyms: Pseudonyms | None = None) -> dict[str, Any]:
        """With `pseudonyms` no id of a patient and no path is in it."""
        from stedm.evaluation.panels import report_panels
        from stedm.evaluation.quality_files import PICTURE
        from stedm.evaluation.report import write_report
        from stedm.evaluation.stain_distance import stain_distance
        from stedm.evaluation.verdict import short_training
        from stedm.experiment.quality import for_report

        has_model, context, last = (self.folder / "model").is_dir(), self.context, self.last_round
        sets = (context.annotated, context.unlabeled, context.held_out)
        bank, synthetic = last.style_bank() if has_model else None, last.synthetic() if last.is_drawn else None
        counts, notes, config = self.counts(), self._notes(pseudonyms), to_yaml(self.config)
        provenance, run = read_provenance(self.folder), str(self.folder)
        agreed, doubted = self._agreement()
        quality = self.quality()
        if pseudonyms is not None:
            sets, counts = [pseudonyms.dataset(part) for part in sets], pseudonyms.table(counts)
            synthetic = synthetic and pseudonyms.dataset(synthetic)
            bank = bank and bank.renamed(pseudonyms.patients)
            provenance, config, run = without_paths(provenance), yaml_without_paths(config), "RUN"
            if agreed is not None:
                agreed, doubted = pseudonyms.table(agreed), pseudonyms.patients(doubted)
        annotated, unlabeled, held_out = (ImageCache(part, self.config.data.side) for part in sets)
        first_seed = self.config.segmentation.seeds[0]
        panels = report_panels(
            annotated=annotated,
            unlabeled=unlabeled,
            held_out=held_out,
            model=last.model() if has_model else None,
            bank=bank,
            synthetic=synthetic,
            segmenters={arm: self._segmenter(arm, first_seed) / "model" for arm in self.arms},
            counts=counts,
            synthesis=self.config.synthesis,
            machine=self.config.machine,
            unit=self.config.evaluation.unit,
            run=self.folder,
            agreement=agreed,
            contradicted=doubted,
        )
        return write_report(
            folder,
            counts,
            title=self.config.name,
            notes=notes,
            config_yaml=config,
            provenance=provenance,
            panels=panels,
            evaluation=self.config.evaluation,
            distances=stain_distance(annotated, held_out),
            run=run,
            quality=quality and for_report(quality, list if pseudonyms is None else pseudonyms.patients),
            closest_pairs=self.folder / PICTURE if quality else None,
            short_training=short_training(self.config.diffusion) if has_model else None,
        )

    def _agreement(self) -> tuple[pd.DataFrame | None, list[str]]:
        """How far segmenters agree about each unannotated patient, and about whom they contradict each other."""
        if not (self.folder / "agreement.csv").is_file():
            return None, []
        return self.last_round.agreement(), self.last_round.contradicted()

    def _notes(self, pseudonyms: Pseudonyms | None) -> dict[str, str]:
        config, context = self.config, self.context
        notes = {
            "Data": f"{context.dataset.info.name}, {config.data.side} px",
            "Annotated": context.annotated.size,
            "Unannotated": context.unlabeled.size,
            "Segmenters": f"{config.segmentation.steps} steps of {config.segmentation.batch} in every arm",
        }
        shown = list if pseudonyms is None else pseudonyms.patients
        categories = context.held_out.table.groupby("patient_id")["category"].nunique()
        if (categories > 1).any():
            mixed = ", ".join(shown(categories.index[categories > 1]))
            notes["Patients of several categories"] = f"{mixed}: each counts under the most frequent one of its images"
        if self.last_round.is_drawn:
            diffusion, fine_tune = config.diffusion, config.rounds.fine_tune
            notes["Diffusion model"] = f"{diffusion.steps} steps of {diffusion.batch}, trained in this run"
            if config.fine_tunes and fine_tune:
                notes["Diffusion model"] += (
                    f", for {fine_tune.steps} more in each later one of {config.rounds.last} rounds"
                )
            sampling = config.synthesis.sampling
            notes["Synthetic"] = f"{config.synthesis.n_images} images, {sampling.nfe} network evaluations each"
        if (self.folder / "agreement.csv").is_file():
            doubted, n = shown(self.last_round.contradicted()), len(context.unlabeled.patients())
            names = f": {', '.join(doubted[:10])}{' ...' if len(doubted) > 10 else ''}" if doubted else ""
            notes["Segmenters contradict each other"] = (
                f"before and after synthetic images, about {len(doubted)} of {n} unannotated patients{names} "
                "(agreement.csv)"
            )
        return notes
