"""Versions of the packages that stedm is installed with, as pip's constraints on standard output.

python requirements/versions.py tested                      what is installed here, exactly
python requirements/versions.py lowest                      the lowest that pyproject.toml allows
python requirements/versions.py lowest --without torch      of these, all but some

`make lock` and `make lowest` use it (CONTRIBUTING.md).
"""

import argparse
import contextlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
OF_TORCH = re.compile("nvidia-|cuda-|triton$")
"""What torch's own wheel asks for, by platform and exactly."""


def optional() -> dict[str, list[str]]:
    """The extras, as pyproject.toml has them."""
    return _project()["optional-dependencies"]


def _project() -> dict[str, Any]:
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]


def declared(extras: tuple[str, ...] | None = None) -> dict[str, Requirement]:
    """Direct dependencies by name, with those of some extras; None = all."""
    chosen = tuple(optional()) if extras is None else extras
    lines = [*_project()["dependencies"], *(line for name in chosen for line in optional()[name])]
    found = {canonicalize_name(each.name): each for each in map(Requirement, lines)}
    found.pop("stedm", None)  # the extra that names the others
    return found


def closure(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """What is installed of some requirements and of all that they ask for, by name."""
    found: dict[str, Distribution] = {}
    waiting, seen = list(requirements), set()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if (name, *sorted(asked.extras)) in seen:
            continue
        seen.add((name, *sorted(asked.extras)))
        with contextlib.suppress(PackageNotFoundError):  # such as an extra of an extra
            found[name] = distribution(name)
            waiting += _asked_by(found[name].requires or [], asked.extras)
    return found


def tested() -> dict[str, str]:
    """Versions of what is installed for stedm with all extras; of torch's own libraries none."""
    direct = declared()
    found = closure(direct.values())
    if missing := sorted(set(direct) - set(found)):
        raise SystemExit(f"{', '.join(missing)}: declared in pyproject.toml and not installed; run `make lint` first")
    # Without the build: 2.14.1+cpu is 2.14.1.
    versions = {name: installed.version.partition("+")[0] for name, installed in sorted(found.items())}
    return {name: version for name, version in versions.items() if not OF_TORCH.match(name)}


def _asked_by(lines: list[str], extras: set[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, lines):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def lowest() -> dict[str, str]:
    """The lower bounds of what is needed to run; tools of development are taken as they come."""
    needed = declared(tuple(name for name in optional() if name != "dev"))
    return {name: _bound(requirement) for name, requirement in sorted(needed.items())}


def _bound(requirement: Requirement) -> str:
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(bounds) != 1:
        raise SystemExit(f"{requirement.name}: no lower bound in pyproject.toml")
    return bounds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("tested", "lowest"))
    parser.add_argument("--without", nargs="*", default=[])
    asked = parser.parse_args()
    found = {"tested": tested, "lowest": lowest}[asked.which]()
    print("".join(f"{name}=={version}\n" for name, version in found.items() if name not in asked.without), end="")


if __name__ == "__main__":
    main()
