"""Images of one category, their annotation, and what the segmenters of a run see there: to look at, not to count.

    python benchmarks/seen_by.py RUN OUT.png --category C [--arms A ...] [--seed 0] [--images 10]

An image of each patient of the scored split, of as many patients as there are columns.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stedm.config import load_config
from stedm.data.cache import ImageCache
from stedm.errors import StedmError
from stedm.evaluation.figures import save_png
from stedm.experiment.context import RunContext
from stedm.progress import Reporter
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks


def seen_figure(run: Path, category: str, arms: list[str], *, seed: int = 0, images: int = 10) -> Figure:
    """A column an image; rows: image, annotation, prediction of each arm.

    Raises:
        StedmError: the run's scored split has no image of that category.
    """
    context = RunContext(load_config(run / "config.yaml"), run, Reporter(quiet=True))
    held_out, px = context.held_out, context.config.data.side
    table = held_out.table.reset_index(drop=True)
    rows = table[table["category"] == category].groupby("patient_id", sort=True).head(1).index[:images]
    if len(rows) == 0:
        raise StedmError(f"{run}: no image of category {category} is scored; give another --category")
    cache = ImageCache(held_out, px)
    pixels = np.stack([cache.image(row) for row in rows])
    shown = {"image": pixels, "annotation": np.stack([cache.mask(row) for row in rows])}
    for arm in arms:
        network, _ = load_segmenter(run / "segmenters" / arm / f"seed-{seed}/model", machine=context.config.machine)
        shown[arm] = predict_masks(network, pixels)
    figure = Figure(figsize=(len(rows), 1.1 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(rows), squeeze=False)
    for line, (name, arrays) in zip(axes, shown.items(), strict=True):
        line[0].set_ylabel(name, fontsize=6)
        for ax, array in zip(line, arrays, strict=True):
            ax.imshow(array, cmap="gray", vmin=0, vmax=len(context.dataset.info.classes) - 1)
            ax.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--category", required=True)
    parser.add_argument("--arms", nargs="+", default=["real+stain", "real+stain+synthetic", "upper"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=10)
    given = parser.parse_args()
    figure = seen_figure(given.run, given.category, given.arms, seed=given.seed, images=given.images)
    save_png(given.out, figure, dpi=110)
