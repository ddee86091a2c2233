"""`Segmenter`: a trained segmentation network, from training to the masks of arrays, files and slides."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stedm.config import (
    Arm,
    MachineConfig,
    RecolourConfig,
    SegmentationConfig,
    SlideSegmentationConfig,
    checked,
    uses_self_training,
    uses_ssl,
)
from stedm.data.folder import DatasetFolder
from stedm.data.squares import in_squares
from stedm.errors import StedmError
from stedm.io.hub import model_folder, push_model
from stedm.io.images import LARGEST_WHOLE_PX, image_mpp, read_image_file
from stedm.segmentation.model import Network, SegmenterInfo, load_segmenter
from stedm.segmentation.predict import image_probabilities, segment_files, segment_images
from stedm.segmentation.scale import refuse_useless_mpp
from stedm.segmentation.slide_sources import SlideSource, slides_in
from stedm.segmentation.train import train_segmenter
from stedm.segmentation.whole_slide import segment_slides
from stedm.training.device import move, place
from stedm.training.trainer import Progress

Dataset = DatasetFolder | str | Path
_IMAGES_AT_ONCE = 64


class Segmenter:
    """A segmentation network and what it was trained for; `train` and `from_pretrained` make one.

    Args:
        network: logits (n, classes, H, W) for float images (n, 3, H, W) in [-1, 1].
        info: what its folder says of it.
        folder: the model folder that it was read from.
        make: of a network of one's own, the function that makes it.
    """

    def __init__(self, network: nn.Module, info: SegmenterInfo, folder: Path, make: Network | None = None):
        self.network, self.info, self.folder, self._make = network.eval(), info, folder, make

    @classmethod
    def train(
        cls,
        dataset: Dataset,
        folder: str | Path,
        *,
        arm: Arm = "real+stain",
        synthetic: Dataset | None = None,
        unlabeled: Dataset | None = None,
        pseudo_labeled: Dataset | None = None,
        config: SegmentationConfig | None = None,
        seed: int = 0,
        image_px: int = 64,
        network: Network | None = None,
        recolour: RecolourConfig | None = None,
        on_progress: Progress | None = None,
    ) -> "Segmenter":
        """Train in `folder`, or go on if it was interrupted, and write the model to `folder/model`.

        Args:
            dataset: dataset folder; its annotated images of split `train` are learned from, by arm `upper` also the
                masks of its unlabeled patients (open it with `allow_unlabeled_masks=True`, or give the path).
            arm: what is learned from, and how (docs/segmentation.md).
            synthetic: generated images with masks, for the `synthetic` arms.
            unlabeled: images for the `ssl` arms; None = the unlabeled patients of `dataset`. No mask of them is read.
            pseudo_labeled: unlabeled images under labels of teachers, for the `self-training` arms
                (stedm.segmentation.pseudo_labels writes them).
            config: network, steps and the like; None = the defaults. Its `arms` and `seeds` are not used.
            image_px: side of the square images that the network sees; images are reduced to it, and oblong ones cut
                into squares (see stedm.data.squares).
            network: a network of one's own: a function from the number of classes to a module.
            recolour: how far stains may differ (`stedm.config.RecolourConfig`); None = the defaults.
            on_progress: called with (steps done, steps in all, the loss that was read last).

        Raises:
            StedmError: sets that can't be used, or one that the arm needs is missing.
        """
        whole = _opened(dataset, allow_unlabeled_masks=arm == "upper")
        if unlabeled is None and uses_ssl(arm):
            unlabeled = whole.split("unlabeled")
        if uses_self_training(arm) and pseudo_labeled is None:
            raise StedmError(f"arm {arm}: give pseudo_labeled, unlabeled images under labels of teachers, or use run")
        annotated = whole.annotated
        if arm == "upper":
            annotated = annotated.followed_by(whole.select(whole.has_mask & (whole.table["split"] == "unlabeled")))
        model = train_segmenter(
            config or SegmentationConfig(),
            in_squares(annotated),
            folder,
            arm=arm,
            image_px=image_px,
            seed=seed,
            synthetic=None if synthetic is None else in_squares(_opened(synthetic)),
            unlabeled=None if unlabeled is None else in_squares(_opened(unlabeled)),
            pseudo_labeled=None if pseudo_labeled is None else in_squares(_opened(pseudo_labeled)),
            network=network,
            recolour=recolour,
            on_progress=on_progress,
        )
        return cls.from_pretrained(model, network)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        network: Network | None = None,
        *,
        local_files_only: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "Segmenter":
        """Read a model folder, or the folder it was trained in, or one of the Hugging Face hub.

        Args:
            folder: the folder, or `owner/name` on the hub, from its local cache.
            network: what makes the network, where it is one's own: the folder holds only its weights.
            local_files_only: False = download from the hub what the cache doesn't have. revision, token: of the hub.

        Raises:
            StedmError: the folder holds no segmenter, or an own network and nothing was given that makes it.
        """
        hub = {"local_files_only": local_files_only, "revision": revision, "token": token}
        folder = model_folder(folder, "config.json", **hub)
        folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        return cls(*load_segmenter(folder, network), folder, network)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload its folder, with its card, to the Hugging Face hub; as `StyleDiffusion.push_to_hub`."""
        how = {"private": private, "token": token, "commit_message": commit_message, "create_pr": create_pr}
        return push_model(lambda folder: shutil.copytree(self.folder, folder), repo_id, **how)

    def export(self, output: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write it for other programs: FILE.onnx, FILE.pt (TorchScript), or a folder with both; returns the files.

        See stedm.segmentation.export. Mirror images, the range of images and the softmax are inside.

        Raises:
            StedmError: a package is missing (`pip install "stedm[export]"`), or the network can't be exported.
        """
        from stedm.segmentation.export import export_segmenter

        # Anew: this network may be on a GPU, in less than float32.
        network, info = load_segmenter(self.folder, self._make)
        return export_segmenter(network, info, output, inputs=self.folder.iterdir(), overwrite=overwrite)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by their index in masks."""
        return list(self.info.classes)

    @property
    def image_px(self) -> int:
        """Side of the square images that it was trained on, and of the tiles in which it sees larger ones."""
        return self.info.image_px

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of those images; None where they have no resolution in common or it isn't known."""
        return self.info.mpp

    def to(self, device: str | torch.device) -> "Segmenter":
        """Move the network."""
        move(self.network, device)
        return self

    def on(self, machine: MachineConfig) -> "Segmenter":
        """Move the network to the device of `machine`, where it predicts in its precision."""
        place(self.network, machine)
        return self

    def predict(self, images: np.ndarray, *, mpp: float | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) or (n, H, W, 3) -> uint8 (H, W) or (n, H, W): the most probable class of each pixel.

        Images of any size. `mpp` is their resolution in microns per pixel; where it or that of the training images is
        unknown, images are reduced as the training images were (see stedm.segmentation.scale).
        """
        refuse_useless_mpp(mpp, self.info)
        batch = _batch(images)
        masks = np.empty(batch.shape[:3], np.uint8)
        for start in range(0, len(batch), _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            masks[part] = segment_images(self.network, self.info, list(batch[part]), mpp)
        return masks if np.ndim(images) == 4 else masks[0]

    def probabilities(self, images: np.ndarray, *, mpp: float | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) or (n, H, W, 3) -> float32 (classes, H, W) or (n, classes, H, W), 1 in sum."""
        refuse_useless_mpp(mpp, self.info)
        batch = _batch(images)
        found = np.empty((len(batch), len(self.classes), *batch.shape[1:3]), np.float32)
        for row, image in enumerate(batch):
            found[row] = image_probabilities(self.network, self.info, image, mpp)
        return found if np.ndim(images) == 4 else found[0]

    def predict_file(self, path: str | Path, *, mpp: float | None = None) -> np.ndarray:
        """The mask uint8 (H, W) of an image file (PNG, JPEG, TIFF, BMP), at the image's own size.

        `mpp`: microns per pixel of the image; None = as the file says, if it does.
        """
        path = Path(path)
        image = read_image_file(path.parent, path.name, largest_px=LARGEST_WHOLE_PX)
        return self.predict(image, mpp=mpp or (self.mpp and image_mpp(path.parent, path.name)))

    def predict_folder(
        self, images: str | Path, output: str | Path, *, mpp: float | None = None, overwrite: bool = False
    ) -> list[Path]:
        """Write a mask (8-bit PNG of class indices, with a palette) for each image of a folder; returns the masks.

        `mpp`: microns per pixel of the images; None = as each file says, if it does. `overwrite`: replace files that
        are no masks of an earlier call.
        """
        return segment_files(self.network, self.info, images, output, mpp, overwrite=overwrite)

    def predict_slide(
        self, path: str | Path, output: str | Path, *, overwrite: bool = False, **options: Any
    ) -> list[Path]:
        """Segment a slide (a folder of slides, a slides.csv): GeoJSON for QuPath and areas as CSV; returns the GeoJSON.

        Args:
            output: FILE.geojson for one slide, or a folder; call it again to go on.
            overwrite: replace files that stedm did not write.
            options: keys of `stedm.config.SlideSegmentationConfig`, such as mpp, overlap, label_map.

        Raises:
            StedmError: options or a slide that can't be used; other slides are done before.
        """
        path = Path(path)
        config = checked(SlideSegmentationConfig, options, "predict_slide")
        is_one = path.is_file() and path.suffix.lower() != ".csv"
        slides: Sequence[SlideSource] | None = [SlideSource(path.stem, path)] if is_one else slides_in(path, output)
        if slides is None:
            raise StedmError(f"{path}: holds images, not slides; use predict_folder")
        done = segment_slides(
            self.folder,
            slides,
            output,
            config,
            network=self._make,
            machine=MachineConfig(device=str(next(self.network.parameters()).device).removesuffix(":0")),
            inputs=[path],
            overwrite=overwrite,
        )
        if done.failures:
            raise StedmError("\n".join(done.failures))
        return done.written


def _opened(dataset: Dataset, *, allow_unlabeled_masks: bool = False) -> DatasetFolder:
    if isinstance(dataset, DatasetFolder):
        return dataset
    return DatasetFolder.open(dataset, allow_unlabeled_masks=allow_unlabeled_masks)


def _batch(images: np.ndarray) -> np.ndarray:
    """(n, H, W, 3), whether or not it was one image."""
    images = np.asarray(images)
    if images.ndim not in (3, 4) or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise StedmError(f"images: uint8 RGB (H, W, 3) or (n, H, W, 3) expected, got {images.dtype} {images.shape}")
    return images if images.ndim == 4 else images[None]
