"""Long work in a thread, told of line by line: the page shows how far it is, and whoever goes away ends it."""

import asyncio
import json
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

from stedm.errors import StedmError

Tell = Callable[[dict[str, Any]], None]
"""Sends a line to the page; raises `Gone` where nobody listens any more."""
BROKEN = "something broke inside stedm; the terminal has the details"


class Gone(Exception):  # noqa: N818 - nothing is wrong
    """The page was closed, or the user has pressed Stop."""


async def lines(work: Callable[[Tell], dict[str, Any]], turn: threading.Lock) -> AsyncIterator[bytes]:
    """What `work` tells and then what it returns, a line of JSON each; an error is a line `{"error": ...}`.

    turn: held while the work is done, so that two images don't fight for the processors.
    """
    loop, queue, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def tell(line: dict[str, Any] | None) -> None:
        if gone.is_set():
            raise Gone
        loop.call_soon_threadsafe(queue.put_nowait, line)

    def run() -> None:
        try:
            with turn:
                tell(work(tell))
        except Gone:
            return
        except StedmError as error:
            _quietly(tell, {"error": str(error)})
        except Exception:
            traceback.print_exc()
            _quietly(tell, {"error": BROKEN})
        _quietly(tell, None)

    threading.Thread(target=run, name="stedm-app", daemon=True).start()
    try:
        while (line := await queue.get()) is not None:
            yield json.dumps(line).encode() + b"\n"
    finally:
        gone.set()


def _quietly(tell: Callable[[Any], None], line: Any) -> None:
    try:
        tell(line)
    except (Gone, RuntimeError):  # RuntimeError: the loop has ended
        return
