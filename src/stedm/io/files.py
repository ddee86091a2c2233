"""Artefacts are written under a temporary name and renamed, so that a killed process leaves whole files or none."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stedm.errors import StedmError, disk_problem

_HOLDER = re.compile(r"\.stedm-([0-9a-f]{8})-(\d+)-[a-z0-9_]{8}")
"""Folders of temporary files: machine, process and something random."""
_WAIT_FOR_LOCK_SECONDS = 5.0
"""Not 0: children of a process that was just killed may hold its lock for a moment."""
_NO_ROOM = 1 << 12
"""Bytes."""
_LITTER = (".DS_Store", ".localized", "Thumbs.db", "desktop.ini", ".directory")
"""What file managers put into folders that somebody has looked at."""
_LEFT_AFTER_DAYS = 7
"""Of another machine nobody can tell whether the process is gone: what wasn't touched for so long is left over."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it replaces `path` when the block ends without an error.

    The block may create a file or a folder at the temporary path. An existing folder at `path` is removed first.

    durable: also a loss of power leaves whole files or none. What other files rely on is so: markers, tables,
    manifests, checkpoints, models. Single images, of which there are thousands, are not; the disk is flushed once
    (`flush`) before the table that says they are there.

    Raises:
        StedmError: the disk is full or read-only.
    """
    path = Path(path)
    with writing(path):
        make_folder(path.parent)
        holder = _new_holder(path.parent)
        # The suffix stays last: writers such as Pillow choose the format by it.
        temporary = holder / path.name
        try:
            with writing(path, full_if_no_room_in=path.parent):
                yield temporary
            if durable:
                _sync_all(temporary)
            if path.is_dir() and not path.is_symlink():
                if not temporary.is_dir():
                    raise StedmError(f"{path}: is a folder and a file is to be written; remove it")
                shutil.rmtree(path)
            os.replace(temporary, path)
            if durable:
                _sync(path.parent)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path, full_if_no_room_in: Path | None = None) -> Iterator[None]:
    """Turn errors of a disk into one line that names `path`.

    Some writers don't say what went wrong; `full_if_no_room_in` is where to look for room then.
    """
    try:
        yield
    except StedmError:
        raise
    except Exception as error:
        path = Path(*(part for part in path.parts if not is_temporary(part)))
        if full_if_no_room_in is not None and shutil.disk_usage(full_if_no_room_in).free < _NO_ROOM:
            raise disk_problem(OSError(errno.ENOSPC, ""), path) from error
        if problem := disk_problem(error, path):
            raise problem from error
        raise


def flush(folder: str | os.PathLike) -> None:
    """Have the disk of `folder` write what it holds back, all of it at once."""
    if os.name != "posix":
        return
    if not hasattr(libc := ctypes.CDLL(None), "syncfs"):
        os.sync()  # every other disk too
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        libc.syncfs(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else ():
        if not file.is_symlink():
            _sync(file)
    _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk; some file systems can't, which is no error."""
    if os.name != "posix":  # Windows opens no folders, and syncs only files open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder that may be there; `StedmError` where it can't be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StedmError(f"{folder}: is or lies in a file, and a folder is to be written; give another -o") from error


def require_input(path: Path) -> None:
    """`StedmError` unless a file that a user named is there."""
    if not path.is_file():
        wrong = "is a folder; name a file in it" if path.is_dir() else "no such file; correct its path"
        raise StedmError(f"{path}: {wrong}")


def require_file(path: str | os.PathLike) -> None:
    """`OSError` unless `path` is a file: a reader would wait for ever for what a pipe gives."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


# ---- temporary folders ----------------------------------------------------------------------------------------------


def _new_holder(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".stedm-{_machine()}-{os.getpid()}-", dir=folder))


def is_temporary(name: str) -> bool:
    """Whether a name is that of a folder for files that are being written."""
    return _HOLDER.fullmatch(name) is not None


def means_nothing(name: str) -> bool:
    """Whether a name in a folder is no content: of a file manager, or temporary."""
    return name in _LITTER or name.startswith("._") or is_temporary(name)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing that anybody would miss."""
    return all(means_nothing(path.name) for path in folder.iterdir())


def require_new(folder: Path, use: str) -> None:
    """Raises `StedmError` for a folder that holds files, for a file in its place, and for the one that the user is in,
    which can't be replaced."""
    if folder.name in ("", ".."):
        raise StedmError(f"{folder}: has no name of its own; give a new folder for {use}")
    sweep(folder.parent, below=False)
    if folder.exists() and not (folder.is_dir() and is_empty(folder)):
        raise StedmError(f"{folder}: is there and not empty; give a new folder for {use}")


@functools.cache
def _machine() -> str:
    """Where process numbers mean the same: a host, or a container on it."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def sweep(folder: str | os.PathLike, *, below: bool = True) -> None:
    """Remove temporary folders that killed processes have left in `folder` and, unless said otherwise, below it.

    Those of processes that are still there stay, and of other machines those that were touched in the last days.
    """
    for root, names, _ in os.walk(folder):
        for name in filter(is_temporary, list(names)):
            names.remove(name)
            if _is_left(Path(root, name)):
                shutil.rmtree(Path(root, name), ignore_errors=True)
        if not below:
            return


def _is_left(holder: Path) -> bool:
    machine, process = _HOLDER.fullmatch(holder.name).groups()
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            pass
        return False
    try:
        touched = max(path.lstat().st_mtime for path in (holder, *holder.rglob("*")))
    except OSError:  # it is being written or removed
        return False
    return time.time() - touched > _LEFT_AFTER_DAYS * 86_400


# ---- one process in a folder, one claim for it ----------------------------------------------------------------------


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike) -> Iterator[None]:
    """Work in `folder` as the only process that asks for it, by FOLDER/.lock; a killed process keeps no lock, and what
    it left half-written is removed.

    Raises:
        StedmError: another process is at work there.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(Path(folder) / ".lock").acquire(timeout=_WAIT_FOR_LOCK_SECONDS))
        except Timeout as error:
            raise StedmError(f"{folder}: another process is at work here; wait for it, or give another -o") from error
        except (OSError, NotImplementedError):
            pass  # a file system without locks
        sweep(folder)
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
        with writing(path):
            _write_if_absent(path, text)
    try:
        require_file(path)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StedmError(f"{path}: not readable ({error}); remove it, or give another -o") from error


def _write_if_absent(path: Path, text: str) -> None:
    make_folder(path.parent)
    holder = _new_holder(path.parent)
    try:
        temporary = holder / path.name
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        try:
            os.link(temporary, path)  # unlike a rename it fails where the file is there already
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def claim(path: Path, text: str, is_mine: Callable[[str], bool], *, another: Callable[[], str], not_empty: str) -> None:
    """Say in `path` what its folder is for; the same claim may be made by many processes at the same time.

    Raises `StedmError`: `another` where the folder is claimed with a text that is not `is_mine`, and `not_empty` where
    it holds files and no claim.
    """
    # Looked at before the claim: what others write after theirs is no surprise.
    strangers = path.parent.is_dir() and not is_empty(path.parent)
    if strangers and not path.is_file():
        raise StedmError(not_empty)
    if not is_mine(write_once(path, text)):
        raise StedmError(another())
    sweep(path.parent)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically (NaN becomes null: JSON has no NaN)."""
    write_text(path, json.dumps(without_nan(value), indent=2, sort_keys=False) + "\n")


def without_nan(value: Any) -> Any:
    """Plain values with None for NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of a JSON-serialisable value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
