"""What the folder of a segmenter says of it."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

OWN_NETWORK = "own network"
"""The `architecture` of a segmenter whose network isn't one of segmentation_models_pytorch."""


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo:
    """What `config.json` of a saved segmenter says: enough to build the network and to read its masks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    architecture: str
    """`OWN_NETWORK`, or one of segmentation_models_pytorch, with the three keys below."""
    encoder: str = ""
    encoder_depth: int = 0
    decoder_channels: list[Annotated[int, Field(gt=0, le=4096)]] = field(default_factory=list)
    classes: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=255)]
    image_px: Annotated[int, Field(ge=1, le=1 << 14)]
    """Side of the square images that the network was trained on."""
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    mpp: Annotated[float, Field(gt=0)] | None = None
    """Microns per pixel of those images; None where they have no resolution in common or it isn't known."""
    source_px: list[int] | None = None
    """Smallest and largest shorter side of the images before they were reduced to `image_px`; None in older folders."""
    mirror: bool = False
    """Whether it predicts from mirror images too (see `Mirrored`)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions, data and training that it is from (stedm.data.provenance.of_model)."""
