"""Disks that are full, read-only or lose power, and what killed processes leave on them."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stedm.errors import DiskError, StedmError
from stedm.io import files
from stedm.io.files import alone_in, claim, replacing, sweep, write_json, write_once, write_text
from stedm.io.images import write_png

FULL = "No space left on device; free space on this disk and run the same command again"
READ_ONLY = "Read-only file system; give another -o, or make it writable and run the same command again"


def _fail_with(error: Exception, path: Path, **options) -> None:
    with replacing(path, **options):
        raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), FULL),
        (SafetensorError('Error while serializing: IoError(Os { message: "No space left on device" })'), FULL),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 448 vs 342"), FULL),
        (OSError("4096 requested and 1024 written"), FULL),
        (OSError(errno.EROFS, "Read-only file system"), READ_ONLY),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; free some of your quota"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied; give another path"),
    ],
)
def test_each_writer_has_its_own_words_for_a_disk_that_takes_no_more(tmp_path, error, line):
    with pytest.raises(DiskError) as caught:
        _fail_with(error, tmp_path / "a.bin")
    assert str(caught.value).startswith(f"{tmp_path / 'a.bin'}: {line}")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (StedmError("x"), ValueError("x"), OSError(errno.ENOENT, "x"), SafetensorError("x")):
        with pytest.raises(type(error), match="x") as caught:
            _fail_with(error, tmp_path / "a.bin")
        assert caught.value is error


def test_what_is_closed_elsewhere_is_named(tmp_path):
    with pytest.raises(DiskError, match=r"^/elsewhere/slide: Permission denied"):
        _fail_with(PermissionError(errno.EACCES, "Permission denied", "/elsewhere/slide"), tmp_path / "a.bin")


@pytest.fixture
def no_large_files():
    """Files end after 20 kB, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _writers(folder: Path) -> dict[str, object]:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)

    def with_replacing(name: str, write) -> None:
        with replacing(folder / name) as temporary:
            write(temporary)

    return {
        "a.txt": lambda: write_text(folder / "a.txt", "x" * 30_000),
        "a.json": lambda: write_json(folder / "a.json", ["x" * 30_000]),
        "once.txt": lambda: write_once(folder / "once.txt", "x" * 30_000),
        "a.png": lambda: write_png(folder / "a.png", noise),
        "a.npy": lambda: with_replacing("a.npy", lambda path: np.save(path, noise)),
        "a.parquet": lambda: with_replacing("a.parquet", pd.DataFrame({"x": noise.ravel()}).to_parquet),
        "a.csv": lambda: with_replacing("a.csv", pd.DataFrame({"x": noise.ravel()}).to_csv),
        "a.safetensors": lambda: with_replacing("a.safetensors", lambda p: save_file({"x": torch.zeros(9000)}, p)),
    }


@pytest.mark.parametrize("name", list(_writers(Path())))
def test_a_file_that_cannot_be_written_to_its_end_is_one_line_and_leaves_nothing(tmp_path, no_large_files, name):
    with pytest.raises(DiskError) as caught:
        _writers(tmp_path)[name]()
    # NumPy doesn't say why it has written less than it should.
    why = "No space left on device" if name == "a.npy" else "File too large"
    assert str(caught.value).startswith(f"{tmp_path / name}: {why}; ")
    assert list(tmp_path.iterdir()) == []


# ---- loss of power --------------------------------------------------------------------------------------------------


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """What is synced and renamed, by name."""
    done, sync, replace = [], os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"rename {Path(b).name}"), replace(a, b)))
    return done


def test_markers_are_on_the_disk_before_they_have_their_name_and_images_do_not_wait(tmp_path, order):
    write_text(tmp_path / "a.txt", "x")
    assert order == ["sync a.txt", "rename a.txt", f"sync {tmp_path.name}"]
    order.clear()
    with replacing(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("x")
    assert order == ["sync weights", "sync model", "rename model", f"sync {tmp_path.name}"]
    order.clear()
    write_png(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    assert order == ["rename a.png"]


def test_the_disk_is_flushed_before_the_table_that_names_the_images(tmp_path, tiny_dataset, order, monkeypatch):
    monkeypatch.setattr("stedm.data.folder.flush", lambda folder: order.append(f"flush {Path(folder).name}"))
    root = tiny_dataset()
    assert order.index(f"flush {root.name}") < order.index("rename metadata.csv")


# ---- what killed processes leave -------------------------------------------------------------------------------------

KILLED = """
import os, sys
from stedm.io.files import replacing
with replacing(os.path.join(sys.argv[1], "a")) as one, replacing(os.path.join(sys.argv[1], "below", "b")) as other:
    one.mkdir()
    other.mkdir()
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writing_process(tmp_path):
    """A process in the middle of writing two files."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "written\n"
            yield process
        finally:
            process.kill()


def _temporary(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if files.is_temporary(path.name)]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_stays(tmp_path, writing_process):
    with replacing(tmp_path / "mine") as mine, alone_in(tmp_path):
        mine.mkdir()
        assert len(_temporary(tmp_path)) == 3, "processes are at work"
        writing_process.send_signal(signal.SIGKILL)
        writing_process.wait()
        sweep(tmp_path)
        assert _temporary(tmp_path) == [mine.parent]
    assert (tmp_path / "mine").is_dir()


def test_the_next_claim_of_a_folder_sweeps_it(tmp_path, writing_process):
    writing_process.kill()
    writing_process.wait()
    (tmp_path / "claim.txt").write_text("x")
    claim(tmp_path / "claim.txt", "x", "x".__eq__, another=str, not_empty="not empty")
    assert _temporary(tmp_path) == []


def test_of_another_machine_only_what_was_not_touched_for_days_is_removed(tmp_path):
    old, busy = tmp_path / ".stedm-00000000-1-abcdefgh", tmp_path / ".stedm-00000000-1-ijklmnop"
    long_ago = time.time() - 8 * 86_400
    for folder in (old, busy):
        (folder / "model").mkdir(parents=True)
        for path in (folder / "model", folder):
            os.utime(path, (long_ago, long_ago))
    (busy / "model" / "part").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [busy.name]


def test_hidden_folders_of_others_stay(tmp_path):
    long_ago = time.time() - 1000 * 86_400
    names = [".git", ".stedm", ".stedm-backup", ".data.abcdefgh", ".stedm-00000000-1-abcdefgh.zip", "stedm-0-1-a"]
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / ".stedm-00000000-1-abcdefgh").write_text("a file")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, ".stedm-00000000-1-abcdefgh"])
