"""The notebooks of examples/ run as they are; what is stored of their outputs is small and free of errors."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_STORED_BYTES = 300_000


def read(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    stored = [len(_shown(cell)) for cell in notebook.cells if cell.cell_type == "code"]
    # A minute on an idle machine; a cell that trains may wait long for a busy one.
    client = nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [len(_shown(cell)) for cell in code] == stored, "its stored outputs are those of another state"
    assert sum("image/png" in out.get("data", {}) for cell in code for out in cell.outputs) >= 1
    assert path.stem in {found.name for found in tmp_path.iterdir()}, "it writes into a folder of its own name alone"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small(path):
    assert path.stat().st_size < MOST_STORED_BYTES
    notebook = read(path)
    assert all("execution" not in cell.metadata for cell in notebook.cells), "times of a run say nothing to others"


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "own_network"]


def _shown(cell):
    """Its outputs without warnings and progress."""
    return [out for out in cell.outputs if out.output_type != "stream"]
