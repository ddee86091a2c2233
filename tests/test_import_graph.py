"""Imports run one way: a room may import rooms below it and its own, wherever the import stands."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = (
    "version",
    "errors",
    "seeds",
    "columns",
    "progress",
    "io",
    "config",
    "colour",
    "workers",
    "slides",
    "data",
    "training",
    "style",
    "layout",
    "phantom",
    "public",
    "exchange",
    "diffusion",
    "segmentation",
    "synthesis",
    "evaluation",
    "experiment",
    "app",
    "cli",
    "__main__",
    "",
)
"""From bottom to top; "" is the package itself, whose __init__ shows the rest and which nobody in it imports.

Slides lie below data: a dataset folder may have regions of slides for rows, and a slide knows of no folder.
"""
SOURCES = Path(__file__).parents[1] / "src"


def room_of(module: str) -> str:
    """`stedm.data.folder` to `data`."""
    return module.split(".")[1] if "." in module else ""


def imports_of(source: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of each module of the package that code imports, also in functions and for type checkers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: an import is relative; write the whole name"
            of_names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in of_names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "stedm")


def offences(sources: dict[str, str]) -> list[str]:
    """Imports that run up, as `FILE:LINE imports MODULE`; `sources`: code by path within src."""
    rank = {room: number for number, room in enumerate(ROOMS)}
    module_of = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    modules = {".".join(name.split(".")[:n]) for name in module_of.values() for n in (1, 2, 3)}
    return [
        f"src/{path}:{line} imports {name}"
        for path, source in sorted(sources.items())
        for line, name in imports_of(source, modules)
        if rank[room_of(name)] > rank[room_of(module_of[path])]
    ]


def test_no_import_runs_up():
    sources = {str(path.relative_to(SOURCES)): path.read_text("utf-8") for path in (SOURCES / "stedm").rglob("*.py")}
    rooms = {Path(path).with_suffix("").parts[1] for path in sources} - {"__init__"} | {""}
    assert rooms == set(ROOMS), "a room is missing in the order, or gone"
    found = offences(sources)
    assert not found, found[0]


def test_the_floor_plan_names_the_rooms_in_their_order():
    page = (SOURCES.parent / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.M)
    named = [room for row in rows for room in re.findall(r"`(\w+)`", row)]
    assert named == [room for room in reversed(ROOMS) if room not in ("", "__main__")]


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("import stedm.data.folder", "1 imports stedm.data.folder"),
        ("from stedm.data import folder", "1 imports stedm.data.folder"),
        ("from stedm.data.folder import DatasetFolder", "1 imports stedm.data.folder"),
        ("def f():\n    from stedm.data.folder import DatasetFolder", "2 imports stedm.data.folder"),
        ("if TYPE_CHECKING:\n    from stedm.data.folder import DatasetFolder", "2 imports stedm.data.folder"),
        ("from stedm import data", "1 imports stedm.data"),
        ("from stedm import __version__", "1 imports stedm"),
    ],
)
def test_an_import_that_runs_up_is_named(code, named):
    others = {
        "stedm/data/folder.py": "import stedm.errors",
        "stedm/errors.py": "",
        "stedm/__init__.py": "import stedm.cli",
    }
    assert offences({"stedm/io/files.py": code, **others}) == [f"src/stedm/io/files.py:{named}"]
