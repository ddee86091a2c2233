"""Pieces of work on the nodes of a Ray cluster that is there already.

Ray only schedules: plain tasks, a CPU each (and a GPU, where the work wants one and the cluster has some). Arguments
are paths and a few rows, results a few numbers; what is made goes into files by the worker that made it. When a node
or a process dies, Ray gives its pieces to others.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from types import ModuleType
from typing import Any

from stedm.errors import StedmError
from stedm.workers.pool import Job, Pool, do_piece, new_name

_RETRIES = 5
"""How often a piece may lose its worker. Not without end: a piece that is too large for its node kills every worker."""
_LOOK_AGAIN_SECONDS = 5.0
"""How often the nodes are counted while no piece gets done."""
_REACHABLE_SECONDS = 10.0


class RayPool(Pool):
    """Tasks on the cluster of RAY_ADDRESS, else on the one that runs on this machine.

    A program that is connected to Ray already (`ray.init`) goes on with that.
    Raises `StedmError` where Ray is not installed or no cluster answers.
    """

    def __init__(self) -> None:
        self.ray, self._is_mine = _connected()

    def run(self, job: Job, pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        ray, name = self.ray, new_name()
        gpus = 1 if job.uses_gpu and ray.cluster_resources().get("GPU") else 0
        # max_calls 0: a process stays for the next piece and keeps its model, also with a GPU.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=0, max_retries=_RETRIES)(do_piece)
        queue, waiting = iter(enumerate(pieces)), {}
        finished: list[tuple[int, Any]] = []
        try:
            while True:
                # Before the results are handed out: nodes don't wait for what is done with these.
                for number, piece in islice(queue, max(0, self._slots(gpus) - len(waiting))):
                    waiting[task.remote(name, job, piece)] = number
                yield from finished
                if not waiting:
                    return
                done, _ = ray.wait(list(waiting), timeout=_LOOK_AGAIN_SECONDS)
                finished = [(waiting.pop(reference), self._result(reference)) for reference in done]
        finally:
            # After the end of the connection there is nothing to cancel, and `cancel` would start a Ray of its own.
            for reference in waiting if ray.is_initialized() else ():
                ray.cancel(reference)

    def _slots(self, gpus: int) -> int:
        """Pieces at the same time: all CPUs of the cluster but one for this process, if it runs on one of them."""
        nodes = {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}
        here = nodes.get(self.ray.get_runtime_context().get_node_id(), {})
        slots = sum(node.get("CPU", 0) for node in nodes.values()) - (here.get("CPU", 0) >= 1)
        if gpus:
            slots = min(slots, sum(node.get("GPU", 0) for node in nodes.values()))
        return max(1, int(slots))

    def _result(self, reference: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            # What the piece raised, without Ray's report of where; that is kept as the cause.
            raise getattr(error, "cause", None) or error from error
        except errors.RayError as error:
            line = f"Ray gave up on a piece of work after {_RETRIES + 1} attempts ({type(error).__name__}): too little "
            raise StedmError(f"{line}memory on its nodes? Run the same command again to go on") from error

    def __exit__(self, *error: object) -> None:
        if self._is_mine:
            self.ray.shutdown()


def _connected() -> tuple[ModuleType, bool]:
    """Ray, and whether it was connected here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise StedmError('--engine ray needs Ray: pip install "stedm[ray]"') from error
    if ray.is_initialized():
        return ray, False
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _check_reachable(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"at {address} (RAY_ADDRESS)" if address != "auto" else "on this machine, and RAY_ADDRESS is not set"
        reason = " ".join(str(error).split())[:200]
        raise StedmError(f"no Ray cluster {where}; see docs/scale.md for how to start one ({reason})") from error
    return ray, True


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHABLE_SECONDS).close()
