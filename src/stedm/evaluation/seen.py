"""What the measures of synthetic images need of each image, read in batches, so that memory stays bounded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationModel
from skimage.color import hed_from_rgb
from torch import nn

from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import to_signed
from stedm.evaluation.quality import colour_moments
from stedm.io.images import resized
from stedm.segmentation.model import Mirrored, stride_of

SEEN_PX = 128
"""Largest side at which images are looked at here; layouts are looked for at the segmenter's own size."""
THUMBNAIL_PX = 16
"""Small enough that noise, JPEG and a shift by a pixel or two hardly change it."""
_BATCH_BYTES = 1 << 22


@dataclass(frozen=True)
class Seen:
    """Images, a row each; n rows."""

    names: np.ndarray
    """image_file_name."""
    patients: np.ndarray
    thumbnails: np.ndarray
    """uint8 RGB (n, 16, 16, 3)."""
    textures: np.ndarray
    """float32 (n, 27), see `texture`: the same for an image and its mirror image."""
    colours: np.ndarray
    """(n, 6), see `colour_moments`."""
    features: np.ndarray
    """float32 (n, d): the deepest level of a segmenter's encoder; d = 0 without one."""

    def __len__(self) -> int:
        return len(self.names)

    def part(self, rows: Sequence[int] | np.ndarray) -> "Seen":
        return Seen(*(getattr(self, field.name)[rows] for field in fields(self)))

    def followed_by(self, other: "Seen") -> "Seen":
        if not len(self) or not len(other):
            return self if len(self) else other
        return Seen(*(np.concatenate([getattr(part, field.name) for part in (self, other)]) for field in fields(self)))


def look(
    dataset: DatasetFolder,
    rows: Sequence[int] | np.ndarray,
    image_px: int,
    network: nn.Module | None = None,
    on_image: Callable[[int], None] = lambda n: None,
) -> Seen:
    """Look at some rows of a dataset, reduced to `image_px`, or to `SEEN_PX` where that is larger.

    network: of whose encoder the features are; None or one without an encoder = no features. on_image: told how many
    more images were looked at.
    """
    px, table = min(image_px, SEEN_PX), dataset.table.iloc[rows]
    found: list[tuple[np.ndarray, ...]] = []
    for batch in batches(len(rows), px):
        images = np.stack([dataset.read_image(int(rows[i]), px) for i in batch])
        small = np.stack([resized(image, THUMBNAIL_PX) for image in images])
        found.append((small, texture(small), colour_moments(images), encoded(network, images)))
        on_image(len(batch))
    if not found:
        side = (0, THUMBNAIL_PX, THUMBNAIL_PX, 3)
        found = [(np.zeros(side, np.uint8), *(np.zeros((0, n), np.float32) for n in (27, 6, 0)))]
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Seen(table["image_file_name"].to_numpy(str), table["patient_id"].to_numpy(str), *columns)


def batches(n: int, image_px: int) -> list[range]:
    """Rows 0..n-1 in batches of so many images as take a few megabytes."""
    size = max(1, _BATCH_BYTES // (3 * image_px**2))
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def texture(images: np.ndarray) -> np.ndarray:
    """uint8 RGB (n, H, W, 3) -> float32 (n, 27): amounts of three stains, and how they vary at three scales.

    Mean and two quantiles; then SD and mean gradient, as they are and after halving the image once and twice. The eight
    symmetries of the square leave all of it as it is.
    """
    stains = -np.log(np.maximum(images.astype(np.float32) / 255, 0.5 / 255)) @ hed_from_rgb.astype(np.float32)
    found = [stains.mean(axis=(1, 2)), *np.quantile(stains, [0.1, 0.9], axis=(1, 2)).astype(np.float32)]
    for _ in range(3):
        steps = ((np.diff(stains, axis=axis) ** 2).mean(axis=(1, 2)) for axis in (1, 2))
        found += [stains.std(axis=(1, 2)), np.sqrt(sum(steps))]
        n, height, width, _ = stains.shape
        stains = stains[:, : height // 2 * 2, : width // 2 * 2]
        stains = stains.reshape(n, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
    return np.concatenate(found, axis=1)


@torch.inference_mode()
def encoded(network: nn.Module | None, images: np.ndarray) -> np.ndarray:
    """uint8 RGB (n, H, W, 3) -> float32 (n, d): mean and SD of each channel of the encoder's deepest level."""
    bare = without_mirror(network)
    if not isinstance(bare, SegmentationModel):
        return np.zeros((len(images), 0), np.float32)
    stride = stride_of(bare)
    device = next(bare.parameters()).device
    signed = to_signed(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
    padded = F.pad(signed, (0, -images.shape[2] % stride, 0, -images.shape[1] % stride), mode="replicate")
    deepest = bare.encoder(padded.contiguous(memory_format=torch.channels_last))[-1].float()
    moments = [deepest.mean(dim=(2, 3)), deepest.std(dim=(2, 3), correction=0)]
    return torch.cat(moments, dim=1).cpu().numpy()


def without_mirror(network: nn.Module | None) -> nn.Module | None:
    """The network that a `Mirrored` asks four times: one look is enough to judge a set."""
    return network.network if isinstance(network, Mirrored) else network
