"""What painting shouldn't wait for: batches are made ready ahead of it and written behind it, in threads.

Decoding and encoding of images let go of the interpreter's lock. A GPU paints an image in less time than its ten style
images take to read, or itself to be written as PNG (docs/performance.md).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item, Ready = TypeVar("Item"), TypeVar("Ready")
_AHEAD = 2
"""Batches that are ready, or being written: what waits takes memory."""
_MOST_THREADS = 4


def n_threads() -> int:
    """For reading, and for writing: all cores but the one that paints, and not more than painting needs."""
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) - 1))


def made_ahead(make: Callable[[Item], Ready], items: Sequence[Item]) -> Iterator[Ready]:
    """`make` of each item, in order, made in a thread while those before are used; raises what `make` raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        waiting: deque[Future[Ready]] = deque()
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Writer:
    """Calls `write` in threads; hands back at once unless two batches are still being written.

    Use it in a `with` statement: leaving it waits for all that was handed over.
    """

    def __init__(self, write: Callable[..., None]):
        self._write = write
        self._threads = ThreadPoolExecutor(n_threads(), thread_name_prefix="write-png")
        self._batches: deque[list[Future[None]]] = deque()

    def __call__(self, *columns: Sequence[Any]) -> None:
        """Write a batch: `write` gets one of each column. Raises what went wrong with one before (a full disk)."""
        while len(self._batches) >= _AHEAD:
            self._wait()
        self._batches.append([self._threads.submit(self._write, *row) for row in zip(*columns, strict=True)])

    def _wait(self) -> None:
        for future in self._batches.popleft():
            future.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._batches:
                self._wait()
        finally:
            # After an error the rest would fail as well, one by one.
            self._threads.shutdown(cancel_futures=True)
