"""A run on a disk that is full, read-only or damaged, in a foreign folder, and beside another process."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

import stedm
from stedm.cli import main
from stedm.config import EvaluationConfig, RunConfig, parse_config, to_yaml
from stedm.data.folder import write_png
from stedm.errors import DiskError, StedmError
from stedm.evaluation.text import closing_text, summary_text
from stedm.experiment.experiment import Experiment
from stedm.experiment.resolve import resolve
from stedm.progress import Reporter

pytestmark = pytest.mark.usefixtures("plain_reports_of_module")
READ_ONLY = "Read-only file system; give another -o, or make it writable"
PHANTOM = {
    "image_px": 32,
    "patients": {"train": 2, "unlabeled": 2, "val": 1, "test": 2},
    "images_per_patient": 1,
}


@pytest.fixture(scope="module")
def config(tiny_run) -> RunConfig:
    values = tiny_run({"phantom": PHANTOM}, arms=["real", "real+synthetic"], seeds=[0])
    return parse_config(values | {"machine": {"checkpoint_every_steps": 1}}, "test")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """A complete run; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    stedm.run(config, folder)
    return folder


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, first of 100 kB; `mount -o remount,...` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mount(folder, "size=100k"):
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _made(folder: Path) -> dict[str, bytes]:
    files = [file for kind in ("safetensors", "png", "parquet") for file in folder.rglob(f"*.{kind}")]
    # The plan names its dataset, which lies in the run folder here; the other table holds times of files.
    others = ("plan.parquet", "data_files.parquet")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in others}


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(config, whole, disk):
    # The last size is that of a run with checkpoints and all.
    for size in ("700k", "3m", "100m"):
        with pytest.raises(DiskError, match=r"^\S+: No space left on device; .* run the same command again$"):
            stedm.run(config, disk / "run")
        assert _mount(disk, f"remount,size={size}")
    stedm.run(config, disk / "run")
    assert _made(disk / "run") == _made(whole)
    assert not list(disk.rglob(".stedm-*"))


def test_a_complete_run_in_a_read_only_folder_is_printed_and_others_are_one_line(config, whole, disk, capsys, tmp_path):
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert _mount(disk, "remount,size=100m")
    shutil.copytree(whole, disk / "run")

    def ends_with(status: int, folder: str = "run") -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["run", str(tmp_path / "c.yaml"), "-o", str(disk / folder)])
        assert stop.value.code == status
        shown = capsys.readouterr()
        return shown.out if status == 0 else "".join(re.findall("^stedm: .*\n", shown.err, re.MULTILINE))

    assert _mount(disk, "remount,ro")
    printed = ends_with(0)
    summary = json.loads((whole / "report/summary.json").read_text())
    run = disk / "run"
    assert (
        printed
        == f"{summary_text(summary)}\n\n{closing_text(summary, str(run))}\nreport: {disk / 'run/report/report.html'}\n"
    )
    assert ends_with(1, "new").startswith(f"stedm: {disk / 'new/config.yaml'}: {READ_ONLY}")
    for missing in ("report/report.html", "segmenters/real/seed-0/counts-test.parquet", "provenance.json"):
        assert _mount(disk, "remount,rw")
        (disk / "run" / missing).unlink()
        assert _mount(disk, "remount,ro")
        line = ends_with(1)
        assert re.fullmatch(f"stedm: {disk}/run/[^ ]*: {READ_ONLY}.*\n", line), line


def test_a_report_of_other_settings_is_not_what_was_asked_for(config, whole):
    assert Experiment(config, whole, Reporter(quiet=True)).finished()["arms"].keys() == {"real", "real+synthetic"}
    by_category = config.model_copy(update={"evaluation": EvaluationConfig(unit="category")})
    assert Experiment(by_category, whole, Reporter(quiet=True)).finished() is None


_opened_code: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _opened_code is not None and event == "pickle.find_class":
        _opened_code.append(str(arguments))


sys.addaudithook(_watch)  # there is no way to take it out again; it listens only while `_opened_code` is a list


class _Shell:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_nothing_in_a_foreign_run_folder_is_unpickled(config, whole, tmp_path, monkeypatch):
    """Every stage reads what others left: each folder is full of pickles under names that libraries look for."""
    global _opened_code
    shutil.copytree(whole, tmp_path / "run")
    names = ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "pytorch_model.bin", "scheduler.bin")
    names += ("diffusion_pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl", "config.pkl", "scaler.pt")
    hostile = pickle.dumps(_Shell(tmp_path / "proof"))
    checkpoint = tmp_path / "run/segmenters/real/seed-0/checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    for folder in (path for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")) if path.is_dir()):
        for name in names:
            (folder / name).write_bytes(hostile)
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something is unpickled"))
    for part in ("synthetic/metadata.csv", "report/report.html", "segmenters/real/seed-0/counts-test.parquet"):
        (tmp_path / "run" / part).unlink()
    _opened_code = []
    try:
        again, found = stedm.run(config, tmp_path / "run"), _opened_code
        # A network that is not complete, with checkpoints that look like those of Accelerate.
        (tmp_path / "run/segmenters/real/seed-0/model/config.json").unlink()
        checkpoint.mkdir(parents=True)
        (checkpoint / "custom_checkpoint_0.pkl").write_bytes(hostile)
        with pytest.raises(StedmError, match="step-00000001: a checkpoint of an older version"):
            stedm.run(config, tmp_path / "run")
    finally:
        _opened_code = None
    assert found == []
    assert not (tmp_path / "proof").exists()
    assert again == json.loads((whole / "report/summary.json").read_text())


@pytest.mark.parametrize("verb", [["run"], ["train", "diffusion"], ["train", "segmenter"]])
def test_a_folder_at_work_is_refused_by_every_verb(config, tmp_path, verb, capsys, monkeypatch):
    monkeypatch.setattr("stedm.io.files._WAIT_FOR_LOCK_SECONDS", 0)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(SystemExit) as stop:
        main([*verb, str(tmp_path / "c.yaml"), "-o", str(tmp_path / "run")])
    assert stop.value.code == 1
    line = f"stedm: {tmp_path / 'run'}: another process is at work here; wait for it, or give another -o\n"
    assert capsys.readouterr().err == line


def test_who_is_refused_leaves_the_configuration_at_work_as_it_is(tiny_dataset, tiny_run, tmp_path, monkeypatch):
    """Before anything is trained a folder holds a config.yaml alone: another's there would be gone on with."""
    monkeypatch.setattr("stedm.io.files._WAIT_FOR_LOCK_SECONDS", 0)
    values = tiny_run({"path": str(tiny_dataset())}, arms=["real"], seeds=[0])
    at_work, run = resolve(parse_config(values, "test")), tmp_path / "run"
    experiment = Experiment(at_work, run, Reporter(quiet=True))
    before = (run / "config.yaml").read_bytes()
    with FileLock(run / ".lock"), pytest.raises(StedmError, match="another process is at work here"):
        stedm.run(at_work.model_copy(update={"seed": 7}), run, quiet=True)
    assert (run / "config.yaml").read_bytes() == before
    experiment.check()
    # Other data are refused, and where the run's own lie stays.
    other = at_work.data.model_copy(update={"path": tiny_dataset("other", seed=1)})
    with pytest.raises(StedmError, match=r"not what .* was begun with"):
        stedm.run(at_work.model_copy(update={"data": other}), run, quiet=True)
    assert (run / "config.yaml").read_bytes() == before
    # What may change is written once the data are found to be the same.
    Experiment(at_work.model_copy(update={"name": "renamed"}), run, Reporter(quiet=True)).check()
    assert "name: renamed" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("verb", [["run"], ["train", "diffusion"]])
def test_a_run_that_is_refused_for_its_data_leaves_nothing(tiny_dataset, tiny_run, tmp_path, verb, capsys):
    root = tiny_dataset()
    right = (root / "masks/trainP0-0.png").read_bytes()
    write_png(root / "masks/trainP0-0.png", np.zeros((8, 8), np.uint8))
    run, given = tmp_path / "runs/a", tmp_path / "c.yaml"
    given.write_text(yaml.safe_dump(tiny_run({"path": str(root)}, arms=["real"], seeds=[0])))
    with pytest.raises(SystemExit):
        main([*verb, str(given), "-o", str(run)])
    assert "masks/trainP0-0.png" in capsys.readouterr().err
    assert not run.exists()
    # What was begun stays.
    (root / "masks/trainP0-0.png").write_bytes(right)
    stedm.run(given, run)
    kept = sorted(path for path in run.rglob("*") if path.name != ".lock")
    write_png(root / "masks/trainP0-0.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(SystemExit):
        main([*verb, str(given), "-o", str(run)])
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == kept
