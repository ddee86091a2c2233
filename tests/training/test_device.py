"""The place that chooses the device; that all ask it, tests of verbs see (`elsewhere` in tests/conftest.py)."""

import pytest
import torch
from torch import nn

from stedm.config import MachineConfig
from stedm.errors import StedmError
from stedm.training import device
from stedm.training.device import choose_device, device_name, move, place


@pytest.mark.parametrize(
    ("name", "gpus", "mps", "number", "expected"),
    [
        ("auto", 0, False, 0, "cpu"),
        ("auto", 0, True, 0, "mps"),
        ("auto", 2, False, 0, "cuda:0"),
        ("cpu", 2, False, 0, "cpu"),
        ("cuda:1", 2, False, 0, "cuda:1"),
        ("cuda:1", 2, False, 5, "cuda:1"),
        ("mps", 0, True, 3, "mps"),
    ],
)
def test_names_become_devices(name, gpus, mps, number, expected):
    assert device_name(name, gpus, mps, number) == expected


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_gpus_are_dealt_in_turn(name):
    assert [device_name(name, 3, False, number) for number in range(5)] == [f"cuda:{n}" for n in (0, 1, 2, 0, 1)]


def test_workers_of_a_pool_take_the_next_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    try:
        for number in range(3):
            monkeypatch.setattr("stedm.workers.pool._number", number)
            assert choose_device() == torch.device("cuda", number % 2)
            assert choose_device("cuda:1") == torch.device("cuda:1")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert choose_device() == torch.device("cuda:1")
        assert chosen[0] == torch.device("cuda:0")
        assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize(
    ("name", "gpus", "processes", "message"),
    [
        ("cuda", 0, 1, "device cuda: torch sees no GPU here; give auto"),
        ("cuda:2", 2, 1, "device cuda:2: this machine has 2"),
        ("mps", 2, 1, "device mps: torch sees none"),
        ("cuda:1", 2, 2, "device cuda:1: 2 processes train together, each on a GPU of its own, and this machine has 2"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name, gpus, processes, message):
    with pytest.raises(StedmError, match=message) as error:
        device_name(name, gpus, False, 0, processes)
    assert "\n" not in str(error.value)


def test_processes_that_train_together_need_a_gpu_each():
    assert [device_name("auto", 2, False, number, 4) for number in (0, 1)] == ["cuda:0", "cuda:1"]  # on two machines
    with pytest.raises(StedmError, match="each on a GPU of its own"):
        device_name("auto", 2, False, 2, 4)


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))


def test_on_the_cpu_the_order_of_memory_stays_and_the_precision_is_that_of_training():
    network, images = _network(), torch.rand(1, 3, 8, 8)
    before = network(images)
    assert place(network, MachineConfig(device="cpu", precision="fp32")) is network
    assert network[0].weight.is_contiguous()
    assert torch.equal(network(images), before)
    assert place(network, MachineConfig(device="cpu", precision="bf16"))(images).dtype == torch.bfloat16
    assert network[0].weight.is_contiguous()


def test_on_tensor_cores_networks_run_in_their_precision_and_order_of_memory(monkeypatch):
    monkeypatch.setattr(device, "_TENSOR_CORES", ("cpu", "meta"))
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        network = place(_network(), MachineConfig(device="cpu", precision=precision))
        assert network(torch.rand(1, 3, 8, 8)).dtype == dtype
        assert network[1].weight.is_contiguous(memory_format=torch.channels_last)
        assert network[1].weight.dtype == torch.float32
    there = move(_network(), "meta")
    assert there[0].weight.is_meta
    assert there[1].weight.is_contiguous(memory_format=torch.channels_last)
