"""Training of one segmentation network: an arm, a seed, real and (in some arms) synthetic or unannotated images."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stedm.config import (
    Arm,
    MachineConfig,
    RecolourConfig,
    SegmentationConfig,
    uses_self_training,
    uses_ssl,
    uses_stain,
    uses_synthetic,
)
from stedm.data.folder import DatasetFolder
from stedm.data.provenance import of_model
from stedm.data.squares import shorter_sides
from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.seeds import seed_for
from stedm.segmentation.augment import augment_colours, augment_geometry
from stedm.segmentation.consistency import Consistency, StudentAndTeacher
from stedm.segmentation.model import Network, SegmentationLoss, build_own, build_segmenter, save_segmenter
from stedm.segmentation.samples import MixedSamples, UnlabeledSamples
from stedm.training.trainer import Progress, Trainer

WARMUP_STEPS = 20


def train_segmenter(
    config: SegmentationConfig,
    annotated: DatasetFolder,
    folder: str | Path,
    *,
    arm: Arm,
    image_px: int,
    seed: int = 0,
    synthetic: DatasetFolder | None = None,
    unlabeled: DatasetFolder | None = None,
    pseudo_labeled: DatasetFolder | None = None,
    network: Network | None = None,
    recolour: RecolourConfig | None = None,
    machine: MachineConfig | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Train the network of `arm` for `config.steps` steps and write it to `folder/model`; returns that folder.

    Killed at any time and called again with the same arguments, it ends in the weights of an uninterrupted run.

    Args:
        annotated: real images with masks; of arm `upper` those of unlabeled patients too.
        image_px: side of the square images that the network sees.
        seed: of initial weights, samples and augmentation.
        synthetic: generated images with masks, for the `synthetic` arms.
        unlabeled: images for the `ssl` arms; their masks are never read.
        pseudo_labeled: the same images with labels of teachers, for the `self-training` arms.
        network: a network of one's own (see `stedm.segmentation.model.Network`); None = that of `config`.
        recolour: how far stains may differ, for the arms with stain augmentation; None = the defaults.
        machine: how it is computed.

    Raises:
        StedmError: a set without masks, sets with different classes, a set that the arm needs is missing.
    """
    consistent, recolour = uses_ssl(arm), recolour or RecolourConfig()
    mixed = _mixed_samples(config, annotated, arm, seed, image_px, synthetic, pseudo_labeled)
    samples = _with_unlabeled(mixed, unlabeled, arm, image_px) if consistent else mixed
    loss_of = SegmentationLoss(config.dice_weight, annotated.info.ignore_index)
    n_classes = len(annotated.info.classes)
    built = build_own(network, n_classes, seed, image_px) if network else build_segmenter(config, n_classes, seed)
    trainer = Trainer(
        StudentAndTeacher(built) if consistent else built,
        Path(folder),
        config,
        machine,
        seed=seed_for(seed, "segmentation"),
        warmup_steps=min(WARMUP_STEPS, config.steps // 10),
        on_progress=on_progress,
    )
    consistency = Consistency(config, recolour, loss_of)
    with torch.random.fork_rng():
        for batch in trainer.batches(samples):
            # Dropout and stochastic depth of some encoders draw from the global generator.
            torch.manual_seed(trainer.generator.initial_seed())
            images, masks = augment_batch(batch["image"], batch["mask"], trainer.generator, config, recolour, arm)
            if consistent:
                loss = consistency.loss(trainer, images, masks, batch["unlabeled"])
            else:
                with trainer.autocast():
                    logits = trainer.network(images)
                loss = loss_of(logits.float(), masks)
            trainer.step(loss)
    model = Path(folder) / "model"
    if trainer.accelerator.is_main_process:
        trained = trainer.accelerator.unwrap_model(trainer.network)
        save_segmenter(
            model,
            trained.student if consistent else trained,
            None if network else config,
            annotated.info,
            image_px=image_px,
            mpp=annotated.common_mpp(image_px),
            source_px=shorter_sides(annotated),
            mirror=config.mirror,
            provenance=of_model(
                annotated,
                {"arm": arm, "steps": config.steps, "batch": config.batch, "seed": seed},
                annotated=annotated,
                synthetic=synthetic if uses_synthetic(arm) else None,
                unannotated=unlabeled if consistent else None,
                **{"under labels of teachers": pseudo_labeled if uses_self_training(arm) else None},
            ),
        )
    trainer.accelerator.wait_for_everyone()
    return model


def _mixed_samples(
    config: SegmentationConfig,
    annotated: DatasetFolder,
    arm: Arm,
    seed: int,
    image_px: int,
    synthetic: DatasetFolder | None,
    pseudo_labeled: DatasetFolder | None,
) -> MixedSamples:
    """Of the sets that were given those that the arm uses."""
    if uses_synthetic(arm) and synthetic is None:
        raise StedmError(f"arm {arm}: needs a synthetic set; give synthetic=...")
    if uses_self_training(arm) and pseudo_labeled is None:
        raise StedmError(f"arm {arm}: needs unlabeled images with the labels of teachers; give pseudo_labeled=...")
    return MixedSamples(
        annotated,
        image_px=image_px,
        seed=seed,
        synthetic=synthetic if uses_synthetic(arm) else None,
        pseudo_labeled=pseudo_labeled if uses_self_training(arm) else None,
        synthetic_fraction=config.synthetic_fraction,
    )


def _with_unlabeled(mixed: MixedSamples, unlabeled: DatasetFolder | None, arm: Arm, image_px: int) -> Dataset:
    if unlabeled is None:
        raise StedmError(f"arm {arm}: needs images of unlabeled patients; give unlabeled=...")
    return UnlabeledSamples(mixed, unlabeled, image_px)


def augment_batch(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    config: SegmentationConfig,
    recolour: RecolourConfig,
    arm: Arm,
) -> tuple[Tensor, Tensor]:
    """uint8 (n, H, W, 3) and (n, H, W) -> augmented float images (n, 3, H, W) in [-1, 1] and their masks.

    Geometry is drawn first, so that arms with the same samples differ in colour alone.
    """
    floats, masks = augment_geometry(images.permute(0, 3, 1, 2).float() / 255, masks, generator)
    if uses_stain(arm):
        floats = augment_colours(floats, generator, config.stain, recolour)
    return to_signed(floats * 255).contiguous(memory_format=torch.channels_last), masks
