"""Execute notebooks and store their outputs: python benchmarks/notebooks.py examples/first_steps.ipynb

What says nothing to others is left out: warnings and progress, times, a second picture of another format.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(path: Path, folder: str | Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, executed in `folder`."""
    notebook = nbformat.read(path, as_version=4)
    # A cell that trains may wait long for a busy machine.
    how = {"timeout": 3600, "record_timing": False, "resources": {"metadata": {"path": str(folder)}}}
    NotebookClient(notebook, kernel_name="python3", **how).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
            for output in cell.outputs:
                output.data.pop("image/jpeg", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def main() -> None:
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            Path(name).write_text(nbformat.writes(execute(Path(name), folder)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
