"""Samplers against network calls: which cheapest setting keeps the quality of a reference of many steps.

    python benchmarks/samplers.py run SPEC.yaml -o FOLDER [--model MODEL --data DATASET] [--shard I/N]
    python benchmarks/samplers.py table FOLDER -o results/NAME

A trained model draws one plan a seed (the same noise, layouts and style images) with every sampler, number of steps
and guidance of the specification; independent judges measure the images (see judging.py). `run` can be stopped and
started at any time, or in several shards at once; the cheapest settings of each seed come first:

FOLDER/spec.yaml                                      the specification, paths made absolute
FOLDER/judge/                                         segmenter, phantom cohort of its own, bounds.json
FOLDER/SAMPLER/GUIDANCE/steps-N/seed-K/measures.json  measures of a setting; images/ are kept of the first seed

A setting holds the quality of the reference if none of its means over the seeds is worse than the worse end of the
reference's 95 % interval over the seeds (Student's t), for KID, both measures of style and that of the layout.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from pydantic import Field, ValidationError

from judging import LOWER_IS_BETTER, MEASURES, Cohort, Jury, Part, claim, interval, wrapped
from stedm.config import (
    DataConfig,
    Guidance,
    PhantomConfig,
    RunConfig,
    Sampler,
    Sampling,
    SegmentationConfig,
    SynthesisConfig,
)
from stedm.data.folder import DatasetFolder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.sampler import SAMPLERS
from stedm.errors import StedmError
from stedm.evaluation.figures import COLOURS, INK, MUTED, save_png
from stedm.evaluation.quality import ColourSpace, ImageEncoder, ImageSet
from stedm.experiment.resolve import annotated_part
from stedm.io.files import replacing, write_json, write_text
from stedm.progress import Reporter
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import make_plan
from stedm.workers.pool import parse_shard

QUALITY = ("kid", "retrieval_mrr", "colour_distance", "layout_iou")
"""The measures that a setting has to hold."""
KEYS = ["sampler", "guidance", "steps", "time_shift"]
_TICKS = (1, 2, 4, 8, 16, 24, 50, 100, 250, 500)


# ---- specification ------------------------------------------------------------------------------------------------


class Setting(Part):
    """How images are drawn."""

    sampler: Sampler
    guidance: str
    """A name in the specification's `guidance`."""
    steps: int = Field(ge=1)
    time_shift: float = 1.0

    def __str__(self) -> str:
        shift = f", time shift {self.time_shift:g}" if self.time_shift != 1.0 else ""
        return f"{self.sampler}, {self.steps} steps{shift}, guidance {self.guidance}"


class Spec(Part):
    """What is compared, on which model and data."""

    name: str
    model: Path
    data: DataConfig
    """Dataset and label budget; `image_px` is the model's whatever stands here."""
    phantom: PhantomConfig | None = None
    """Of a phantom: how it was made, for the judge of its true parameters."""
    synthesis: dict[str, Any] = {}
    """Of SynthesisConfig: n_images, style_images, layouts and the like."""
    samplers: dict[Sampler, list[int]]
    """Name: numbers of steps."""
    guidance: dict[str, Guidance]
    everywhere: list[str] | None = None
    """The guidances that every sampler draws with; null = all of them."""
    also: list[Setting] = []
    """Single settings besides; the guidances that are not in `everywhere` are meant for these."""
    reference: Setting
    seeds: list[int] = [0, 1, 2, 3, 4]
    cohort: Cohort = Cohort()
    colours: ColourSpace = "hed"
    judge: dict[str, Any] = Field(default={"steps": 600}, description="settings of the judging segmenter")
    phantom_patients: int = Field(
        default=96, description="patients that the judge of a phantom's parameters is fitted on"
    )

    @property
    def settings(self) -> list[Setting]:
        """All of them and the reference, cheapest first."""
        every = [
            Setting(sampler=sampler, guidance=guidance, steps=n)
            for sampler, steps in self.samplers.items()
            for guidance in (self.guidance if self.everywhere is None else self.everywhere)
            for n in steps
        ]
        every += [setting for setting in (*self.also, self.reference) if setting not in every]
        return sorted(every, key=lambda setting: (self.network_calls(setting), str(setting)))

    def network_calls(self, setting: Setting) -> int:
        """Network evaluations an image; a conditional and an unconditional one count as two."""
        return self.sampling(setting).nfe

    def sampling(self, setting: Setting) -> Sampling:
        """The setting as stedm has it."""
        return Sampling(**{**setting.model_dump(), "guidance": self.guidance[setting.guidance]})

    def plan_config(self, setting: Setting) -> SynthesisConfig:
        """Plans of all settings differ in `sampling` alone."""
        return SynthesisConfig.model_validate({**self.synthesis, "sampling": self.sampling(setting)})

    def check(self) -> None:
        """What can be known to be wrong before anything is drawn."""
        SegmentationConfig.model_validate(self.judge)
        named = [self.reference.guidance, *(setting.guidance for setting in self.also), *(self.everywhere or [])]
        if unknown := [name for name in named if name not in self.guidance]:
            raise StedmError(f"guidance: {unknown[0]} is not one of {', '.join(self.guidance)}")
        for setting in self.settings:
            self.plan_config(setting)
        if self.data.path is None:
            raise StedmError("data.path: give the dataset folder that the model was trained on")


def read_spec(path: Path, model: Path | None = None, data: Path | None = None) -> Spec:
    """Read and check a specification; relative paths in it are relative to the file.

    model, data: instead of those of the file.
    """
    if not path.is_file():
        raise StedmError(f"{path}: no such specification")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["model"] = str(model.resolve() if model else (path.parent / values["model"]).resolve())
        values["data"] = values.get("data") or {}
        given = data.resolve() if data else values["data"].get("path") and (path.parent / values["data"]["path"])
        values["data"]["path"] = str(Path(given).resolve()) if given else None
        spec = Spec.model_validate(values)
        spec.check()
    except (yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        raise StedmError(f"{path}: {' '.join(str(error).split())}") from error
    return spec


# ---- runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One setting drawn with one seed."""

    setting: Setting
    seed: int

    def folder(self, root: Path) -> Path:
        setting = self.setting
        steps = f"steps-{setting.steps}" + (f"-shift-{setting.time_shift:g}" if setting.time_shift != 1.0 else "")
        return root / setting.sampler / setting.guidance / steps / f"seed-{self.seed}"


class Comparison:
    """All cells of a specification in one folder."""

    def __init__(self, spec: Spec, folder: Path, encoders: tuple[ImageEncoder, ImageEncoder] | None = None):
        self.spec, self.folder, self._encoders = spec, folder, encoders

    def run(self, shard: tuple[int, int] = (0, 1), quiet: bool = False) -> None:
        """Draw and measure what is missing."""
        for setting in self.spec.settings:
            if setting.sampler not in SAMPLERS[self.model.objective]:
                raise StedmError(f"samplers: {setting.sampler} doesn't draw from {self.spec.model}")
        claim(self.folder, self.spec, may_change=("samplers", "also", "seeds"))
        reporter = Reporter(quiet=quiet)
        self.jury.bounds(reporter)
        for cell in self.cells[shard[0] :: shard[1]]:
            self.measured(cell, reporter)

    @property
    def cells(self) -> list[Cell]:
        """Seed by seed, cheapest first."""
        return [Cell(setting, seed) for seed in self.spec.seeds for setting in self.spec.settings]

    def measured(self, cell: Cell, reporter: Reporter) -> dict[str, Any]:
        """The content of a cell's measures.json, after making it if it is missing."""
        folder = cell.folder(self.folder)
        path = folder / "measures.json"
        if not path.is_file():
            reporter.say(f"== {cell.setting}, seed {cell.seed}")
            started = time.monotonic()
            with reporter.stage("draw") as tick:
                synthesize(self.model, self.plan(cell), folder / "images", on_progress=tick)
            drawn = time.monotonic()
            dataset = DatasetFolder.open(folder / "images")
            measures = self.jury.measure(ImageSet.read(dataset, self.model.image_px, with_masks=True))
            values = {
                **cell.setting.model_dump(),
                "seed": cell.seed,
                "network_calls": self.spec.network_calls(cell.setting),
                "images": len(dataset),
                "measures": {name: measure.as_dict() for name, measure in measures.items()},
                "seconds": {"draw": round(drawn - started, 1), "measure": round(time.monotonic() - drawn, 1)},
            }
            write_json(path, values)
        if cell.seed != self.spec.seeds[0]:
            shutil.rmtree(folder / "images", ignore_errors=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def plan(self, cell: Cell) -> pd.DataFrame:
        """The plan of the cell's seed, drawn in the cell's way."""
        return make_plan(
            self.spec.plan_config(cell.setting),
            self.annotated,
            self.jury.pool,
            seed=cell.seed,
            image_px=self.model.image_px,
        )

    @cached_property
    def model(self) -> StyleDiffusion:
        return StyleDiffusion.from_pretrained(self.spec.model)

    @cached_property
    def dataset(self) -> DatasetFolder:
        assert self.spec.data.path is not None
        return DatasetFolder.open(self.spec.data.path, unseen_categories=self.spec.data.unseen_categories)

    @cached_property
    def annotated(self) -> DatasetFolder:
        return annotated_part(self.dataset, RunConfig(name=self.spec.name, data=self.spec.data))

    @cached_property
    def jury(self) -> Jury:
        return Jury(
            self.dataset,
            self.annotated,
            self.folder / "judge",
            image_px=self.model.image_px,
            cohort=self.spec.cohort,
            colours=self.spec.colours,
            segmentation=SegmentationConfig.model_validate(self.spec.judge),
            phantom=self.spec.phantom,
            phantom_patients=self.spec.phantom_patients,
            encoders=self._encoders,
        )


# ---- statistics ---------------------------------------------------------------------------------------------------


def collect(comparison: Comparison) -> pd.DataFrame:
    """sampler, guidance, steps, network_calls, seed, seconds_per_image and a column a measure; a row a cell."""
    rows = []
    for cell in comparison.cells:
        path = cell.folder(comparison.folder) / "measures.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            values = {name: measure["value"] for name, measure in found["measures"].items()}
            seconds = found["seconds"]["draw"] / found["images"]
            kept = {**cell.setting.model_dump(), "network_calls": found["network_calls"], "seed": cell.seed}
            rows.append({**kept, "seconds_per_image": seconds, **values})
    if not rows:
        raise StedmError(f"{comparison.folder}: nothing is measured yet; run `samplers.py run` first")
    return pd.DataFrame(rows)


def summarise(values: pd.DataFrame, reference: Setting) -> pd.DataFrame:
    """A row a setting: for each measure of QUALITY that there is

    NAME mean over seeds, NAME_low and NAME_high its 95 % interval over seeds (Student's t), NAME_delta the mean
    difference to the reference over the seeds that both have, with NAME_delta_low and NAME_delta_high, NAME_inside
    whether the mean lies in the reference's interval, NAME_holds whether it lies there or on the better side.

    `holds` is true where all NAME_holds are, and where a setting has all the seeds of the reference.
    """
    is_reference = (values[KEYS] == pd.Series(reference.model_dump())[KEYS]).all(axis=1)
    ours = values[is_reference].set_index("seed")
    if len(ours) < 2:
        raise StedmError(f"reference {reference}: measured with {len(ours)} seeds; the interval needs two or more")
    names = [name for name in QUALITY if name in values]
    bounds = {name: interval(ours[[name]].to_numpy(dtype=float)) for name in names}
    rows = []
    for key, group in values.groupby(KEYS, sort=False):
        group = group.set_index("seed")
        row: dict[str, Any] = {**dict(zip(KEYS, key, strict=True)), "seeds": len(group)}
        row |= {name: float(group[name].mean()) for name in ("network_calls", "seconds_per_image")}
        for name in names:
            row |= _compared(name, group[name].astype(float), ours[name].astype(float), bounds[name])
        row["holds"] = all(row[f"{name}_holds"] for name in names) and set(ours.index) <= set(group.index)
        rows.append(row)
    return pd.DataFrame(rows).astype({"network_calls": int}).sort_values(["network_calls", *KEYS], ignore_index=True)


def _compared(name: str, own: pd.Series, reference: pd.Series, bounds: tuple[float, float]) -> dict[str, Any]:
    mean, (low, high) = float(own.mean()), interval(own.to_numpy()[:, None])
    delta = (own - reference).dropna().to_numpy()[:, None]
    delta_low, delta_high = interval(delta) if len(delta) else (float("nan"), float("nan"))
    not_worse = mean <= bounds[1] if name.startswith(LOWER_IS_BETTER) else mean >= bounds[0]
    return {
        name: mean,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_delta": float(delta.mean()) if len(delta) else float("nan"),
        f"{name}_delta_low": delta_low,
        f"{name}_delta_high": delta_high,
        f"{name}_inside": bool(bounds[0] <= mean <= bounds[1]),
        f"{name}_holds": bool(not_worse),
    }


def verdict(summary: pd.DataFrame, reference: Setting) -> dict[str, Any]:
    """The cheapest setting that holds all measures of the reference (lowest KID among equally cheap ones)."""
    own = summary[(summary[KEYS] == pd.Series(reference.model_dump())[KEYS]).all(axis=1)].iloc[0]
    holding = summary[summary["holds"]].sort_values(["network_calls", "kid"], kind="stable")
    best = holding.iloc[0]
    return {
        "reference": {**reference.model_dump(), "network_calls": int(own["network_calls"])},
        "cheapest": {
            **{key: best[key].item() if hasattr(best[key], "item") else best[key] for key in KEYS},
            "network_calls": int(best["network_calls"]),
        },
        "times_cheaper": float(own["network_calls"] / best["network_calls"]),
        "seeds": int(own["seeds"]),
    }


# ---- tables and figure --------------------------------------------------------------------------------------------


def write_table(comparison: Comparison, target: Path) -> None:
    """TARGET/{table.md, values.csv, quality.png}."""
    spec, values = comparison.spec, collect(comparison)
    summary, bounds = summarise(values, spec.reference), comparison.jury.bounds(Reporter(quiet=True))
    judged = verdict(summary, spec.reference)
    with replacing(target / "values.csv") as temporary:
        values.to_csv(temporary, index=False, float_format="%.5g")
    write_text(target / "table.md", markdown(spec, summary, bounds, judged))
    save_png(target / "quality.png", figure(summary, spec.reference, bounds), dpi=110)


def markdown(spec: Spec, summary: pd.DataFrame, bounds: dict[str, dict[str, float]], judged: dict[str, Any]) -> str:
    """The verdict in words, and a row a setting; a mean outside of the reference's interval is in italics if better,
    struck out if worse."""
    names = [name for name in QUALITY if name in summary]
    arrows = [f"{MEASURES[name]} {'↓' if name.startswith(LOWER_IS_BETTER) else '↑'}" for name in names]
    lines = [
        f"| sampler | guidance | steps | time shift | network calls | seeds | {' | '.join(arrows)} | holds |",
        "|---" * (len(names) + 7) + "|",
    ]
    for label in ("real", "chance"):
        known = [bounds[label].get(name) for name in names]
        shown = " | ".join("–" if value is None else f"{value:.3f}" for value in known)
        lines.append(f"| *{label}* | | | | | | {shown} | |")
    for _, row in summary.iterrows():
        cells = " | ".join(_cell(row, name) for name in names)
        steps = f"{row['steps']} | {row['time_shift']:g}"
        head = f"| {row['sampler']} | {row['guidance']} | {steps} | {row['network_calls']} | {row['seeds']}"
        lines.append(f"{head} | {cells} | {'yes' if row['holds'] else 'no'} |")
    best, reference = judged["cheapest"], judged["reference"]
    words = (
        f"Cheapest setting that holds: **{Setting(**{key: best[key] for key in KEYS})}: "
        f"{best['network_calls']} network calls** an image. Reference: {spec.reference}, "
        f"{reference['network_calls']} calls, {judged['seeds']} seeds; that is {judged['times_cheaper']:.1f} times as "
        "many."
    )
    notes = (
        "Mean over seeds ± half of its 95 % interval (Student's t over seeds). Worse than the reference's interval: "
        "struck out; better: in italics. *holds*: nothing struck out, with all seeds of the reference. *real*: real "
        "images measured in the place of synthetic ones. *chance*: guessing. All settings were given the same "
        "noise, layouts and style images; summary.csv has the paired differences to the reference (`_delta`)."
    )
    return "\n".join([f"## {spec.name}", "", words, "", *lines, "", notes, ""])


def _cell(row: pd.Series, name: str) -> str:
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    text = f"{row[name]:.3f}" if np.isnan(half) else f"{row[name]:.3f} ± {half:.3f}"
    if not row[f"{name}_holds"]:
        return f"~~{text}~~"
    return text if row[f"{name}_inside"] else f"*{text}*"


def figure(summary: pd.DataFrame, reference: Setting, bounds: dict[str, dict[str, float]]) -> Figure:
    """A panel a measure against network calls; band: the reference's interval; dashed: real images; bars: 95 %
    intervals of settings with three seeds or more."""
    names = [name for name in QUALITY if name in summary]
    samplers = sorted(set(summary["sampler"]))
    ways = sorted({(row["guidance"], row["time_shift"]) for _, row in summary.iterrows()})
    ways.sort(key=lambda way: way != (reference.guidance, reference.time_shift))
    own = summary[(summary[KEYS] == pd.Series(reference.model_dump())[KEYS]).all(axis=1)].iloc[0]
    made = Figure(figsize=(3.6 * len(names), 4.2), layout="constrained")
    for ax, name in zip(made.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        ax.axhspan(own[f"{name}_low"], own[f"{name}_high"], color=MUTED, alpha=0.2, lw=0)
        for sampler in samplers:
            for guidance, shift in ways:
                same = (summary["guidance"] == guidance) & (summary["time_shift"] == shift)
                rows = summary[(summary["sampler"] == sampler) & same].sort_values("network_calls")
                if rows.empty:
                    continue
                style = {"color": COLOURS[samplers.index(sampler) % len(COLOURS)], "lw": 1.4, "ms": 4}
                style |= {"ls": ("-", "--", ":", "-.")[ways.index((guidance, shift)) % 4], "marker": "o"}
                # Student's t of two seeds is 12.7 standard errors: such bars hide everything else.
                shown = rows["seeds"] > 2
                errors = [
                    (rows[name] - rows[f"{name}_low"]).where(shown),
                    (rows[f"{name}_high"] - rows[name]).where(shown),
                ]
                ax.errorbar(
                    rows["network_calls"],
                    rows[name],
                    yerr=errors,
                    elinewidth=0.7,
                    label=f"{sampler}, {guidance}" + (f", shift {shift:g}" if shift != 1.0 else ""),
                    **style,
                )
        if bounds["real"].get(name) is not None:
            ax.axhline(bounds["real"][name], color=INK, ls="--", lw=0.8)
        ax.set_xscale("log")
        ticks = [n for n in _TICKS if summary["network_calls"].min() <= n <= summary["network_calls"].max()]
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("network calls an image")
        better = "lower" if name.startswith(LOWER_IS_BETTER) else "higher"
        ax.set_title(wrapped(f"{MEASURES[name]} ({better} is better)", 34), fontsize=9)
        ax.grid(color=MUTED, alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = made.axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return made


# ---- command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Samplers against network calls.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="draw and measure what is missing")
    run.add_argument("spec", type=Path)
    run.add_argument("-o", dest="folder", type=Path, required=True)
    run.add_argument("--model", type=Path, help="model folder, instead of the specification's")
    run.add_argument("--data", type=Path, help="dataset folder, instead of the specification's")
    run.add_argument("--shard", default="1/1", help="I/N: the I-th of N parts of the work")
    table = verbs.add_parser("table", help="tables and figure of what is measured")
    table.add_argument("folder", type=Path)
    table.add_argument("-o", dest="target", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "run":
            spec = read_spec(given.spec, given.model, given.data)
            Comparison(spec, given.folder).run(parse_shard(given.shard))
        else:
            write_table(Comparison(read_spec(given.folder / "spec.yaml"), given.folder), given.target)
    except StedmError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
