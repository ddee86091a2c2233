"""Training of one segmentation network: an arm, a seed, real and (in some arms) synthetic or unannotated images."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stedm.config import Arm, SegmentationConfig, uses_self_training, uses_ssl, uses_stain, uses_synthetic
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.seeds import seed_for
from stedm.segmentation.augment import augment_geometry, augment_stain
from stedm.segmentation.consistency import Consistency, StudentAndTeacher
from stedm.segmentation.model import SegmentationLoss, build_segmenter, save_segmenter
from stedm.segmentation.randstainna import Cohort
from stedm.segmentation.samples import MixedSamples, UnlabeledSamples
from stedm.training.trainer import Engine, Progress


def train_segmenter(
    config: SegmentationConfig,
    arm: Arm,
    real: DatasetFolder,
    synthetic: DatasetFolder | None,
    folder: str | Path,
    seed: int,
    image_px: int,
    on_progress: Progress | None = None,
    unlabeled: DatasetFolder | None = None,
    labelled: DatasetFolder | None = None,
) -> Path:
    """Train the network of `arm` for `config.steps` steps and write it to `folder/model`; returns that folder.

    `real` holds the annotated images, `synthetic` generated ones; the latter are used by the `synthetic` arms only.
    The images of `unlabeled` teach the `ssl` arms and lend their colours to `stain.kind` randstainna; their masks are
    never read. `labelled` has them with the labels of teachers, for the `self-training` arms.
    Killed at any time and called again with the same arguments, it ends in the weights of an uninterrupted run.
    Raises `StedmError` for a set without masks, for sets with different classes, and for a set that the arm needs.
    """
    consistent = uses_ssl(arm)
    samples = _samples(config, arm, real, synthetic, unlabeled, labelled, seed, image_px)
    loss_of = SegmentationLoss(config.cross_entropy_weight, config.dice_weight, real.info.ignore_index)
    cohort = _cohort(config, arm, real, unlabeled, image_px)
    network = build_segmenter(config, len(real.info.classes), seed)
    engine = Engine(
        StudentAndTeacher(network, config.ssl.ema_decay) if consistent else network,
        Path(folder),
        config,
        seed=seed_for(seed, "segmentation"),
        on_progress=on_progress,
    )
    consistency = Consistency(config, loss_of, cohort)
    with torch.random.fork_rng():
        for batch in engine.batches(samples):
            # Dropout and stochastic depth of some encoders draw from the global generator.
            torch.manual_seed(engine.generator.initial_seed())
            images, masks = augment_batch(batch["image"], batch["mask"], engine.generator, config, arm, cohort)
            if consistent:
                loss = consistency.loss(engine, images, masks, batch["unlabeled"])
            else:
                with engine.autocast():
                    logits = engine.network(images)
                loss = loss_of(logits.float(), masks)
            engine.step(loss)
    model = Path(folder) / "model"
    if engine.accelerator.is_main_process:
        trained = engine.accelerator.unwrap_model(engine.network)
        network = trained.student if consistent else trained
        save_segmenter(model, network, config, real.info, image_px, real.common_mpp(image_px))
    engine.accelerator.wait_for_everyone()
    return model


def _samples(
    config: SegmentationConfig,
    arm: Arm,
    real: DatasetFolder,
    synthetic: DatasetFolder | None,
    unlabeled: DatasetFolder | None,
    labelled: DatasetFolder | None,
    seed: int,
    image_px: int,
) -> Dataset:
    if uses_synthetic(arm) and synthetic is None:
        raise StedmError(f"arm {arm}: needs a synthetic set")
    if uses_self_training(arm) and labelled is None:
        raise StedmError(f"arm {arm}: needs unlabeled images with the labels of teachers")
    drawn, guessed = synthetic if uses_synthetic(arm) else None, labelled if uses_self_training(arm) else None
    mixed = MixedSamples(real, drawn, config.synthetic_fraction, image_px, seed, guessed)
    if not uses_ssl(arm):
        return mixed
    if unlabeled is None:
        raise StedmError(f"arm {arm}: needs images of unlabeled patients")
    return UnlabeledSamples(mixed, unlabeled, image_px)


def _cohort(
    config: SegmentationConfig, arm: Arm, real: DatasetFolder, unlabeled: DatasetFolder | None, image_px: int
) -> Cohort | None:
    """The colours that the virtual templates of RandStainNA are drawn from, where the arm and `stain.kind` use them."""
    if config.stain.kind == "hed" or not (uses_stain(arm) or uses_ssl(arm)):
        return None
    return Cohort.measure(*filter(None, (real, unlabeled)), image_px=image_px)


def augment_batch(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    config: SegmentationConfig,
    arm: Arm,
    cohort: Cohort | None = None,
) -> tuple[Tensor, Tensor]:
    """uint8 (n, H, W, 3) and (n, H, W) -> augmented float images (n, 3, H, W) in [-1, 1] and their masks.

    Geometry is drawn first, so that arms with the same samples differ in colour alone.
    """
    floats, masks = augment_geometry(images.permute(0, 3, 1, 2).float() / 255, masks, generator)
    if uses_stain(arm):
        floats = augment_stain(floats, generator, config.stain, cohort)
    return to_signed(floats * 255).contiguous(memory_format=torch.channels_last), masks
