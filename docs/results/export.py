"""Copy what is worth keeping of a run into docs/results: figures as PNG, counts and summary as files.

    python docs/results/export.py RUN NAME     writes docs/results/NAME/ and the NAME_*.png beside it

The figures are those of the run's report; every number in the pages comes from NAME/summary.json, which can be computed
again from NAME/counts.parquet.
"""

import json
import shutil
import sys
from pathlib import Path

from stedm.config import load_config
from stedm.data.samples import PictureCache
from stedm.evaluation.figures import (
    arms_figure,
    overlays_figure,
    paired_figure,
    patient_examples_figure,
    save_png,
    style_grid_figure,
)
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.panels import overlays, patient_examples, style_grid
from stedm.experiment import Experiment
from stedm.files import write_json

HERE = Path(__file__).parent


def export(run: Path, name: str) -> None:
    """Write the result files of a finished run."""
    config = load_config(run / "config.yaml")
    experiment = Experiment(config, run)
    counts = experiment.counts()
    px = config.data.picture_px
    annotated, unlabeled = PictureCache(experiment.annotated, px), PictureCache(experiment.unlabeled, px)
    held_out = PictureCache(experiment.dataset.split(config.evaluation.split), px)
    seed = config.segmentation.seeds[0]
    segmenters = {arm: run / "segmenters" / arm / f"seed-{seed}" / "model" for arm in config.segmentation.arms}
    patients = per_patient(counts)
    figures = {
        "grid": style_grid_figure(style_grid(experiment.train_diffusion(), annotated, unlabeled, config.synthesis)),
        "examples": patient_examples_figure(patient_examples(experiment.synthesize(), unlabeled)),
        "overlays": overlays_figure(overlays(segmenters, held_out, counts)),
        "arms": arms_figure(patients),
        "paired": paired_figure(patients, "real+synthetic", "real"),
    }
    for part, figure in figures.items():
        save_png(HERE / f"{name}_{part}.png", figure, dpi=110)
    target = HERE / name
    target.mkdir(exist_ok=True)
    for file in ("summary.json", "per_patient.csv", "counts.parquet"):
        shutil.copy(run / "report" / file, target / file)
    shutil.copy(run / "metrics.jsonl", target / "metrics.jsonl")
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    # Where the data lay on this machine says nothing; their fingerprint does.
    provenance["data"].pop("root")
    write_json(target / "provenance.json", provenance)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/results/export.py RUN NAME")
    export(Path(sys.argv[1]), sys.argv[2])
