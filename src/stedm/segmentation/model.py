"""Segmentation networks of segmentation_models_pytorch: build, loss, save, load.

A saved segmenter is a folder of `config.json` and `model.safetensors`; nothing is pickled, nothing is downloaded.
"""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stedm.config import SegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.io.files import replacing, write_json
from stedm.io.weights import load_backbone_weights, load_weights, read_weights
from stedm.seeds import seed_for


@dataclass(frozen=True)
class SegmenterInfo:
    """What `config.json` of a saved segmenter says: enough to build the network and to read its masks."""

    architecture: str
    encoder: str
    encoder_depth: int
    decoder_channels: list[int]
    classes: list[str]
    image_px: int
    """Side of the square images that the network was trained on."""
    ignore_index: int = 255
    mpp: float | None = None
    """Microns per pixel of those images; None where they have no resolution in common or it isn't known."""
    mirror: bool = False
    """Whether it predicts from mirror images too (see `Mirrored`)."""


def build_segmenter(config: SegmentationConfig, n_classes: int, seed: int = 0) -> nn.Module:
    """Network with logits (n, n_classes, H, W) for images (n, 3, H, W) in [-1, 1].

    The weights are a pure function of `seed`, or the encoder's come from the local file `config.encoder_weights`.
    Raises `StedmError` for unknown names and unusable weights.
    """
    if config.encoder.startswith("mit_"):
        warnings.warn(
            f"segmentation.encoder: {config.encoder} is NVIDIA code under a non-commercial licence", stacklevel=2
        )
    if ":" in config.encoder or "/" in config.encoder:
        # timm reads such names ("hf-hub:owner/model") as an address and goes to the network.
        raise StedmError(f"segmentation.encoder: {config.encoder} is an address, not a name; nothing is downloaded")
    # smp and timm draw initial weights from the global generator: give them ours, then put theirs back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "segmenter", "weights"))
        try:
            network = smp.create_model(
                config.architecture,
                encoder_name=config.encoder,
                encoder_weights=None,
                encoder_depth=config.encoder_depth,
                classes=n_classes,
                **({"decoder_channels": config.decoder_channels} if config.takes_decoder_channels else {}),
            )
        except (KeyError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise StedmError(
                f"segmentation: no {config.architecture} with encoder {config.encoder} ({text})"
            ) from error
    if config.encoder_weights is not None:
        load_backbone_weights(network.encoder, config.encoder_weights)
    # On CPUs convolutions are 1.2 to 1.5 times as fast in this order.
    return network.to(memory_format=torch.channels_last)


class Mirrored(nn.Module):
    """A segmenter that sees each image and its three mirror images and takes the mean of its probabilities."""

    VIEWS = ((), (3,), (2,), (2, 3))
    """Axes of (n, C, H, W) that each view turns round."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def encoder(self) -> nn.Module:
        return self.network.encoder

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

    def __init__(self, cross_entropy_weight: float = 0.1, dice_weight: float = 0.9, ignore_index: int = 255):
        super().__init__()
        self.cross_entropy_weight = cross_entropy_weight
        self.dice_weight = dice_weight
        self.ignore_index = ignore_index
        self.dice = smp.losses.DiceLoss("multiclass", from_logits=True, ignore_index=ignore_index)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """logits (n, C, H, W), masks (n, H, W) of class indices -> scalar; 0 where every pixel is ignored."""
        masks = masks.long()
        # Not reduction="mean": it is 0 / 0 = NaN for a batch without an annotated pixel.
        total = F.cross_entropy(logits, masks, ignore_index=self.ignore_index, reduction="sum")
        cross_entropy = total / (masks != self.ignore_index).sum().clamp_min(1)
        return self.cross_entropy_weight * cross_entropy + self.dice_weight * self.dice(logits, masks)


def save_segmenter(
    folder: str | Path,
    network: nn.Module,
    config: SegmentationConfig,
    dataset: DatasetInfo,
    image_px: int,
    mpp: float | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors`, the whole folder atomically.

    `dataset` is what it was trained on, at `mpp` microns per pixel where that is known.
    """
    info = SegmenterInfo(
        architecture=config.architecture,
        encoder=config.encoder,
        encoder_depth=config.encoder_depth,
        decoder_channels=list(config.decoder_channels),
        classes=list(dataset.classes),
        image_px=image_px,
        ignore_index=dataset.ignore_index,
        mpp=mpp,
        mirror=config.mirror,
    )
    folder = Path(folder)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", asdict(info))
    return folder


def load_segmenter(folder: str | Path) -> tuple[nn.Module, SegmenterInfo]:
    """The network in evaluation mode, and what it was trained for. Raises `StedmError` if the folder is not one."""
    folder = Path(folder)
    try:
        info = SegmenterInfo(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        config = SegmentationConfig(
            architecture=info.architecture,
            encoder=info.encoder,
            encoder_depth=info.encoder_depth,
            decoder_channels=info.decoder_channels,
        )
    except (OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise StedmError(f"{folder}: not a segmenter folder (config.json: {text})") from error
    network = build_segmenter(config, len(info.classes))
    path = folder / "model.safetensors"
    load_weights(network, read_weights(path), path)
    return (Mirrored(network) if info.mirror else network).eval(), info
