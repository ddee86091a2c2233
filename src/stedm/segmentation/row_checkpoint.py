"""Finished rows of a long label map, on disk until the map is complete: who is killed goes on below them."""

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stedm.errors import DiskError, StedmError
from stedm.io.files import replacing, require_file

WRITE_AFTER_PX = 1 << 22
"""Pixels after which finished rows are written: a byte each, and at least those of one row of tiles, are held."""


class RowCheckpoint:
    """Use it in a `with` statement around the whole work.

    Args:
        folder: where the files go; removed at the end.
        key: names everything that decides the map; rows with another key are removed at the start.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def passing(self, bands_from: Callable[[int], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
        """The bands of a whole map; `bands_from(row)` makes those that are not in the folder.

        Files are named by the rows of tiles they are for: the first, and the one after the last.
        """
        row = 0
        while (file := next(self.folder.glob(f"{self.key}-{row}-*.npz"), None)) is not None:
            try:
                require_file(file)
                # Opened here: NumPy doesn't close a file that it finds damaged.
                with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
                    labels = content["labels"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
                shutil.rmtree(file) if file.is_dir() else file.unlink()  # damaged: these rows are made again
                continue
            yield labels
            row = int(file.stem.rsplit("-", 1)[1])
        fresh: list[np.ndarray] = []
        for band in bands_from(row):
            yield band
            fresh.append(band)
            if sum(part.size for part in fresh) >= WRITE_AFTER_PX:
                with replacing(self.folder / f"{self.key}-{row}-{row + len(fresh)}.npz") as temporary:
                    np.savez_compressed(temporary, labels=np.concatenate(fresh))
                row, fresh = row + len(fresh), []

    def __enter__(self) -> None:
        """Rows of other settings are of no more use."""
        for file in self.folder.glob("*"):
            if not file.name.startswith(f"{self.key}-"):
                shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Kept after an interrupt and on a full disk; of no use after success, and where the slide is damaged."""
        if kind is None or (issubclass(kind, StedmError) and not issubclass(kind, DiskError)):
            shutil.rmtree(self.folder, ignore_errors=True)
