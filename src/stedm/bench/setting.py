"""What is measured: a configuration, its data, an untrained model of it (time doesn't depend on the weights)."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from stedm.config import PhantomConfig, RunConfig, load_config
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import to_signed
from stedm.diffusion.codec import AutoencoderCodec, Codec, open_codec, trained_codec_folder
from stedm.diffusion.codec_train import build_autoencoder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.experiment.experiment import annotated_part
from stedm.phantom.patients import make_phantom
from stedm.seeds import seed_for

_MOST_PATIENTS = {"train": 4, "unlabeled": 8, "val": 2, "test": 0}
_MOST_IMAGES = 6


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
        return self.config.diffusion.precision

    @property
    def image_px(self) -> int:
        return self.config.data.image_px

    @cached_property
    def dataset(self) -> DatasetFolder:
        data = self.config.data
        if data.phantom is not None:
            make_phantom(_few(data.phantom), self.folder / "data")
            return DatasetFolder.open(self.folder / "data", unseen_categories=data.unseen_categories)
        assert data.path is not None
        return DatasetFolder.open(data.path, unseen_categories=data.unseen_categories)

    @cached_property
    def annotated(self) -> DatasetFolder:
        # Of a cut phantom all patients: the label budget may be more than it has.
        table = self.dataset.table
        rows = (table["split"] == "train") & (table["mask_file_name"] != "")
        part = annotated_part(self.dataset, self.config) if self.config.data.phantom is None else None
        chosen = part or self.dataset.select(rows.to_numpy())
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
        """The first stage; one that a run would train is here untrained."""
        config = self.config.diffusion
        if config.trains_codec and not trained_codec_folder(self.run).is_dir():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_for(0, "bench codec"))
                codec = AutoencoderCodec(build_autoencoder(config.codec))  # type: ignore[arg-type]
            codec.save_pretrained(trained_codec_folder(self.run))
        return open_codec(config.codec, self.run, to_signed(channels_first(self.images(16)))).to(self.device).eval()

    @property
    def run(self) -> Path:
        """A run folder of the configuration; holds nothing but the first stage where a run would train one."""
        return self.folder / "run"

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
        rows = np.arange(n) % min(len(self.unlabeled), 32)
        read = {row: self.unlabeled.read_image(row, self.image_px) for row in map(int, np.unique(rows))}
        return np.stack([read[int(row)] for row in rows])

    def layouts(self, n: int) -> np.ndarray:
        """uint8 (n, px, px): annotated layouts, over again where there are fewer."""
        rows = np.arange(n) % min(len(self.annotated), 32)
        read = {row: self.annotated.read_mask(row, self.image_px) for row in map(int, np.unique(rows))}
        return np.stack([read[int(row)] for row in rows])


def channels_first(images: np.ndarray) -> torch.Tensor:
    """(n, h, w, 3) to (n, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


@contextlib.contextmanager
def open_setting(config: Path | None, overrides: Sequence[str] | None = None) -> Iterator[Setting]:
    """The setting of a configuration file, or of the small one of the package; its folder goes with the block."""
    with tempfile.TemporaryDirectory(prefix="stedm-bench-") as folder, contextlib.ExitStack() as stack:
        path = config or stack.enter_context(as_file(files("stedm.bench") / "small.yaml"))
        yield Setting(load_config(path, list(overrides or [])), Path(folder))


def few(dataset: DatasetFolder, patients: int = 4, images: int = 4) -> DatasetFolder:
    """Some images of some patients."""
    table = dataset.table
    chosen = table["patient_id"].isin(dataset.patients()[:patients])
    number = table.groupby("patient_id").cumcount()
    return dataset.select((chosen & (number < images)).to_numpy())


def _few(phantom: PhantomConfig) -> PhantomConfig:
    patients = {split: min(n, _MOST_PATIENTS[split]) for split, n in phantom.patients.items()}
    categories = phantom.train_categories
    return phantom.model_copy(
        update={
            "patients": patients,
            "train_categories": categories[: patients.get("train", 0)] if categories else None,
            "images_per_patient": min(phantom.images_per_patient, _MOST_IMAGES),
        }
    )
