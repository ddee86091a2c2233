"""Trackers: off unless asked for, a line where the package is missing, and what they are told."""

import accelerate.tracking
import pytest

from stedm.errors import StedmError
from stedm.training import tracker
from stedm.training.tracker import Tracker


def test_a_missing_package_is_one_line_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(StedmError, match=r"machine.tracker wandb: not installed; run `pip install wandb`"):
        Tracker("wandb", tmp_path)
    Tracker("none", tmp_path).log({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_go_on_with_the_run_of_the_same_folder(name, tmp_path, monkeypatch):
    started = []

    class Recorder(accelerate.tracking.LOGGER_TYPE_TO_CLASS[name]):
        def start(self):
            started.append((self.run_name, self.init_kwargs))

    monkeypatch.setattr(tracker, "find_spec", lambda name: object())
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, Recorder)
    accelerate.PartialState()
    for folder in ("a", "a", "b"):
        Tracker(name, tmp_path / folder)
    (project, first), (_, again), (_, other) = started
    assert (project, first["resume"]) == ("stedm", "allow")
    assert first == again != other
