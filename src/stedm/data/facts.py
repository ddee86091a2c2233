"""What a check found in files, remembered so that each is decoded once: RUN/.data_facts, which may be removed.

What is remembered of a file counts as long as its size and times stay (`stamp_of`), and as long as the version of
stedm does. Files that can't be read are not remembered.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.errors import StedmError
from stedm.io.artefacts import Column, read_parquet, write_parquet
from stedm.io.images import FileFacts, note_size
from stedm.io.manifest import stamp_of
from stedm.version import __version__

_NUMBERS = ("size", "modified_ns", "changed_ns", "width", "height", "checksum", "is_plain", "orientation", "is_bilevel")
_SCHEMA = {
    **dict.fromkeys(("kind", "file", "counts", "colours"), Column("text")),
    **dict.fromkeys(_NUMBERS, Column("int", low=0, high=2**63)),
}
_Key = tuple[str, str]
_Stamp = tuple[int, int, int]


class RememberedFacts:
    """Facts of image and mask files, by kind and name.

    Args:
        path: where they are written by `save`; a file there that isn't readable, or of another version, is ignored.
        root: folder of the files.
    """

    def __init__(self, path: Path, root: Path):
        self.path, self.root, self._known, self._changed = path, root, _read(path), False
        for (kind, name), (stamp, facts) in self._known.items():
            if kind == "image":
                note_size(root, name, stamp, facts.size)
        self._seen: dict[_Key, tuple[_Stamp, FileFacts]] = {}

    def of(self, kind: str, name: str, decode: Callable[[], FileFacts]) -> FileFacts:
        """Facts of a file, by `decode` where they are not known or the file has changed."""
        key = kind, name
        try:
            stamp = stamp_of(self.root / name)
        except (OSError, ValueError):
            return decode()  # which says what is wrong
        if key in self._known and self._known[key][0] == stamp:
            self._seen[key] = self._known[key]
        else:
            # The stamp is older than what is read: a file that is written meanwhile is read again.
            self._seen[key], self._changed = (stamp, decode()), True
        return self._seen[key][1]

    def save(self) -> None:
        """Write what was asked for, where anything is new."""
        if self._changed:
            rows = [(*key, *stamp, *_row(facts)) for key, (stamp, facts) in sorted(self._seen.items())]
            table = pd.DataFrame(rows, columns=["kind", "file", *_NUMBERS, "counts", "colours"])
            table["colours"] = table["colours"].astype("category")  # a few, of 1.5 kB each
            table.attrs = {"version": __version__}
            write_parquet(table, self.path)
            self._known, self._changed = dict(self._seen), False


def _row(facts: FileFacts) -> tuple:
    counts = "" if facts.counts is None else " ".join(f"{i}:{facts.counts[i]}" for i in np.flatnonzero(facts.counts))
    colours = "none" if facts.colours is None else bytes(v for colour in facts.colours for v in colour).hex()
    flags = int(facts.is_plain), facts.orientation, int(facts.is_bilevel)
    return (*facts.size, facts.checksum, *flags, counts, colours)


def _read(path: Path) -> dict[_Key, tuple[_Stamp, FileFacts]]:
    if not path.is_file():
        return {}
    try:
        table = read_parquet(path, _SCHEMA, what="facts of files")
        if table.attrs.get("version") != __version__:
            return {}
        palettes = {text: _colours(text) for text in table["colours"].unique()}
        columns = [table[name].tolist() for name in ("kind", "file", *_NUMBERS, "counts", "colours")]
        return {row[:2]: (row[2:5], _facts(*row[5:-1], palettes[row[-1]])) for row in zip(*columns, strict=True)}
    except (StedmError, ValueError, IndexError):
        return {}


def _facts(
    width: int, height: int, checksum: int, is_plain: int, orientation: int, is_bilevel: int, counts: str, colours
) -> FileFacts:
    size = width, height
    return FileFacts(size, checksum, _counts(counts), colours, bool(is_plain), orientation, bool(is_bilevel))


def _counts(text: str) -> np.ndarray | None:
    if not text:
        return None
    pairs = np.array([pair.split(":") for pair in text.split()], np.int64)
    counts = np.zeros(256, np.int64)
    counts[pairs[:, 0]] = pairs[:, 1]
    return counts


def _colours(text: str) -> tuple[tuple[int, int, int], ...] | None:
    if text == "none":
        return None
    flat = bytes.fromhex(text)
    return tuple(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
