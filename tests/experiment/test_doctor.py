"""`stedm doctor`: from the metadata of the package what is missing, and a step of training on the device."""

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from stedm.cli import main
from stedm.experiment import doctor
from stedm.experiment.doctor import examine_machine, extras

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOLD = [
    Requirement(line)
    for line in (
        "torch>=2.6",
        'colorama>=0.4; sys_platform == "win32"',
        'onnx>=1.20; extra == "export"',
        'onnxruntime>=1.23; extra == "export"',
        'ray>=2.50; extra == "ray"',
        'ray>=2.50; extra == "dev"',
        'onnx>=1.20; extra == "dev"',
        'onnxruntime>=1.23; extra == "dev"',
    )
]
NAMES = ["export", "ray", "dev"]


@pytest.fixture
def installed(monkeypatch):
    """Set which packages are there; all others are not."""

    def only(**versions):
        monkeypatch.setattr(doctor, "_told", lambda: (TOLD, NAMES))
        monkeypatch.setattr(doctor, "_installed", versions.get)

    return only


def test_it_says_what_is_there_and_ends_with_status_0(capsys, elsewhere):
    with elsewhere(), pytest.raises(SystemExit) as stop:
        main(["doctor", "--device", "cuda:7"])
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    for part in ("stedm ", "Python", "torch ", "cores", "GB", "precision", "extra slides"):
        assert part in shown


def test_extras_are_those_of_the_package():
    parts, names = doctor._told()
    found = extras(parts, names)
    declared = PROJECT["optional-dependencies"]
    assert set(found) <= set(declared)
    assert "dev" not in found, "it is made of the others"
    assert set(found) >= {"app", "data", "quality", "ray", "slides"}


def test_what_is_missing_is_told_with_what_to_type(installed):
    installed(torch="2.14.1", onnx="1.17.0", ray="2.60")
    assert extras(TOLD, NAMES) == {"export": "onnx is 1.17.0 and not >=1.20, onnxruntime is missing", "ray": ""}
    text = examine_machine("cpu").text
    assert 'onnxruntime is missing: pip install "stedm[export]"' in " ".join(text.split())
    assert "colorama" not in text
    assert "extra dev" not in text


def test_what_stedm_cannot_do_without_is_a_problem(installed, capsys):
    installed()
    found = examine_machine("cpu")
    assert found.problems == ["torch is missing; run pip install 'torch>=2.6'"]
    assert "device" not in found.text, "nothing is computed without it"
    installed(torch="2.3")
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "stedm: torch is 2.3 and not >=2.6; run pip install 'torch>=2.6'\n"


def test_a_device_that_cannot_be_used_is_a_problem(monkeypatch):
    assert "torch sees no GPU" in examine_machine("cuda:9").problems[0]
    monkeypatch.setattr(doctor, "_try", lambda device: 1 / 0)
    [problem] = examine_machine("cpu").problems
    assert problem.startswith("device cpu: can't compute a step of training (division by zero); install")


def test_from_its_sources_alone_it_says_so(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "metadata", absent)
    found = examine_machine("cpu")
    assert found.problems == []
    assert "not known: stedm runs from its sources" in found.text
