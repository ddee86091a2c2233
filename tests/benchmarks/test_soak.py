"""The harness of reliability: damage is damage, outcomes are told from each other, pages hold the figures."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from soak import child, compare, fuzz, mutate, table
from soak.readers import READERS, Reader
from soak.trials import Log, Outcome, Trial
from soak.workshop import Workshop
from stedm.errors import StedmError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.csv", "a.parquet", "a.safetensors", "a.png", "a.tif", "a.bin"])
def test_damage_is_another_content_and_a_function_of_the_generator(tmp_path, name):
    import pandas as pd
    from PIL import Image
    from safetensors.numpy import save_file

    table = pd.DataFrame({"x": [1, 2, 3], "name": ["a", "b", "c"]})
    whole = tmp_path / name
    match whole.suffix:
        case ".json" | ".yaml":
            whole.write_text('{"x": {"y": [1, 2]}, "z": "text"}')
        case ".csv":
            table.to_csv(whole, index=False)
        case ".parquet":
            table.to_parquet(whole)
        case ".safetensors":
            save_file({"a": np.ones((2, 3), np.float32)}, whole)
        case ".png" | ".tif":
            Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(whole)
        case _:
            whole.write_bytes(b"12345678" * 10)
    content, kinds, twice = whole.read_bytes(), set(), []
    for seed in (*range(60), *range(60)):
        mutate.remove(whole)
        whole.write_bytes(content)
        kinds.add(mutate.damage(whole, np.random.default_rng(seed)))
        is_file = whole.is_file() and not whole.is_symlink()
        assert not is_file or whole.read_bytes() != content
        twice.append(whole.read_bytes() if is_file else None)
    assert len(kinds) > 8
    assert twice[:60] == twice[60:]


class _Materials(Workshop):
    """A workshop with one file."""

    def at(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def workshop(tmp_path):
    made = _Materials(tmp_path)
    made.folder.mkdir(parents=True)
    made.at("a.txt").write_text("whole")
    return made


def _refuses(folder, _):
    raise StedmError("a.txt: damaged; make it again")


def _raises(folder, _):
    raise ValueError("no line of ours")


def _sleeps(folder, _):
    while True:
        time.monotonic()


def _dies(folder, _):
    os.kill(os.getpid(), signal.SIGKILL)


def _takes(folder, _):
    return np.ones((fuzz.MEMORY_MB + 200) * 125_000)


@pytest.mark.parametrize(
    ("found", "read", "ours"),
    [
        ("refused", _refuses, True),
        ("traceback", _raises, True),
        ("hang", _sleeps, True),
        ("died", _dies, True),
        ("memory", _takes, True),
        ("silent", lambda folder, _: os.listdir(folder / "..") and (folder / "a.txt").stat(), True),
        ("changed", lambda folder, _: (folder / "a.txt").lstat(), False),
        ("unharmed", lambda folder, _: "the same", True),
    ],
)
def test_every_class_of_outcome_is_told_from_the_others(workshop, monkeypatch, found, read, ours):
    whole = {"first": True}

    def reads(folder, workshop):
        # The control reads a whole file.
        if whole.pop("first", None):
            return "the same" if found == "unharmed" else "whole"
        return read(folder, workshop)

    monkeypatch.setitem(READERS, "test", Reader("a.txt", ("*",), reads, ours=ours))
    monkeypatch.setattr(mutate, "_FILE_SYSTEM", 0)
    if found == "hang":
        monkeypatch.setattr(fuzz, "CPU_S", 1)
    # Where a process died another one goes on.
    batch = 2 if found == "died" else 1
    monkeypatch.setattr(fuzz, "BATCH", batch)
    outcome = fuzz.run(Trial("fuzz", "test", 1), workshop)
    assert outcome.counts == {found: batch}
    expected = [] if found in fuzz.GOOD else ["fuzz/test/2", "fuzz/test/3"] if batch == 2 else ["fuzz/test/1"]
    assert [each["trial"] for each in outcome.findings] == expected


def test_a_reader_that_refuses_whole_files_is_no_trial(workshop, monkeypatch):
    monkeypatch.setitem(READERS, "test", Reader("a.txt", ("*",), _refuses))
    with pytest.raises(RuntimeError, match="a whole file is not read"):
        fuzz.run(Trial("fuzz", "test", 0), workshop)


def test_children_are_killed_at_an_operation_or_a_moment_and_say_how_they_ended(tmp_path):
    def work():
        for number in range(5):
            (tmp_path / f"{number}.txt").write_text("x")

    ended = child.run(work, tmp_path / "log")
    assert (ended.status, ended.operations) == (0, 5)
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    ended = child.run(work, tmp_path / "log", kill_at_operation=3)
    assert ended.was_killed
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["0.txt", "1.txt"]
    assert child.run(lambda: time.sleep(600), tmp_path / "log", kill_after_s=0.1).was_killed

    def refuse():
        print("stedm: no; do that", file=sys.stderr)
        raise SystemExit(1)

    ended = child.run(refuse, tmp_path / "log")
    assert (ended.status, ended.complaint) == (1, "")
    assert child.run(lambda: 1 / 0, tmp_path / "log").complaint.startswith("traceback: ZeroDivisionError")


def test_only_seconds_may_differ():
    one, other = (
        {
            "metrics.jsonl": b'{"step": 1, "loss": 0.5, "seconds": %d}\n' % seconds,
            "provenance.json": b'{"stedm": "0", "seconds": {"a": %d}}' % seconds,
        }
        for seconds in (1, 2)
    )
    assert all(compare.canonical(name, one[name]) == compare.canonical(name, other[name]) for name in one)
    changed = one["metrics.jsonl"].replace(b"0.5", b"0.6")
    assert compare.canonical("metrics.jsonl", changed) != compare.canonical("metrics.jsonl", one["metrics.jsonl"])
    assert compare.differences({"a": b"1", "b": b""}, {"a": b"2", "c": b""}) == [
        "b: missing",
        "c: not in the uninterrupted one",
        "a: differs",
    ]
    assert compare.is_leftover("model/.stedm-0123abcd-4711-ab12_xyz/config.json")
    assert not compare.is_leftover("a/.tiling/b.parquet")


def test_trials_that_are_done_are_not_done_again_even_after_a_torn_line(tmp_path):
    log = Log(tmp_path / "trials.jsonl")
    log.note(Trial("kills", "run", 0), Outcome({"survived": 3}), 1.0)
    with log.path.open("a") as file:
        file.write('{"trial": "kills/run/1", "ki')
    log.note(Trial("kills", "run", 2), Outcome({"lost": 1}), 1.0)
    assert log.done() == {"kills/run/0", "kills/run/2"}
    assert Log(log.path, seed=1).done() == set()
    made = table.summary(log.rows(), {"kills": ("survived",)})
    assert made["kinds"]["kills"]["classes"] == {"survived": 3, "lost": 1}
    assert "| – run | 4 | 3 | survived 3, lost 1 |" in table.lines(made)


@pytest.mark.parametrize("page", ["docs/reliability.md", "results/reliability/README.md"])
def test_pages_hold_what_the_summary_says(page):
    made = json.loads((REPOSITORY / "results/reliability/summary.json").read_text())
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert table.filled(text, made) == text


def test_trials_can_be_chosen_by_the_beginning_of_their_names():
    from benchmarks.soak.__main__ import KINDS, left, modules

    kinds = modules(KINDS)
    chosen = left(kinds, set(), ["kills/evaluate", "fuzz/latents"])
    assert {str(trial).rsplit("/", 1)[0] for trial in chosen} == {"kills/evaluate", "fuzz/latents"}
    assert len(left(kinds, set())) > len(chosen)
