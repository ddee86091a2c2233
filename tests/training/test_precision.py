"""Precision: bf16 only where the machine is fast at it, unless asked for by name."""

import pytest
import torch

from stedm.errors import StedmError
from stedm.training.precision import autocast, checked_numbers, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "fp32"),
        ({"avx512_f": True}, "fp32"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "fp32"),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
    ],
)
def test_auto_asks_the_machine(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("channels", "dilation", "expected"), [(24, 2, "fp32"), (24, 1, "bf16"), (32, 2, "bf16"), (24, (1, 4), "fp32")]
)
def test_a_network_whose_gradients_bf16_breaks_is_trained_in_fp32(monkeypatch, channels, dilation, expected):
    """Weights of dilated convolutions had NaN for a gradient: the first step of such a network ended its training."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    network = torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 3, dilation=dilation))
    assert resolve_precision("auto", CPU, network) == expected
    assert resolve_precision("auto", CPU) == resolve_precision("bf16", CPU, network) == "bf16"


def test_torch_that_can_not_tell_means_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_takes_fp16(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert resolve_precision("auto", torch.device("cuda:1")) == expected


def test_layers_run_in_the_precision_asked_for_and_keep_float32_weights():
    layer = torch.nn.Linear(4, 4)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        with autocast(name, CPU):
            assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_and_the_logarithm_of_nothing_is_one(wrong):
    values = torch.tensor([0.0, -torch.inf])
    assert checked_numbers(values, "a network") is values
    with pytest.raises(StedmError, match="a network answered with NaN or infinity"):
        checked_numbers(torch.tensor([0.0, wrong]), "a network")
