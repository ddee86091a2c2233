"""Which arithmetic the networks run in: bfloat16 where the machine is fast at it, else float16 or float32."""

import contextlib

import torch
from torch import Tensor, nn

from stedm.errors import StedmError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device, trained: nn.Module | None = None) -> str:
    """`auto`, `fp32`, `bf16` or `fp16` to one of the latter three.

    trained: the network whose training is asked for, if it is one.

    `auto` takes bf16 on GPUs that have it and on CPUs that are fast at it: with AMX, or AMD's with AVX-512 BF16 (a step
    of training takes 0.6 to 0.7 of the time, `benchmarks/precision.py`). Intel's AVX-512 BF16 without AMX, as virtual
    machines show it, is slower than fp32 (1.1 to 1.4 times the time); elsewhere bf16 is emulated and slower still.
    Of other CUDA GPUs it takes fp16, whose gradients are scaled in training (`Trainer`).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        # torch < 2.10 can't tell; fp32 is right everywhere.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        full_rate = capabilities.get("avx512_bf16") and "intel" not in str(capabilities.get("cpu_name")).lower()
        fast = capabilities.get("amx_bf16") or full_rate
        return "bf16" if fast and not (trained and has_broken_gradient(trained)) else "fp32"
    return "fp32"


def has_broken_gradient(network: nn.Module) -> bool:
    """Whether bf16 on a CPU gives NaN for the gradient of a convolution's weights: dilated, channels_last, and channels
    that are no multiple of 16 (torch 2.14.1, AVX-512 BF16; the forward pass is right)."""
    return any(
        isinstance(part, nn.Conv2d) and max(part.dilation) > 1 and (part.in_channels % 16 or part.out_channels % 16)
        for part in network.modules()
    )


def autocast(name: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which a network runs in the given precision; its weights stay float32."""
    dtype = _DTYPES.get(resolve_precision(name, device))
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def checked_numbers(values: Tensor, of: str) -> Tensor:
    """What a network `of` some name has answered, where it is all numbers; -inf, the logarithm of 0, is one.

    Finite weights may still give NaN: float16 ends at 65,504, and a training that came apart leaves large weights.
    Rounded to an image that would be black, and as the most probable class the first one, without a word.

    Raises:
        StedmError: there is NaN or infinity in it.
    """
    if not (values < torch.inf).all():
        raise StedmError(
            f"{of} answered with NaN or infinity, which is neither a colour nor a class; compute exactly "
            "(machine.precision=fp32, or --device cpu), or train it anew with a lower learning rate"
        )
    return values
