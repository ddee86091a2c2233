"""The notebooks of examples/ run as they are; what is stored of their outputs is small and of this state of them."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_STORED_BYTES = 300_000


def kinds_of_outputs(notebook):
    """For each cell of code the formats of each output."""
    return [[sorted(out.data) for out in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    from notebooks import execute

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    executed, stored = execute(path, tmp_path), nbformat.read(path, as_version=4)
    assert kinds_of_outputs(executed) == kinds_of_outputs(stored), "make them anew: python benchmarks/notebooks.py"
    assert any("image/png" in kinds for cell in kinds_of_outputs(executed) for kinds in cell)
    assert [folder.name for folder in tmp_path.iterdir()] == [path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small(path):
    assert path.stat().st_size < MOST_STORED_BYTES
    assert all("execution" not in cell.metadata for cell in nbformat.read(path, as_version=4).cells)


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["first_steps", "own_network"]
