"""Reading published weights from local safetensors files: nothing is downloaded and nothing unpickled."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stedm.errors import StedmError


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Take what a backbone needs from a published classifier; nothing that it needs may be missing."""
    published = {_key(key): value for key, value in read_weights(path).items()}
    wanted = backbone.state_dict()
    missing = [key for key in wanted if _key(key) not in published]
    if missing:
        raise StedmError(f"{path}: not weights of this backbone ({len(missing)} tensors missing, first {missing[0]})")
    load_weights(backbone, {key: published[_key(key)] for key in wanted}, path)


def _key(name: str) -> str:
    # smp holds a timm network as `model`, and timm's feature extractors say `stages_0` for `stages.0`.
    return name.removeprefix("model.").replace(".", "_")


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load a whole state; StedmError with one line if it belongs to another network."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise StedmError(f"{path}: not weights of this network ({' '.join(str(error).split())[:200]})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file; StedmError with one line if it can't be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StedmError(f"{path}: not a readable safetensors file ({error})") from error
