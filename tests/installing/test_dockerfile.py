"""The Dockerfile without an engine: known instructions, files that are there and sent, a user that isn't root."""

import fnmatch
import re
import shlex
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KNOWN = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, " ".join(value.split())) for name, _, value in (line.partition(" ") for line in lines)]


def _is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the checkout into the build; the last pattern that fits decides."""
    sent = True
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = [part.as_posix() for part in (Path(path), *Path(path).parents)][:-1]
        names = [*parts, *(part.rpartition("/")[2] for part in parts if line.startswith("**/"))]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


def test_instructions_are_known_and_begin_with_an_image(instructions):
    assert {name for name, _ in instructions} <= KNOWN
    assert next(name for name, _ in instructions if name != "ARG") == "FROM"
    for name, value in instructions:
        if name in ("ENTRYPOINT", "CMD"):
            assert re.fullmatch(r'\[("[^"]*"(, )?)+\]', value), "by itself, without a shell that keeps signals"
        assert shlex.split(value)


def test_what_is_copied_is_there_and_sent(instructions):
    copied = [value.split()[:-1] for name, value in instructions if name == "COPY" and "--from" not in value]
    names = [name for sources in copied for name in sources]
    assert {"pyproject.toml", "src", "requirements/tested.txt"} <= set(names)
    for name in names:
        assert (REPOSITORY / name).exists(), name
        assert _is_sent(name), f"{name} is left out by .dockerignore"
    assert _is_sent("src/stedm/demo.yaml")
    left = ("runs/demo/model/a.safetensors", ".venv/bin/python", "src/stedm/__pycache__/a.pyc", "shared/data", ".git")
    assert not [name for name in left if _is_sent(name)]


def test_it_installs_tested_versions_and_runs_stedm_as_a_user(instructions):
    last = dict(instructions[max(i for i, (name, _) in enumerate(instructions) if name == "FROM") :])
    assert int(last["USER"]) > 0
    assert last["ENTRYPOINT"] == '["stedm"]'
    installed = [value for name, value in instructions if name == "RUN" and "pip install" in value]
    assert installed
    assert all("--constraint requirements/tested.txt" in value and "${TORCH_INDEX}" in value for value in installed)
    # The index of CPU wheels unless another is given.
    assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in instructions
