"""What `pip install .` makes: built from the source distribution, complete, and enough without tools of development."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import stedm
import versions

REPOSITORY = Path(__file__).parents[2]


def _build(kind: str, source: Path, target: Path) -> Path:
    """A distribution of `source`, as pip has it built."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    return _build("sdist", REPOSITORY, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, sdist) -> Path:
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return _build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(tmp_path, wheel) -> dict[str, str]:
    """Variables with which `python -S` sees the wheel, and what it asks for without extras; both outside the checkout.

    The second are links to what is installed here: a second torch would take 5 GB.
    """
    installed, needed = tmp_path / "installed", tmp_path / "needed"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-compile",
    ]
    subprocess.run([*pip, "--no-deps", "--target", str(installed), str(wheel)], check=True)
    needed.mkdir()
    for found in versions.closure(versions.declared(extras=()).values()).values():
        for top in {path.parts[0] for path in found.files or []} - {"..", "__pycache__"}:
            link = needed / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    return kept | {"PYTHONPATH": f"{installed}{os.pathsep}{needed}"}


def test_the_source_distribution_holds_what_is_tested_and_nothing_that_was_made(sdist):
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for name in ("pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "src/stedm/demo.yaml", "tests/conftest.py"):
        assert name in names, name
    made = [name for name in names if name.startswith((".venv", "runs", "shared")) or name.endswith((".pyc", ".log"))]
    assert not made
    assert sdist.stat().st_size < 4e6


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = REPOSITORY / "src" / "stedm"
    files = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    assert names == {name for name in files if not name.endswith(".pyc")}
    data = ("py.typed", "demo.yaml", "config/presets/gpu.yaml", "evaluation/templates/report.html.j2")
    assert names >= {f"stedm/{name}" for name in (*data, "app/static/index.html", "app/static/app.css")}


def test_it_runs_where_only_what_it_asks_for_is_installed(environment, tmp_path, tiny_run):
    """A whole run with its report, by the command that pip writes."""
    patients = {"train": 1, "unlabeled": 1, "val": 0, "test": 1}
    phantom = {"image_px": 32, "patients": patients, "images_per_patient": 2}
    values = tiny_run({"phantom": phantom}, arms=["real", "real+synthetic"], seeds=[0], steps=1)
    values["rounds"] = {"number": 1, "labels": None}
    values["synthesis"]["n_images"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))

    def ran(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    where = ran("-c", "import stedm; print(stedm.__file__, stedm.__version__)").stdout.split()
    assert where == [str(tmp_path / "installed" / "stedm" / "__init__.py"), stedm.__version__]
    assert ran("-c", "import pytest").returncode == 1
    command = str(tmp_path / "installed" / "bin" / "stedm")
    shown = ran(command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert " run " in shown.stdout
    ended = ran(command, "run", "config.yaml", "-o", "run")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/report/report.html").is_file()
    # What is an extra says which.
    said = ran(command, "app", "run").stderr.strip().splitlines()
    assert said[-1].startswith("stedm: the app needs Starlette and Uvicorn: pip install"), said
