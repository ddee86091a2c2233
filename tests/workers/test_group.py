"""Processes of torchrun: one command, trained by all of them."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import stedm
from stedm.cli import main
from stedm.config import load_config
from stedm.errors import StedmError
from stedm.experiment.experiment import Experiment
from stedm.progress import Reporter
from stedm.training.trainer import Trainer
from stedm.workers import group

HANGS_SECONDS = 600
"""What takes longer has failed: far more than a busy machine needs."""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _one_of_two(rank: int, port: int, folder: Path, work) -> None:
    """In a process of its own: `work()`, as torchrun would start it, with what it prints and writes noted in files."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    written = os.open(folder / f"written-{rank}", os.O_WRONLY | os.O_CREAT)

    def note(event: str, arguments: tuple) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in ("os.mkdir", "os.rename", "os.remove")) and str(folder / "run") in str(arguments[0]):
            os.write(written, f"{event} {arguments[0]}\n".encode())

    sys.addaudithook(note)
    work(rank)
    sys.stdout.flush()


def _two(folder: Path, work) -> list[int]:
    """Exit codes of two processes that do `work(rank)` together."""
    fork, port = multiprocessing.get_context("fork"), _free_port()
    processes = [fork.Process(target=_one_of_two, args=(rank, port, folder, work), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=HANGS_SECONDS)
    return [process.exitcode for process in processes]


def _said(folder: Path) -> list[list[str]]:
    return [(folder / f"err-{rank}").read_text().splitlines() for rank in range(2)]


@pytest.fixture
def config(tmp_path, tiny_dataset, tiny_run) -> Path:
    """A configuration file of a diffusion model of 8 steps and segmenters of 4."""
    values = tiny_run({"path": str(tiny_dataset(image_px=16))}, arms=["ssl", "real+synthetic"], seeds=[0], steps=4)
    values["data"]["image_px"], values["diffusion"]["steps"] = 16, 8
    values["machine"] = {"precision": "fp32", "checkpoint_every_steps": 4}
    values["rounds"] = {"number": 1, "labels": None}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("plain_reports")
def test_a_run_by_two_processes_is_that_of_one_and_the_first_alone_writes(tmp_path, config):
    def run(rank: int) -> None:
        summary = stedm.run(config, tmp_path / "run")
        (tmp_path / f"summary-{rank}").write_text(json.dumps(summary))

    assert _two(tmp_path, run) == [0, 0]
    assert (tmp_path / "summary-0").read_text() == (tmp_path / "summary-1").read_text()
    assert (tmp_path / "out-1").read_text() == (tmp_path / "err-1").read_text() == ""
    assert "report.html" in (tmp_path / "written-0").read_text()
    assert (tmp_path / "written-1").read_text() == ""
    Experiment(load_config(config), tmp_path / "alone", Reporter(quiet=True)).train_segmenters()
    # Samples and noise belong to the sample: two processes change rounding only. AdamW makes a whole step of a gradient
    # that is nearly none, so that a weight by itself may differ more than all of a tensor.
    assert _losses(tmp_path / "run") == pytest.approx(_losses(tmp_path / "alone"), rel=1e-4)
    weights = [
        load_file(tmp_path / run / "model/denoiser/diffusion_pytorch_model.safetensors") for run in ("run", "alone")
    ]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).norm() <= 1e-3 * weights[1][name].norm() + 1e-5, name
    for arm in ("ssl", "real+synthetic"):
        # Batch normalisation and Dice see the half of a batch that a process has; so does augmentation.
        two, one = (_losses(tmp_path / run / "segmenters" / arm / "seed-0") for run in ("run", "alone"))
        assert two == pytest.approx(one, rel=0.25)
        assert two != one


@pytest.mark.parametrize("dies", [0, 1])
def test_when_one_is_killed_the_other_ends_with_a_line_and_any_number_goes_on(tmp_path, config, dies):
    command = ["train", "diffusion", str(config), "-o", str(tmp_path / "run")]

    def train(rank: int) -> None:
        save = Trainer._save

        def save_and_die(trainer: Trainer) -> None:
            save(trainer)
            if rank == dies and trainer.step_done == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        Trainer._save = save_and_die
        main(command)

    codes = _two(tmp_path, train)
    assert codes[dies] == -signal.SIGKILL
    assert codes[1 - dies] == 1
    lines = [line for said in _said(tmp_path) for line in said if line.startswith(("stedm", "Traceback"))]
    again = "run the same command again: it resumes, with any number of processes"
    assert lines == [f"stedm: a process of this command has ended before the others; {again}"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    with pytest.raises(SystemExit):
        main([*command[:-1], str(tmp_path / "alone")])
    assert _losses(tmp_path / "run") == pytest.approx(_losses(tmp_path / "alone"), rel=1e-4)


def test_what_is_wrong_is_said_once(tmp_path, config):
    assert _two(tmp_path, lambda rank: main(["train", "diffusion", str(tmp_path / "none"), "-o", "x"])) == [1, 1]
    told = f"stedm: {tmp_path / 'none'}: no such configuration file; give a YAML file or a dataset folder"
    assert _said(tmp_path) == [[told], []]
    # A batch of 4 in 3 parts: all meet it, in training.
    command = ["train", "diffusion", str(config), "-o", str(tmp_path / "run"), "--set", "machine.accumulate=4"]
    assert _two(tmp_path, lambda rank: main(command)) == [1, 1]
    assert "can't be divided into 4 equal parts (machine.accumulate) of 2 processes" in _said(tmp_path)[0][-1]
    assert _said(tmp_path)[1] == []


@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_alone_meets_ends_the_others(tmp_path, config, fails):
    """The first writes checkpoints, and its disk may be full; each reads its own part of the images."""

    def train(rank: int) -> None:
        report = Trainer._report

        def fail(trainer: Trainer) -> None:
            if rank == fails and trainer.step_done == 3:
                raise StedmError("no room left; free some")
            report(trainer)

        Trainer._report = fail
        main(["train", "diffusion", str(config), "-o", str(tmp_path / "run")])

    assert _two(tmp_path, train) == [1, 1]
    lines = [[line for line in said if line.startswith(("stedm", "Traceback"))] for said in _said(tmp_path)]
    assert lines[fails] == ["stedm: no room left; free some"]
    assert all("ended before the others" in line for line in lines[1 - fails])


def test_torchrun_starts_a_command(tmp_path, config):
    """As users type it; `accelerate launch` sets the same variables."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    verb = ["-m", "stedm", "train", "diffusion", str(config), "-o", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, *command, str(_free_port()), *verb],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
        check=True,
    )
    assert done.stdout.splitlines() == [str(tmp_path / "run" / "model")]
    assert len(_losses(tmp_path / "run")) == 2


def test_without_a_group_everything_is_a_plain_call(monkeypatch):
    assert group.as_one(lambda: group.together(lambda *args, **kwargs: (args, kwargs), 1, a=2, first={"b": 3})) == (
        (1,),
        {"a": 2, "b": 3},
    )
