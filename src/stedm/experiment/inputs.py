"""RUN/data_files.parquet: the files of the data that a run was begun with, so that it doesn't go on with others.

A file is hashed when the run begins, and again where its size or times have changed: data that were copied to another
place are the same data, and a run that goes on costs a look at each file's times. These lie in RUN/.data_times,
which may be removed.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.io.artefacts import Column, read_parquet, write_parquet
from stedm.io.manifest import stamp_of

_SUMS = {"file": Column("text"), "sha256": Column("text")}
_TIMES = {"file": Column("text"), **dict.fromkeys(("size", "modified_ns", "changed_ns"), Column("int", high=2**63))}
_THREADS = 8
_WHOLE_BYTES, _BLOCK_BYTES, _BLOCKS = 64 << 20, 1 << 20, 32


def check_files(folder: Path, dataset: DatasetFolder, *, unlabeled_masks: bool) -> None:
    """Note the files of a new run, or refuse to go on with images or masks that are not those of its beginning.

    Masks of `unlabeled` images are looked at only with `unlabeled_masks`, for the arm `upper`.

    Raises:
        StedmError: a file has another content, or is missing.
    """
    files = _files_of(dataset, unlabeled_masks)
    sums_file, times_file = folder / "data_files.parquet", folder / ".data_times"
    before = _read(sums_file, _SUMS) if sums_file.is_file() else {}
    try:
        times = _read(times_file, _TIMES) if before else {}
    except StedmError:
        times = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sha256") as threads:
        stamps = dict(zip(files, threads.map(_stamp, files.values()), strict=True))
        known = {name: before[name] for name in files if name in before and times.get(name) == stamps[name]}
        others = [name for name in files if name not in known]
        hashed = threads.map(lambda name: (_sum_of(files[name], stamps[name][0]),), others)
        now = known | dict(zip(others, hashed, strict=True))
    if other := [name for name in files if name in before and now[name] != before[name]]:
        more = f" and {len(other) - 1} more files are" if other[1:] else " is"
        raise StedmError(
            f"{dataset.root}: {other[0]}{more} not what {folder} was begun with; put back what was there, or give "
            "another -o"
        )
    if before | now != before:
        _write(sums_file, _SUMS, before | now)
    if times | stamps != times:
        _write(times_file, _TIMES, times | stamps)


def _read(path: Path, columns: dict[str, Column]) -> dict[str, tuple]:
    """Values of the other columns by file."""
    table = read_parquet(path, columns, what="a list of files", hint="remove it")
    return {row[0]: row[1:] for row in table[list(columns)].itertuples(index=False, name=None)}


def _write(path: Path, columns: dict[str, Column], values: dict[str, tuple]) -> None:
    rows = [(name, *row) for name, row in sorted(values.items())]
    write_parquet(pd.DataFrame(rows, columns=list(columns)), path)


def _files_of(dataset: DatasetFolder, unlabeled_masks: bool) -> dict[str, Path]:
    """Path by name; names are those of the tables, so that they stay when the folder moves."""
    table = dataset.table
    annotated = table["mask_file_name"] != ""
    if not unlabeled_masks:
        annotated &= table["split"] != "unlabeled"
    if dataset.regions is not None:
        return dataset.regions.files(sorted(set(table["slide_id"])), sorted(set(table["slide_id"][annotated])))
    return {name: dataset.root / name for name in [*table["image_file_name"], *table["mask_file_name"][annotated]]}


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        return stamp_of(path)
    except OSError as error:
        raise StedmError(f"{path}: missing or not readable ({error.strerror}); put it back") from error


def _sum_of(path: Path, size: int) -> str:
    """SHA-256 of a file; of a large one (a slide) that of blocks spread evenly over it, its ends among them."""
    try:
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(str(size).encode())
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
            return digest.hexdigest()
    except OSError as error:
        raise StedmError(f"{path}: not readable ({error.strerror}); put it back") from error
