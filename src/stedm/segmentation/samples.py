"""The sample streams of segmentation training: real, synthetic and unannotated images, by patient."""

import numpy as np
from torch.utils.data import Dataset

from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.errors import StedmError
from stedm.seeds import numpy_generator


class MixedSamples(Dataset):
    """Sample i of a run, a pure function of (seed, i): synthetic with probability `synthetic_fraction`, else real.

    Images labelled by teachers (`pseudo_labeled`) count as synthetic ones; where there are both, either is as likely.

    Within a set the patient is drawn first, then one of the patient's annotated images, so that every patient
    weighs the same however many images it has, as in the per-patient evaluation.

    Items: {"image": uint8 (H, W, 3), "mask": uint8 (H, W)}.
    """

    def __init__(
        self,
        real: DatasetFolder,
        *,
        image_px: int,
        seed: int,
        synthetic: DatasetFolder | None = None,
        pseudo_labeled: DatasetFolder | None = None,
        synthetic_fraction: float = 0.0,
    ):
        others = [dataset for dataset in (synthetic, pseudo_labeled) if dataset is not None]
        for other in others:
            for key in ("classes", "ignore_index"):
                theirs, ours = getattr(other.info, key), getattr(real.info, key)
                if theirs != ours:
                    raise StedmError(
                        f"{other.root}: has {key} {theirs}, {real.root} has {ours}; make it from this dataset"
                    )
        self.synthetic_fraction = synthetic_fraction if others else 0.0
        self.seed = seed
        self._sets = [_PatientBalanced(_with_masks(dataset), image_px) for dataset in (real, *others)]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        generator = numpy_generator(self.seed, "segmentation sample", index)
        which = int(generator.random() < self.synthetic_fraction)
        if which and len(self._sets) > 2:
            which = int(generator.integers(1, len(self._sets)))
        cache, row = self._sets[which].draw(generator)
        return {"image": cache.image(row), "mask": cache.mask(row)}


class UnlabeledSamples(Dataset):
    """`MixedSamples`, each item with an image of an unlabeled patient besides, whose mask is never read.

    The annotated part of sample i is that of the other arms. Items have, in addition, {"unlabeled": uint8 (H, W, 3)}.
    """

    def __init__(self, annotated: MixedSamples, unlabeled: DatasetFolder, image_px: int):
        if len(unlabeled) == 0:
            raise StedmError(f"{unlabeled.root}: no image of an unlabeled patient; leave out the ssl arms")
        self._annotated = annotated
        self._unlabeled = _PatientBalanced(unlabeled, image_px)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        generator = numpy_generator(self._annotated.seed, "unlabeled sample", index)
        cache, row = self._unlabeled.draw(generator)
        return {**self._annotated[index], "unlabeled": cache.image(row)}


class _PatientBalanced:
    def __init__(self, dataset: DatasetFolder, image_px: int):
        held_out = sorted(set(dataset.table["split"]) & {"val", "test"})
        if held_out:
            raise StedmError(f"{dataset.root}: images of split {held_out[0]} are not for training; select train")
        self._cache = ImageCache(dataset, image_px)
        self._rows = list(rows_by_patient(dataset.table).values())

    def draw(self, generator: np.random.Generator) -> tuple[ImageCache, int]:
        rows = self._rows[generator.integers(len(self._rows))]
        return self._cache, int(rows[generator.integers(len(rows))])


def _with_masks(dataset: DatasetFolder) -> DatasetFolder:
    annotated = dataset.select(dataset.table["mask_file_name"] != "")
    if len(annotated) == 0:
        raise StedmError(f"{dataset.root}: no annotated image to train on; add masks to images of split train")
    return annotated
