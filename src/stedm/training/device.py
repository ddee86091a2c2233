"""The one place that chooses the device, and puts networks on it in the way in which they run fastest there.

On a CPU a network's own memory format stands.
"""

from typing import TypeVar

import torch
from torch import nn

from stedm.config import MachineConfig
from stedm.errors import StedmError
from stedm.training.precision import autocast, resolve_precision
from stedm.workers.group import group_size
from stedm.workers.pool import number_here

_Network = TypeVar("_Network", bound=nn.Module)
_TENSOR_CORES = ("cuda",)
"""Kinds of devices that are fast at convolutions in channels_last."""


def choose_device(name: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` (`machine.device`) to a device of this machine.

    Raises:
        StedmError: there is no such device here, or the processes of torchrun were all given the same one.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = device_name(name, n_gpus, torch.backends.mps.is_available(), number_here(), group_size())
    device = torch.device(found)
    if device.type == "cuda":
        # What says only "cuda" means this one.
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return device


def device_name(name: str, n_gpus: int, has_mps: bool, number: int = 0, processes: int = 1) -> str:
    """The device of process `number` on a machine with `n_gpus`; processes without one of their own share in turn."""
    if name == "auto":
        name = "cuda" if n_gpus else "mps" if has_mps else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= n_gpus:
        there = f"this machine has {n_gpus}" if n_gpus else "torch sees no GPU here"
        raise StedmError(f"device {name}: {there}; give auto, cpu or one that is there (--device, machine.device)")
    if kind == "mps" and not has_mps:
        raise StedmError("device mps: torch sees none here; give auto or cpu (--device, machine.device)")
    if kind == "cuda" and processes > 1 and (index or number >= n_gpus):
        alone = f"{processes} processes train together, each on a GPU of its own, and this machine has {n_gpus}"
        raise StedmError(f"device {name}: {alone}; start as many as it has, with --device auto")
    return f"cuda:{number % n_gpus}" if name == "cuda" else name


def place(network: _Network, machine: MachineConfig) -> _Network:
    """Put a network on the device of `machine`, to be used and not trained; returns it.

    Its forward pass runs in the precision of `machine`, as in training.
    """
    device = choose_device(machine.device)
    move(network, device)
    precision = resolve_precision(machine.precision, device)
    if precision != "fp32":
        forward = network.forward

        def in_precision(*args, **kwargs):
            with autocast(precision, device):
                return forward(*args, **kwargs)

        network.forward = in_precision
    return network


def move(network: _Network, device: str | torch.device) -> _Network:
    """Put a network on a device, on a GPU in the memory format that it convolves fastest in; returns it."""
    device = torch.device(device)
    network.to(device)
    if device.type in _TENSOR_CORES:
        network.to(memory_format=torch.channels_last)
    return network
