"""`stedm doctor`: what is installed, on which machine, what is missing and how to install it.

What ought to be there is what the metadata of the package say, and so pyproject.toml: nothing is listed here. torch is
imported only after it is known to be there.
"""

import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from stedm.columns import aligned
from stedm.errors import StedmError
from stedm.version import __version__

NAME = "stedm"
_WIDEST = 100


@dataclass(frozen=True)
class Examination:
    """What was found, for the terminal; and what keeps stedm from working, a line each with what to do."""

    text: str
    problems: list[str]


def examine_machine(device: str = "auto") -> Examination:
    """Look at packages and machine, and compute something on `device`."""
    requirements, names = _told()
    needed = [parsed for parsed in requirements if _is_of(parsed, "")]
    problems = [
        f"{wrong}; run pip install '{parsed.name}{parsed.specifier}'" for parsed in needed if (wrong := _wrong(parsed))
    ]
    rows = [["stedm", f"{__version__}, Python {platform.python_version()} ({sys.executable})"]]
    rows += _wrapped(
        "packages", ", ".join(f"{parsed.name} {_installed(parsed.name) or 'MISSING'}" for parsed in needed)
    )
    if not problems:
        machine, problem = _machine(device)
        rows += machine
        problems += [problem] if problem else []
    for name, wrong in extras(requirements, names).items():
        rows += _wrapped(f"extra {name}", f'{wrong}: pip install "{NAME}[{name}]"' if wrong else "installed")
    if not requirements:
        rows.append(["extras", "not known: stedm runs from its sources; run pip install . there"])
    return Examination(aligned(rows), problems)


def _wrapped(name: str, text: str) -> list[list[str]]:
    return [
        [name if not number else "", line]
        for number, line in enumerate(textwrap.wrap(text, _WIDEST, break_on_hyphens=False))
    ]


# ---- packages -------------------------------------------------------------------------------------------------------


def _told() -> tuple[list[Requirement], list[str]]:
    """What the package requires, and the names of its extras; nothing where it isn't installed as one."""
    try:
        told = metadata(NAME)
    except PackageNotFoundError:
        return [], []
    return list(map(Requirement, requires(NAME) or [])), told.get_all("Provides-Extra") or []


def extras(requirements: Sequence[Requirement], names: Sequence[str]) -> dict[str, str]:
    """Of each extra what is wrong with its packages, "" = nothing; without those that are made of others."""
    parts = {name: [parsed for parsed in requirements if _is_of(parsed, name)] for name in names}
    packages = {name: {parsed.name for parsed in those} for name, those in parts.items()}
    own = [name for name in names if not any(packages[name] > other for other in packages.values() if other)]
    return {name: ", ".join(filter(None, map(_wrong, parts[name]))) for name in own}


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement is of an extra, and of nothing else; "" = of the package itself."""
    marker = requirement.marker
    without = marker is None or marker.evaluate({"extra": ""})
    return without if not extra else marker is not None and not without and marker.evaluate({"extra": extra})


def _wrong(requirement: Requirement) -> str:
    """What is wrong with what is installed; "" = nothing."""
    found = _installed(requirement.name)
    if found is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} is {found} and not {requirement.specifier}"
    return ""


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# ---- machine --------------------------------------------------------------------------------------------------------


def _machine(device: str) -> tuple[list[list[str]], str]:
    """Rows about the machine, and what is wrong with it."""
    import torch

    from stedm.data.memory import default_bytes, memory_bytes
    from stedm.training.device import choose_device
    from stedm.training.precision import resolve_precision

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    images = f"{default_bytes() / 1e9:.1f} GB of it for decoded images (machine.cache_mb)"
    rows = [
        ["machine", f"{platform.platform()}, {cores} cores, {torch.get_num_threads()} threads of torch"],
        ["memory", f"{memory_bytes() / 1e9:.1f} GB, {images}"],
        ["disk", f"{shutil.disk_usage(os.curdir).free / 1e9:.1f} GB free here"],
    ]
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        rows.append([f"cuda:{number}", f"{found.name}, {found.total_memory / 1e9:.1f} GB"])
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        rows.append(
            ["GPU", f"a driver is here, but torch {torch.__version__} sees none: https://pytorch.org has others"]
        )
    try:
        chosen = choose_device(device)
        rows.append(
            ["device", f"{chosen}, precision {resolve_precision('auto', chosen)} (--device, machine.precision)"]
        )
        _try(chosen)
    except StedmError as error:
        return rows, str(error)
    except Exception as error:  # drivers and kernels raise whatever they like
        text = " ".join(str(error).split())[:200] or type(error).__name__
        return (
            rows,
            f"device {device}: can't compute a step of training ({text}); install a torch made for it, or --device cpu",
        )
    return rows, ""


def _try(device) -> None:
    """A step of training of a small network on a device, in the precision that it would be trained in."""
    import torch
    from torch import nn

    from stedm.training.device import move
    from stedm.training.precision import autocast

    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    move(network, device)
    with autocast("auto", device):
        loss = network(torch.ones(2, 3, 16, 16, device=device)).float().square().mean()
    loss.backward()
    if not torch.isfinite(loss):
        raise StedmError(f"device {device}: computes what is not a number; give --device cpu, or another driver")
