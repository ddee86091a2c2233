"""Reading published weights from local safetensors files: nothing is downloaded and nothing unpickled."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stedm.errors import StedmError
from stedm.io.files import require_file


def load_backbone_weights(backbone: nn.Module, path: Path) -> None:
    """Take what a backbone needs from a published classifier; nothing that it needs may be missing."""
    published = {_key(key): value for key, value in read_weights(path).items()}
    wanted = backbone.state_dict()
    missing = [key for key in wanted if _key(key) not in published]
    if missing:
        raise StedmError(
            f"{path}: not weights of this backbone ({len(missing)} tensors missing, first {missing[0]}); "
            "give those of the encoder"
        )
    load_weights(backbone, {key: published[_key(key)] for key in wanted}, path)


def _key(name: str) -> str:
    # smp holds a timm network as `model`, and timm's feature extractors say `stages_0` for `stages.0`.
    return name.removeprefix("model.").replace(".", "_")


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load a whole state; StedmError with one line if it belongs to another network."""
    for key, value in module.state_dict().items():
        # Whole numbers under the name of a weight would be converted without a word.
        if key in weights and weights[key].is_floating_point() != value.is_floating_point():
            raise StedmError(
                f"{path}: not weights of this network ({key} is {weights[key].dtype}); give those that belong to it"
            )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise StedmError(
            f"{path}: not weights of this network ({' '.join(str(error).split())[:200]}); give those that belong to it"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, all finite; StedmError with one line if it can't be read."""
    try:
        require_file(path)
        weights = load_file(path)
    except Exception as error:  # beside its own errors it raises what a damaged header makes of dtypes and shapes
        raise StedmError(
            f"{path}: not a readable safetensors file ({' '.join(str(error).split())[:200]}); copy it again"
        ) from error
    require_finite(weights, str(path))
    return weights


def require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """StedmError with one line if a tensor holds NaN or infinity: such a network predicts nothing, without a word."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StedmError(f"{source}: {name} holds values that are not finite (NaN or infinity); train it again")
