"""Checkpoints of a training loop that hold numbers and nothing that runs: safetensors and JSON with their SHA-256.

FOLDER/model.safetensors      the weights as they are trained, and buffers
FOLDER/averages.safetensors   the averaged weights by name, where there are any
FOLDER/optimizer.safetensors  AdamW's moments, as PARAMETER.MOMENT
FOLDER/checkpoint.json        the step, how often was averaged, the scale of float16's loss, SHA-256 of the files

Nothing else decides how a run goes on: learning rate, samples and noise are functions of the step (`Trainer`).
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from stedm.errors import StedmError
from stedm.io.files import replacing, require_file, write_json
from stedm.io.manifest import sha256_of

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

_INDEX = "checkpoint.json"
_MODEL, _AVERAGES, _OPTIMIZER = "model.safetensors", "averages.safetensors", "optimizer.safetensors"


class DamagedCheckpointError(Exception):
    """A file is missing, cut off or changed; the message says which."""


def save_checkpoint(
    folder: Path,
    step: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: "EMAModel | None",
    scaler: torch.amp.GradScaler,
) -> None:
    """Write all that a run at `step` needs to go on; the folder appears when it is complete."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        save_model(network, str(temporary / _MODEL))
        save_file(_moments(network, optimizer), temporary / _OPTIMIZER)
        if averages is not None:
            named = zip(network.named_parameters(), averages.shadow_params, strict=True)
            save_file({name: value.contiguous() for (name, _), value in named}, temporary / _AVERAGES)
        index = {
            "step": step,
            "averaged": averages.optimization_step if averages is not None else None,
            **({"scaler": scaler.state_dict()} if scaler.is_enabled() else {}),
            "sha256": {file.name: sha256_of(file) for file in sorted(temporary.iterdir())},
        }
        write_json(temporary / _INDEX, index | {"sha256_of_index": _sha256_of(index)})


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    averages: "EMAModel | None",
    scaler: torch.amp.GradScaler,
) -> int:
    """Put all in its place; returns the step. Nothing is changed where the checkpoint is damaged.

    Raises:
        DamagedCheckpointError: see there.
        StedmError: a checkpoint of an older version, which can't be read without running what it says, or of another
            network.
    """
    index = _checked_index(folder)
    try:
        load_model(network, str(folder / _MODEL))
        _load_moments(load_file(folder / _OPTIMIZER), network, optimizer)
        if averages is not None:
            saved = load_file(folder / _AVERAGES)
            for (name, _), value in zip(network.named_parameters(), averages.shadow_params, strict=True):
                value.copy_(saved[name])
            averages.optimization_step = int(index["averaged"])
        if scaler.is_enabled() and "scaler" in index:  # else it was begun in another precision
            scaler.load_state_dict(index["scaler"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StedmError(f"{folder}: not a checkpoint of this network ({reason}); remove it and run again") from error
    return index["step"]


def discard_checkpoints(folder: Path) -> None:
    """Of a training whose model is complete: they are three times as large as the model, and nobody reads them."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _checked_index(folder: Path) -> dict:
    """The content of checkpoint.json, after all files were seen to be those that it names."""
    path = folder / _INDEX
    if not path.is_file() and any(folder.glob("*.pkl")):
        raise StedmError(
            f"{folder}: a checkpoint of an older version of stedm, which is not gone on with; "
            f"remove {folder.parent} to train this network anew"
        )
    try:
        require_file(path)
        index = json.loads(path.read_text(encoding="utf-8"))
        said = index.pop("sha256_of_index")
        if said != _sha256_of(index) or not isinstance(index["step"], int):
            raise DamagedCheckpointError(f"{path} is damaged")
        for name, sha256 in index["sha256"].items():
            if sha256_of(folder / name) != sha256:
                raise DamagedCheckpointError(f"{folder / name} is damaged")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{error.filename} is missing") from error
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} is damaged") from error
    return index


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and number of steps by parameter; of those that are not trained there are none."""
    return {
        f"{name}.{key}": value.contiguous()
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def _load_moments(saved: dict[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(network.named_parameters())
    for name, value in saved.items():
        of, _, key = name.rpartition(".")
        parameter = parameters[of]
        # Fused AdamW takes moments in another memory format than their weights' without a word, and wrongly.
        alike = torch.empty_like(parameter, requires_grad=False) if value.shape == parameter.shape else value
        optimizer.state[parameter][key] = torch.empty_like(alike, device=parameter.device).copy_(value)


def _sha256_of(index: dict) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
