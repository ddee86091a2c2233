"""Whether a command may write where it is told to: never over its inputs, nor over what somebody else wrote.

What stedm wrote it knows by a mark in the file itself: a text chunk of a PNG, a member of a GeoJSON file, the header of
a table that only stedm writes. A note beside the file would be lost where it is copied, and wrong once somebody has
edited the file; programs that edit a file drop its mark. Folders that are stedm's as a whole (runs, tiles, synthetic
sets) are claimed (`stedm.io.files.claim`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from stedm.errors import StedmError
from stedm.io.files import is_empty, make_folder, sweep

SEGMENTED, PAINTED, CHECKED = "stedm segment", "stedm generate", "stedm check"
"""Marks of masks and annotations, of images, and of contact sheets."""
_LOOKED_AT = 1 << 15
"""Bytes at both ends of a file in which its mark stands: the head of most formats, the footer of parquet."""


def is_marked(path: Path, mark: str) -> bool:
    """Whether a file has a mark near its beginning or its end."""
    try:
        with path.open("rb") as file:
            ends = file.read(_LOOKED_AT)
            file.seek(max(0, path.stat().st_size - _LOOKED_AT))
            return mark.encode() in ends + file.read()
    except OSError:
        return False


def check_outputs(marks: Mapping[Path, str], inputs: Iterable[str | Path] = (), *, overwrite: bool = False) -> None:
    """Refuse to write over files that are not stedm's own; called before anything is computed.

    Args:
        marks: of each file that will be written the mark that it gets.
        inputs: files that are read, which are not written over even with `overwrite`.
        overwrite: the user wants others' files replaced.

    Raises:
        StedmError: a line for the first file that would be lost.
    """
    for folder in {path.parent for path in marks}:
        if any(part.is_file() for part in (folder, *folder.parents)):
            make_folder(folder)  # which says that it can't be one, before anything is computed
        sweep(folder, below=False)
    existing = [path for path in marks if path.exists()]
    read = {_identity(path): path for path in map(Path, inputs) if existing and path.exists()}
    for path in existing:
        if source := read.get(_identity(path)):
            also = "" if source == path else f" (as {source})"
            raise StedmError(f"{path}: is read by this command{also} and would be lost; give another -o")
        if path.is_dir():
            raise StedmError(f"{path}: is a folder and a file is to be written; give another -o")
        if not overwrite and not is_marked(path, marks[path]):
            raise StedmError(f"{path}: is there and stedm did not write it; give another -o, or --overwrite")


def check_folder(folder: str | Path, sign: str) -> None:
    """Refuse to replace a folder as a whole unless it is empty or has the file by which stedm knows its own.

    Raises:
        StedmError: the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / sign).is_file() and not (folder.is_dir() and is_empty(folder)):
        raise StedmError(f"{folder}: is there and has no {sign} of stedm; give another folder")


def _identity(path: Path) -> tuple[int, int]:
    # Links of both kinds lead to the same file.
    found = path.stat()
    return found.st_dev, found.st_ino
