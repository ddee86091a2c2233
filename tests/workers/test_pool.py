"""Pieces of work in this process and in several."""

import os
import subprocess
import sys

import pytest

from stedm.data.memory import default_bytes
from stedm.errors import StedmError
from stedm.workers.pool import LocalPool, check_shared, do_piece, make_pool, new_name, parse_shard

# Worker processes import the job from a module of their own: this file is none to them.
JOB = """
import os, signal
from dataclasses import dataclass
from pathlib import Path
from stedm.errors import StedmError

@dataclass(frozen=True)
class Square:
    folder: Path
    uses_gpu = False

    def open(self):
        with (self.folder / f"{os.getpid()}").open("a") as file:
            file.write("x")
        return self.work

    def work(self, number):
        if number < 0:
            raise StedmError("below zero")
        if number == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

@dataclass(frozen=True)
class Memory:
    uses_gpu = False

    def open(self):
        from stedm.data.memory import default_bytes
        return lambda piece: default_bytes()

@dataclass(frozen=True)
class Number:
    uses_gpu = False

    def open(self):
        import time
        from stedm.workers.group import group_size
        from stedm.workers.pool import number_here
        return lambda piece: time.sleep(piece) or (number_here(), group_size())
"""


@pytest.fixture
def square(tmp_path, monkeypatch):
    (tmp_path / "module").mkdir()
    (tmp_path / "opened").mkdir()
    (tmp_path / "module" / "square_job.py").write_text(JOB)
    monkeypatch.syspath_prepend(str(tmp_path / "module"))
    monkeypatch.delitem(sys.modules, "square_job", raising=False)
    from square_job import Square

    return Square(tmp_path / "opened")


@pytest.mark.parametrize("processes", [1, 2])
def test_pieces_are_done_and_their_job_is_opened_once_a_process(square, processes):
    pieces = [1, 2, 3, 4, 5, 6, 7, 8]
    with make_pool("local", processes) as pool:
        assert pool.is_here == (processes == 1)
        assert sorted(pool.run(square, pieces)) == [(number, (number + 1) ** 2) for number in range(8)]
        opened = {file.name: file.read_text() for file in square.folder.iterdir()}
        assert set(opened.values()) == {"x"}
        assert (str(os.getpid()) in opened) == (processes == 1)
        with pytest.raises(StedmError, match="below zero"):
            list(pool.run(square, [1, -1]))
        assert list(pool.run(square, [])) == []


def test_a_killed_worker_process_is_one_line(square):
    with LocalPool(2) as pool, pytest.raises(StedmError, match="run again with fewer --workers"):
        list(pool.run(square, [13, 1]))


def test_processes_of_a_pool_share_the_memory(square):
    from square_job import Memory

    with LocalPool(2) as pool:
        shares = [share for _, share in pool.run(Memory(), [0, 1])]
    assert shares == pytest.approx([default_bytes() / 2] * 2, rel=1e-6)


def test_processes_of_a_pool_are_numbered_and_of_no_group(square, monkeypatch):
    """By the number GPUs are dealt. In a group they would wait for processes that don't know of them."""
    from square_job import Number

    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
        "LOCAL_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with LocalPool(2) as pool:
        found = {result for _, result in pool.run(Number(), [0.5] * 6)}
    assert found == {(0, 1), (1, 1)}


def test_another_run_loads_anew(square):
    """The files that it loads may be others."""
    names = [new_name(), new_name()]
    for name in (names[0], names[0], names[1]):
        assert do_piece(name, square, 3) == 9
    assert (square.folder / str(os.getpid())).read_text() == "xx"


def test_local_work_does_not_import_ray():
    code = (
        "import sys; from stedm.workers.pool import make_pool; make_pool('local', 2); "
        "import stedm.data.tiles; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(StedmError, match=r"^--engine dask: give local or ray$"):
        make_pool("dask")
    with pytest.raises(StedmError, match="not there on node"):
        check_shared(tmp_path / "none")


def test_shards_are_counted_from_one():
    assert parse_shard("3/8") == (2, 8)
    assert parse_shard("1/1") == (0, 1)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_bad_shards_are_refused(text):
    with pytest.raises(StedmError, match="--shard"):
        parse_shard(text)
