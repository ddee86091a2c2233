"""Checkpoints: exact, without code in them, and never the only one."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset

from stedm.config import MachineConfig, TrainingConfig
from stedm.errors import StedmError
from stedm.seeds import torch_generator
from stedm.training import checkpoint
from stedm.training.trainer import Trainer

_watched: list[str] | None = None


def _watch(event: str, _: tuple) -> None:
    if _watched is not None and event == "pickle.find_class":
        _watched.append(event)


sys.addaudithook(_watch)  # there is no way to take it out again; it listens only while `_watched` is a list


class _Shell:
    """What runs a command when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


class Samples(Dataset):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(3, 8, 8, generator=torch_generator(0, index))


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 3, 1))
    network[3].bias.requires_grad_(False)  # a parameter without moments
    return network


def _train(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
    """All that a run of 8 steps ends with, or what it had after `stop` of them."""
    config = TrainingConfig(steps=8, batch=2, lr=1e-2)
    machine = MachineConfig(checkpoint_every_steps=2, precision="fp32")
    trainer = Trainer(_network(), folder, config, machine, seed=1, ema_decay=0.9)
    for batch in trainer.batches(Samples()):
        trainer.step((trainer.network(batch) - batch.flip(-1)).square().mean())
        if trainer.step_done == stop:
            break
    with trainer.averaged_weights() as network:
        averages = {f"average {name}": value.clone() for name, value in network.named_parameters()}
    moments = {
        f"{name} {key}": value.clone()
        for name, parameter in trainer.network.named_parameters()
        for key, value in trainer.optimizer.state.get(parameter, {}).items()
    }
    return averages | moments | trainer.network.state_dict()


def _equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def whole(tmp_path) -> dict[str, torch.Tensor]:
    return _train(tmp_path / "whole")


@pytest.fixture
def killed(tmp_path) -> Path:
    """A run with checkpoints of steps 2 and 4 that ended in step 5."""
    _train(tmp_path / "killed", stop=5)
    return tmp_path / "killed"


def _checkpoints(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "checkpoints").iterdir())


def test_weights_averages_and_moments_go_on_to_the_bit(whole, killed):
    assert _checkpoints(killed) == ["step-00000002", "step-00000004"]
    assert _equal(_train(killed), whole)
    assert _checkpoints(killed) == ["step-00000006", "step-00000008"]


def test_a_checkpoint_holds_numbers_and_json_only(killed):
    files = {file.name for file in killed.glob("checkpoints/*/*")}
    assert files == {"model.safetensors", "averages.safetensors", "optimizer.safetensors", "checkpoint.json"}


def test_nothing_of_a_foreign_folder_is_unpickled(whole, killed, tmp_path, monkeypatch):
    global _watched
    hostile = pickle.dumps(_Shell(tmp_path / "proof"))
    names = ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "pytorch_model.bin", "scheduler.bin")
    for folder in (killed, *killed.glob("checkpoints/*")):
        for name in names:
            (folder / name).write_bytes(hostile)
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something is unpickled"))
    _watched = []
    try:
        resumed, found = _train(killed), _watched
    finally:
        _watched = None
    assert found == []
    assert not (tmp_path / "proof").exists()
    assert _equal(resumed, whole)


def test_a_checkpoint_of_an_older_version_is_refused(killed):
    for folder in killed.glob("checkpoints/*"):
        (folder / "checkpoint.json").unlink()
        (folder / "custom_checkpoint_0.pkl").write_bytes(b"")
    with pytest.raises(StedmError, match=r"step-00000004: a checkpoint of an older version .* remove .*checkpoints"):
        _train(killed)
    assert _checkpoints(killed) == ["step-00000002", "step-00000004"]


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-10] ^= 4
    file.write_bytes(content)


FILES = ["model.safetensors", "averages.safetensors", "optimizer.safetensors", "checkpoint.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [_cut_off, _flip_a_bit, Path.unlink])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(whole, killed, capsys, name, damage):
    damage(killed / "checkpoints/step-00000004" / name)
    assert _equal(_train(killed), whole)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"step-00000004/{name} is " in lines[0]
    assert lines[0].endswith("; goes on from step-00000002")


def test_without_a_whole_checkpoint_training_begins_anew(whole, killed, capsys):
    for folder in killed.glob("checkpoints/*"):
        _cut_off(folder / "model.safetensors")
    assert _equal(_train(killed), whole)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("step-00000004/model.safetensors is damaged; goes on from step-00000002")
    assert second.endswith("step-00000002/model.safetensors is damaged; training begins anew")


def test_a_damaged_checkpoint_does_not_stay_in_front_of_newer_ones(whole, killed):
    _cut_off(killed / "checkpoints/step-00000004/model.safetensors")
    os.rename(killed / "checkpoints/step-00000004", killed / "checkpoints/step-00000007")
    _train(killed, stop=4)
    assert _checkpoints(killed) == ["step-00000002", "step-00000004"]


def test_a_checkpoint_of_another_network_is_one_line(killed):
    weights = load_file(killed / "checkpoints/step-00000004/model.safetensors")
    weights["0.weight"] = weights["0.weight"][:2]
    folder = killed / "checkpoints/step-00000004"
    save_file(weights, folder / "model.safetensors")
    index = {"step": 4, "averaged": 4, "sha256": {name: checkpoint.sha256_of(folder / name) for name in FILES[:3]}}
    checkpoint.write_json(folder / "checkpoint.json", index | {"sha256_of_index": checkpoint._sha256_of(index)})
    with pytest.raises(StedmError, match="step-00000004: not a checkpoint of this network") as caught:
        _train(killed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ['{"step": 2, "sec', "[]", '{"step": "x", "seconds": 1}', "\x00\x00"])
def test_a_damaged_line_of_the_log_is_left_out(whole, killed, line):
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert _equal(_train(killed), whole)
    assert line not in (killed / "metrics.jsonl").read_text()
