"""Whether two folders hold the same, to the bit, but for what is named here."""

import json
import re
from pathlib import Path

from stedm.io.files import is_temporary

NOTHING_TO_COMPARE = (".lock", ".data_times", ".data_facts")
"""Locks, and the times of the files of the data."""


def is_leftover(name: str) -> bool:
    """Whether it lies in a temporary folder of a process that was killed."""
    return any(map(is_temporary, name.split("/")))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name, without what differs between any two runs: seconds and made-up names."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: canonical(name, path.read_bytes())
        for name, path in files.items()
        if not name.endswith(NOTHING_TO_COMPARE) and not is_leftover(name)
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if is_leftover(path.relative_to(folder).as_posix())
    )


def canonical(name: str, content: bytes) -> bytes:
    """The content of a file without seconds (metrics, provenance, report) and UUIDs (OME-TIFF)."""
    if name.endswith("metrics.jsonl"):
        rows = [json.loads(line) for line in content.decode().splitlines()]
        return json.dumps([{**row, "seconds": None} for row in rows]).encode()
    if name.endswith("provenance.json"):
        return json.dumps({**json.loads(content), "seconds": None, "sum": None}).encode()
    if name.endswith("manifest.json"):
        # The sum of a page that says how long each stage took.
        values = json.loads(content)
        return json.dumps({key: value for key, value in values["sha256"].items() if not key.endswith(".html")}).encode()
    if name.endswith(".html"):
        # The row of the provenance that says how long each stage took.
        return re.sub(rb"(<td>seconds</td><td[^>]*>)[^<]*", rb"\1", content)
    if name.endswith((".tif", ".tiff")):
        return re.sub(rb"urn:uuid:[0-9a-f-]{36}", b"", content)
    return content


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """What is missing, too much, or other, a line each."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: not in the uninterrupted one" for name in sorted(found.keys() - expected.keys())]
    return lines + [f"{name}: differs" for name in sorted(expected) if name in found and expected[name] != found[name]]
