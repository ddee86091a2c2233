"""The first stage: pictures to latents of unit variance and back.

Both codecs have `encode`, `decode`, `latent_channels`, `factor` (picture side / latent side), `measure` and the
diffusers folder format. Latents are normalised by measured per-channel mean and standard deviation.
"""

import json
from pathlib import Path

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch.nn import functional as F

from stedm.errors import StedmError
from stedm.files import write_json


class PixelCodec(ModelMixin, ConfigMixin):
    """No autoencoder: normalised pixels, each s x s square folded into 3 s^2 channels of one position.

    The U-Net then works at 1/s of the side: a quarter of the cost for s = 2, and nothing is lost.
    """

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

    def measured(self, pictures: torch.Tensor) -> "PixelCodec":
        """The same codec with mean and standard deviation of `pictures (n, 3, H, W)` in [-1, 1]."""
        mean, std = pictures.mean(dim=(0, 2, 3)), pictures.std(dim=(0, 2, 3)).clamp(min=0.05)
        return PixelCodec(self.factor, tuple(mean.tolist()), tuple(std.tolist())).to(pictures.device)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents `(b, 3 s^2, H/s, W/s)` of pictures `(b, 3, H, W)` in [-1, 1]."""
        return F.pixel_unshuffle((pictures - self.pixel_mean) / self.pixel_std, self.factor)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures `(b, 3, H, W)` in [-1, 1]."""
        return (F.pixel_shuffle(latents, self.factor) * self.pixel_std + self.pixel_mean).clamp(-1.0, 1.0)


class AutoencoderCodec(torch.nn.Module):
    """A trained diffusers autoencoder (AutoencoderKL, VQModel, ...) as frozen first stage."""

    def __init__(self, autoencoder: torch.nn.Module, mean: list[float] | None = None, std: list[float] | None = None):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        channels = autoencoder.config.latent_channels
        self.register_buffer("mean", torch.tensor(mean or [0.0] * channels).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * channels).view(1, -1, 1, 1))

    @property
    def factor(self) -> int:
        return 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.mean.shape[1]

    @torch.no_grad()
    def measured(self, pictures: torch.Tensor) -> "AutoencoderCodec":
        """The same codec with mean and standard deviation of the latents of `pictures (n, 3, H, W)`."""
        raw = torch.cat([self._raw_latents(part) for part in pictures.split(16)])
        mean, std = raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3)).clamp(min=1e-3)
        return AutoencoderCodec(self.autoencoder, mean.tolist(), std.tolist()).to(pictures.device)

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents `(b, z, H/f, W/f)` of pictures `(b, 3, H, W)` in [-1, 1]; the mode, not a sample."""
        return (self._raw_latents(pictures) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures `(b, 3, H, W)` in [-1, 1]."""
        return self.autoencoder.decode(latents * self.std + self.mean).sample.clamp(-1.0, 1.0)

    def _raw_latents(self, pictures: torch.Tensor) -> torch.Tensor:
        encoded = self.autoencoder.encode(pictures)
        return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the autoencoder in diffusers' format, and the latent statistics beside it."""
        self.autoencoder.save_pretrained(folder)
        write_json(
            Path(folder) / "latents.json", {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "AutoencoderCodec":
        """Read a folder of `save_pretrained`, ours or diffusers' own (then without latent statistics)."""
        folder = Path(folder)
        config_path = folder / "config.json"
        if not config_path.is_file():
            raise StedmError(f"{folder}: no autoencoder here (config.json is missing); give a diffusers folder")
        name = json.loads(config_path.read_text(encoding="utf-8")).get("_class_name")
        kind = getattr(diffusers, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
            raise StedmError(f"{config_path}: _class_name {name!r} is not an autoencoder of diffusers")
        statistics = folder / "latents.json"
        values = json.loads(statistics.read_text(encoding="utf-8")) if statistics.is_file() else {}
        return cls(kind.from_pretrained(str(folder), local_files_only=True), **values)


Codec = PixelCodec | AutoencoderCodec


def load_codec(folder: Path) -> Codec:
    """Read the codec of a model folder."""
    if not (folder / "config.json").is_file():
        raise StedmError(f"{folder}: no codec here (config.json is missing)")
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    return PixelCodec.from_pretrained(str(folder)) if name == "PixelCodec" else AutoencoderCodec.from_pretrained(folder)
