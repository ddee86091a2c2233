"""One version, and dependencies that are declared, bounded from below and locked."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

import stedm
import versions

REPOSITORY = Path(__file__).parents[2]
LOCK = REPOSITORY / "requirements" / "tested.txt"


@pytest.fixture(scope="module")
def locked() -> dict[str, Version]:
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == stedm.__version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {stedm.__version__}" in changelog


def test_the_lock_names_every_direct_dependency_within_its_bounds(locked):
    direct = versions.declared()
    assert not set(direct) - set(locked), "run `make lock`"
    outside = [str(each) for name, each in direct.items() if not each.specifier.contains(locked[name])]
    assert not outside, outside


def test_every_dependency_has_one_lower_bound_and_no_upper_one():
    assert set(versions.lowest()) >= {"torch", "numpy", "openslide-python", "starlette", "ray"}
    for requirement in versions.declared().values():
        assert [each.operator for each in requirement.specifier] == [">="], str(requirement)


def test_constraints_are_printed_without_those_that_are_left_out():
    command = [sys.executable, str(REPOSITORY / "requirements" / "versions.py"), "lowest", "--without", "torch"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "torchvision==0.21" in shown
    assert not any(line.startswith("torch=") for line in shown)


def test_what_the_package_imports_is_declared():
    """By itself, not by way of another package, which may drop it."""
    of_module = packages_distributions()
    declared = set(versions.declared(tuple(name for name in versions.optional() if name != "dev")))
    undeclared = set()
    for path in (REPOSITORY / "src").rglob("*.py"):
        for module in _imported(path):
            if module not in sys.stdlib_module_names and module != "stedm":
                names = {canonicalize_name(name) for name in of_module.get(module, [module])}
                if not names & declared:
                    undeclared.add(f"{path.name} imports {module}")
    assert not undeclared


def _imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, in functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}
