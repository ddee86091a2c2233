"""`manifest.json`: the SHA-256 of every file of a folder that stedm wrote, looked at when a file is read.

    {"made_by": "stedm", "sha256": {"metadata.csv": "9f86d0...", "images/synthetic-000000.png": "..."}}

A folder without one (a published model, a user's dataset) is read as it is. A single file that lies among others has
its sum in FILE.sha256, as `sha256sum -c` reads it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stedm.errors import StedmError
from stedm.io.files import require_file, visible_files, write_text

NAME = "manifest.json"
_THREADS = 4
_Stamp = tuple[int, int, int]
_manifests: dict[str, tuple[_Stamp, dict[str, str]]] = {}
_verified: dict[str, tuple[_Stamp, str]] = {}


def sha256_of(path: str | os.PathLike) -> str:
    """Hex digits of the SHA-256 of a file."""
    require_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> list[str]:
    """Of many files, in threads: hashing lets go of the interpreter's lock."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sha256") as threads:
        return list(threads.map(sha256_of, paths))


def stamp_of(path: str | os.PathLike) -> _Stamp:
    """Size and times of a file; as long as they stay, so does its content (the second time changes with any write)."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def write_manifest(folder: Path, files: Mapping[str, Path] | None = None) -> None:
    """Write FOLDER/manifest.json; to be called before the file is there that says that the folder is complete.

    files: name in the folder -> where the bytes are now, which may be a temporary file; None = all in the folder that
        are not hidden.
    """
    if files is None:
        found = [path for path in visible_files(folder) if path.name != NAME]
        files = {path.relative_to(folder).as_posix(): path for path in found}
    sums = dict(zip(files, sha256_of_all(files.values()), strict=True))
    write_text(folder / NAME, json.dumps({"made_by": "stedm", "sha256": sums}, indent=0) + "\n")


def verify(folder: Path, name: str) -> None:
    """Refuse a file of a folder that isn't what the folder's manifest says; does nothing where there is no manifest.

    A file is hashed once in a process, and again if it changes.

    Raises:
        StedmError: the file is missing, damaged or not in the manifest, or the manifest is damaged.
    """
    sums = _read_manifest(folder)
    if sums is not None:
        again = f"remove {folder} and run the same command again, or its {NAME} if the change is yours"
        _compare(folder / name, sums.get(name, ""), again)


def verify_present(folder: Path, *names: str) -> None:
    """`verify` for those of the files that are there."""
    for name in names:
        if (folder / name).is_file():
            verify(folder, name)


def verify_folder(folder: Path) -> None:
    """`verify` for every file that the folder's manifest names."""
    for name in _read_manifest(folder) or ():
        verify(folder, name)


def write_sum(path: Path, content: Path) -> None:
    """Write PATH.sha256 for the bytes at `content`, before they get the name `path`."""
    write_text(_sum_file(path), f"{sha256_of(content)}  {path.name}\n")


def verify_sum(path: Path) -> None:
    """Refuse a file that isn't what FILE.sha256 beside it says; does nothing where there is none."""
    beside = _sum_file(path)
    try:
        require_file(beside)
        wanted = beside.read_text(encoding="utf-8").split(" ")[0]
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise StedmError(f"{beside}: not readable ({error}); remove it and {path.name}, and run again") from error
    _compare(path, wanted, f"remove it and run the same command again, or {beside.name} if the change is yours")


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _compare(path: Path, wanted: str, what_to_do: str) -> None:
    try:
        stamp = stamp_of(path)
        known = _verified.get(str(path))
        found = known[1] if known and known[0] == stamp else sha256_of(path)
    except OSError as error:
        raise StedmError(f"{path}: missing or not readable ({error.strerror}); {what_to_do}") from error
    if found != wanted:
        raise StedmError(f"{path}: damaged or changed since it was written (its SHA-256 is another); {what_to_do}")
    _verified[str(path)] = stamp, found


def _read_manifest(folder: Path) -> dict[str, str] | None:
    """Sums by name; None where there is no manifest, or one of another program."""
    path = folder / NAME
    try:
        stamp = stamp_of(path)
    except OSError:
        return None
    known = _manifests.get(str(path))
    if known and known[0] == stamp:
        return known[1]
    try:
        require_file(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("made_by") != "stedm":
            return None
        sums = values["sha256"]
        if not all(isinstance(name, str) and isinstance(value, str) for name, value in sums.items()):
            raise ValueError("texts expected")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise StedmError(f"{path}: damaged; remove {folder} and run the same command again") from error
    _manifests[str(path)] = stamp, sums
    return sums
