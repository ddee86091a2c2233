"""Networks in diffusers' format (config.json and safetensors), read from disk alone and whole."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin

from stedm.errors import StedmError
from stedm.io.artefacts import read_json
from stedm.io.weights import require_finite

_Part = TypeVar("_Part", bound=ModelMixin)
_LARGEST_SIZE, _MOST_LAYERS, _LONGEST_LIST = 1 << 16, 128, 256
_WRONG = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
"""What diffusers finds in weights and only warns of."""


def read_part(kind: type[_Part], folder: Path) -> _Part:
    """A network of diffusers from its folder (config.json and safetensors): every weight read, every one used.

    Nothing is downloaded, also not where the folder is missing and its name reads like one of the hub, and nothing
    is unpickled.

    Raises:
        StedmError: the folder is missing, or holds no such network whole and finite.
    """
    folder = Path(folder).resolve()
    read_part_config(folder)
    require_weights(folder)
    try:
        with _quiet("diffusers"):
            network, told = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # building a network from a bad configuration raises anything
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise StedmError(f"{folder}: can't be read ({text}); copy the folder again, or train anew") from error
    wrong = [f"{what.replace('_', ' ')}: {told[what][0]}" for what in _WRONG if told.get(what)]
    if wrong:
        raise StedmError(
            f"{folder}: not the weights of its config.json ({' '.join(wrong[0].split())[:200]}); copy the folder again"
        )
    require_finite(network.state_dict(), str(folder))
    # Diffusers would write the whole path into the config.json of every copy.
    network.register_to_config(_name_or_path=folder.name)
    return network


def require_weights(folder: Path) -> None:
    """Raises `StedmError` where a folder has no weights as safetensors."""
    if not any(folder.glob("diffusion_pytorch_model*.safetensors*")):
        raise StedmError(
            f"{folder}: no weights here (diffusion_pytorch_model.safetensors is missing); copy the folder as a whole"
        )


def read_part_config(folder: Path) -> dict[str, Any]:
    """The config.json of a network of diffusers; no number or list in it is larger than those of real ones."""
    path = folder / "config.json"
    values = read_json(path, dict[str, Any], hint="give a folder with config.json and safetensors")
    if values.get("quantization_config") is not None:
        raise StedmError(f"{path}: has a quantization_config; give a network that isn't quantized")
    _check_sizes(values, path)
    return values


def _check_sizes(value: Any, path: Path, key: str = "") -> None:
    if isinstance(value, dict | list):
        if len(value) > _LONGEST_LIST:
            raise StedmError(
                f"{path}: {key or 'configuration'} has {len(value)} entries, at most {_LONGEST_LIST}; "
                "give a smaller network"
            )
        inner = value.items() if isinstance(value, dict) else ((key, item) for item in value)
        for name, item in inner:
            _check_sizes(item, path, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = _MOST_LAYERS if isinstance(value, int) and ("layers" in key or "blocks" in key) else _LARGEST_SIZE
        most = _LARGEST_SIZE if "channels" in key else most
        if not abs(value) <= most:
            raise StedmError(f"{path}: {key} is {str(value)[:20]}, at most {most}; give a smaller network")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the warnings of a logger: what it warns of is refused here."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
