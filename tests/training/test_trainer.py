"""The trainer: the same weights however a run is computed, and runs that stop when they must."""

import gc
import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from stedm.config import DiffusionConfig, MachineConfig, TrainingConfig
from stedm.data.folder import DatasetFolder
from stedm.diffusion.train import train_diffusion
from stedm.errors import StedmError
from stedm.seeds import torch_generator
from stedm.training.trainer import Trainer, resolve_workers

CPU = torch.device("cpu")


class Samples(Dataset):
    """Sample i is a pure function of i; `broken` can't be read."""

    def __init__(self, broken: int = -1):
        self.broken = broken

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.broken:
            raise StedmError(f"image {index}: can't be read; make it again")
        return torch.randn(3, 8, 8, generator=torch_generator(0, index))


def _network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 3, padding=1))
    return network.to(memory_format=memory_format)


def _config(**changes) -> tuple[TrainingConfig, MachineConfig]:
    """What is trained, and on which machine; `changes` of either."""
    values = {"steps": 6, "batch": 4, "lr": 1e-2, "checkpoint_every_steps": 3, "precision": "fp32"} | changes
    machine = {key: value for key, value in values.items() if key in MachineConfig.model_fields}
    training = {key: value for key, value in values.items() if key not in machine}
    return TrainingConfig(**training), MachineConfig(**machine)


def _train(
    folder: Path, network: nn.Module | None = None, samples: Dataset | None = None, stop=None, **changes
) -> dict:
    """Weights after training, or after `stop` steps of it."""
    trainer = Trainer(network or _network(), folder, *_config(**changes), seed=1, ema_decay=0.9)
    for batch in trainer.batches(samples or Samples()):
        with trainer.autocast():
            predicted = trainer.network(batch)
        trainer.step((predicted - batch.flip(-1)).square().mean())
        if trainer.step_done == stop:
            break
    return {
        name: value.detach().clone()
        for name, value in trainer.accelerator.unwrap_model(trainer.network).state_dict().items()
    }


def _assert_close(one: dict, other: dict, **tolerance) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance)


@pytest.mark.parametrize("stop", [None, 4])
def test_any_number_of_workers_gives_the_same_weights(tmp_path, stop):
    alone = _train(tmp_path / "0", workers=0)
    if stop:
        # Interrupted after the checkpoint of step 3, gone on with another number of workers.
        _train(tmp_path / "2", stop=stop, workers=0)
    _assert_close(alone, _train(tmp_path / "2", workers=2), rtol=0, atol=0)


def test_training_leaves_the_global_generator_alone(tmp_path):
    network, before = _network(), torch.get_rng_state()
    for workers in (0, 1):
        _train(tmp_path / str(workers), network, workers=workers, steps=2)
        assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_automatic_beside_a_gpu_only(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert resolve_workers(None, CPU) == 0
    assert resolve_workers(None, torch.device("cuda"), processes=1) == 8
    assert resolve_workers(None, torch.device("cuda"), processes=8) == 1
    assert resolve_workers(3, CPU) == 3
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert resolve_workers(None, torch.device("cuda")) == 0
    with pytest.raises(StedmError, match="can't be forked"):
        resolve_workers(3, CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_one_line(tmp_path, workers, monkeypatch):
    # After an error torch waits so many seconds for its workers.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    with pytest.raises(StedmError) as caught:
        _train(tmp_path, samples=Samples(broken=9), workers=workers)
    assert str(caught.value) == "image 9: can't be read; make it again"
    del caught
    gc.collect()


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    whole = _train(tmp_path / "1", accumulate=1)
    _assert_close(whole, _train(tmp_path / "4", accumulate=4), rtol=1e-4, atol=1e-6)
    rows = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in "14"]
    for one, other in zip(*rows, strict=True):
        one, other = json.loads(one), json.loads(other)
        assert one["images_seen"] == other["images_seen"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_parts_of_a_batch_draw_different_noise(tmp_path):
    trainer = Trainer(_network(), tmp_path, *_config(steps=2, accumulate=2), seed=1)
    drawn = []
    for batch in trainer.batches(Samples()):
        drawn.append(float(torch.rand(1, generator=trainer.generator)))
        trainer.step(trainer.network(batch).mean())
    assert len(set(drawn)) == 4


def test_a_batch_is_divided_evenly(tmp_path):
    with pytest.raises(StedmError, match="4 images of a batch can't be divided into 3 equal parts"):
        Trainer(_network(), tmp_path, *_config(accumulate=3), seed=1)


def test_a_checkpoint_of_another_memory_format_goes_on(tmp_path):
    """Moments whose bytes lie otherwise than those of their weights must not be mixed up with other positions."""
    whole = _train(tmp_path / "whole")
    _train(tmp_path / "changed", _network(torch.channels_last), stop=3)
    _assert_close(whole, _train(tmp_path / "changed"), rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    trainer = Trainer(_network(), tmp_path, *_config(steps=40, checkpoint_every_steps=4), seed=1)

    def run() -> None:
        for batch in trainer.batches(Samples()):
            # Not in a step that is logged or saved.
            trainer.step(trainer.network(batch).mean() * (float("nan") if trainer.step_done >= 2 else 1.0))

    with pytest.raises(StedmError, match="the loss or its gradients became nan by step 4"):
        run()
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_gradients_that_are_not_finite_stop_the_run_before_the_weights_that_they_break_are_saved(tmp_path):
    """Of a step that is saved the loss is that of the weights before it."""
    trainer = Trainer(_network(), tmp_path, *_config(steps=4, checkpoint_every_steps=4), seed=1)

    def run() -> None:
        for batch in trainer.batches(Samples()):
            loss = trainer.network(batch).square().mean()
            # The root of nothing is 0, and its slope infinite.
            trainer.step(loss + (loss - loss).sqrt() if trainer.step_done == 3 else loss)

    with pytest.raises(StedmError, match="the loss or its gradients became nan by step 4"):
        run()
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_the_loss_is_not_read_in_every_step(tmp_path, monkeypatch):
    reads = []
    original = Trainer._read_loss
    monkeypatch.setattr(Trainer, "_read_loss", lambda self: (reads.append(self.step_done), original(self)))
    _train(tmp_path, steps=25, checkpoint_every_steps=12)
    assert reads == [1, 10, 12, 20, 24, 25]


class Nearly(nn.Module):
    """Gradients that float16 can't hold unless the loss is scaled up."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images) * 1e-6


def test_small_gradients_survive_fp16_and_its_scale_goes_on(tmp_path):
    def train(folder: Path, stop: int | None = None) -> tuple[torch.Tensor, float]:
        trainer = Trainer(Nearly(), folder, *_config(steps=6, precision="fp16"), seed=1)
        for batch in trainer.batches(Samples()):
            with trainer.autocast():
                predicted = trainer.network(batch)
            # The first scale is too large for this loss: its step is left out, and the scale halved.
            trainer.step(predicted.float().mean() + (predicted.float() * 1e9).mean() * (trainer.step_done < 1))
            if trainer.step_done == stop:
                break
        return trainer.network.layer.weight.detach().clone(), trainer.scaler.get_scale()

    weights, scale = train(tmp_path / "whole")
    assert weights.abs().min() > 0, "the gradient was lost"
    assert scale == 2.0**15
    train(tmp_path / "parts", stop=4)
    again, scale_again = train(tmp_path / "parts")
    assert torch.equal(again, weights)
    assert scale_again == scale


# ---- the diffusion model: several processes, compilation ----------------------------------------------------------


def _diffusion(**changes) -> DiffusionConfig:
    values = {
        "denoiser": {"channels": [16, 24], "norm_groups": 8, "layout_channels": 4},
        "style": {"dim": 16, "n_images": 2},
        "steps": 3,
        "batch": 8,
        "lr": 0.001,
        "time_shift": 1.0,
    }
    return DiffusionConfig(**{**values, **changes})


def _train_diffusion(root: Path, folder: Path, machine: dict | None = None, **changes) -> dict[str, torch.Tensor]:
    splits = [DatasetFolder.open(root).split(name) for name in ("train", "unlabeled")]
    computed = MachineConfig(**{"precision": "fp32", **(machine or {})})
    train_diffusion(_diffusion(**changes), *splits, folder, image_px=16, machine=computed)
    return load_file(folder / "model/denoiser/diffusion_pytorch_model.safetensors")


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _one_of_two(rank: int, port: int, root: Path, folder: Path, changes: dict) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    _train_diffusion(root, folder, **changes)
    assert torch.distributed.get_world_size() == 2
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_end_in_the_weights_of_one(tiny_dataset, tmp_path, accumulate):
    """Samples, noise, times and colours belong to the sample: the number of devices changes rounding only."""
    root = tiny_dataset(image_px=16)
    one = _train_diffusion(root, tmp_path / "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    arguments = (port, root, tmp_path / "2", {"machine": {"accumulate": accumulate}})
    processes = [fork.Process(target=_one_of_two, args=(rank, *arguments), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)  # far more than a busy machine needs
    assert [process.exitcode for process in processes] == [0, 0]
    two = load_file(tmp_path / "2/model/denoiser/diffusion_pytorch_model.safetensors")
    _assert_close(one, two, rtol=1e-3, atol=1e-5)
    assert _losses(tmp_path / "1") == pytest.approx(_losses(tmp_path / "2"), rel=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(StedmError, match=r"4 images of a batch can't be divided into 1 equal parts .* of 3 processes"):
        Trainer(_network(), tmp_path, *_config(), seed=1)


@pytest.mark.filterwarnings("ignore")
def test_compiled_training_steps_alike_and_saves_the_same_names(tiny_dataset, tmp_path, monkeypatch):
    """With the backend that runs the traced graph as it is: inductor takes a minute."""
    backends = []
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: backends.append(f) or compile_with(f, backend="eager"))
    root = tiny_dataset(image_px=16)
    small = {"denoiser": {"channels": [8], "norm_groups": 4, "layout_channels": 2}, "steps": 1}
    plain = _train_diffusion(root, tmp_path / "plain", **small)
    assert backends == []
    compiled = _train_diffusion(root, tmp_path / "compiled", machine={"compile": True}, **small)
    assert len(backends) == 1
    _assert_close(plain, compiled, rtol=1e-3, atol=1e-5)
    names = [load_file(tmp_path / n / "checkpoints/step-00000001/model.safetensors") for n in ("plain", "compiled")]
    assert names[0].keys() == names[1].keys()


def test_any_network_is_compiled_in_place(tmp_path):
    trainer = Trainer(_network(), tmp_path, *_config(compile=True), seed=1)
    assert trainer.network._compiled_call_impl is not None
    assert trainer.accelerator.unwrap_model(trainer.network).state_dict().keys() == _network().state_dict().keys()
