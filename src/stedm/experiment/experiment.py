"""`stedm run`: the stages in order, each skipped when its artefact is complete.

RUN/config.yaml provenance.json     what ran, with which versions, on which data
RUN/data/                           the phantom, where the configuration asks for one
RUN/codec/                          training of the first stage, where the configuration asks for one of its own
RUN/checkpoints/ metrics.jsonl      training of the diffusion model
RUN/teachers/seed-K/                segmenters of the annotated images, where asked for, and
RUN/pseudo_labels/                  layouts of unannotated images as they see them
RUN/predicted_layouts/              layouts of unannotated images, sure or not, where synthesis.layouts asks for them
RUN/agreement.csv                   by patient, whether these layouts and the labels of the first segmenters agree
RUN/predictors/seed-K/              the segmenters that predict them; RUN/rounds/R/ has what the rounds before made,
                                    each with its model where pseudo_labels.every_round asks for one
RUN/latents/                        cached latents of the training images, where asked for; may be deleted
RUN/model/                          the diffusion model (averaged weights)
RUN/student/                        training of a student of it, and RUN/student/model, where asked for
RUN/style_bank.parquet              style vectors of the unannotated patients under that model
RUN/plan.parquet synthetic/         the plan and its images, a dataset folder
RUN/self_training/ARM/round-R/      teachers of the self-training arms and their labels
RUN/segmenters/ARM/seed-K/          one network per arm and seed, with its counts
RUN/report/                         counts, per_patient.csv, summary.json, report.html
"""

import json
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.config import (
    Arm,
    DiffusionConfig,
    RunConfig,
    to_yaml,
    uses_self_training,
    uses_ssl,
    uses_synthetic,
)
from stedm.data.cache import ImageCache
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder, choose_annotated, choose_annotated_images
from stedm.data.memory import CacheBudget
from stedm.diffusion.codec import trained_codec_folder
from stedm.diffusion.codec_train import split_held_out, train_codec
from stedm.diffusion.distill import train_student
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.train import train_diffusion
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts, with_groups, write_counts
from stedm.evaluation.panels import report_panels
from stedm.evaluation.report import write_report
from stedm.evaluation.scoring import count_dataset
from stedm.evaluation.stain_distance import stain_distance
from stedm.experiment.folder import Rounds, check_unchanged, claim
from stedm.experiment.labelling import Labelling
from stedm.io.files import write_json
from stedm.layout.recipe import PREDICTED
from stedm.phantom.patients import make_phantom
from stedm.progress import Reporter
from stedm.seeds import seed_for
from stedm.segmentation.model import build_segmenter
from stedm.segmentation.train import train_segmenter
from stedm.style.sampling import unannotated_tissue
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan, read_plan, write_plan
from stedm.synthesis.style_bank import StyleBank


class Experiment:
    """One run folder. Every stage may be called at any time and does only what is missing.

    Raises:
        StedmError: the folder holds a run of another configuration, or of data that have changed since.
    """

    def __init__(self, config: RunConfig, folder: str | Path, reporter: Reporter | None = None):
        self.config, self.folder = config, Path(folder)
        self.reporter = reporter or Reporter()
        self.rounds = Rounds(self.folder, config)
        claim(self.folder, config)

    def run(self) -> dict[str, Any]:
        """All stages; returns the summary."""
        self.check()
        if any(map(uses_synthetic, self.arms)):
            self.train_diffusion()
            self.synthesize()
        self.train_segmenters()
        return self.report()

    # ---- data -----------------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> DatasetFolder:
        """The dataset folder, made first if it is a phantom. Masks of unlabeled patients can't be read through it."""
        phantom = self.config.data.phantom
        if phantom is None:
            assert self.config.data.path is not None
            return self._open(self.config.data.path)
        root = self.folder / "data"
        if not (root / "metadata.csv").is_file():
            with self.reporter.stage("phantom patients"):
                make_phantom(phantom, root)
        return self._open(root)

    def _open(self, root: Path) -> DatasetFolder:
        return DatasetFolder.open(root, unseen_categories=self.config.data.unseen_categories, memory=self._memory)

    @cached_property
    def _memory(self) -> CacheBudget:
        return CacheBudget(self.config.data.cache_mb)

    @cached_property
    def annotated(self) -> DatasetFolder:
        return annotated_part(self.dataset, self.config)

    @cached_property
    def unlabeled(self) -> DatasetFolder:
        return self.dataset.split("unlabeled")

    @property
    def style_source(self) -> DatasetFolder:
        """Where the plan takes its style images from."""
        return self.unlabeled

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms of the configuration, without `upper` where there are no masks but the annotated ones: it would be
        `real+stain` under another name."""
        arms = self.config.segmentation.arms
        if "upper" not in arms or len(self._upper_set()) > len(self.annotated):
            return arms
        self.reporter.say(f"{self.dataset.root}: no masks of unlabeled patients; the arm upper is left out")
        if arms == ["upper"]:
            raise StedmError(f"{self.dataset.root}: no masks for the arm upper; name others in segmentation.arms")
        return [arm for arm in arms if arm != "upper"]

    def check(self) -> None:
        """Verify the dataset before anything is trained on it; masks of unlabeled patients stay closed."""
        needs_unlabeled = "upper" in self.arms
        unseen = self.config.data.unseen_categories
        problems = check_dataset(self.dataset.root, read_unlabeled_masks=needs_unlabeled, unseen_categories=unseen)
        if problems:
            raise StedmError.of(problems, f"`stedm check {self.dataset.root}` lists all")
        if len(self.unlabeled) == 0:
            for arm in self.arms:
                if uses_ssl(arm) or uses_self_training(arm) or uses_synthetic(arm):
                    raise StedmError(
                        f"{self.dataset.root}: no unlabeled patients; leave {arm} out of segmentation.arms"
                    )
        # An encoder that doesn't exist should stop the run now, not after hours of diffusion training.
        build_segmenter(self.config.segmentation, len(self.dataset.info.classes))
        check_unchanged(self.folder, self.dataset)
        split = self.config.evaluation.split
        held_out = self.dataset.split(split)
        if len(held_out) == 0:
            raise StedmError(
                f"{self.dataset.root}: no image in split {split}; set evaluation.split to one that has some"
            )
        self.reporter.say(
            f"{self.dataset.info.name}: {self.annotated.size} annotated, {self.unlabeled.size} unannotated, "
            f"{held_out.size} {split}"
        )

    # ---- diffusion model and synthetic set ------------------------------------------------------------------------

    def train_codec(self) -> Path:
        """Train the first stage in RUN/codec, if that isn't complete; returns the autoencoder's folder.

        Raises:
            StedmError: the configuration's first stage is not one that is trained.
        """
        config, target = self.config.diffusion, trained_codec_folder(self.folder)
        if not config.trains_codec:
            raise StedmError(f"diffusion.codec.kind is {config.codec.kind}: nothing to train; use kl or vq")
        if not (target / "config.json").is_file():
            images, held_out = split_held_out([self.annotated, self.unlabeled], self.dataset.split("val"))
            with self.reporter.stage("train codec") as tick:
                train_codec(
                    config,
                    images,
                    held_out,
                    target.parent,
                    image_px=self.config.data.image_px,
                    seed=seed_for(self.config.seed, "codec", config.codec.seed),
                    on_progress=tick,
                )
            self.note_seconds()
        return target

    def train_diffusion(self, number: int | None = None) -> StyleDiffusion:
        """Train the diffusion model of a round (None = the last) and, before it, a first stage of its own; or read it
        if it is complete."""
        folder, number = self.rounds.model_home(number), self.rounds.of_model(number)
        if not (folder / "model" / "model_index.json").is_file():
            if self.config.diffusion.trains_codec:
                self.train_codec()
            pseudo_labels = self.pseudo_labels(number)
            config, before = self._diffusion_of(number)
            # Going on with the samples that the model has just learned from would be a repetition.
            role = ("diffusion", self.config.diffusion.seed, *(("round", number) if before else ()))
            with self.reporter.stage(f"train diffusion model{self.rounds.model_suffix(number)}") as tick:
                train_diffusion(
                    config,
                    self.annotated,
                    self.unlabeled,
                    folder,
                    image_px=self.config.data.image_px,
                    seed=seed_for(self.config.seed, *role),
                    pseudo_labels=pseudo_labels,
                    style_sources=unannotated_tissue(self.dataset, self.annotated),
                    codec_run=self.folder,
                    begin_with=before,
                    on_progress=tick,
                )
            self.note_seconds()
        return StyleDiffusion.from_pretrained(folder / "model")

    def _diffusion_of(self, number: int) -> tuple[DiffusionConfig, StyleDiffusion | None]:
        """How the model of a round is trained, and the one that it begins with."""
        config, labels = self.config.diffusion, self.config.diffusion.pseudo_labels
        if number == 1 or labels is None or labels.fine_tuning is None:
            return config, None
        return config.model_copy(update=labels.fine_tuning.model_dump()), self.train_diffusion(number - 1)

    def train_student(self) -> StyleDiffusion:
        """Distil a student from the diffusion model in RUN/student, or go on, or read it if it is complete."""
        return self._student

    @cached_property
    def _student(self) -> StyleDiffusion:
        teacher, synthesis, folder = self.train_diffusion(), self.config.synthesis, self.folder / "student"
        train = partial(
            train_student,
            self.config.diffusion,
            teacher,
            self.annotated,
            self.unlabeled,
            folder,
            guidance=synthesis.full_guidance,
            seed=seed_for(self.config.seed, "student", self.config.diffusion.seed),
        )
        if (folder / "model" / "model_index.json").is_file():
            return train()
        with self.reporter.stage("train student") as tick:
            student = train(on_progress=tick)
        self.note_seconds()
        return student

    def painter(self, number: int | None = None) -> StyleDiffusion:
        """The model that draws the images of a round (None = the last): the diffusion model, or its student."""
        return self.train_student() if self.config.synthesis.sampler == "student" else self.train_diffusion(number)

    @cached_property
    def _labelling(self) -> Labelling:
        return Labelling(
            self.config, self.rounds, self.unlabeled, self.fit, self.synthesize, self.reporter, self.note_seconds
        )

    def pseudo_labels(self, number: int | None = None) -> DatasetFolder | None:
        """Layouts of the unannotated images as segmenters see them, for the model of a round (None = the last), in
        RUN/pseudo_labels; None if the configuration wants none. The segmenters are trained first, if they aren't."""
        return self._labelling.for_diffusion(number)

    def style_bank(self, number: int | None = None) -> StyleBank:
        """Embed the unannotated patients with the model of a round (None = the last), or read what was embedded."""
        path, model = self.rounds.model_home(number) / "style_bank.parquet", self.train_diffusion(number)
        if not path.is_file():
            with self.reporter.stage("embed styles") as tick:
                StyleBank.embed(model, self.unlabeled, on_progress=tick).save(path)
        return StyleBank.load(path, model)

    def plan(self, number: int | None = None) -> pd.DataFrame:
        """Make the plan of a round (None = the last), or read it."""
        number = number or self.rounds.last
        path = self.rounds.folder(number) / "plan.parquet"
        if not path.is_file():
            synthesis = self.config.synthesis.of_round(number)
            plan = make_plan(
                synthesis,
                self.annotated,
                self.style_source,
                seed=self.config.seed if number == 1 else seed_for(self.config.seed, "round", number),
                image_px=self.config.data.image_px,
                predicted=self._labelling.layouts_to_paint(number) if PREDICTED in synthesis.layout_weights else None,
            )
            write_plan(plan, path)
        return read_plan(path)

    def predicted_layouts(self, number: int | None = None) -> DatasetFolder:
        """Layouts of the unannotated images, pixel by pixel the most probable class, in a round (None = the last)."""
        return self._labelling.predicted_layouts(number or self.rounds.last)

    def teacher_labels(self, arm: Arm, number: int | None = None) -> DatasetFolder:
        """The unannotated images as they are, labelled in a round of self-training of `arm` (None = the last)."""
        return self._labelling.for_self_training(arm, number)

    @property
    def is_drawn(self) -> bool:
        """Whether the synthetic set is complete."""
        return (self.folder / "synthetic" / "metadata.csv").is_file()

    def synthesize(self, number: int | None = None) -> DatasetFolder:
        """Draw the synthetic set of a round (None = the last), or what is missing of it."""
        number = number or self.rounds.last
        root = self.rounds.folder(number) / "synthetic"
        if not (root / "metadata.csv").is_file():
            model, plan = self.painter(number), self.plan(number)
            with self.reporter.stage(f"draw synthetic images{self.rounds.suffix(number)}") as tick:
                synthesize(model, plan, root, memory=self._memory, on_progress=tick)
            self.note_seconds()
        return DatasetFolder.open(root, memory=self._memory)

    # ---- segmentation ---------------------------------------------------------------------------------------------

    def train_segmenters(self) -> None:
        """One network per seed and arm, each followed by its counts on the evaluation split."""
        for seed in self.config.segmentation.seeds:
            for arm in self.arms:
                self.train_segmenter(arm, seed)

    def train_segmenter(self, arm: Arm, seed: int) -> Path:
        """The segmenter of an arm and a seed, trained if it isn't yet; returns its model folder."""
        return self.fit(
            self._segmenter(arm, seed),
            arm,
            f"segmenter {arm}, seed {seed}",
            ("segmenter", seed),
            synthetic=self.synthesize,
            labelled=partial(self.teacher_labels, arm),
        )

    def fit(
        self,
        folder: Path,
        arm: Arm,
        stage: str,
        role: tuple[str | int, ...],
        *,
        synthetic: Callable[[], DatasetFolder] | None = None,
        labelled: Callable[[], DatasetFolder] | None = None,
        steps: int | None = None,
    ) -> Path:
        """Train the segmenter of an arm in a folder, if it isn't there; returns its model folder.

        `stage` is what the user reads meanwhile, `role` what the seed is derived from, `steps` replaces those of the
        configuration. The sets are made when they are needed: where the arm uses them and the segmenter isn't trained.
        """
        segmentation = self.config.segmentation
        if not (folder / "model" / "config.json").is_file():
            generated = synthetic() if synthetic and uses_synthetic(arm) else None
            pseudo_labeled = labelled() if labelled and uses_self_training(arm) else None
            with self.reporter.stage(stage) as tick:
                train_segmenter(
                    segmentation.model_copy(update={"steps": steps}) if steps else segmentation,
                    self._upper_set() if arm == "upper" else self.annotated,
                    folder,
                    arm=arm,
                    image_px=self.config.data.image_px,
                    seed=seed_for(self.config.seed, *role),
                    synthetic=generated,
                    unlabeled=self.unlabeled,
                    pseudo_labeled=pseudo_labeled,
                    on_progress=tick,
                )
            self.note_seconds()
        return folder / "model"

    def counts(self) -> pd.DataFrame:
        """Pixel counts of every arm and seed on the evaluation split."""
        tables = [self.counts_of(arm, seed) for seed in self.config.segmentation.seeds for arm in self.arms]
        return with_groups(pd.concat(tables, ignore_index=True), set(self.annotated.table["category"]))

    def counts_of(self, arm: Arm, seed: int) -> pd.DataFrame:
        """Pixel counts of one trained segmenter."""
        path = self._counts_file(arm, seed)
        if not path.is_file():
            model = self._segmenter(arm, seed) / "model"
            write_counts(path, count_dataset(model, self._held_out, arm=arm, seed=seed))
        return read_counts(path)

    def missing_segmenters(self) -> list[tuple[Arm, int]]:
        """Arms and seeds that are not trained and counted."""
        pairs = [(arm, seed) for seed in self.config.segmentation.seeds for arm in self.arms]
        return [pair for pair in pairs if not self._counts_file(*pair).is_file()]

    def _counts_file(self, arm: Arm, seed: int) -> Path:
        return self._segmenter(arm, seed) / f"counts-{self.config.evaluation.split}.parquet"

    def report(self) -> dict[str, Any]:
        """Score, compare and write the report; returns the summary."""
        has_model = (self.folder / "model").is_dir()
        bank = self.style_bank() if has_model else None
        with self.reporter.stage("score and report"):
            counts = self.counts()
            first_seed = self.config.segmentation.seeds[0]
            annotated = ImageCache(self.annotated, self.config.data.image_px)
            panels = report_panels(
                annotated=annotated,
                unlabeled=ImageCache(self.unlabeled, self.config.data.image_px),
                held_out=self._held_out,
                model=self.painter() if has_model else None,
                bank=bank,
                synthetic=self.synthesize() if (self.folder / "synthetic" / "metadata.csv").is_file() else None,
                segmenters={arm: self._segmenter(arm, first_seed) / "model" for arm in self.arms},
                counts=counts,
                synthesis=self.config.synthesis,
            )
            return write_report(
                self.folder / "report",
                counts,
                title=self.config.name,
                notes=self._notes(),
                config_yaml=to_yaml(self.config),
                provenance=json.loads((self.folder / "provenance.json").read_text(encoding="utf-8")),
                panels=panels,
                evaluation=self.config.evaluation,
                distances=stain_distance(annotated, self._held_out),
            )

    @cached_property
    def _held_out(self) -> ImageCache:
        return ImageCache(self.dataset.split(self.config.evaluation.split), self.config.data.image_px)

    def _upper_set(self) -> DatasetFolder:
        """Annotated images and those of the unlabeled patients with their masks: the fully supervised bound."""
        every = DatasetFolder.open(self.dataset.root, allow_unlabeled_masks=True, memory=self._memory)
        chosen = set(self.annotated.table["image_file_name"]) | set(self.unlabeled.table["image_file_name"])
        table = every.table
        return every.select((table["image_file_name"].isin(chosen) & (table["mask_file_name"] != "")).to_numpy())

    def _segmenter(self, arm: str, seed: int) -> Path:
        return self.folder / "segmenters" / arm / f"seed-{seed}"

    def _notes(self) -> dict[str, str]:
        data, segmentation, synthesis = self.config.data, self.config.segmentation, self.config.synthesis
        notes = {
            "Data": f"{self.dataset.info.name}, {data.image_px} px",
            "Annotated": self.annotated.size,
            "Unannotated": self.unlabeled.size,
            "Segmenters": f"{segmentation.steps} steps of {segmentation.batch} in every arm",
        }
        if (self.folder / "synthetic").is_dir():
            diffusion = self.config.diffusion
            notes["Diffusion model"] = f"{diffusion.steps} steps of {diffusion.batch}, trained in this run"
            if self.config.retrains:
                tuned = diffusion.pseudo_labels and diffusion.pseudo_labels.fine_tuning
                notes["Diffusion model"] += (
                    f", for {tuned.steps} steps more in each later one of {synthesis.rounds} rounds"
                    if tuned
                    else f", anew in each of {synthesis.rounds} rounds"
                )
            if diffusion.trains_codec:
                path = trained_codec_folder(self.folder) / "reconstruction.json"
                figures = json.loads(path.read_text(encoding="utf-8"))
                notes["First stage"] = (
                    f"{diffusion.codec.kind} autoencoder, PSNR {figures['psnr_db_mean']:.1f} dB, SSIM "
                    f"{figures['ssim_mean']:.3f} on {figures['n_images']} images it hasn't seen"
                )
            if synthesis.sampler == "student":
                notes["Student"] = f"{diffusion.student.steps} steps of {diffusion.student.batch} ways of the model"
            notes["Synthetic"] = f"{synthesis.n_images} images, {synthesis.network_calls} network calls each"
        if (self.folder / "agreement.csv").is_file():
            doubted, n = self._labelling.contradicted(self.rounds.last), len(self.unlabeled.patients())
            names = f": {', '.join(doubted[:10])}{' ...' if len(doubted) > 10 else ''}" if doubted else ""
            notes["Segmenters contradict each other"] = (
                f"before and after synthetic images, about {len(doubted)} of {n} unannotated patients{names} "
                "(agreement.csv)"
            )
        return notes

    def note_seconds(self) -> None:
        """Add the wall times of the stages that ran to the provenance."""
        check_unchanged(self.folder, self.dataset)
        path = self.folder / "provenance.json"
        provenance = json.loads(path.read_text(encoding="utf-8"))
        provenance.setdefault("seconds", {}).update(self.reporter.seconds)
        write_json(path, provenance)


def plan_images(config: RunConfig, n: int) -> pd.DataFrame:
    """The plan of a configuration for `n` images, without a run folder.

    Raises:
        StedmError: the configuration asks for a phantom, which would lie in a run folder.
    """
    if config.data.path is None:
        raise StedmError("plan: make the phantom first (`stedm data phantom OUT`), then give it as data.path")
    dataset = DatasetFolder.open(config.data.path, unseen_categories=config.data.unseen_categories)
    synthesis = config.synthesis.model_copy(update={"n_images": n})
    return make_plan(
        synthesis,
        annotated_part(dataset, config),
        dataset.split("unlabeled"),
        seed=config.seed,
        image_px=config.data.image_px,
    )


def annotated_part(dataset: DatasetFolder, config: RunConfig) -> DatasetFolder:
    """The train images that count as annotated under the label budget."""
    if config.data.annotated_per_category is not None:
        return dataset.select(choose_annotated_images(dataset, config.data.annotated_per_category, config.data.draw))
    chosen = choose_annotated(dataset, config.data.annotated_patients, config.data.draw)
    table = dataset.table
    return dataset.select((table["patient_id"].isin(chosen) & (table["mask_file_name"] != "")).to_numpy())
