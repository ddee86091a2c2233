"""Segmentation networks of segmentation_models_pytorch: build, loss, save, load.

A saved segmenter is a folder of `config.json` and `model.safetensors`; nothing is pickled, nothing is downloaded.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stedm.config import MachineConfig, SegmentationConfig, checked
from stedm.data.card import README
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.io.artefacts import read_json
from stedm.io.files import replacing, write_json, write_text
from stedm.io.manifest import verify_folder, write_manifest
from stedm.io.ownership import check_folder
from stedm.io.weights import load_backbone_weights, load_weights, read_weights, require_finite
from stedm.seeds import seed_for
from stedm.segmentation.card import segmenter_card
from stedm.segmentation.in_run import no_segmenter
from stedm.segmentation.info import OWN_NETWORK, SegmenterInfo
from stedm.training.device import place

Network = Callable[[int], nn.Module]
"""Makes a network of one's own for a number of classes: from float images (n, 3, H, W) in [-1, 1] to logits
(n, n_classes, H, W). Of its weights alone a folder can't make it again: whoever loads them gives the function."""


def build_segmenter(config: SegmentationConfig, n_classes: int, seed: int = 0) -> nn.Module:
    """Network with logits (n, n_classes, H, W) for images (n, 3, H, W) in [-1, 1].

    The weights are a pure function of `seed`, or the encoder's come from the local file `config.encoder_weights`.
    Raises `StedmError` for unknown names and unusable weights.
    """
    import segmentation_models_pytorch as smp

    if config.encoder.startswith("mit_"):
        warnings.warn(
            f"segmentation.encoder: {config.encoder} is NVIDIA code under a non-commercial licence", stacklevel=2
        )
    if ":" in config.encoder or "/" in config.encoder:
        # timm reads such names ("hf-hub:owner/model") as an address and goes to the network.
        raise StedmError(
            f"segmentation.encoder: {config.encoder} is an address; "
            "give a name, and weights as encoder_weights: nothing is downloaded"
        )
    with _initial_weights(seed):
        try:
            network = smp.create_model(
                config.architecture,
                encoder_name=config.encoder,
                encoder_weights=None,
                encoder_depth=config.encoder_depth,
                classes=n_classes,
                **({"decoder_channels": config.decoder_channels} if config.takes_decoder_channels else {}),
            )
        except Exception as error:  # smp and timm raise whatever a bad name or number makes them raise
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise StedmError(
                f"segmentation: no {config.architecture} with encoder {config.encoder} ({text}); "
                "give names of segmentation_models_pytorch"
            ) from error
    if config.encoder_weights is not None:
        load_backbone_weights(network.encoder, config.encoder_weights)
    # On CPUs convolutions are 1.2 to 1.5 times as fast in this order.
    return network.to(memory_format=torch.channels_last)


def build_own(network: Network, n_classes: int, seed: int = 0, image_px: int | None = None) -> nn.Module:
    """A network of one's own, its weights a pure function of `seed` if they are drawn from torch's global generator.

    Raises:
        StedmError: it doesn't make logits `(n, n_classes, image_px, image_px)`; tried where `image_px` is given.
    """
    with _initial_weights(seed):
        built = network(n_classes)
    if image_px is not None:
        wanted = (2, n_classes, image_px, image_px)
        with torch.no_grad():
            found = built.eval()(torch.zeros(2, 3, image_px, image_px))
        built.train()
        if not isinstance(found, Tensor) or found.shape != wanted:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise StedmError(f"network: logits {wanted} expected of images {(2, 3, image_px, image_px)}, got {shape}")
    return built


@contextlib.contextmanager
def _initial_weights(seed: int) -> Iterator[None]:
    """smp, timm and torch draw initial weights from the global generator: give them ours, then put theirs back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "segmenter", "weights"))
        yield


class Mirrored(nn.Module):
    """A segmenter that sees each image and its three mirror images and takes the mean of its probabilities."""

    VIEWS = ((), (3,), (2,), (2, 3))
    """Axes of (n, C, H, W) that each view turns round."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, H, W) -> logits (n, n_classes, H, W), here the logarithms of mean probabilities."""
        probabilities = [
            self.network(images.flip(axes).contiguous(memory_format=torch.channels_last)).float().softmax(1).flip(axes)
            for axes in self.VIEWS
        ]
        return torch.stack(probabilities).mean(dim=0).log()


class SegmentationLoss(nn.Module):
    """Weighted sum of cross-entropy and soft Dice (paper: 0.1 and 0.9), both blind to `ignore_index`.

    Dice is taken over the batch, per class (Milletari et al. 2016); a class without a pixel in the batch adds nothing.
    """

    def __init__(self, dice_weight: float = 0.9, ignore_index: int = 255):
        from segmentation_models_pytorch.losses import DiceLoss

        super().__init__()
        self.dice_weight = dice_weight
        self.ignore_index = ignore_index
        self.dice = DiceLoss("multiclass", from_logits=True, ignore_index=ignore_index)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """logits (n, C, H, W), masks (n, H, W) of class indices -> scalar; 0 where every pixel is ignored."""
        masks = masks.long()
        # Not reduction="mean": it is 0 / 0 = NaN for a batch without an annotated pixel.
        total = F.cross_entropy(logits, masks, ignore_index=self.ignore_index, reduction="sum")
        cross_entropy = total / (masks != self.ignore_index).sum().clamp_min(1)
        return (1 - self.dice_weight) * cross_entropy + self.dice_weight * self.dice(logits, masks)


def stride_of(network: nn.Module) -> int:
    """Sides of images must be multiples of it; 1 for a network of one's own, which says nothing of it."""
    from segmentation_models_pytorch.base import SegmentationModel

    bare = network.network if isinstance(network, Mirrored) else network
    return bare.encoder.output_stride if isinstance(bare, SegmentationModel) else 1


def save_segmenter(
    folder: str | Path,
    network: nn.Module,
    config: SegmentationConfig | None,
    dataset: DatasetInfo,
    *,
    image_px: int,
    mpp: float | None = None,
    source_px: list[int] | None = None,
    mirror: bool = False,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write `config.json`, `model.safetensors` and a card, the whole folder atomically.

    Args:
        config: which network it is; None = one's own.
        dataset: what it was trained on, at `image_px` and, where that is known, `mpp` microns per pixel.
        source_px: smallest and largest shorter side of those images as they are stored.
        mirror: whether it is to predict from mirror images too.
        provenance: see `SegmenterInfo`.
    """
    which = (
        {"architecture": OWN_NETWORK}
        if config is None
        else config.model_dump(include={"architecture", "encoder", "encoder_depth", "decoder_channels"})
    )
    info = SegmenterInfo(
        **which,
        classes=list(dataset.classes),
        image_px=image_px,
        ignore_index=dataset.ignore_index,
        mpp=mpp,
        source_px=source_px,
        mirror=mirror,
        provenance=provenance or {},
    )
    folder = Path(folder)
    check_folder(folder, "config.json")
    # Cloned: a network of one's own may hold a tensor under two names, which safetensors refuses.
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    require_finite(weights, str(folder))
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", asdict(info))
        write_manifest(temporary)
        # After the manifest: a card is edited by those who hand the segmenter on.
        write_text(temporary / README, segmenter_card(info))
    return folder


def load_segmenter(
    folder: str | Path, network: Network | None = None, machine: MachineConfig | None = None
) -> tuple[nn.Module, SegmenterInfo]:
    """The network in evaluation mode, and what it was trained for.

    Args:
        network: what makes the network, where it is one's own.
        machine: what it will run on; None = it stays on the CPU.

    Raises:
        StedmError: the folder holds no segmenter, or an own network and nothing was given that makes it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise no_segmenter(folder)
    verify_folder(folder)
    info = read_json(folder / "config.json", SegmenterInfo, hint="give the model/ folder of a segmenter")
    is_own = info.architecture == OWN_NETWORK
    which = {key: getattr(info, key) for key in ("architecture", "encoder", "encoder_depth", "decoder_channels")}
    config = None if is_own else checked(SegmentationConfig, which, str(folder / "config.json"))
    if is_own and network is None:
        raise StedmError(
            f"{folder}: holds weights of an own network; load it in Python with the function that makes the network: "
            "Segmenter.from_pretrained(folder, network=...)"
        )
    if config is not None and network is not None:
        raise StedmError(f"{folder}: holds a {info.architecture}, not an own network; leave `network` out")
    n_classes = len(info.classes)
    built = build_own(network, n_classes) if config is None else build_segmenter(config, n_classes)
    path = folder / "model.safetensors"
    load_weights(built, read_weights(path), path)
    whole = (Mirrored(built) if info.mirror else built).eval()
    return whole if machine is None else place(whole, machine), info
