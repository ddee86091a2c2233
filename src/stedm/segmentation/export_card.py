"""What an exported segmenter says of itself: a card as JSON, and rdf.yaml for bioimage.io."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stedm.segmentation.info import SegmenterInfo
from stedm.version import __version__

EXPORTED = "stedm export"
"""Mark of everything that is exported."""
INPUT, OUTPUT = "image", "probabilities"
CARD = "model.json"
"""In a folder; beside a single file it is FILE.onnx.json or FILE.pt.json."""


@dataclass(frozen=True)
class Written:
    """An exported file and what it takes.

    any_size: images of any size whose sides are multiples of `multiple_px`; otherwise of the training side alone.
    difference: the largest one of a probability to the segmenter's.
    """

    path: Path
    any_size: bool
    multiple_px: int
    difference: float


def card(info: SegmenterInfo, file: Written) -> dict[str, Any]:
    """How to use an exported segmenter."""
    return {
        "made_by": EXPORTED,
        "stedm": __version__,
        "file": file.path.name,
        "classes": list(info.classes),
        "mpp": info.mpp,
        "tile_px": info.image_px,
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "axes": ["batch", "channel", "y", "x"],
            "channels": ["red", "green", "blue"],
            "range": [0, 255],
            "normalisation": "none: x / 127.5 - 1 is the first step of the network",
            "sides_px": f"multiples of {file.multiple_px}" if file.any_size else f"{info.image_px}",
            "batch": "any",
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "axes": ["batch", "class", "y", "x"],
            "range": [0, 1],
            "activation": "softmax is the last step of the network; the class is the index of the largest value",
        },
        "network": {key: value for key, value in asdict(info).items() if key not in ("classes", "mpp", "image_px")},
        "largest_difference": file.difference,
    }


def write_package(folder, info, files, image, probabilities) -> None:
    raise NotImplementedError
