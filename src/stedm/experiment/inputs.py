"""RUN/data_files.parquet: the files of the data that a run was begun with, so that it doesn't go on with others.

A file is hashed when the run begins, and again where its size or times have changed: data that were copied to another
place are the same data, and a run that goes on costs a look at each file's times.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.io.artefacts import Column, read_parquet, write_parquet
from stedm.io.manifest import stamp_of

_NAME = "data_files.parquet"
_TIME = Column("int", low=-(2**63), high=2**63)
_COLUMNS = {
    "file": Column("text"),
    "size": Column("int", low=0, high=2**63),
    "modified_ns": _TIME,
    "changed_ns": _TIME,
    "sha256": Column("text"),
}
_THREADS = 8
_WHOLE_BYTES, _BLOCK_BYTES, _BLOCKS = 64 << 20, 1 << 20, 32


def check_files(folder: Path, dataset: DatasetFolder, *, unlabeled_masks: bool) -> None:
    """Note the files of a new run, or refuse to go on with images or masks that are not those of its beginning.

    Masks of `unlabeled` images are looked at only with `unlabeled_masks`, for the arm `upper`.

    Raises:
        StedmError: a file has another content, or is missing.
    """
    files, path = _files_of(dataset, unlabeled_masks), folder / _NAME
    known = read_parquet(path, _COLUMNS, what="a list of files", hint="remove it") if path.is_file() else None
    before = {} if known is None else {row[0]: row[1:] for row in known[list(_COLUMNS)].itertuples(index=False)}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sha256") as threads:
        rows = list(threads.map(lambda name: _row(files[name], before.get(name)), files))
    now = dict(zip(files, rows, strict=True))
    other = [name for name, row in now.items() if name in before and row[-1] != before[name][-1]]
    if other:
        more = f" and {len(other) - 1} more files" if other[1:] else ""
        verb = "are" if other[1:] else "is"
        raise StedmError(
            f"{dataset.root}: {other[0]}{more} {verb} not what {folder} was begun with; put back what was there, or "
            "give another -o"
        )
    noted = before | now
    if noted != before:
        table = pd.DataFrame([(name, *row) for name, row in noted.items()], columns=list(_COLUMNS))
        write_parquet(table, path)


def _files_of(dataset: DatasetFolder, unlabeled_masks: bool) -> dict[str, Path]:
    """Path by name; names are those of the tables, so that they stay when the folder moves."""
    table = dataset.table
    annotated = table["mask_file_name"] != ""
    if not unlabeled_masks:
        annotated &= table["split"] != "unlabeled"
    if dataset.regions is not None:
        return dataset.regions.files(sorted(set(table["slide_id"])), sorted(set(table["slide_id"][annotated])))
    return {name: dataset.root / name for name in [*table["image_file_name"], *table["mask_file_name"][annotated]]}


def _row(path: Path, before: tuple | None) -> tuple:
    """Size, times and sum of a file; the sum is computed only where the others are not those `before`."""
    try:
        stamp = stamp_of(path)
        return before if before is not None and before[:-1] == stamp else (*stamp, _sum_of(path, stamp[0]))
    except OSError as error:
        raise StedmError(f"{path}: missing or not readable ({error.strerror}); put it back") from error


def _sum_of(path: Path, size: int) -> str:
    """SHA-256 of a file; of a large one (a slide) that of blocks spread evenly over it, its ends among them."""
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
        return digest.hexdigest()
