"""Masks from a trained segmenter: for arrays, and for image files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.io.images import read_image_file, resized, write_png
from stedm.segmentation.model import load_segmenter, stride_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_IMAGES_AT_ONCE = 64


@torch.inference_mode()
def predict_masks(network: nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """uint8 RGB (n, H, W, 3) -> uint8 (n, H, W) of class indices, the most probable class of each pixel.

    Any H and W: images are continued at the right and bottom edge to a multiple of the network's stride, the masks
    cut back.
    """
    was_training = network.training
    network.eval()
    masks = np.empty(images.shape[:3], np.uint8)
    for start in range(0, len(images), batch):
        logits = predict_logits(network, images[start : start + batch])
        masks[start : start + batch] = logits.argmax(dim=1).to("cpu", torch.uint8).numpy()
    network.train(was_training)
    return masks


@torch.inference_mode()
def predict_logits(network: nn.Module, images: np.ndarray) -> Tensor:
    """uint8 RGB (n, H, W, 3), n > 0 -> logits (n, classes, H, W) on the network's device, in one batch."""
    device = next(network.parameters()).device
    height, width = images.shape[1:3]
    stride = stride_of(network)
    part = to_signed(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
    # replicate, not reflect: the padding may be wider than a small image
    part = F.pad(part, (0, -width % stride, 0, -height % stride), mode="replicate")
    return network(part.contiguous(memory_format=torch.channels_last))[:, :, :height, :width]


def segment_images(network: nn.Module, images: Sequence[np.ndarray], image_px: int) -> list[np.ndarray]:
    """Masks uint8 (H, W) of whole images uint8 RGB (H, W, 3) of any sizes, each at its image's own size.

    An image is resized to `image_px`, the size of the training images (area averaging), and its mask back (nearest
    neighbour).
    """
    if not images:
        return []
    masks = predict_masks(network, np.stack([resized(image, image_px) for image in images]))
    return [
        np.array(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
        for image, mask in zip(images, masks, strict=True)
    ]


def segment_folder(model_folder: str | Path, images: str | Path, output: str | Path) -> list[Path]:
    """As `segment_files`, with the network of a segmenter folder. Raises `StedmError` if it is not one."""
    network, info = load_segmenter(model_folder)
    return segment_files(network, images, output, image_px=info.image_px)


def segment_files(network: nn.Module, images: str | Path, output: str | Path, *, image_px: int) -> list[Path]:
    """Write a mask for an image file, or for each image of a folder (subfolders included); returns the masks.

    Masks are 8-bit PNG of class indices, as `segment_images` makes them, under the image's name.
    Raises `StedmError` for anything that is not a readable image.
    """
    root, names = _find_images(Path(images))
    written = []
    for start in range(0, len(names), _IMAGES_AT_ONCE):
        part = names[start : start + _IMAGES_AT_ONCE]
        masks = segment_images(network, [read_image_file(root, name) for name in part], image_px)
        for name, mask in zip(part, masks, strict=True):
            written.append((Path(output) / name).with_suffix(".png"))
            write_png(written[-1], mask)
    return written


def _find_images(path: Path) -> tuple[Path, list[str]]:
    """Root folder and the names of the images in it, sorted."""
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise StedmError(f"{path}: no such image or folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise StedmError(f"{path}: no images in it (looked for {', '.join(IMAGE_SUFFIXES)})")
    names = [file.relative_to(path).as_posix() for file in files]
    stems: dict[str, str] = {}
    for name in names:
        stem = name.rsplit(".", 1)[0]
        if stem in stems:
            raise StedmError(f"{path}: {stems[stem]} and {name} would write the same mask; rename one")
        stems[stem] = name
    return path, names
