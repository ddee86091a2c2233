"""Artefacts are written under a temporary name and renamed, so that a killed process leaves whole files or none."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stedm.errors import StedmError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it replaces `path` when the block ends without an error.

    The block may create a file or a folder at the temporary path. An existing folder at `path` is removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as Pillow choose the format by it.
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike) -> Iterator[None]:
    """Work in `folder` as the only process that asks for it, by FOLDER/.lock; a killed process keeps no lock.

    Raises:
        StedmError: another process is at work there.
    """
    with contextlib.ExitStack() as held:
        try:
            # Not 0: children of a process that was just killed may hold its lock for a moment.
            held.enter_context(FileLock(Path(folder) / ".lock").acquire(timeout=5))
        except Timeout as error:
            raise StedmError(f"{folder}: another process is at work here; wait for it, or give another -o") from error
        except (OSError, NotImplementedError):
            pass  # a file system without locks
        yield


def visible_files(folder: Path, *, deep: bool = True) -> list[Path]:
    """Files of a folder, sorted, with `deep` those of its folders too; nothing that is hidden or lies in what is.

    Names that begin with a dot are put there by systems and editors: `._a.png` by macOS, `.ipynb_checkpoints`.
    """
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    )


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_once(path: str | os.PathLike, text: str) -> str:
    """Write UTF-8 text where there is no such file yet; returns what stands there now.

    Of several processes that try at the same time one wins, and all get its text.
    """
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as holder:
            temporary = Path(holder, path.name)
            temporary.write_text(text, encoding="utf-8")
            try:
                os.link(temporary, path)  # unlike a rename it fails where the file is there already
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                if not path.exists():
                    os.replace(temporary, path)
    return path.read_text(encoding="utf-8")


def claim(path: Path, text: str, is_mine: Callable[[str], bool], *, another: Callable[[], str], not_empty: str) -> None:
    """Say in `path` what its folder is for; the same claim may be made by many processes at the same time.

    Raises `StedmError`: `another` where the folder is claimed with a text that is not `is_mine`, and `not_empty` where
    it holds files and no claim.
    """
    # Looked at before the claim: what others write after theirs is no surprise.
    strangers = path.parent.is_dir() and any(
        not file.name.startswith(f".{path.name}.") for file in path.parent.iterdir()
    )
    if strangers and not path.is_file():
        raise StedmError(not_empty)
    if not is_mine(write_once(path, text)):
        raise StedmError(another())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically (NaN becomes null: JSON has no NaN)."""
    write_text(path, json.dumps(_without_nan(value), indent=2, sort_keys=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a JSON-serialisable value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
