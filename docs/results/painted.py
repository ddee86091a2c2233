"""Synthetic pictures whose layouts were predicted, beside the unannotated pictures that they were predicted in.

python docs/results/painted.py RUN/synthetic DATASET OUT.png
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stedm.data.folder import DatasetFolder
from stedm.data.transforms import symmetry
from stedm.evaluation.figures import save_png
from stedm.layout.recipe import PREDICTED

COLUMNS = 10


def painted_figure(synthetic: DatasetFolder, dataset: DatasetFolder) -> Figure:
    """Up to ten columns: unannotated picture, predicted layout, picture painted anew."""
    rows = np.flatnonzero(synthetic.table["layout_kind"] == PREDICTED)
    rows = rows[np.linspace(0, len(rows) - 1, min(COLUMNS, len(rows))).astype(int)]
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    figure = Figure(figsize=(len(rows), 3.2), layout="constrained")
    axes = figure.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows.tolist()):
        planned, painted, layout = synthetic.table.iloc[row], synthetic.read_picture(row), synthetic.read_mask(row)
        source = dataset.read_picture(row_of[planned["layout_image_file_name"]], len(layout))
        shown = layout / max(len(synthetic.info.classes) - 1, 1)
        for ax, picture in zip(
            axes[:, column], (symmetry(source, int(planned["layout_symmetry"])), shown, painted), strict=True
        ):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    for ax, label in zip(axes[:, 0], ("unannotated", "layout seen", "painted anew"), strict=True):
        ax.set_ylabel(label, fontsize=8)
    return figure


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python docs/results/painted.py RUN/synthetic DATASET OUT.png")
    synthetic, dataset, out = map(Path, sys.argv[1:])
    save_png(out, painted_figure(DatasetFolder.open(synthetic), DatasetFolder.open(dataset)), dpi=110)
