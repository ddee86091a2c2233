"""One configuration on several phantom cohorts, each with other patients and random numbers, and one report of all.

    python benchmarks/cohorts.py run CONFIG.yaml -o FOLDER --seeds 5 6 7 [--set KEY=VALUE ...] [--control NAME]
    python benchmarks/cohorts.py table FOLDER [CONTROL=FOLDER ...] -o results/NAME

`run` makes or goes on with FOLDER/cohort-N (`data.phantom.seed` is N, and `seed` where --set gives no other); several
processes may divide the seeds among them. With --control, synthetic sets lack one thing on purpose (see controls.py).
`table` writes results/NAME/{counts.parquet, per_patient.csv, summary.json, arms.png} of all cohorts that
are done, patients called N/PATIENT, and prints tables. With more than one folder, their cohorts and arms are
joined; what `table` wrote before is such a folder. The arm with synthetic images of CONTROL=FOLDER is called CONTROL,
and that of the other folders is compared with it. Comparisons have `delta_by_cohort` and `delta_ci_cohorts`, an
interval for which cohorts are drawn anew, and patients in each; of groups too.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from controls import DRAWN, Control
from stedm.config import EvaluationConfig, load_config
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts
from stedm.evaluation.figures import arms_figure, save_png
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.report import write_report
from stedm.evaluation.stats import summarise
from stedm.experiment.experiment import Experiment
from stedm.experiment.rounds import Round
from stedm.io.files import alone_in, write_json
from stedm.progress import Reporter
from stedm.seeds import numpy_generator
from tables import tables

DESIGN = "real+stain+synthetic"
"""The arm that a control replaces."""


def run_cohorts(
    config: Path, folder: Path, seeds: list[int], overrides: list[str], control: Control | None = None
) -> None:
    """Make what is missing of each cohort's run; its set lacks what `control` takes away."""
    for seed in seeds:
        print(f"== cohort {seed}", flush=True)
        values = load_config(config, [f"seed={seed}", *overrides, f"data.phantom.seed={seed}"])
        experiment = Experiment(values, folder / f"cohort-{seed}", Reporter())
        experiment.round_type = DRAWN.get(control, Round)
        with alone_in(experiment.folder):
            experiment.run()


def pooled_counts(folder: Path) -> pd.DataFrame:
    """Counts of all cohorts that are done, patients named N/PATIENT; `StedmError` where there is none."""
    if (folder / "counts.parquet").is_file():
        return read_counts(folder / "counts.parquet")
    parts = []
    for path in sorted(folder.glob("cohort-*/report/counts.parquet")):
        counts = read_counts(path)
        cohort = path.parents[1].name.removeprefix("cohort-")
        parts.append(counts.assign(patient_id=cohort + "/" + counts["patient_id"].astype(str)))
    if not parts:
        raise StedmError(f"{folder}: no cohort is done; run `cohorts.py run` first")
    return pd.concat(parts, ignore_index=True)


def joined_counts(folders: list[tuple[str | None, Path]]) -> pd.DataFrame:
    """Counts of several folders: further cohorts, further arms. What two have is taken from the first.

    Args:
        folders: what the folder's arm with synthetic images is called (None: as it is), and the folder.

    Raises:
        StedmError: an arm lacks patients that another one has.
    """
    joined = pd.DataFrame()
    for name, folder in folders:
        further = pooled_counts(folder)
        if name is not None:
            further = further.assign(arm=further["arm"].astype(str).replace(DESIGN, name))
        if not joined.empty:
            there = pd.MultiIndex.from_frame(joined[["arm", "patient_id"]])
            further = further[~pd.MultiIndex.from_frame(further[["arm", "patient_id"]]).isin(there)]
        joined = pd.concat([joined, further], ignore_index=True).astype({"class": further["class"].dtype})
    patients = joined.groupby("arm")["patient_id"].agg(set)
    for arm, own in patients.items():
        if missing := set.union(*patients) - own:
            raise StedmError(
                f"{folders[-1][1]}: arm {arm} lacks {len(missing)} patients; give folders of the same cohorts"
            )
    return joined


def add_cohorts(summary: dict[str, Any], counts: pd.DataFrame, evaluation: EvaluationConfig) -> None:
    """Add to each comparison, of groups too, the gain of each cohort, and an interval over cohorts and their patients;
    to each arm of a group its mean of each cohort."""
    patients = per_patient(counts)
    for name, group in {None: summary, **summary.get("groups", {})}.items():
        rows = patients if name is None else patients[patients["category"].isin(group["categories"])]
        scores = rows.pivot(index="patient_id", columns="arm", values="iou")
        cohort = scores.index.str.split("/").str[0]
        for arm, entry in group["arms"].items():
            entry["iou_by_cohort"] = {key: float(iou) for key, iou in scores[arm].groupby(cohort).mean().items()}
        for entry in group["comparisons"]:
            gains = scores[entry["a"]] - scores[entry["b"]]
            gains = gains.groupby(cohort).apply(lambda part: part.dropna().to_numpy())
            entry["delta_by_cohort"] = {key: float(part.mean()) for key, part in gains.items()}
            if len(gains) > 1:
                entry["delta_ci_cohorts"] = interval_over_cohorts(list(gains), evaluation)


def interval_over_cohorts(gains: list[np.ndarray], evaluation: EvaluationConfig) -> list[float]:
    """Percentile bootstrap of the mean over cohorts of the mean over patients; both are drawn anew."""
    generator = numpy_generator(evaluation.seed, "bootstrap over cohorts", len(gains))
    means = np.stack([generator.choice(part, (evaluation.bootstrap, len(gains), len(part))).mean(-1) for part in gains])
    drawn = generator.integers(len(gains), size=(evaluation.bootstrap, len(gains)))
    rows, places = np.arange(evaluation.bootstrap)[:, None], np.arange(len(gains))
    tail = (1 - evaluation.confidence) / 2
    return np.quantile(means[drawn, rows, places].mean(axis=1), [tail, 1 - tail]).tolist()


def write_cohorts(folders: list[tuple[str | None, Path]], target: Path) -> str:
    """The files of results/NAME; returns tables. `folders` as in `joined_counts`."""
    counts, evaluation = joined_counts(folders), EvaluationConfig()
    controls = list(dict.fromkeys(name for name, _ in folders if name is not None))
    summary = write_report(target, counts, title=target.name, evaluation=evaluation)
    if controls:
        usual = [(c["a"], c["b"]) for c in summary["comparisons"]]
        summary = summarise(counts, evaluation, [*usual, *((DESIGN, name) for name in controls)])
    add_cohorts(summary, counts, evaluation)
    write_json(target / "summary.json", summary)
    save_png(target / "arms.png", arms_figure(per_patient(counts)), dpi=110)
    for name in ("report.html", "manifest.json"):  # of another summary
        (target / name).unlink()
    lines = [tables(target), *_comparisons(summary["comparisons"])]
    for name, group in summary.get("groups", {}).items():
        lines += [
            "",
            f"### {name}: {', '.join(group['categories'])}",
            "",
            "| arm | by cohort | all |",
            "| --- | --- | --- |",
        ]
        for arm, entry in group["arms"].items():
            by_cohort = ", ".join(f"{iou:.3f}" for iou in entry["iou_by_cohort"].values())
            lines.append(f"| {arm} | {by_cohort} | {entry['iou_mean']:.3f} |")
        lines += _comparisons(group["comparisons"])
    return "\n".join(lines)


def _comparisons(entries: list[dict[str, Any]]) -> list[str]:
    head = ["", "| comparison | gain | 95 % over cohorts and patients | by cohort |", "| --- | --- | --- | --- |"]
    return head + [
        f"| {c['a']} - {c['b']} | {c['delta_mean']:+.3f} | "
        + " to ".join(f"{bound:+.3f}" for bound in c.get("delta_ci_cohorts", c["delta_ci"]))
        + f" | {', '.join(f'{gain:+.3f}' for gain in c['delta_by_cohort'].values())} |"
        for c in entries
    ]


def named_folder(text: str) -> tuple[str | None, Path]:
    """NAME=FOLDER, or FOLDER alone."""
    name, equals, folder = text.rpartition("=")
    return (name if equals else None), Path(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One configuration on several phantom cohorts.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("run", help="make what is missing")
    made.add_argument("config", type=Path)
    made.add_argument("-o", dest="folder", type=Path, required=True)
    made.add_argument("--seeds", nargs="+", type=int, required=True)
    made.add_argument("--control", choices=DRAWN, help="what the synthetic set lacks on purpose")
    made.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    table = verbs.add_parser("table", help="one report of all cohorts")
    table.add_argument("folders", type=named_folder, nargs="+", metavar="[CONTROL=]FOLDER")
    table.add_argument("-o", dest="target", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "run":
            run_cohorts(given.config, given.folder, given.seeds, given.overrides, given.control)
        else:
            print(write_cohorts(given.folders, given.target))
    except StedmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
