"""Training of one segmentation network: an arm, a seed, real and (in some arms) synthetic pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stedm.config import Arm, SegmentationConfig
from stedm.data.folder import DatasetFolder
from stedm.data.samples import PictureCache
from stedm.data.transforms import to_signed
from stedm.engine import Engine, Progress
from stedm.errors import StedmError
from stedm.seeds import numpy_generator, seed_for
from stedm.segmentation.augment import augment_geometry, augment_stain
from stedm.segmentation.model import SegmentationLoss, build_segmenter, save_segmenter
from stedm.style.sampling import rows_by_patient


def train_segmenter(
    config: SegmentationConfig,
    arm: Arm,
    real: DatasetFolder,
    synthetic: DatasetFolder | None,
    folder: str | Path,
    seed: int,
    picture_px: int,
    on_progress: Progress | None = None,
) -> Path:
    """Train the network of `arm` for `config.steps` steps and write it to `folder/model`; returns that folder.

    `real` holds the annotated pictures, `synthetic` generated ones; the latter are used by the `+synthetic` arms only.
    Killed at any time and called again with the same arguments, it ends in the weights of an uninterrupted run.
    Raises `StedmError` for a set without masks and for sets with different classes.
    """
    if "synthetic" not in arm:
        synthetic = None
    elif synthetic is None:
        raise StedmError(f"arm {arm}: needs a synthetic set")
    samples = MixedSamples(real, synthetic, config.synthetic_fraction, picture_px, seed)
    loss_of = SegmentationLoss(config.cross_entropy_weight, config.dice_weight, real.info.ignore_index)
    engine = Engine(
        build_segmenter(config, len(real.info.classes), seed),
        Path(folder),
        config,
        seed=seed_for(seed, "segmentation"),
        on_progress=on_progress,
    )
    with torch.random.fork_rng():
        for batch in engine.batches(samples):
            # Dropout and stochastic depth of some encoders draw from the global generator.
            torch.manual_seed(engine.generator.initial_seed())
            pictures, masks = augment_batch(batch["picture"], batch["mask"], engine.generator, config, arm)
            with engine.autocast():
                logits = engine.network(pictures)
            engine.step(loss_of(logits.float(), masks))
    model = Path(folder) / "model"
    if engine.accelerator.is_main_process:
        network = engine.accelerator.unwrap_model(engine.network)
        save_segmenter(model, network, config, real.info, picture_px)
    engine.accelerator.wait_for_everyone()
    return model


def augment_batch(
    pictures: Tensor, masks: Tensor, generator: torch.Generator, config: SegmentationConfig, arm: Arm
) -> tuple[Tensor, Tensor]:
    """uint8 (n, H, W, 3) and (n, H, W) -> augmented float pictures (n, 3, H, W) in [-1, 1] and their masks.

    Geometry is drawn first, so that arms with the same samples differ in colour alone.
    """
    floats, masks = augment_geometry(pictures.permute(0, 3, 1, 2).float() / 255, masks, generator)
    if "stain" in arm:
        floats = augment_stain(floats, generator, config.stain)
    return to_signed(floats * 255).contiguous(memory_format=torch.channels_last), masks


class MixedSamples(Dataset):
    """Sample i of a run, a pure function of (seed, i): synthetic with probability `synthetic_fraction`, else real.

    Within a set the patient is drawn first, then one of the patient's annotated pictures, so that every patient
    weighs the same however many pictures it has, as in the per-patient evaluation.

    Items: {"picture": uint8 (H, W, 3), "mask": uint8 (H, W)}.
    """

    def __init__(
        self,
        real: DatasetFolder,
        synthetic: DatasetFolder | None,
        synthetic_fraction: float,
        picture_px: int,
        seed: int,
    ):
        for key in ("classes", "ignore_index"):
            if synthetic is not None and getattr(synthetic.info, key) != getattr(real.info, key):
                theirs, ours = getattr(synthetic.info, key), getattr(real.info, key)
                raise StedmError(
                    f"{synthetic.root}: has {key} {theirs}, {real.root} has {ours}; make it from this dataset"
                )
        self.synthetic_fraction = 0.0 if synthetic is None else synthetic_fraction
        self.seed = seed
        self._sets = [_PatientBalanced(dataset, picture_px) for dataset in (real, synthetic) if dataset is not None]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        generator = numpy_generator(self.seed, "segmentation sample", index)
        which = int(generator.random() < self.synthetic_fraction)
        return self._sets[which].draw(generator)


class _PatientBalanced:
    def __init__(self, dataset: DatasetFolder, picture_px: int):
        held_out = sorted(set(dataset.table["split"]) & {"val", "test"})
        if held_out:
            raise StedmError(f"{dataset.root}: pictures of split {held_out[0]} are not for training; select train")
        annotated = dataset.select(dataset.table["mask_file_name"] != "")
        if len(annotated) == 0:
            raise StedmError(f"{dataset.root}: no annotated picture to train on")
        self._cache = PictureCache(annotated, picture_px)
        self._rows = list(rows_by_patient(annotated.table).values())

    def draw(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        rows = self._rows[generator.integers(len(self._rows))]
        row = int(rows[generator.integers(len(rows))])
        return {"picture": self._cache.picture(row), "mask": self._cache.mask(row)}
