"""What a waiting user reads: which stage of how many, how fast, how long still."""

import math

import pytest

from stedm import progress
from stedm.progress import Reporter, Stage, duration

STAGES = [Stage("teacher", "segmenter", 100.0), Stage("model", "diffusion", 200.0), Stage("arm", "segmenter", 300.0)]


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to: `clock[0] += seconds`."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_stages_are_counted_and_the_time_left_is_that_of_the_whole_run(clock, capsys):
    reporter = Reporter(bars=False)
    reporter.expect(STAGES)
    with reporter.stage("teacher", 16) as tick:
        tick(0, 10)
        clock[0] += 50
        tick(10, 10, 0.5)
    with reporter.stage("model", 8) as tick:
        clock[0] += 40
        tick(1, 4, 0.25)
    told = capsys.readouterr().err.splitlines()
    # Of the model 120 s are left, and the arm takes three times as long as the teacher.
    assert told[:3] == [
        "[1/3] teacher ...",
        "  [1/3] teacher: 10/10, loss 0.5000, 3.2 images/s, about 4 min left",
        "[1/3] teacher: done in 50 s",
    ]
    assert told[4] == "  [2/3] model: 1/4, loss 0.2500, 0.2 images/s, about 4 min left"


def test_a_stage_that_was_resumed_is_measured_from_where_it_began(clock, capsys):
    reporter = Reporter(bars=False)
    with reporter.stage("model", 8) as tick:
        tick(90, 100, math.nan)
        clock[0] += 40
        tick(95, 100, math.nan)
    told = capsys.readouterr().err.splitlines()
    assert told[1:3] == ["  model: goes on from step 90 of 100", "  model: 95/100, 1 images/s"]


def test_what_was_measured_before_counts_until_it_is_at_work(clock, capsys):
    reporter = Reporter(bars=False)
    reporter.expect(STAGES[1:], {"segmenter": 2.0})
    with reporter.stage("model") as tick:
        clock[0] += 40
        tick(1, 4)
    # 120 s of the model, and 300 units of two seconds: at the model's pace they would be of 0.8.
    assert capsys.readouterr().err.splitlines()[1] == "  [1/2] model: 1/4, about 12 min left"


def test_stages_that_nobody_announced_or_that_are_left_out_keep_the_count_right(clock, capsys):
    reporter = Reporter(bars=False)
    reporter.expect(STAGES)
    for name in ("check", "model", "arm"):
        with reporter.stage(name):
            pass
    assert [line for line in capsys.readouterr().err.splitlines() if "..." in line] == [
        "[1/4] check ...",
        "[3/4] model ...",
        "[4/4] arm ...",
    ]


def test_a_quiet_reporter_says_nothing_and_still_measures(clock, capsys):
    reporter = Reporter(quiet=True)
    with reporter.stage("model") as tick:
        clock[0] += 40
        tick(1, 2)
    assert capsys.readouterr().err == ""
    assert reporter.seconds == {"model": 40.0}


def test_bars_keep_their_columns_with_names_of_any_length(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    reporter = Reporter()
    for name in ("segmenter [real]", "labels for real+stain+synthetic+self-training, round 2, segmenter 0"):
        with reporter.stage(name, 16) as tick:
            tick(3, 10, 0.5)
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if "3/10" in line]
    assert "segmenter [real]" in lines[0]
    assert "2, segmenter 0" in lines[-1]
    assert lines[0].index("3/10") == lines[-1].index("3/10")
    assert "loss 0.5" in shown


@pytest.mark.parametrize(("seconds", "words"), [(47.3, "47 s"), (720, "12 min"), (11_100, "3 h 05 min")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
