"""How well does agreement, which needs no masks, tell for which patients segmenters are wrong? On patients with masks.

    python benchmarks/agreement.py RUN DATASET -o results/agreement/NAME.csv [--split val]

RUN: a run with several rounds. What it does to its unannotated patients (RUN/agreement.csv) is done here to those of
the split, which no network of RUN has seen: the voters of the first round say what they are sure of, those of the last
round, which have learned from synthetic images, what they see. The file has a row a
patient, with the agreement and the IoU of arms against the masks, mean over the seeds that RUN has.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd

from stedm.config import RunConfig, load_config
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.scoring import count_dataset
from stedm.experiment.agreement import agreement
from stedm.experiment.experiment import Experiment
from stedm.segmentation.pseudo_labels import write_pseudo_labels

ARMS = ("real+stain", "real+stain+synthetic")
FAILED = 0.5
"""A patient with a lower IoU is one that the segmenter is wrong about."""


def measured(run: Path, config: RunConfig, held_out: DatasetFolder) -> pd.DataFrame:
    """A row a patient of the split: patient_id, category, agreement, sure_fraction, and the IoU of each arm."""
    px, labels, last = config.data.side, config.rounds.labels, Experiment(config, run).last_round
    voters = [sorted(made.voters.folder.glob("seed-*/model")) for made in (last.first, last)]
    if labels is None or last.before is None or not all(voters):
        raise StedmError(f"{run}: no voters of two rounds; needs rounds.labels and rounds.number of 2")
    with tempfile.TemporaryDirectory() as folder:
        sure, seen = (
            write_pseudo_labels(models, held_out, Path(folder) / str(least), image_px=px, confidence=least)
            for models, least in zip(voters, (labels.confidence, 0.0), strict=True)
        )
        table = agreement(sure, seen)[["patient_id", "category", "agreement", "sure_fraction"]]
    images = ImageCache(held_out, px)
    counts = [
        count_dataset(model, images, arm=arm, seed=seed)
        for arm in ARMS
        for seed, model in enumerate(sorted(run.glob(f"segmenters/{arm}/seed-*/model")))
    ]
    scores = per_patient(pd.concat(counts)).pivot(index="patient_id", columns="arm", values="iou")
    return table.join(scores, on="patient_id")


def verdict(table: pd.DataFrame, least: float) -> str:
    """What the table says, in some lines."""
    flagged = table["agreement"] < least
    lines = [f"{len(table)} patients, agreement below {least} about {flagged.sum()} of them"]
    for arm in ARMS:
        failed = table[arm] < FAILED
        parts = {"of these": flagged, "of the others": ~flagged}
        means = " and ".join(f"{table[arm][rows].mean():.3f} {name}" for name, rows in parts.items() if rows.any())
        ranks = ", ".join(
            f"{table[[by, arm]].corr('spearman').iloc[0, 1]:+.2f} with {by}" for by in ("agreement", "sure_fraction")
        )
        lines.append(
            f"{arm}: IoU {means}; below {FAILED} in {failed.sum()} patients, {(failed & flagged).sum()} of these "
            f"flagged; rank correlation {ranks}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("-o", dest="target", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.run / "config.yaml")
        table = measured(given.run, config, DatasetFolder.open(given.dataset).split(given.split))
    except StedmError as error:
        sys.exit(str(error))
    given.target.parent.mkdir(parents=True, exist_ok=True)
    table.sort_values("agreement").to_csv(given.target, index=False, float_format="%.4f")
    print(verdict(table, config.rounds.agreement))


if __name__ == "__main__":
    main()
