"""What an exported segmenter says of itself: a card as JSON, and rdf.yaml for bioimage.io."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stedm.data.card import README, licence_keys, source_in
from stedm.io.files import write_json, write_text
from stedm.io.manifest import sha256_of
from stedm.segmentation.card import segmenter_card
from stedm.segmentation.info import SegmenterInfo
from stedm.version import __version__

EXPORTED = "stedm export"
"""Mark of everything that is exported."""
INPUT, OUTPUT = "image", "probabilities"
CARD = "model.json"
"""In a folder; beside a single file it is FILE.onnx.json or FILE.pt.json."""
_RDF_FORMAT = "0.5.4"
_METHOD = {
    "text": "Öttl et al., Style-Extracting Diffusion Models for Semi-Supervised Histopathology Segmentation, ECCV 2024",
    "url": "https://arxiv.org/abs/2403.14429",
}
_WEIGHTS = {
    ".onnx": ("onnx", "opset_version", {"parent": "torchscript", "comment": "Both are written from one network."}),
    ".pt": ("torchscript", "pytorch_version", {}),
}
"""Of each file its format there, the key of its version, and what else is said."""


@dataclass(frozen=True)
class Written:
    """An exported file and what it takes.

    any_size: images of any size whose sides are multiples of `multiple_px`; otherwise of the training side alone.
    version: of the format: ONNX's opset, or torch's for TorchScript.
    difference: the largest one of a probability to the segmenter's; None = not compared yet.
    """

    path: Path
    any_size: bool
    multiple_px: int
    version: str
    difference: float | None = None


def card(info: SegmenterInfo, file: Written) -> dict[str, Any]:
    """How to use an exported segmenter."""
    rest = ("classes", "mpp", "image_px", "provenance")
    told = {} if file.difference is None else {"largest_difference": file.difference}
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
            "normalisation": "none to do: x / 127.5 - 1 is the first step of the network",
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
        "network": {key: value for key, value in asdict(info).items() if key not in rest},
        "provenance": info.provenance,
        **told,
    }


def write_package(
    folder: Path, info: SegmenterInfo, files: Sequence[Written], image: np.ndarray, probabilities: np.ndarray
) -> None:
    """Write what stands beside the networks in a folder: cards for people and programs, and the tensors of a test."""
    np.save(folder / "test_image.npy", image)
    np.save(folder / "test_probabilities.npy", probabilities)
    write_text(folder / README, segmenter_card(info))
    described = {file.path.suffix.removeprefix("."): card(info, file) for file in files}
    write_json(folder / CARD, {"made_by": EXPORTED, **described})
    text = yaml.safe_dump(_rdf(folder, info, files), sort_keys=False, allow_unicode=True)
    write_text(folder / "rdf.yaml", text)


def _rdf(folder: Path, info: SegmenterInfo, files: Sequence[Written]) -> dict[str, Any]:
    """The description of a model as bioimage.io reads it (its format, `model` 0.5)."""
    named = source_in(info.provenance)["name"] or "images of unnamed data"
    values: dict[str, Any] = {
        "format_version": _RDF_FORMAT,
        "type": "model",
        "name": _plain(f"Segmenter of {named}"),
        "description": f"Segments images into {', '.join(info.classes)}. Trained with stedm on {named}.",
        "documentation": README,
        "cite": [_METHOD],
        "tags": ["histopathology", "semantic-segmentation", "stedm"],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [_tensor(folder / "test_image.npy", INPUT, ["red", "green", "blue"], 255.0, _sides(info, files))],
        "outputs": [_tensor(folder / "test_probabilities.npy", OUTPUT, list(info.classes), 1.0, _same_sides(info))],
        "weights": {_WEIGHTS[file.path.suffix][0]: _weights(file) for file in files},
        "config": {"stedm": {"classes": list(info.classes), "mpp": info.mpp, "tile_px": info.image_px}},
    }
    licence = licence_keys(source_in(info.provenance)["licence"])["license"]
    if (
        spdx := "Apache-2.0"
        if licence == "apache-2.0"
        else licence.upper()
        if licence.startswith(("cc", "mit"))
        else ""
    ):
        values["license"] = spdx
    return values


def _tensor(path: Path, name: str, channels: list[str], most: float, sides: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": name,
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": channels}, *sides],
        "data": {"type": "float32", "range": [0.0, most]},
        "test_tensor": {"source": path.name, "sha256": sha256_of(path)},
    }


def _sides(info: SegmenterInfo, files: Sequence[Written]) -> list[dict[str, Any]]:
    """The axes y and x of images: which sizes they may have."""
    step = files[0].multiple_px
    smallest = -(-min(info.image_px, 2 * step) // step) * step
    any_size = all(file.any_size for file in files)
    return [_space(info, axis, {"min": smallest, "step": step} if any_size else info.image_px) for axis in "yx"]


def _same_sides(info: SegmenterInfo) -> list[dict[str, Any]]:
    return [_space(info, axis, {"tensor_id": INPUT, "axis_id": axis}) for axis in "yx"]


def _space(info: SegmenterInfo, axis: str, size: Any) -> dict[str, Any]:
    resolution = {} if info.mpp is None else {"unit": "micrometer", "scale": info.mpp}
    return {"type": "space", "id": axis, "size": size, **resolution}


def _weights(file: Written) -> dict[str, Any]:
    _, version, parent = _WEIGHTS[file.path.suffix]
    entry = {"source": file.path.name, "sha256": sha256_of(file.path), **parent}
    return {**entry, version: int(file.version) if version == "opset_version" else file.version}


def _plain(text: str) -> str:
    """A name as bioimage.io takes it: letters, digits, spaces and a few signs."""
    return re.sub(r"[^\w +()/-]+", " ", text).strip()[:120]
