"""The site builds without a warning and without a network, and describes the program that is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import stedm

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """As `make docs` builds it; a warning is an error."""
    pytest.importorskip("myst_nb")
    pytest.importorskip("pydata_sphinx_theme")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_nothing_comes_from_elsewhere(site):
    pages = {page.relative_to(site).with_suffix("") for page in site.rglob("*.html")}
    written = [
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("results/*/README.md"),
        *REPOSITORY.glob("examples/*.ipynb"),
    ]
    assert {page.relative_to(REPOSITORY).with_suffix("") for page in written} <= pages
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]*(?:src|href)=\"([^\"]*)\"", page.read_text())
        assert not [name for name in loaded if "://" in name], page


def test_the_reference_is_that_of_the_program(site):
    from typer.main import get_command

    from stedm.cli import app

    verbs = (site / "docs" / "generated" / "cli.html").read_text()
    assert [verb for verb in get_command(app).commands if f'id="stedm-{verb}"' not in verbs] == []
    assert "--pseudonymise" in verbs
    names = (site / "docs" / "generated" / "api.html").read_text()
    assert [name for name in stedm.__all__ if name != "__version__" and f'id="stedm.{name}"' not in names] == []
    reference = (site / "docs" / "reference.html").read_text()
    assert "generated/cli.html" in reference
    assert "generated/api.html" in reference
