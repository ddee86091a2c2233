"""First stages: pixels, or a trained autoencoder that is given."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from stedm.config.base import Part, Positive


class PixelCodecConfig(Part):
    """No first stage: pixels, folded so that each s x s square becomes one position with 3 s^2 channels."""

    kind: Literal["pixel"] = "pixel"
    space_to_depth: Positive = 2


class AutoencoderCodecConfig(Part):
    """A trained diffusers autoencoder (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC, ...), used as it is."""

    kind: Literal["autoencoder"] = "autoencoder"
    source: str
    """Folder in diffusers' format (config.json and safetensors); or a name on the Hugging Face hub, with the folder
    inside it if there is one (`owner/name`, `owner/name/vae`), read from the local hub cache only."""


class VQF4CodecConfig(Part):
    """The paper's first stage: VQ-f4 of CompVis' latent-diffusion, latents of 3 channels at a quarter of the side."""

    kind: Literal["vq-f4"] = "vq-f4"
    weights: Path
    """The published checkpoint (.ckpt or .safetensors), which is converted when it is opened."""


def _codec_kind(value: Any) -> str:
    """The kind that is named, else the one that has the key that is given."""
    if not isinstance(value, dict):
        return getattr(value, "kind", "pixel")
    by_key = {"source": "autoencoder", "weights": "vq-f4"}
    return value.get("kind") or next((kind for key, kind in by_key.items() if key in value), "pixel")


CodecConfig = Annotated[
    Annotated[PixelCodecConfig, Tag("pixel")]
    | Annotated[AutoencoderCodecConfig, Tag("autoencoder")]
    | Annotated[VQF4CodecConfig, Tag("vq-f4")],
    Discriminator(_codec_kind),
]
