"""Synthetic images whose layouts were predicted, beside the unannotated images that they were predicted in.

    python benchmarks/painted.py RUN/synthetic DATASET OUT.png [--beside RUN/synthetic] [--category C]

With `--beside` the same unannotated images as another set has them, with `--category` those of patients of one
category.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stedm.data.folder import DatasetFolder
from stedm.evaluation.figures import save_png
from stedm.layout.recipe import PREDICTED

COLUMNS = 10


def painted_figure(sets: dict[str, DatasetFolder], dataset: DatasetFolder, category: str | None = None) -> Figure:
    """Up to ten columns: an unannotated image, and its predicted layout and the image painted anew in each set."""
    painted_in = [_rows_by_source(synthetic) for synthetic in sets.values()]
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    categories = dataset.table.set_index("image_file_name")["category"]
    sources = [
        source
        for source in painted_in[0]
        if all(source in rows for rows in painted_in) and category in (None, categories[source])
    ]
    sources = [sources[i] for i in np.linspace(0, len(sources) - 1, min(COLUMNS, len(sources))).astype(int)]
    sets_px = len(next(iter(sets.values())).read_mask(0))
    labels = ["unannotated"]
    for name in sets:
        labels += [f"layout seen{name}", f"painted anew{name}"]
    figure = Figure(figsize=(len(sources), 1.1 * len(labels)), layout="constrained")
    axes = figure.subplots(len(labels), len(sources), squeeze=False)
    for column, source in enumerate(sources):
        shown = [dataset.read_image(row_of[source], sets_px)]
        for synthetic, rows in zip(sets.values(), painted_in, strict=True):
            row = rows[source]
            turn = int(synthetic.table.iloc[row]["layout_symmetry"])
            layout = synthetic.read_mask(row) / max(len(synthetic.info.classes) - 1, 1)
            shown += [_upright(layout, turn), _upright(synthetic.read_image(row), turn)]
        for ax, image in zip(axes[:, column], shown, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label, fontsize=7)
    return figure


def _rows_by_source(synthetic: DatasetFolder) -> dict[str, int]:
    """Row of the first image that was painted to the layout predicted in each unannotated image."""
    rows = np.flatnonzero(synthetic.table["layout_kind"] == PREDICTED)
    return {synthetic.table["layout_image_file_name"].iloc[row]: int(row) for row in rows[::-1]}


def _upright(array: np.ndarray, turn: int) -> np.ndarray:
    """Undo `symmetry(array, turn)`."""
    array = np.rot90(array, -(turn % 4))
    return array[:, ::-1] if turn >= 4 else array


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--category")
    given = parser.parse_args()
    sets = {"": DatasetFolder.open(given.synthetic)}
    if given.beside:
        sets = {"\n(first set)": sets[""], "\n(second set)": DatasetFolder.open(given.beside)}
    save_png(given.out, painted_figure(sets, DatasetFolder.open(given.dataset), given.category), dpi=110)
