"""Copy what is worth keeping of a run into results/NAME: two figures as PNG, counts and summary as files.

    python benchmarks/export.py RUN NAME [--generated-only]

Writes results/NAME/{summary.json, per_patient.csv, counts.parquet, arms.png, examples.png}, or grid.png in place of
examples.png, and prints a line for the page: with which code and data the run was made.

With `--generated-only` no image or layout of the data set is shown, for data that may not be passed on: the grid then
has the model's images of plain shapes in the styles of categories that nobody annotated.
The figures are those of the run's report; every number in the pages comes from NAME/summary.json, which can be computed
again from NAME/counts.parquet.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from shrink import shrink
from stedm.config import RunConfig, load_config
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.evaluation.counts import pool_units
from stedm.evaluation.figures import (
    StyleGrid,
    arms_figure,
    patient_examples_figure,
    save_png,
    style_grid_figure,
)
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.panels import patient_examples
from stedm.experiment.experiment import Experiment
from stedm.seeds import numpy_generator
from stedm.style.sampling import style_views

RESULTS = Path(__file__).parents[1] / "results"


def export(run: Path, name: str, generated_only: bool = False) -> None:
    """Write the result files of a finished run."""
    experiment = Experiment(load_config(run / "config.yaml"), run)
    config, context, last = experiment.config, experiment.context, experiment.last_round
    counts = experiment.counts()
    figures = {"arms": arms_figure(per_patient(pool_units(counts, config.evaluation.unit)), config.evaluation.unit)}
    if generated_only:
        figures["grid"] = style_grid_figure(shapes_grid(last.model(), context.unlabeled, config))
    else:
        unlabeled = ImageCache(context.unlabeled, config.data.side)
        figures["examples"] = patient_examples_figure(patient_examples(last.synthetic(), unlabeled))
    target = RESULTS / name
    for part, figure in figures.items():
        save_png(target / f"{part}.png", figure, dpi=110)
        shrink(target / f"{part}.png")
    for file in ("summary.json", "per_patient.csv", "counts.parquet"):
        shutil.copy(run / "report" / file, target / file)
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    data, seconds = provenance["data"]["fingerprint"], sum(provenance["seconds"].values())
    print(f"code {provenance['git']}, torch {provenance['packages']['torch']}, data {data}, {seconds / 60:.0f} minutes")


def shapes_grid(model: StyleDiffusion, unlabeled: DatasetFolder, config: RunConfig) -> StyleGrid:
    """Plain shapes in the style of one image of each category without annotations; the style images not shown."""
    side = config.data.side
    table = unlabeled.table
    unseen = config.data.unseen_categories or sorted(set(table["category"]))
    rows = [int(numpy_generator(0, "shapes", c).choice(np.flatnonzero(table["category"] == c))) for c in unseen]
    layouts = plain_shapes(side)
    generated = model.generate(
        np.concatenate([layouts] * len(rows)),
        [
            views
            for row in rows
            for views in [style_views(unlabeled.read_image(row, side), 4, numpy_generator(0, "views", row))]
            for _ in layouts
        ],
        sampling=config.synthesis.sampling,
        seed=list(range(len(layouts))) * len(rows),
    )
    images = [list(row) for row in generated.reshape(len(rows), len(layouts), *generated.shape[1:])]
    return StyleGrid([[] for _ in rows], list(layouts), images, list(unseen))


def plain_shapes(side: int) -> np.ndarray:
    """Class maps `(6, side, side)`: disc, ring, star, four discs, bell, daisy."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    discs = [np.hypot(x - a, y - b) < 0.32 for a in (-0.45, 0.45) for b in (-0.45, 0.45)]
    bell = (np.abs(x) < 0.25 + 0.4 * np.clip(y, -0.6, 0.7) + 0.1) & (y > -0.6) & (y < 0.7)
    shapes = [
        radius < 0.6,
        (radius < 0.75) & (radius > 0.35),
        radius < 0.5 + 0.3 * np.cos(5 * angle),
        np.any(discs, axis=0),
        bell,
        radius < 0.68 + 0.14 * np.cos(16 * angle),
    ]
    return np.stack(shapes).astype(np.uint8)


if __name__ == "__main__":
    arguments = [text for text in sys.argv[1:] if text != "--generated-only"]
    if len(arguments) != 2:
        sys.exit("usage: python benchmarks/export.py RUN NAME [--generated-only]")
    export(Path(arguments[0]), arguments[1], "--generated-only" in sys.argv)
