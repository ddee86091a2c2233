"""What is measured: a configuration, its data, an untrained model of it (time doesn't depend on the weights)."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from stedm.config import RunConfig, load_config
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import to_signed
from stedm.diffusion.codec import Codec, open_codec
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.experiment.resolve import resolve
from stedm.phantom.cohort import make_phantom

SMALL = Path(__file__).with_name("small.yaml")
"""A small configuration on phantom data."""


class Setting:
    """A configuration opened for measuring; a phantom is cut to a few patients.

    Args:
        folder: for data and models, thrown away afterwards.
    """

    def __init__(self, config: RunConfig, folder: Path):
        self.config, self.folder = config, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def precision(self) -> str:
        return self.config.machine.precision

    @property
    def image_px(self) -> int:
        return self.config.data.side

    @cached_property
    def dataset(self) -> DatasetFolder:
        data = self.config.data
        if data.phantom is not None:
            patients = {split: min(n, 8) for split, n in data.phantom.patients.items()}
            images = min(data.phantom.images_per_patient, 6)
            update = {"patients": patients, "train_categories": None, "images_per_patient": images}
            make_phantom(data.phantom.model_copy(update=update), self.folder / "data")
            return DatasetFolder.open(self.folder / "data", unseen_categories=data.unseen_categories)
        assert data.path is not None
        return DatasetFolder.open(data.path, unseen_categories=data.unseen_categories)

    @cached_property
    def annotated(self) -> DatasetFolder:
        """Images with masks; a label budget counts for nothing here."""
        table = self.dataset.table
        chosen = self.dataset.select(((table["split"] == "train") & (table["mask_file_name"] != "")).to_numpy())
        if len(chosen) == 0:
            raise StedmError(f"{self.dataset.root}: no annotated image to measure with")
        return chosen

    @cached_property
    def unlabeled(self) -> DatasetFolder:
        """Unannotated images, or the annotated ones where there are none."""
        part = self.dataset.split("unlabeled")
        return part if len(part) else self.annotated

    @cached_property
    def codec(self) -> Codec:
        """The first stage."""
        images = to_signed(channels_first(self.images(16)))
        return open_codec(self.config.diffusion.codec, images).to(self.device).eval()

    @cached_property
    def model(self) -> StyleDiffusion:
        """An untrained model, read from disk as `stedm synthesize` reads it."""
        folder = self.folder / "model"
        classes = self.dataset.info.classes
        denoiser = make_denoiser(self.config.diffusion, self.codec, len(classes), 0, self.image_px)
        StyleDiffusion(
            denoiser,
            self.codec,
            objective=self.config.diffusion.objective,
            classes=classes,
            image_px=self.image_px,
            style_sampling=self.config.diffusion.style.sampling,
        ).save_pretrained(folder)
        model = StyleDiffusion.from_pretrained(folder).to(self.device)
        model.precision = self.precision
        return model

    def images(self, n: int) -> np.ndarray:
        """uint8 RGB (n, px, px, 3): images of the dataset, over again where it has fewer."""
        return _over_again(lambda row: self.unlabeled.read_image(row, self.image_px), len(self.unlabeled), n)

    def layouts(self, n: int) -> np.ndarray:
        """uint8 (n, px, px): annotated layouts, over again where there are fewer."""
        return _over_again(lambda row: self.annotated.read_mask(row, self.image_px), len(self.annotated), n)


def _over_again(read: Callable[[int], np.ndarray], rows: int, n: int) -> np.ndarray:
    first = [read(row) for row in range(min(rows, n, 32))]
    return np.stack([first[i % len(first)] for i in range(n)])


def channels_first(images: np.ndarray) -> torch.Tensor:
    """(n, h, w, 3) to (n, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


@contextlib.contextmanager
def open_setting(config: Path = SMALL, overrides: Sequence[str] = ()) -> Iterator[Setting]:
    """The setting of a configuration file; its folder goes with the block."""
    with tempfile.TemporaryDirectory(prefix="stedm-speed-") as folder:
        yield Setting(resolve(load_config(config, list(overrides))), Path(folder))


def few(dataset: DatasetFolder, patients: int = 4, images: int = 4) -> DatasetFolder:
    """Some images of some patients."""
    table = dataset.table
    chosen = table["patient_id"].isin(dataset.patients()[:patients])
    number = table.groupby("patient_id").cumcount()
    return dataset.select((chosen & (number < images)).to_numpy())
