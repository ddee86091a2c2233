"""Masks from a trained segmenter: for arrays, and for image files.

Images of any size, at the scale that stedm.segmentation.scale finds: an image of the training images' size in one
piece, a larger one in overlapping tiles whose probabilities are blended, as slides are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stedm.config import MachineConfig, SlideSegmentationConfig
from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.io.files import sweep, visible_files
from stedm.io.images import LARGEST_WHOLE_PX, class_palette, image_mpp, read_image_file, write_png
from stedm.io.ownership import SEGMENTED, check_outputs, is_marked
from stedm.segmentation.blending import Blender, TileGrid
from stedm.segmentation.model import SegmenterInfo, load_segmenter, stride_of
from stedm.segmentation.scale import SAME, refuse_useless_mpp, scale_of
from stedm.training.precision import checked_numbers

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_IMAGES_AT_ONCE = 64
_TILES_AT_ONCE = 16
_OVERLAP = SlideSegmentationConfig().overlap


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
    logits = network(part.contiguous(memory_format=torch.channels_last))[:, :, :height, :width]
    return checked_numbers(logits, "the segmentation network")


@torch.inference_mode()
def predict_probabilities(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """uint8 RGB (n, H, W, 3), n > 0 -> float32 (n, classes, H, W), in one batch."""
    return predict_logits(network, images).float().softmax(dim=1).cpu().numpy()


def segment_images(
    network: nn.Module, info: SegmenterInfo, images: Sequence[np.ndarray], mpp: float | None = None
) -> list[np.ndarray]:
    """Masks uint8 (H, W) of whole images uint8 RGB (H, W, 3) of any sizes, each at its image's own size.

    `mpp` is the resolution of the images, None = unknown (see stedm.segmentation.scale). Masks come back from the
    network's scale by nearest neighbour.
    """
    scales = [scale_of(image.shape[1::-1], info, mpp) for image in images]
    seen = (scale.apply(image) for scale, image in zip(scales, images, strict=True))
    return [_sized(mask, image.shape[1::-1]) for mask, image in zip(_masks(network, info, seen), images, strict=True)]


def image_probabilities(
    network: nn.Module, info: SegmenterInfo, image: np.ndarray, mpp: float | None = None
) -> np.ndarray:
    """float32 (classes, H, W), 1 in sum, of an image uint8 RGB (H, W, 3): what `segment_images` decides by."""
    seen = scale_of(image.shape[1::-1], info, mpp).apply(image)
    planes = np.concatenate(list(_bands(network, info, seen, keep_probabilities=True)), axis=1)
    planes /= planes.sum(axis=0)  # weights fall towards the edge of the image, where no other tile makes up for it
    return np.stack([_sized(plane, image.shape[1::-1]) for plane in planes])


def segment_folder(
    model_folder: str | Path,
    images: str | Path,
    output: str | Path,
    mpp: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    overwrite: bool = False,
    machine: MachineConfig | None = None,
) -> list[Path]:
    """As `segment_files`, with the network of a segmenter folder on `machine` (None = the defaults). Raises
    `StedmError` if it is not one."""
    loaded = load_segmenter(model_folder, machine=machine or MachineConfig())
    return segment_files(*loaded, images, output, mpp, say, overwrite)


def segment_files(
    network: nn.Module,
    info: SegmenterInfo,
    images: str | Path,
    output: str | Path,
    mpp: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a mask for an image file, or for each image of a folder (subfolders included); returns the masks.

    Masks are 8-bit PNG of class indices, as `segment_images` makes them, with a palette of the classes' colours, under
    the image's name. `mpp` is the resolution of the images; None = as each file says, if it does. `say` is told how
    many images were brought to the network's scale by which rule.

    Raises:
        StedmError: something that is not a readable image, or an `mpp` that is of no use; a mask would replace an image
            that is read or, without `overwrite`, a file that isn't a mask of an earlier call.
    """
    refuse_useless_mpp(mpp, info)
    if Path(output).suffix.lower() in IMAGE_SUFFIXES and not Path(output).is_dir():
        raise StedmError(f"{output}: masks are written into a folder, under the names of their images; give one")
    sweep(output)
    root, names = _find_images(Path(images))
    masks = [(Path(output) / name).with_suffix(".png") for name in names]
    check_outputs(dict.fromkeys(masks, SEGMENTED), [root / name for name in names], overwrite=overwrite)
    palette, rules, sizes, coarse = class_palette(info.ignore_index), Counter(), [], 1.0

    def seen() -> Iterator[np.ndarray]:
        nonlocal coarse
        for name in names:
            image = read_image_file(root, name, largest_px=LARGEST_WHOLE_PX)
            scale = scale_of(image.shape[1::-1], info, image_mpp(root, name) if mpp is None else mpp)
            rules[scale.rule] += 1
            sizes.append(image.shape[1::-1])
            coarse = max(coarse, image.shape[1] / scale.size_px[0])
            yield scale.apply(image)

    for number, mask in enumerate(_masks(network, info, seen())):
        write_png(masks[number], _sized(mask, sizes[number]), palette=palette, software=SEGMENTED)
    for rule, count in rules.items():
        say(f"{count} of {len(names)} images: {rule}")
    if coarse > 1 + SAME:
        say(f"masks are as coarse as what the network sees: up to {coarse:.3g} of an image's pixels")
    return masks


def _masks(network: nn.Module, info: SegmenterInfo, seen: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Masks of images at the network's scale, in order; those of one tile go through the network together."""
    for is_tile, group in groupby(seen, lambda image: image.shape[:2] == (info.image_px, info.image_px)):
        if not is_tile:
            yield from (np.concatenate(list(_bands(network, info, image))) for image in group)
        while is_tile and (part := list(islice(group, _IMAGES_AT_ONCE))):
            yield from predict_masks(network, np.stack(part))


def _bands(
    network: nn.Module, info: SegmenterInfo, image: np.ndarray, keep_probabilities: bool = False
) -> Iterator[np.ndarray]:
    """Classes or probabilities of an image in tiles of `image_px` (see stedm.segmentation.blending)."""
    height, width = image.shape[:2]
    grid = TileGrid(width, height, info.image_px, round(_OVERLAP * info.image_px))
    hanging = [
        (n - 1) * grid.stride_px + grid.tile_px - side for n, side in ((grid.rows, height), (grid.columns, width))
    ]
    # Mirrored beyond its edges: a network that knows tissue alone isn't shown anything else.
    padded = np.pad(image, [(0, hanging[0]), (0, hanging[1]), (0, 0)], mode="symmetric")

    def tiles() -> Iterator[np.ndarray]:
        corners = iter(grid.corners().tolist())
        while part := list(islice(corners, _TILES_AT_ONCE)):
            tiles = [padded[y : y + grid.tile_px, x : x + grid.tile_px] for x, y in part]
            yield from predict_probabilities(network, np.stack(tiles))

    was_training = network.training
    network.eval()
    yield from Blender(grid, len(info.classes), keep_probabilities).bands(tiles())
    network.train(was_training)


def _sized(plane: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """A plane (h, w) of classes or numbers brought to (width, height) by nearest neighbour."""
    return np.array(Image.fromarray(plane).resize(size_px, Image.Resampling.NEAREST))


def _find_images(path: Path) -> tuple[Path, list[str]]:
    """Root folder and the names of the images in it, sorted; hidden files and masks of an earlier call are none."""
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise StedmError(f"{path}: no such image or folder; correct its path")
    files = [file for file in visible_files(path) if file.suffix.lower() in IMAGE_SUFFIXES]
    files = [file for file in files if file.suffix.lower() != ".png" or not is_marked(file, SEGMENTED)]
    if not files:
        raise StedmError(
            f"{path}: no images in it (looked for {', '.join(IMAGE_SUFFIXES)}); give a folder that has some"
        )
    names = [file.relative_to(path).as_posix() for file in files]
    stems: dict[str, str] = {}
    for name in names:
        stem = name.rsplit(".", 1)[0]
        if stem in stems:
            raise StedmError(f"{path}: {stems[stem]} and {name} would write the same mask; rename one")
        stems[stem] = name
    return path, names
