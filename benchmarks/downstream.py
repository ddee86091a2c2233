"""What segmentation gains from each choice: variants of a run over label budgets, draws of patients and seeds.

    python benchmarks/downstream.py run SPEC.yaml -o FOLDER [--only NAME ...] [--shard I/N]
    python benchmarks/downstream.py table FOLDER -o docs/results/NAME
    python benchmarks/downstream.py curve FOLDER -o docs/results/NAME      IoU against annotated patients, a figure

`run` trains and scores what is missing and can be stopped and started at any time, or in several shards at once. What
two runs have in common (a diffusion model, a synthetic set, segmenters without synthetic pictures) is made once:

FOLDER/spec.yaml                         the specification, paths made absolute
FOLDER/shared/{models,sets,segmenters}/  what runs have in common, each a run folder of its own
FOLDER/VARIANT/patients-B/draw-D/        a run folder, with its report

A variant with the key `control` has a set that lacks one thing on purpose (see controls.py).
Choose on `evaluation.split: val`; `test` is for the final table.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from pydantic import Field, ValidationError

from controls import AnnotatedStyles, Control, Gate, copy_pictures, gate, shuffle_layouts
from judging import Part, claim, locked
from stedm.config import EvaluationConfig, RunConfig, SegmentationConfig, SynthesisConfig, parse_config, uses_synthetic
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts, write_counts
from stedm.evaluation.figures import save_png
from stedm.evaluation.metrics import per_patient_and_seed
from stedm.evaluation.stats import summarise
from stedm.experiment import Experiment
from stedm.files import fingerprint, replacing, write_json, write_text
from stedm.progress import Reporter
from stedm.scale.engine import parse_shard
from stedm.seeds import numpy_generator

BASE = "base"
CONTROLS = get_args(Control)
CONTROL = "control"
"""Key of a variant that is no key of a configuration."""
SEEDS_A_DRAW = 1000
"""Seed K of draw D is called D * 1000 + K where draws are pooled."""


# ---- specification ------------------------------------------------------------------------------------------------


class Spec(Part):
    """A base configuration, and variants of it: {name: {"synthesis.time_shift": 4, ...}}."""

    name: str
    base: dict[str, Any]
    budgets: list[int] = Field(min_length=1, description="annotated patients")
    draws: list[int] = [0]
    baseline: str = "real+stain"
    """The arm of `base` that others are compared with."""
    compare: list[tuple[str, str]] = []
    """Further comparisons, as VARIANT/ARM (new, baseline)."""
    variants: dict[str, dict[str, Any]]

    def config(self, variant: str, budget: int, draw: int) -> RunConfig:
        """The configuration of one run; `StedmError` for keys that stedm doesn't know."""
        values = OmegaConf.create({"name": f"{self.name}, {variant}", **self.base})
        given = {"data.annotated_patients": budget, "data.draw": draw, **self.variants[variant]}
        for key, value in given.items():
            if key == CONTROL:
                continue
            OmegaConf.update(values, key, value, merge=False)
        return parse_config(OmegaConf.to_container(values, resolve=True), source=f"variant {variant}")

    def control(self, variant: str) -> Control | None:
        """What the variant's synthetic set lacks on purpose."""
        return self.variants[variant].get(CONTROL)

    def check(self) -> None:
        """Build every configuration before anything is trained."""
        if BASE not in self.variants:
            raise StedmError(f"variants: needs one called {BASE}, which the others are compared with")
        for variant in self.variants:
            if self.control(variant) not in (None, *CONTROLS):
                known = ", ".join(CONTROLS)
                raise StedmError(f"variant {variant}: control is {self.control(variant)}, not one of {known}")
            config = self.config(variant, self.budgets[0], self.draws[0])
            if config.data.phantom is not None:
                raise StedmError("data.phantom: make the phantom first (stedm data phantom) and give data.path")
        if self.baseline not in self.config(BASE, self.budgets[0], self.draws[0]).segmentation.arms:
            raise StedmError(f"baseline: {self.baseline} is not an arm of {BASE}")


def read_spec(path: Path) -> Spec:
    """Read and check a specification; a relative data.path is relative to the file."""
    if not path.is_file():
        raise StedmError(f"{path}: no such specification")
    try:
        spec = Spec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise StedmError(f"{path}: {' '.join(str(error).split())}") from error
    if data_path := spec.base.get("data", {}).get("path"):
        spec.base["data"]["path"] = str((path.parent / data_path).resolve())
    spec.check()
    return spec


# ---- runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One run."""

    variant: str
    budget: int
    draw: int

    def folder(self, root: Path) -> Path:
        return root / self.variant / f"patients-{self.budget}" / f"draw-{self.draw}"


class Comparison:
    """All runs of a specification in one folder."""

    def __init__(self, spec: Spec, folder: Path):
        self.spec, self.folder = spec, folder

    @property
    def cells(self) -> list[Cell]:
        """Draw by draw, so that a table can be made early."""
        spec = self.spec
        return [Cell(v, b, d) for d in spec.draws for b in spec.budgets for v in spec.variants]

    def run(self, only: list[str] | None = None, shard: tuple[int, int] = (0, 1), quiet: bool = False) -> None:
        """Train and score what is missing."""
        if unknown := sorted(set(only or []) - set(self.spec.variants)):
            raise StedmError(f"--only {unknown[0]}: no such variant; there are {', '.join(self.spec.variants)}")
        claim(self.folder, self.spec, may_change=("variants", "budgets", "draws", "compare"))
        reporter = Reporter(quiet=quiet)
        for cell in [cell for cell in self.cells if not only or cell.variant in only][shard[0] :: shard[1]]:
            reporter.say(f"== {cell.variant}, {cell.budget} annotated patients, draw {cell.draw}")
            self.run_cell(cell, reporter)

    def run_cell(self, cell: Cell, reporter: Reporter) -> None:
        """One run, on what it shares with others."""
        config = self.spec.config(cell.variant, cell.budget, cell.draw)
        experiment = Experiment(config, cell.folder(self.folder), reporter)
        experiment.check()
        if any(map(uses_synthetic, config.segmentation.arms)):
            shared = self._synthetic(config, self.spec.control(cell.variant), reporter)
            for name in ("model", "plan.parquet", "synthetic"):
                if (shared / name).exists():
                    _link(experiment.folder / name, shared / name)
        for arm in config.segmentation.arms:
            if not uses_synthetic(arm):
                _link(experiment.folder / "segmenters" / arm, self._segmenters(config, arm, reporter))
        experiment.train_segmenters()
        experiment.report()

    def _synthetic(self, config: RunConfig, control: Control | None, reporter: Reporter) -> Path:
        """Run folder of the synthetic set that `config` and `control` ask for."""
        plain = SegmentationConfig()
        # With pseudo-labels the model depends on how segmenters are trained, but not on which are compared.
        compared = {key: getattr(plain, key) for key in ("arms", "seeds", "steps", "synthetic_fraction")}
        segmentation = config.segmentation.model_copy(update=compared) if config.diffusion.pseudo_labels else plain
        trained = config.model_copy(
            update={"name": "shared", "synthesis": SynthesisConfig(), "segmentation": segmentation}
        )
        with self._shared("models", trained) as model:
            Experiment(trained, model, reporter).train_diffusion()
        drawn = trained.model_copy(update={"synthesis": config.synthesis})
        with self._shared("sets", drawn) as folder:
            experiment = Experiment(drawn, folder, reporter)
            _link(folder / "model", model / "model")
            if control in (None, "shuffled-layouts", *get_args(Gate)):
                experiment.synthesize()
        teachers = sorted((model / "teachers").glob("seed-*/model"))
        return self._without(control, drawn, folder, teachers, reporter) if control else folder

    def _without(
        self, control: Control, drawn: RunConfig, whole: Path, teachers: list[Path], reporter: Reporter
    ) -> Path:
        """Run folder of a set that lacks something, made beside the whole one."""
        px, seed, target = drawn.data.picture_px, drawn.seed, whole.with_name(f"{whole.name}-{control}")
        with _Locked(target) as folder:
            experiment = (AnnotatedStyles if control == "annotated-styles" else Experiment)(drawn, folder, reporter)
            _link(folder / "model", whole / "model")
            synthetic = folder / "synthetic"
            if control == "annotated-styles":
                experiment.synthesize()
            elif not (synthetic / "metadata.csv").is_file():
                pictures = None if control == "copied-pictures" else DatasetFolder.open(whole / "synthetic")
                if control == "shuffled-layouts":
                    shuffle_layouts(pictures, synthetic, picture_px=px, seed=seed)
                elif control in get_args(Gate):
                    gate(pictures, teachers, control, synthetic, picture_px=px)
                else:
                    n = drawn.synthesis.n_pictures
                    copy_pictures(experiment.annotated, n, synthetic, picture_px=px, seed=seed)
        return folder

    def _segmenters(self, config: RunConfig, arm: str, reporter: Reporter) -> Path:
        """Folder of the segmenters of an arm without synthetic pictures, all seeds."""
        alone = SegmentationConfig.model_validate(
            {
                **config.segmentation.model_dump(),
                "arms": [arm],
                "synthetic_fraction": SegmentationConfig().synthetic_fraction,
            }
        )
        trained = config.model_copy(
            update={
                "name": "shared",
                "synthesis": SynthesisConfig(),
                "diffusion": type(config.diffusion)(),
                "segmentation": alone,
            }
        )
        with self._shared("segmenters", trained) as folder:
            experiment = Experiment(trained, folder, reporter)
            experiment.train_segmenters()
            experiment.counts()
        return folder / "segmenters" / arm

    def _shared(self, kind: str, config: RunConfig) -> "_Locked":
        return _Locked(self.folder / "shared" / kind / fingerprint(config.model_dump(mode="json")))


class _Locked:
    """A folder that one process at a time works in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = locked(folder.with_name(f".{folder.name}.lock"))

    def __enter__(self) -> Path:
        self._lock.__enter__()
        return self.folder

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target.resolve())


# ---- statistics ---------------------------------------------------------------------------------------------------


def scored(comparison: Comparison) -> dict[int, pd.DataFrame]:
    """For each budget that has a scored run, its pooled counts; `StedmError` where there is none."""
    found = {budget: pooled_counts(comparison, budget) for budget in comparison.spec.budgets}
    if all(counts is None for counts in found.values()):
        raise StedmError(f"{comparison.folder}: nothing is scored yet; run `downstream.py run` first")
    return {budget: counts for budget, counts in found.items() if counts is not None}


def pooled_counts(comparison: Comparison, budget: int) -> pd.DataFrame | None:
    """Counts of all runs of a budget: arms are VARIANT/ARM, seeds of all draws side by side."""
    tables = []
    for cell in comparison.cells:
        path = cell.folder(comparison.folder) / "report" / "counts.parquet"
        if cell.budget == budget and path.is_file():
            counts = read_counts(path)
            seeds = cell.draw * SEEDS_A_DRAW + counts["seed"]
            tables.append(counts.assign(arm=cell.variant + "/" + counts["arm"].astype(str), seed=seeds))
    return pd.concat(tables, ignore_index=True) if tables else None


def pairs(arms: list[str], baseline: str) -> Iterator[tuple[str, str]]:
    """Arms of `base` against its baseline; arms of variants against the same arm of `base` and its baseline."""
    reference = f"{BASE}/{baseline}"
    for arm in arms:
        variant, kind = arm.split("/", 1)
        if arm != reference:
            yield arm, reference
        if variant != BASE and f"{BASE}/{kind}" in arms and kind != baseline:
            yield arm, f"{BASE}/{kind}"


def summary_of(spec: Spec, budget: int, counts: pd.DataFrame) -> dict[str, Any]:
    """`summary.json` of a budget; where there are several draws of annotated patients, comparisons have

    `delta_by_draw`, {draw: mean difference}, and `delta_ci_draws`, an interval over patients and draws (both resampled;
    of three draws it is rough, and tells more of patients than of draws).
    """
    evaluation = spec.config(BASE, budget, spec.draws[0]).evaluation
    arms = list(dict.fromkeys(counts["arm"]))
    scores = per_draw(counts)
    draws = {arm: set(scores[arm].dropna().index.get_level_values("draw")) for arm in arms}
    wanted = dict.fromkeys([*pairs(arms, spec.baseline), *spec.compare])
    # Annotated patients differ between draws: arms are only compared on the same ones.
    same = [(a, b) for a, b in wanted if {a, b} <= set(arms) and draws[a] == draws[b]]
    summary = summarise(counts, evaluation, same)
    for entry in summary["comparisons"]:
        difference = (scores[entry["a"]] - scores[entry["b"]]).unstack("draw").dropna(axis="columns", how="all")
        if len(difference.columns) > 1:
            entry["delta_by_draw"] = {str(draw): float(mean) for draw, mean in difference.mean().items()}
            entry["delta_ci_draws"] = interval_over_draws(difference.dropna().to_numpy(), evaluation)
    return summary


def per_draw(counts: pd.DataFrame) -> pd.DataFrame:
    """IoU by (patient_id, draw), a column an arm, averaged over the seeds of the draw; NaN where an arm is missing."""
    table = per_patient_and_seed(counts)
    return (
        table.assign(draw=table["seed"] // SEEDS_A_DRAW)
        .groupby(["patient_id", "draw", "arm"])["iou"]
        .mean()
        .unstack("arm")
    )


def interval_over_draws(difference: np.ndarray, config: EvaluationConfig) -> list[float]:
    """Percentile bootstrap of the mean of differences (patients, draws), resampling patients and draws."""
    patients, draws = difference.shape
    generator = numpy_generator(config.seed, "bootstrap over draws", patients, draws)
    rows = generator.integers(patients, size=(config.bootstrap, patients, 1))
    columns = generator.integers(draws, size=(config.bootstrap, 1, draws))
    tail = (1 - config.confidence) / 2
    return np.quantile(difference[rows, columns].mean(axis=(1, 2)), [tail, 1 - tail]).tolist()


def write_table(comparison: Comparison, target: Path) -> None:
    """TARGET/patients-B/{counts.parquet, summary.json} and TARGET/table.md."""
    spec, text = comparison.spec, [f"## {comparison.spec.name}", ""]
    for budget, counts in scored(comparison).items():
        evaluation = spec.config(BASE, budget, spec.draws[0]).evaluation
        summary = summary_of(spec, budget, counts)
        folder = target / f"patients-{budget}"
        write_counts(folder / "counts.parquet", counts)
        write_json(folder / "summary.json", summary)
        text += [
            f"### {budget} annotated patients, split {evaluation.split}",
            "",
            *markdown(summary, spec.baseline),
            "",
            *further(summary, spec.compare),
        ]
    write_text(target / "table.md", "\n".join(text))
    rows = {v: yaml.safe_dump(spec.variants[v], default_flow_style=True).strip() for v in spec.variants}
    with replacing(target / "variants.csv") as temporary:
        pd.Series(rows, name="settings").rename_axis("variant").to_csv(temporary)


def write_curve(comparison: Comparison, target: Path) -> None:
    """TARGET/curve.csv and TARGET_curve.png: every arm over the budgets, and how many patients it is worth."""
    rows = []
    for budget, counts in scored(comparison).items():
        evaluation = comparison.spec.config(BASE, budget, comparison.spec.draws[0]).evaluation
        summary = summarise(counts, evaluation, pairs=[])
        for arm, entry in summary["arms"].items():
            low, high = entry["iou_mean_ci"]
            draws = len({seed // SEEDS_A_DRAW for seed in entry["seeds"]})
            rows.append((arm, budget, entry["iou_mean"], low, high, entry["iou_sd"], draws, len(entry["seeds"])))
    columns = ["arm", "annotated_patients", "iou_mean", "ci_low", "ci_high", "iou_sd", "draws", "seeds"]
    table = pd.DataFrame(rows, columns=columns)
    baseline = table[table["arm"] == f"{BASE}/{comparison.spec.baseline}"]
    table["worth_of_baseline_patients"] = [
        worth(row.iou_mean, baseline["annotated_patients"].tolist(), baseline["iou_mean"].tolist())
        for row in table.itertuples()
    ]
    with replacing(target / "curve.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")
    save_png(target.with_name(f"{target.name}_curve.png"), curve_figure(table, comparison.spec.budgets), dpi=110)


def worth(iou: float, budgets: list[int], ious: list[float]) -> float | None:
    """Annotated patients with which the baseline reaches `iou`; None outside of what was measured.

    Between two budgets the baseline's IoU is taken as linear in the logarithm of the number of patients.
    """
    for (few, low), (many, high) in pairwise(zip(budgets, ious, strict=True)):
        if low <= iou <= high and high > low:
            return float(few * (many / few) ** ((iou - low) / (high - low)))
    return None


def curve_figure(table: pd.DataFrame, budgets: list[int]) -> Figure:
    """IoU against annotated patients, an arm a line, with intervals over patients."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.add_subplot()
    for number, (arm, rows) in enumerate(table.groupby("arm", sort=False)):
        x = rows["annotated_patients"] * 1.025 ** (number - 1)  # so that intervals don't hide each other
        errors = [rows["iou_mean"] - rows["ci_low"], rows["ci_high"] - rows["iou_mean"]]
        ax.errorbar(x, rows["iou_mean"], errors, marker="o", ms=5, lw=1.6, elinewidth=0.9, label=arm.split("/")[1])
    ax.set_xscale("log")
    ax.set_xticks(budgets, [str(budget) for budget in budgets])
    ax.minorticks_off()
    ax.set_xlabel("annotated patients")
    ax.set_ylabel("IoU, mean over patients (95 % interval)")
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def markdown(summary: dict[str, Any], baseline: str) -> list[str]:
    """A row an arm: mean, spread, worst decile, gain over the baseline and over the same arm of `base`."""
    against = {(entry["a"], entry["b"]): entry for entry in summary["comparisons"]}
    lines = [
        f"| variant | arm | IoU mean | SD | worst decile | seeds | gain over {BASE}, {baseline} | SD ratio | gain over "
        f"{BASE}, same arm |",
        "|---" * 9 + "|",
    ]
    for arm, entry in summary["arms"].items():
        variant, kind = arm.split("/", 1)
        over_baseline = against.get((arm, f"{BASE}/{baseline}"))
        ratio = over_baseline and over_baseline["sd_ratio"]
        cells = [
            variant,
            kind,
            *(_decimal(entry[key]) for key in ("iou_mean", "iou_sd", "iou_worst_decile")),
            str(len(entry["seeds"])),
            _gain(over_baseline),
            _decimal(ratio, 2),
            _gain(against.get((arm, f"{BASE}/{kind}")) if kind != baseline else None),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def further(summary: dict[str, Any], wanted: list[tuple[str, str]]) -> list[str]:
    """The further comparisons of a specification, and every one by draw where there are several."""
    lines = ["| comparison | gain | SD ratio | better / worse | by draw | over draws too |", "|---" * 6 + "|"]
    for entry in summary["comparisons"]:
        if (entry["a"], entry["b"]) not in wanted and "delta_by_draw" not in entry:
            continue
        low, high = entry.get("delta_ci_draws", (None, None))
        cells = [
            f"{entry['a']} - {entry['b']}",
            _gain(entry),
            _decimal(entry["sd_ratio"], 2),
            f"{entry['n_improved']} / {entry['n_worsened']}",
            ", ".join(f"{delta:+.3f}" for delta in entry.get("delta_by_draw", {}).values()) or "–",
            "–" if low is None else f"{low:+.3f} to {high:+.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def _gain(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["delta_mean"] is None:
        return "–"
    low, high = entry["delta_ci"]
    return f"{entry['delta_mean']:+.3f} ({low:+.3f} to {high:+.3f})"


def _decimal(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


# ---- command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What segmentation gains from each choice.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and score what is missing")
    run.add_argument("spec", type=Path)
    run.add_argument("-o", dest="folder", type=Path, required=True)
    run.add_argument("--only", nargs="+", help="variants, by default all")
    run.add_argument("--shard", default="1/1", help="I/N: the I-th of N parts of the work")
    table = verbs.add_parser("table", help="tables of what is scored")
    table.add_argument("folder", type=Path)
    table.add_argument("-o", dest="target", type=Path, required=True)
    curve = verbs.add_parser("curve", help="IoU against the number of annotated patients")
    curve.add_argument("folder", type=Path)
    curve.add_argument("-o", dest="target", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "run":
            Comparison(read_spec(given.spec), given.folder).run(given.only, parse_shard(given.shard))
        else:
            write = {"table": write_table, "curve": write_curve}[given.verb]
            write(Comparison(read_spec(given.folder / "spec.yaml"), given.folder), given.target)
    except StedmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
