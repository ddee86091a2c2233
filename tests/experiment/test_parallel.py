"""`stedm run --workers`: networks trained at the same time, the same as one after another."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from stedm.config import parse_config
from stedm.experiment.experiment import Experiment
from stedm.experiment.parallel import _pieces, run_side_by_side
from stedm.progress import Reporter
from stedm.workers.pool import LocalPool

ARMS = ["real", "ssl", "real+synthetic"]
HANGS_SECONDS = 600
"""What takes longer has failed: far more than a busy machine needs."""
PHANTOM = {
    "image_px": 32,
    "patients": {"train": 2, "unlabeled": 1, "val": 1, "test": 1},
    "images_per_patient": 2,
}


def _made(folder: Path) -> dict[str, bytes]:
    """Weights, images and counts."""
    files = [file for kind in ("safetensors", "png", "parquet") for file in folder.rglob(f"*.{kind}")]
    # The plan names its dataset, which lies in the run folder here.
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "plan.parquet"}


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("plain_reports")
def test_workers_make_what_one_process_makes(tmp_path, tiny_run, one_thread):
    config = parse_config(tiny_run({"phantom": PHANTOM}, arms=ARMS, seeds=[0]), "test")
    alone = Experiment(config, tmp_path / "alone", Reporter(quiet=True)).run()
    experiment = Experiment(config, tmp_path / "workers", Reporter(quiet=True))
    with LocalPool(2, patient=False) as pool:
        together = run_side_by_side(experiment, pool)
        assert _made(tmp_path / "workers") == _made(tmp_path / "alone")
        assert together["arms"] == alone["arms"]
        seconds = json.loads((tmp_path / "workers/provenance.json").read_text())["seconds"]
        stages = {"teacher real+stain, segmenter 0", "pseudo-labels", "train diffusion model", "draw synthetic images"}
        assert set(seconds) >= stages | {f"segmenter {arm}, seed 0" for arm in ARMS}
        # Only what is missing is done again.
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / "workers").rglob("*.safetensors")}
        (tmp_path / "workers/segmenters/real+synthetic/seed-0/counts-test.parquet").unlink()
        assert run_side_by_side(experiment, pool)["arms"] == alone["arms"]
        assert {file: file.stat().st_mtime_ns for file in before} == before


def test_segmenters_that_would_wait_for_teachers_come_last(tmp_path, tiny_run):
    arms = ["real", "self-training", "ssl", "real+synthetic"]
    config = parse_config(tiny_run({"phantom": PHANTOM}, arms=arms, seeds=[4, 5]), "test")
    first, then = _pieces(Experiment(config, tmp_path / "run", Reporter(quiet=True)))
    # The first seed of self-training trains the teachers; the other seed waits for them.
    order = [("ssl", 4), ("ssl", 5), ("self-training", 4), ("real", 4), ("real", 5), ("self-training", 5)]
    assert first == [None, *order]
    assert then == [("real+synthetic", 4), ("real+synthetic", 5)]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_command_takes_its_workers_along(tmp_path, tiny_run, by):
    values = tiny_run({"phantom": PHANTOM}, steps=100_000, arms=["real", "real+stain"], seeds=[0])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "stedm", "run", "config.yaml", "-o", "run", "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            running = 0
            while running < 2:
                line = process.stderr.readline()
                assert line, f"ended with {process.wait()}"
                running += line.startswith("segmenter") and line.endswith("...\n")
            workers = psutil.Process(process.pid).children(recursive=True)
            assert len(workers) >= 2
            process.send_signal(by)
            process.wait(HANGS_SECONDS)
            assert not psutil.wait_procs(workers, HANGS_SECONDS)[1]
            shown = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == (130 if by == signal.SIGINT else -signal.SIGKILL)
    assert shown.endswith("stedm: interrupted; run the same command again to resume\n") == (by == signal.SIGINT)
