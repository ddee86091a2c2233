"""The ways to measure, on things whose cost is known."""

import numpy as np
import pytest
import torch

from speed.machine import MatmulPeak
from speed.measure import PhaseClock, Turns, exponent, peak_bytes, watching

CPU = torch.device("cpu")


class _Time:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in ("measure", "machine"):
            monkeypatch.setattr(f"speed.{module}.time.perf_counter", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_phases_are_exclusive_and_complete(monkeypatch):
    time, clock = _Time(monkeypatch), PhaseClock(CPU)
    clock.enter("a")
    time.passes(1.0)
    before = clock.enter("b")
    time.passes(2.0)
    clock.enter(before)
    time.passes(4.0)
    clock.enter(None)
    time.passes(8.0)
    assert clock.take() == {"a": 5.0, "b": 2.0}
    assert clock.take() == {}


def test_turns_compare_within_a_round(monkeypatch):
    time = _Time(monkeypatch)
    speed = iter([1, 1, 1, 1, 10, 10, 1, 1])  # two to warm up, then rounds of which one is slow
    order = []

    def variant(name: str, seconds: float):
        def call() -> None:
            order.append(name)
            time.passes(seconds * next(speed))

        return call

    turns = Turns({"a": variant("a", 1.0), "b": variant("b", 3.0)}, 3, CPU)
    assert turns.ratio("b", "a") == 3.0
    assert turns.median("a") == 1.0
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert turns.share_of_peak("a", 100.0) is None


def test_modules_are_watched_and_then_left_alone(monkeypatch):
    time, clock = _Time(monkeypatch), PhaseClock(CPU)

    class Part(torch.nn.Module):
        def __init__(self, seconds: float, inner: torch.nn.Module | None = None):
            super().__init__()
            self.seconds, self.inner = seconds, inner

        def forward(self, x: int) -> int:
            time.passes(self.seconds)
            return self.inner(x) if self.inner else x + 1

    first, inner, last = Part(1.0), Part(8.0), Part(4.0)
    with watching(clock, {"network": [(first, last)], "inside": [(inner, inner)]}):
        clock.enter("outside")
        assert first(0) == 1
        time.passes(2.0)
        assert inner(0) == 1
        assert last(0) == 1
        time.passes(16.0)
    assert clock.take() == {"network": 7.0, "inside": 8.0, "outside": 16.0}
    first(0)
    assert clock.take() == {"outside": 1.0}


def test_memory_is_that_at_the_highest_moment():
    def tensors() -> None:
        first = torch.zeros(1000, 250)
        second = first + 1
        del first
        _ = second * 2

    megabyte = 1000 * 250 * 4
    assert 2 * megabyte <= peak_bytes(tensors, CPU) < 2.2 * megabyte
    assert 3 * megabyte <= peak_bytes(lambda: np.zeros(3 * megabyte, np.uint8), CPU) < 3.2 * megabyte


def test_exponents_of_known_growth():
    sizes = [1, 2, 4, 8]
    assert exponent(sizes, [3 * n**2 for n in sizes]) == pytest.approx(2.0)
    assert exponent(sizes, [5.0] * 4) == pytest.approx(0.0)
    assert exponent(sizes, [None, 2.0, 4.0, 8.0]) == pytest.approx(1.0)
    assert exponent([1], [1.0]) is None


def test_the_peak_is_flops_by_seconds(monkeypatch):
    time = _Time(monkeypatch)
    seconds = iter([9.0, 9.0, 9.0, 4.0, 2.0, 8.0])
    monkeypatch.setattr("speed.machine.torch.mm", lambda a, b: time.passes(next(seconds)))
    peak = MatmulPeak(CPU, "fp32", n=10)
    assert peak.samples == []
    assert peak.sample() == 2 * 10**3 / 2.0
    assert peak.flop_per_s == 1000.0
