"""Training of one segmenter of a run in its folder, if it isn't there."""

from pathlib import Path

from stedm.config import Arm
from stedm.data.folder import DatasetFolder
from stedm.experiment.context import RunContext
from stedm.seeds import seed_for
from stedm.segmentation.train import train_segmenter
from stedm.training.checkpoint import discard_checkpoints
from stedm.workers.group import together


def is_trained(folder: Path) -> bool:
    """Whether the segmenter of a folder is complete."""
    return (folder / "model" / "config.json").is_file()


def fit_segmenter(
    context: RunContext,
    folder: Path,
    arm: Arm,
    *,
    stage: str,
    role: tuple[str | int, ...],
    synthetic: DatasetFolder | None = None,
    pseudo_labeled: DatasetFolder | None = None,
    most_steps: int | None = None,
) -> Path:
    """Train the segmenter of an arm in a folder, if it isn't there; returns its model folder.

    `stage` is what the user reads meanwhile, `role` what the seed is derived from, `most_steps` bounds those of the
    configuration.
    """
    if not is_trained(folder):
        config = context.config.segmentation
        if most_steps is not None:
            config = config.model_copy(update={"steps": min(config.steps, most_steps)})
        with context.reporter.stage(stage, config.batch) as tick:
            together(
                train_segmenter,
                config,
                context.with_all_masks if arm == "upper" else context.annotated,
                folder,
                arm=arm,
                synthetic=synthetic,
                unlabeled=context.unlabeled,
                pseudo_labeled=pseudo_labeled,
                seed=seed_for(context.config.seed, *role),
                image_px=context.config.data.side,
                recolour=context.config.recolour,
                machine=context.config.machine,
                first={"on_progress": tick},
            )
        context.note_seconds()
    discard_checkpoints(folder)
    return folder / "model"
