"""The command line as users meet it: verbs, flags, one clear line for every mistake, no traceback."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

import stedm
from stedm.cli import app, expand_lists, main
from stedm.data.contact_sheet import write_contact_sheet
from stedm.data.folder import write_png
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.io.images import CLASS_COLOURS

FLAGS = {
    "demo": ["--device", "--output", "--quiet"],
    "run": ["--device", "--output", "--preset", "--set", "--workers", "--engine", "--pseudonymise", "--quiet"],
    "data phantom": ["--config", "--set"],
    "data flowers102": ["--archives"],
    "data export": ["--to", "--output", "--quiet"],
    "data import": [
        "--output",
        "--classes",
        "--masks",
        "--patients",
        "--split",
        "--seed",
        "--mpp",
        "--tile-px",
        "--tile-mpp",
        "--dry-run",
        "--quiet",
    ],
    "data catch": ["--annotated"],
    "check": ["--sheet"],
    "tile": [
        "--output",
        "--tile-px",
        "--mpp",
        "--config",
        "--set",
        "--table-only",
        "--workers",
        "--engine",
        "--shard",
        "--quiet",
    ],
    "train diffusion": ["--device", "--output", "--preset", "--set", "--quiet"],
    "train segmenter": ["--device", "--output", "--preset", "--set", "--quiet"],
    "plan": ["-n", "--output", "--preset", "--set", "--overwrite"],
    "synthesize": ["--device", "--output", "--shard", "--workers", "--engine", "--pseudonymise", "--quiet"],
    "generate": ["--device", "--layout", "--style", "--output", "--guidance", "--steps", "--seed", "--overwrite"],
    "segment": [
        "--device",
        "--output",
        "--mpp",
        "--tolerance-um",
        "--label-map",
        "--engine",
        "--shard",
        "--set",
        "--overwrite",
    ],
    "evaluate": ["--device", "--output", "--split", "--overwrite", "--pseudonymise"],
    "app": ["--device", "--slides", "--host", "--port"],
    "quality": ["--device", "--against", "--segmenter", "--output", "--overwrite"],
    "compare": ["--output", "--overwrite"],
    "export": ["--output", "--overwrite"],
    "doctor": ["--device"],
    "config show": ["--preset", "--set", "--cost"],
    "config schema": [],
}


def _commands(group, prefix: str = "") -> dict:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found.update(_commands(command, f"{prefix}{name} "))
        else:
            found[prefix + name] = command
    return found


def test_verbs_and_flags_are_frozen():
    """Flags grow when nobody looks: knobs belong in YAML. A change here is a change of the contract."""
    from typer.main import get_command

    commands = _commands(get_command(app))
    flags = {
        name: [parameter.opts[0] for parameter in command.params if parameter.opts[0].startswith("-")]
        for name, command in commands.items()
    }
    assert {name: sorted(options) for name, options in flags.items()} == {
        name: sorted(options) for name, options in FLAGS.items()
    }


def test_help_answers_without_importing_torch():
    heavy = ("torch", "diffusers", "pandas", "numpy", "ray")
    code = f"import sys, stedm.cli; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    shown = subprocess.run([sys.executable, "-m", "stedm", "--help"], capture_output=True, text=True, check=True)
    assert "synthesize" in shown.stdout


def test_the_package_runs_as_a_module():
    shown = subprocess.run([sys.executable, "-m", "stedm", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == stedm.__version__


def test_without_arguments_three_lines_say_what_to_do_next(capsys):
    main_without_exit([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    from typer.main import get_command

    verbs = set(get_command(app).commands)
    named = set(re.findall(r"stedm (\w+)", " ".join(lines)))
    assert named == {"demo", "check", "run", "data", "doctor"}
    assert named <= verbs
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("generate M --style a.png b.png -o x.png", "generate M --style a.png --style b.png -o x.png"),
        ("run c.yaml -o r --set a=1 b=2", "run c.yaml -o r --set a=1 --set b=2"),
        ("run --set a=1 c.yaml", "run --set a=1 c.yaml"),
        ("generate --style a.png M", "generate --style a.png M"),
    ],
)
def test_lists_of_values_after_one_option(given, expanded):
    assert " ".join(expand_lists(given.split())) == expanded


def _fails(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code not in (0, None)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


def test_mistakes_give_one_clear_line(capsys, tmp_path, tiny_dataset):
    root = tiny_dataset()
    config = tmp_path / "c.yaml"
    config.write_text(f"name: x\ndata: {{path: {root}}}\n")
    (tmp_path / "bad.yaml").write_text(f"name: x\ndata: {{path: {root}}}\ndifusion: {{steps: 3}}\n")
    (tmp_path / "s.csv").write_text("slide_id,patient_id,split,image\na,A,train,a.svs\n")
    mask, image = root / "masks" / "trainP0-0.png", root / "images" / "trainP0-0.png"
    painting = "generate", tmp_path, "--layout", mask, "--style"
    mistakes = {
        ("run", root / "dataset.yaml", "-o", tmp_path / "r"): "is a part of a dataset folder; give the folder",
        ("tile", tmp_path / "s.csv", "-o", config): f"{config}: is or lies in a file, and a folder is to be written",
        ("evaluate", tmp_path, root, "-o", config / "e"): f"{config}/e: is or lies in a file",
        (*painting, root / "images", "-o", "o.png"): f"{root}/images: is a folder; name a file in it",
        (*painting, tmp_path / "no.png", "-o", "o.png"): "no.png: no such file; correct its path",
        (*painting, image, "-o", "o.jpg"): "o.jpg: images are written as PNG; give OUT.png",
        ("run", tmp_path / "none.yaml", "-o", tmp_path / "r"): "none.yaml: no such configuration file",
        ("run", tmp_path / "bad.yaml", "-o", tmp_path / "r"): "bad.yaml: difusion: Extra inputs",
        ("run", config, "-o", tmp_path / "r", "--set", "data.path=gone"): "gone",
        ("check", tmp_path / "nowhere"): "nowhere",
        ("synthesize", tmp_path, tmp_path / "p.parquet", "-o", tmp_path / "s"): "model_index.json is missing",
        ("generate", tmp_path, "--layout", "no.png", "--style", "a.png", "-o", "o.png"): "no.png",
        ("segment", tmp_path, root / "images", "-o", tmp_path / "m"): str(tmp_path),
        ("compare", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c.html"): f"{tmp_path / 'a'}: no such report",
        ("compare", root, root, "-o", tmp_path / "c" / "c.html"): "counts.parquet",
        ("evaluate", tmp_path, root, "-o", tmp_path / "e"): str(tmp_path),
    }
    for arguments, message in mistakes.items():
        shown = _fails(capsys, *arguments)
        assert message in shown, (arguments, shown)
        assert len(shown.splitlines()) == 1, shown


WAITING_VERB = """
import sys
from pathlib import Path
import stedm.phantom.cohort
from stedm.cli import main
from stedm.io.files import replacing

def make_phantom(config, output):
    with replacing(output) as temporary:
        temporary.mkdir()
        print("at work", flush=True)
        sys.stdin.read()

stedm.phantom.cohort.make_phantom = make_phantom
main(["data", "phantom", sys.argv[1]])
"""


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_what_the_same_command_does_and_leaves_nothing_half_written(tmp_path, by, status):
    command = [sys.executable, "-c", WAITING_VERB, str(tmp_path / "out")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "at work\n"
            process.send_signal(by)
            shown = process.stderr.read()  # ends with the process
        finally:
            process.kill()
    assert shown == "stedm: interrupted; run the same command again: it begins anew\n"
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []


def test_errors_of_a_disk_that_nobody_expected_are_one_line(monkeypatch, capsys, tmp_path):
    """Such as in what a library writes by itself."""
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "cache"))
    monkeypatch.setattr("stedm.phantom.cohort.make_phantom", lambda *_: _raise(error))
    verb = ["data", "phantom", str(tmp_path / "out")]
    assert _fails(capsys, *verb).startswith(f"stedm: {tmp_path / 'cache'}: Permission denied; give another")
    monkeypatch.setattr("stedm.phantom.cohort.make_phantom", lambda *_: _raise(ZeroDivisionError("a fault of ours")))
    with pytest.raises(ZeroDivisionError):
        main(verb)


def _raise(error: Exception) -> None:
    raise error


def test_check_prints_every_problem_and_its_exit_status_tells(capsys, tmp_path, tiny_dataset):
    root = tiny_dataset()
    main_status = subprocess.run([sys.executable, "-m", "stedm", "check", str(root)], check=False).returncode
    assert main_status == 0
    (root / "images" / "trainP0-0.png").unlink()
    write_png(root / "masks" / "trainP0-1.png", np.full((32, 32), 7, np.uint8))
    write_png(root / "masks" / "trainP0-2.png", np.zeros((8, 8), np.uint8))
    shown = _fails(capsys, "check", root)
    for name in ("trainP0-0.png", "trainP0-1.png", "trainP0-2.png", "3 problem"):
        assert name in shown


def test_check_draws_a_sheet_of_all_patients_and_keeps_masks_of_unlabeled_ones_closed(capsys, tmp_path, tiny_dataset):
    root, sheet = tiny_dataset(), tmp_path / "sheet.png"
    long = "患者の名前がとても長い場合のために"
    table = (root / "metadata.csv").read_text().replace("testP1,", f"{long},")
    (root / "metadata.csv").write_text(table)
    main_without_exit(["check", str(root), "--sheet", str(sheet)])
    assert f"{sheet}: an image of each of 9 patients" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.text["Software"] == "stedm check"
        drawn = np.asarray(image).reshape(-1, 3)
    assert (drawn == CLASS_COLOURS[1]).all(1).sum() > 100  # outlines of the discs
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    before = sheet.read_bytes()
    write_contact_sheet(root, sheet)  # its own may be drawn again
    assert sheet.read_bytes() == before
    write_png(tmp_path / "mine.png", np.zeros((4, 4), np.uint8))
    assert "stedm did not write" in _fails(capsys, "check", root, "--sheet", tmp_path / "mine.png")


def test_shells_can_complete_verbs_and_flags():
    asked = {"_STEDM_COMPLETE": "complete_bash", "COMP_WORDS": "stedm sy", "COMP_CWORD": "1"}
    shown = subprocess.run(
        [sys.executable, "-m", "stedm"], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert shown.stdout.split() == ["synthesize"], shown


def test_plan_synthesize_generate_segment_by_hand(tmp_path, tiny_dataset, capsys, elsewhere):
    """The verbs one by one, as someone would who runs stages on different machines; where a verb computes, on the
    device that it is given."""
    root = tiny_dataset(image_px=16)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"name: x\ndata: {{path: {root}, image_px: 16}}\n"
        "diffusion: {steps: 2, batch: 2, denoiser: {channels: [16, 16], norm_groups: 8}, "
        "style: {dim: 8}}\nrounds: {voters: 1, fine_tune: {steps: 2}}\n"
        "synthesis: {n_images: 4, sampling: {steps: 2}, batch: 3}\n"
        "segmentation: {encoder: tu-test_resnet, encoder_depth: 3, decoder_channels: [16, 8, 8], steps: 2, "
        "batch: 2, arms: [real], seeds: [0]}\n"
    )
    run, style = tmp_path / "run", root / "images" / "unlabeledP0-0.png"
    layout = root / "masks" / "trainP0-0.png"
    segmenter = run / "segmenters" / "real" / "seed-0" / "model"
    verbs = (
        ["train", "diffusion", config, "-o", run],
        ["plan", config, "-n", "5", "-o", tmp_path / "plan.parquet"],
        ["synthesize", run / "model", tmp_path / "plan.parquet", "-o", tmp_path / "set"],
        ["check", tmp_path / "set"],
        ["generate", run / "model", "--layout", layout, "--style", style, style, "-o", tmp_path / "one.png"],
        ["train", "segmenter", config, "-o", run],
        ["segment", segmenter, root / "images", "-o", tmp_path / "masks"],
        ["evaluate", segmenter, root, "-o", tmp_path / "a" / "report"],
        ["evaluate", segmenter, root, "-o", tmp_path / "b" / "report", "--split", "test"],
        ["compare", tmp_path / "a" / "report", tmp_path / "b" / "report", "-o", tmp_path / "ab" / "report.html"],
        ["quality", tmp_path / "set", "--against", root, "--segmenter", segmenter, "-o", tmp_path / "quality"],
        ["run", config, "-o", run],
    )
    computing, done = {verb for verb, flags in FLAGS.items() if "--device" in flags}, set()
    for arguments in verbs:
        verb = next(name for name in FLAGS if " ".join(map(str, arguments)).startswith(f"{name} "))
        with elsewhere() if verb in computing else _no_network(verb):
            device = ["--device", "cuda:7"] if verb in computing else []
            main_without_exit([str(argument) for argument in [*arguments, *device]])
        done.add(verb)
    # The demo is `run` of a file of ours; the app and the doctor are looked at in tests of their own. `export` runs
    # what it writes on the CPU. The others read, write or tell, and load no network.
    assert set(FLAGS) - done == {"demo", "app", "doctor", "export", "tile"} | {
        verb for verb in FLAGS if verb.startswith(("data ", "config "))
    }, "a new verb: run it here, where it is seen whether its networks are put on the device"
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(list((root / "images").glob("*.png")))
    for image in (tmp_path / "one.png", *(tmp_path / "set" / "images").glob("*.png")):
        with Image.open(image) as opened:
            made = StyleDiffusion.from_pretrained(run / "model").fingerprint
            assert opened.text["Description"].startswith(
                f"Synthetic image, no photograph: painted by the diffusion model {made}"
            )
    with Image.open(next((tmp_path / "masks").glob("*.png"))) as mask:
        assert mask.mode == "P"
    assert "a/real" in (tmp_path / "ab" / "summary.json").read_text()
    shown = capsys.readouterr()
    assert "mean IoU" in shown.out
    assert "\nreport: " in shown.out
    # Who names the run is told what is in it.
    listed = _fails(capsys, "segment", run, root / "images", "-o", tmp_path / "m").splitlines()
    assert listed[0] == f"stedm: {run}: is a run, not a segmenter; name one of its 1:"
    assert listed[1].startswith(f"stedm:   {segmenter}  (mean IoU of the arm 0.")
    wrong = "generate", run, "--layout", layout, "--style", style, "-o", tmp_path / "two.png"
    assert f"give {run / 'model'}" in _fails(capsys, *wrong)


@contextlib.contextmanager
def _no_network(verb: str):
    """In which a network that runs is an error: a verb that has no `--device` must have none."""

    def refuse(network, _):
        raise AssertionError(f"{verb} has no --device and runs a {type(network).__name__}")

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def main_without_exit(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code in (0, None), arguments  # noqa: PT017


def test_the_demo_configuration_is_part_of_the_package():
    from importlib.resources import files

    repository = Path(__file__).parents[1]
    assert (files("stedm") / "demo.yaml").read_text() == (repository / "configs" / "demo.yaml").read_text()
    assert not os.access(repository / "configs" / "demo.yaml", os.X_OK)
