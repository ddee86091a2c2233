"""The first stage: images to latents of unit variance and back.

Latents are normalised by measured per-channel mean and standard deviation.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stedm.config import AutoencoderCodecConfig, CodecConfig, PixelCodecConfig, VQF4CodecConfig
from stedm.diffusion.ldm_checkpoint import VQ_F4, load_ldm_vq
from stedm.diffusion.parts import read_part, read_part_config, require_weights
from stedm.errors import StedmError
from stedm.io.artefacts import read_json
from stedm.io.files import write_json
from stedm.training.device import move

_AT_ONCE = 4
"""Images that an autoencoder sees in one pass where it is measured: at 512 px each takes about a gigabyte."""
_TRAIN_AGAIN = "train the model again"


@dataclass(frozen=True)
class LatentStatistics:
    """What `latents.json` says, by channel of the latents; None = not measured."""

    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None


class Codec(Protocol):
    """What a first stage has: one of the two below, or one of your own (an nn.Module is moved and put into evaluation
    mode with the model; its weights stay as they are and are not saved with it)."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def factor(self) -> int:
        """Side of an image / side of its latent."""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents `(b, latent_channels, H / factor, W / factor)`, of about zero mean and unit variance, of images
        `(b, 3, H, W)` in [-1, 1]; where they are drawn from a distribution, with standard normal `noise` like them."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(b, 3, H, W)` in [-1, 1]."""


def place(codec: Codec, device: str | torch.device) -> None:
    """Move a codec that is a module to a device, in evaluation mode."""
    if isinstance(codec, torch.nn.Module):
        move(codec, device).eval()


class PixelCodec(ModelMixin, ConfigMixin):
    """No autoencoder: normalised pixels, each s x s square folded into 3 s^2 channels of one position.

    The U-Net then works at 1/s of the side: a quarter of the cost for s = 2, and nothing is lost.
    """

    is_measured = False

    @register_to_config
    def __init__(
        self,
        space_to_depth: int = 2,
        mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ):
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def factor(self) -> int:
        return self.config.space_to_depth

    @property
    def latent_channels(self) -> int:
        return 3 * self.factor**2

    def measured(self, images: Tensor) -> "PixelCodec":
        """The same codec with mean and standard deviation of `images (n, 3, H, W)` in [-1, 1]."""
        mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)).clamp(min=0.05)
        return PixelCodec(self.factor, tuple(mean.tolist()), tuple(std.tolist())).to(images.device)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents `(b, 3 s^2, H/s, W/s)` of images `(b, 3, H, W)` in [-1, 1]."""
        return F.pixel_unshuffle((images - self.pixel_mean) / self.pixel_std, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(b, 3, H, W)` in [-1, 1]."""
        return (F.pixel_shuffle(latents, self.factor) * self.pixel_std + self.pixel_mean).clamp(-1.0, 1.0)


class AutoencoderCodec(torch.nn.Module):
    """A trained diffusers autoencoder as frozen first stage.

    Takes what encodes `(b, 3, H, W)` to one latent map: AutoencoderKL (a distribution), VQModel (latents before
    quantisation; decoding quantises, as in Rombach et al. 2022), AutoencoderTiny, AutoencoderDC and the like.

    Args:
        mean, std: of each latent channel; None = not measured, latents stay as they are.

    Raises:
        StedmError: the autoencoder doesn't say its latent size.
    """

    def __init__(self, autoencoder: torch.nn.Module, mean: list[float] | None = None, std: list[float] | None = None):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.is_measured = mean is not None and std is not None
        # Latents of a VQModel have the width of its codes.
        channels = autoencoder.config.get("vq_embed_dim") or autoencoder.config.get("latent_channels")
        widths = autoencoder.config.get("block_out_channels") or autoencoder.config.get("encoder_block_out_channels")
        if not channels or not widths:
            raise StedmError(
                f"{type(autoencoder).__name__}: this kind of autoencoder can't be a first stage here; "
                "docs/codecs.md says which can"
            )
        self.factor: int = 2 ** (len(widths) - 1)
        device = next(autoencoder.parameters()).device
        self.register_buffer("mean", torch.tensor(mean or [0.0] * channels, device=device).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * channels, device=device).view(1, -1, 1, 1))

    @property
    def latent_channels(self) -> int:
        return self.mean.shape[1]

    @property
    def fingerprint(self) -> str:
        """Names the autoencoder: equal for equal class and weights."""
        digest = hashlib.sha256(type(self.autoencoder).__name__.encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def measured(self, images: Tensor) -> "AutoencoderCodec":
        """The same codec with mean and standard deviation of the latents of `images (n, 3, H, W)`."""
        device = self.mean.device
        parts = [self.moments(part.to(device))[:, : self.latent_channels] for part in images.split(_AT_ONCE)]
        raw = torch.cat(parts)
        mean, std = raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3)).clamp(min=1e-3)
        return AutoencoderCodec(self.autoencoder, mean.tolist(), std.tolist())

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """What the encoder says of images `(b, 3, H, W)` in [-1, 1], before normalisation: the latent
        `(b, z, H/f, W/f)`, and for a distribution its mean and standard deviation, `(b, 2 z, H/f, W/f)`; float32."""
        with _never_half(images.device):
            encoded = self.autoencoder.encode(images)
        if hasattr(encoded, "latent_dist"):
            return torch.cat([encoded.latent_dist.mean, encoded.latent_dist.std], dim=1).float()
        return (encoded.latents if hasattr(encoded, "latents") else encoded.latent).float()

    @torch.no_grad()
    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """Normalised latents `(b, z, h, w)` of `moments`; with standard normal `noise (b, z, h, w)` drawn from the
        distribution, where there is one, else its mean."""
        raw, *spread = moments.float().split(self.latent_channels, dim=1)
        if spread and noise is not None:
            raw = raw + spread[0] * noise
        return (raw - self.mean) / self.std

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Normalised latents `(b, z, H/f, W/f)` of images `(b, 3, H, W)` in [-1, 1]; see `sample`."""
        return self.sample(self.moments(images), noise)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images `(b, 3, H, W)` in [-1, 1]."""
        with _never_half(latents.device):
            return self.autoencoder.decode(latents * self.std + self.mean).sample.clamp(-1.0, 1.0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the autoencoder in diffusers' format, and the latent statistics beside it."""
        self.autoencoder.save_pretrained(folder)
        write_json(
            Path(folder) / "latents.json", {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "AutoencoderCodec":
        """Read a folder of `save_pretrained`, ours or diffusers' own (then without latent statistics).

        Raises:
            StedmError: no autoencoder there, or its weights are missing, damaged or not safetensors.
        """
        folder = Path(folder)
        kind, path = _kind_of(folder), folder / "latents.json"
        statistics = read_json(path, LatentStatistics, hint=_TRAIN_AGAIN) if path.is_file() else LatentStatistics()
        autoencoder = read_part(kind, folder)
        codec = _as_codec(autoencoder, folder)
        if statistics.mean is None or statistics.std is None:
            return codec
        if not len(statistics.mean) == len(statistics.std) == codec.latent_channels:
            raise StedmError(f"{path}: {codec.latent_channels} means and deviations expected; {_TRAIN_AGAIN}")
        return cls(autoencoder, statistics.mean, statistics.std)


def _kind_of(folder: Path) -> type[ModelMixin]:
    """The class of the autoencoder in a folder of diffusers."""
    if not (folder / "config.json").is_file():
        raise StedmError(f"{folder}: no autoencoder here (config.json is missing); give a diffusers folder")
    name = read_part_config(folder).get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise StedmError(
            f"{folder / 'config.json'}: _class_name {name!r} is not an autoencoder of diffusers; give a folder of one"
        )
    return kind


def _as_codec(autoencoder: torch.nn.Module, folder: Path) -> AutoencoderCodec:
    try:
        return AutoencoderCodec(autoencoder)
    except (TypeError, ValueError, StopIteration) as error:
        raise StedmError(
            f"{folder}: this kind of autoencoder can't be a first stage here ({error}); docs/codecs.md says which can"
        ) from error


def _never_half(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to bfloat16 stays, to float16 is off: published autoencoders leave its range."""
    kind = device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    is_half = is_on and torch.get_autocast_dtype(kind) == torch.float16
    return torch.autocast(kind, enabled=False) if is_half else contextlib.nullcontext()


def load_codec(folder: Path) -> PixelCodec | AutoencoderCodec:
    """Read the codec of a model folder."""
    if not (folder / "config.json").is_file():
        raise StedmError(
            f"{folder}: no codec here (config.json is missing); copy the model folder as a whole, or train it again"
        )
    if read_part_config(folder).get("_class_name") != "PixelCodec":
        return AutoencoderCodec.from_pretrained(folder)
    codec = read_part(PixelCodec, folder)
    if codec.factor < 1 or not (codec.pixel_std > 0).all():
        raise StedmError(f"{folder}: a standard deviation or space_to_depth that isn't above 0; {_TRAIN_AGAIN}")
    return codec


def open_codec(config: CodecConfig, images: Tensor | None = None) -> PixelCodec | AutoencoderCodec:
    """The first stage of a configuration, its latents normalised by mean and standard deviation per channel: those
    that the folder of an autoencoder states, else those measured on `images (n, 3, H, W)` in [-1, 1]; None = not yet.
    """
    if isinstance(config, PixelCodecConfig):
        codec: PixelCodec | AutoencoderCodec = PixelCodec(config.space_to_depth)
    elif isinstance(config, VQF4CodecConfig):
        codec = AutoencoderCodec(load_ldm_vq(config.weights))
    else:
        codec = AutoencoderCodec.from_pretrained(_folder_of(config.source))
    return codec if codec.is_measured or images is None else codec.measured(images)


def codec_shapes(config: CodecConfig) -> PixelCodec | AutoencoderCodec:
    """The first stage without memory for its weights, on the device `meta`; of an autoencoder only config.json is
    read.

    Raises:
        StedmError: there is no autoencoder at `source`, or none that can be a first stage.
    """
    with torch.device("meta"):
        if isinstance(config, PixelCodecConfig):
            return PixelCodec(config.space_to_depth)
        if isinstance(config, VQF4CodecConfig):
            return AutoencoderCodec(VQModel(**VQ_F4))
        folder = _folder_of(config.source)
        kind, values = _kind_of(folder), read_part_config(folder)
        try:
            autoencoder = kind.from_config(values)
        except Exception as error:  # building a network from a bad configuration raises anything
            raise StedmError(
                f"{folder}: no autoencoder can be built ({' '.join(str(error).split())[:200]}); "
                "give the folder as it was published"
            ) from error
        return _as_codec(autoencoder, folder)


def check_codec(config: CodecConfig) -> PixelCodec | AutoencoderCodec:
    """`codec_shapes` of a first stage whose weights are there too; they aren't read.

    Raises:
        StedmError: they are missing.
    """
    if isinstance(config, VQF4CodecConfig) and not config.weights.is_file():
        raise StedmError(f"{config.weights}: missing; docs/codecs.md says where diffusion.codec.weights is from")
    if isinstance(config, AutoencoderCodecConfig):
        require_weights(_folder_of(config.source))
    return codec_shapes(config)


def _folder_of(source: str) -> Path:
    """The folder `source`, or that of a hub repository in the local cache; the network is never asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(source).is_dir():
        return Path(source)
    hub_id, subfolder = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
    try:
        found = hf_hub_download(hub_id, "config.json", subfolder=subfolder or None, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise StedmError(
            f"diffusion.codec.source {source}: no such folder, and not in the local Hugging Face cache; nothing is "
            f"downloaded here: run `hf download {hub_id}` once where there is a network"
        ) from error
    return Path(found).parent
