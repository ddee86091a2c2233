"""A real Ray cluster of two nodes on this machine: nothing is lost when a process or a node is killed."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from stedm.cli import main
from stedm.config import DenoiserConfig, DiffusionConfig, Sampling, StyleConfig, SynthesisConfig, parse_config
from stedm.data.folder import DatasetFolder
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.experiment.experiment import Experiment
from stedm.experiment.parallel import run_side_by_side
from stedm.io.files import write_once, write_text
from stedm.progress import Reporter
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan
from stedm.workers.pool import make_pool
from stedm.workers.ray_pool import RayPool

pytest.importorskip("ray")
_NODE = {"object_store_memory": 80 << 20, "include_dashboard": False}
# A dead node is noticed in ten seconds instead of half a minute; sooner, a busy one would count as dead.
_WATCH = {"health_check_period_ms": 500, "health_check_failure_threshold": 20, "health_check_initial_delay_ms": 0}


@pytest.fixture(scope="module")
def cluster():
    """A head that only schedules and two nodes of one CPU; RAY_ADDRESS leads to it."""
    # The paths of its sockets must be short: not pytest's folder.
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("RAY_TMPDIR", folder)
        m.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        made = _cluster()
        try:
            m.setenv("RAY_ADDRESS", made.address)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def _cluster():
    """Head and two nodes; Ray gives a node 30 s to begin, which a busy machine may not make the first time."""
    from ray.cluster_utils import Cluster

    for attempt in range(3):
        made = None
        try:
            made = Cluster(True, head_node_args={**_NODE, "num_cpus": 0, "_system_config": _WATCH})
            for _ in range(2):
                made.add_node(num_cpus=1, **_NODE)
            return made
        except Exception as error:
            if made is not None:
                made.shutdown()
            if attempt == 2 or "timed out during startup" not in str(error):
                raise
    raise AssertionError


@dataclass(frozen=True)
class Note:
    """Each piece is a number and writes a file; one of them kills its process the first time."""

    folder: Path
    uses_gpu: ClassVar[bool] = False

    def open(self):
        write_text(self.folder / "opened" / f"{os.getpid()}-{time.monotonic_ns()}", "")
        return self.work

    def work(self, number):
        if number == 5 and not (self.folder / "killed").exists():
            write_text(self.folder / "killed", str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise StedmError("below zero")
        time.sleep(0.02)
        write_text(self.folder / f"{number}.txt", str(number**2))
        return number**2, os.getpid()


def test_the_pieces_of_a_killed_process_are_done_by_another(cluster, tmp_path):
    pieces = list(range(40))
    with make_pool("ray") as pool:
        found = dict(pool.run(Note(tmp_path), pieces))
        assert {number: found[number][0] for number in found} == {number: number**2 for number in pieces}
        assert sorted(int(file.stem) for file in tmp_path.glob("*.txt")) == pieces
        processes = {pid for _, pid in found.values()}
        killed = int((tmp_path / "killed").read_text())
        assert killed not in {found[5][1]}
        # What pieces share is loaded once in a process.
        opened = Counter(int(file.name.split("-")[0]) for file in (tmp_path / "opened").iterdir())
        assert processes | {killed} == set(opened)
        assert set(opened.values()) == {1}
        # What a piece raises comes through as it is; the pool can go on.
        with pytest.raises(StedmError, match=r"^below zero$"):
            list(pool.run(Note(tmp_path), [1, -1, 2]))
        assert dict(pool.run(Note(tmp_path), [7]))[0][0] == 49
        assert list(pool.run(Note(tmp_path), [])) == []


@dataclass(frozen=True)
class Held:
    """Another job, but the first process to get its second piece keeps that and says on which node it is."""

    job: Any
    note: Path
    uses_gpu: ClassVar[bool] = True

    def open(self):
        import ray

        work, node, done = self.job.open(), ray.get_runtime_context().get_node_id(), []

        def hold_or_work(piece):
            if done and write_once(self.note, node) == node:
                time.sleep(3600)  # until its node is killed
            done.append(work(piece))

        return hold_or_work


class HoldingEngine(RayPool):
    note: Path

    def run(self, job, pieces):
        return super().run(Held(job, self.note), pieces)


def test_synthesis_with_a_node_killed_in_the_middle_equals_the_local_one(cluster, tmp_path, tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset(image_px=16))
    settings = SynthesisConfig(n_images=62, batch=4, sampling=Sampling(steps=6), layouts="resample")
    plan = make_plan(settings, dataset.split("train"), dataset.split("unlabeled"))
    config = DiffusionConfig(denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8), style=StyleConfig(dim=16))
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=dataset.info.classes, image_px=16)
    model.save_pretrained(tmp_path / "model")
    with _one_thread():  # Ray gives its workers one
        assert synthesize(model, plan, tmp_path / "local")

    nodes, note, killed = {node.node_id: node for node in cluster.worker_nodes}, tmp_path / "held", []

    def kill_the_node(done: int, total: int) -> None:
        if note.exists() and not killed:
            killed.append(done)
            cluster.remove_node(nodes[note.read_text()], allow_graceful=False)

    options = {"model_folder": tmp_path / "model", "on_progress": kill_the_node}
    with HoldingEngine() as pool:
        pool.note = note
        assert synthesize(model, plan, tmp_path / "ray", pool=pool, **options)
    assert 0 < killed[0] < 62
    assert _content(tmp_path / "ray") == _content(tmp_path / "local")
    # A restart does what is missing: the whole batch of this image.
    images = sorted((tmp_path / "ray" / "images").glob("*.png"))
    images[5].unlink()
    before = {file: file.stat().st_mtime_ns for file in images if file.exists()}
    with make_pool("ray") as pool:
        assert synthesize(model, plan, tmp_path / "ray", pool=pool, **options)
    assert sum(file.stat().st_mtime_ns != time for file, time in before.items()) == 3
    assert _content(tmp_path / "ray") == _content(tmp_path / "local")


@pytest.mark.usefixtures("plain_reports")
def test_the_networks_of_a_run_are_trained_on_the_cluster(cluster, tmp_path, tiny_dataset, tiny_run):
    arms = ["real", "real+synthetic"]
    config = parse_config(tiny_run({"path": str(tiny_dataset())}, arms=arms, seeds=[0]), "test")
    with make_pool("ray") as pool:
        spread = run_side_by_side(Experiment(config, tmp_path / "ray", Reporter(quiet=True)), pool)
    with _one_thread():  # Ray gives its workers one
        alone = Experiment(config, tmp_path / "alone", Reporter(quiet=True)).run()
    assert spread["arms"] == alone["arms"]


@contextlib.contextmanager
def _one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def _content(folder: Path) -> dict[str, bytes]:
    # What a killed process was writing lies there under a temporary name.
    files = (file for kind in ("*.*", "images/*.png", "masks/*.png") for file in folder.glob(kind) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


# ---- without a cluster --------------------------------------------------------------------------------------------


def _line(capsys, tmp_path) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["tile", str(tmp_path / "slides.csv"), "-o", str(tmp_path / "out"), "--engine", "ray"])
    assert stop.value.code == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1, shown
    return shown


def test_no_cluster_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster at 127.0.0.1:1 (RAY_ADDRESS)" in _line(capsys, tmp_path)


def test_no_ray_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "stedm[ray]"' in _line(capsys, tmp_path)


def test_a_cpu_is_left_for_the_driver(monkeypatch):
    from stedm.workers import ray_pool

    def node(name, alive=True, **resources):
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    nodes = [node("head", CPU=4.0), node("a", CPU=8.0, GPU=2.0), node("dead", alive=False, CPU=16.0, GPU=8.0)]
    context = SimpleNamespace(get_node_id=lambda: "head")
    ray = SimpleNamespace(nodes=lambda: nodes, get_runtime_context=lambda: context)
    monkeypatch.setattr(ray_pool, "_connected", lambda: (ray, False))
    pool = make_pool("ray")
    assert pool._slots(gpus=0) == 11
    assert pool._slots(gpus=1) == 2
    nodes[0] = node("head")
    assert pool._slots(gpus=0) == 8
    nodes[:] = [node("head", CPU=1.0)]
    assert pool._slots(gpus=0) == 1
