"""The plan: which layout is painted in whose style, a row an image, decided before any image is drawn.

Layouts come from annotated patients, styles from patients nobody annotated. Prior knowledge about tissue composition
enters here: the category of a slide (diagnosis, score) is known without pixel annotation, and a patient gets layouts
of annotated patients of its own category where there are any (paper, section 3). stedm.layout.prior decides on them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from stedm.config import PredictedConfig, Sampling, SynthesisConfig
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.data.symmetry import N_SYMMETRIES
from stedm.errors import StedmError
from stedm.io.artefacts import Column, parse_json, read_parquet, write_parquet
from stedm.io.files import fingerprint
from stedm.io.images import leaves_folder
from stedm.layout.prior import LayoutPrior
from stedm.layout.recipe import KINDS, PREDICTED, LayoutRecipe
from stedm.seeds import numpy_generator, seed_for

LIST_SEPARATOR = ";"
COLUMNS = [
    "image_id",
    "layout_image_file_name",
    "layout_patient_id",
    "layout_symmetry",
    "layout_kind",
    "layout_seed",
    "style_patient_id",
    "style_image_file_names",
    "category",
    "seed",
    "start",
    "sampling",
]
"""`layout_*` say how a layout is made (see `LayoutRecipe`), `start` where painting begins, `sampling` how it goes on
(`stedm.config.Sampling` as JSON)."""


_PLAN_AGAIN = "make the plan again"
_SCHEMA = {
    **dict.fromkeys(COLUMNS, Column("text")),
    "layout_kind": Column("text", choices=(*KINDS, PREDICTED)),
    "layout_symmetry": Column("int", low=0, high=N_SYMMETRIES - 1),
    "layout_seed": Column("int", low=0, high=2**64),
    "seed": Column("int", low=0, high=2**64),
    "start": Column("float", low=0.0, high=1.0),
}


@dataclass(frozen=True)
class PlanAttributes:
    """What a plan's `attrs` say: the folders that its file names are in, and how synthesis goes on."""

    dataset: Annotated[str, Field(min_length=1)]
    batch: Annotated[int, Field(gt=0, le=1 << 20)]
    unseen_categories: list[str] = field(default_factory=list)
    predicted_layouts: str | None = None


MARK = "style_image_file_names"
"""A column that only plans have (see stedm.io.ownership)."""


def make_plan(
    config: SynthesisConfig,
    annotated: DatasetFolder,
    unlabeled: DatasetFolder,
    *,
    seed: int = 0,
    image_px: int | None = None,
    predicted: DatasetFolder | None = None,
    predicted_config: PredictedConfig | None = None,
) -> pd.DataFrame:
    """Plan `config.n_images` images, spread evenly over the unannotated patients, or over their categories.

    Row i is a pure function of (seed, i), so that a longer plan begins with the shorter one. The table's `attrs` name
    the dataset folder and the batch size that synthesis uses.

    Args:
        image_px: side at which layouts are measured, that of the model; needed unless all layouts are resampled
            and `config.category_fractions` is empty.
        predicted: layouts of the unannotated images (stedm.segmentation.pseudo_labels), for the part of the rows that
            `predicted_config` says. Patients without any there get annotated ones. The table's `attrs` name its folder.

    Raises:
        StedmError: a patient of val or test is among the sources, one of them is empty, or no layout is within
            `config.category_fractions`.
    """
    if len(annotated) == 0 or len(unlabeled) == 0:
        raise StedmError(
            f"{annotated.root}: a plan needs annotated images (layouts) and unannotated ones (styles); "
            "look at the column split"
        )
    _refuse_held_out(annotated, "layouts", {"train"})
    _refuse_held_out(unlabeled, "styles", {"unlabeled", "train"})
    seed = seed_for(seed, "plan")
    patients = rows_by_patient(unlabeled.table)
    queues = _queues(unlabeled.table, config, seed)
    _refuse_unknown_categories(config, annotated, unlabeled)
    prior = LayoutPrior(annotated, image_px, config.category_fractions)
    kinds = Kinds(config, predicted, predicted_config or PredictedConfig())
    sources = annotated.table.set_index("image_file_name")
    sampling = config.sampling.model_dump_json()
    rows = []
    for i in range(config.n_images):
        generator = numpy_generator(seed, "row", i)
        turn, queue = i // len(queues), queues[i % len(queues)]
        patient = queue[turn % len(queue)]
        category, styles = _style(unlabeled.table, patients[patient], config, generator)
        kind = kinds.draw(patient, numpy_generator(seed, "layout kind", i))
        if kind == PREDICTED:
            # An image isn't its own style, unless the patient has no other.
            source, styles = unlabeled.table.iloc[styles[0]], styles[1:] if len(styles) > 1 else styles
            recipe = LayoutRecipe(kind, source["image_file_name"], int(generator.integers(N_SYMMETRIES)))
        else:
            recipe = prior.recipe(kind, category if config.match_category else None, generator)
            source = sources.loc[recipe.source]
        names = unlabeled.table["image_file_name"].iloc[styles[: config.style_images]]
        rows.append(
            {
                "image_id": f"synthetic-{i:06d}",
                "style_patient_id": patient,
                "style_image_file_names": LIST_SEPARATOR.join(names),
                "seed": seed_for(seed, "noise", i),
                **_layout_columns(recipe, source),
                "start": kinds.start_of(kind),
                "sampling": sampling,
            }
        )
    plan = pd.DataFrame(rows, columns=COLUMNS)
    plan.attrs = {
        "dataset": str(annotated.root.resolve()),
        "batch": config.batch,
        "unseen_categories": list(annotated.unseen_categories),
    }
    if predicted is not None:
        plan.attrs["predicted_layouts"] = str(predicted.root.resolve())
    return plan


class Kinds:
    """Which kind of layout a row has: predicted for a part of them, of patients that have predicted ones."""

    def __init__(self, config: SynthesisConfig, predicted: DatasetFolder | None, predicted_config: PredictedConfig):
        self._patients = set() if predicted is None else set(predicted.table["patient_id"])
        self._start, fraction = predicted_config.start, predicted_config.fraction
        self._annotated = config.layout_weights
        self._with_predicted = {kind: (1 - fraction) * weight for kind, weight in self._annotated.items()}
        self._with_predicted[PREDICTED] = fraction

    def draw(self, patient: str, generator: np.random.Generator) -> str:
        weights = self._with_predicted if patient in self._patients else self._annotated
        names = sorted(weights)
        return generator.choice(names, p=[weights[name] for name in names]).item()

    def start_of(self, kind: str) -> float:
        return float(self._start) if kind == PREDICTED else 1.0


def _layout_columns(recipe: LayoutRecipe, source: pd.Series) -> dict[str, Any]:
    """How a row's layout is made, and of whose."""
    return {
        "layout_image_file_name": recipe.source,
        "layout_patient_id": source["patient_id"],
        "category": source["category"],
        "layout_symmetry": recipe.symmetry,
        "layout_kind": recipe.kind,
        "layout_seed": recipe.seed,
    }


def _queues(table: pd.DataFrame, config: SynthesisConfig, seed: int) -> list[list[str]]:
    """Unannotated patients in order of their turns; with `spread: categories` a queue a category, which take turns."""
    order = numpy_generator(seed, "patients").permutation(sorted(set(table["patient_id"]))).tolist()
    if config.spread == "patients":
        return [order]
    category_of = table.groupby("patient_id")["category"].agg(lambda values: values.mode().iloc[0])
    categories = numpy_generator(seed, "categories").permutation(sorted(set(category_of))).tolist()
    return [[patient for patient in order if category_of[patient] == name] for name in categories]


def _style(
    table: pd.DataFrame, patient_rows: np.ndarray, config: SynthesisConfig, generator: np.random.Generator
) -> tuple[str, np.ndarray]:
    """Draw a category that the patient has, and of its images one more than are shown as style."""
    categories = table["category"].iloc[patient_rows].to_numpy()
    category = str(generator.choice(categories))
    rows = generator.permutation(patient_rows[categories == category])
    return category, rows[: config.style_images + 1]


def layout_recipe(row: Any) -> LayoutRecipe:
    """How the layout of a plan row is made; the row is one of `itertuples()` of a plan or of a synthetic set's table.

    Raises:
        StedmError: the row describes no layout.
    """
    if row.layout_kind not in (*KINDS, PREDICTED):
        raise StedmError(f"plan row {row.image_id}: layout_kind {row.layout_kind!r} is not known; make the plan again")
    return LayoutRecipe(row.layout_kind, row.layout_image_file_name, int(row.layout_symmetry), int(row.layout_seed))


def write_plan(plan: pd.DataFrame, path: str | Path) -> None:
    """Write `plan.parquet` atomically."""
    write_parquet(plan, path)


def read_plan(path: str | Path) -> pd.DataFrame:
    """Read a plan; StedmError with one line if it isn't one."""
    path = Path(path)
    if not path.is_file():
        raise StedmError(f"{path}: no such plan; make one with `stedm plan CONFIG.yaml -n N -o plan.parquet`")
    plan = read_parquet(path, _SCHEMA, what="a plan", hint=_PLAN_AGAIN)
    parse_json(json.dumps(plan.attrs), PlanAttributes, f"{path}: not a plan", hint=_PLAN_AGAIN)
    for sampling in plan["sampling"].unique():
        parse_json(sampling, Sampling, f"{path}: sampling", hint=_PLAN_AGAIN)
    if plan.empty or plan["image_id"].duplicated().any():
        raise StedmError(f"{path}: a plan needs at least one row and no image_id twice; make the plan again")
    _refuse_other_places(plan)
    return plan


def _refuse_other_places(plan: pd.DataFrame) -> None:
    """Ids become file names: refuse those that would lie outside of the folder."""
    for image_id in plan["image_id"].astype(str):
        if (problem := leaves_folder(image_id)) or not image_id:
            raise StedmError(f"plan row {image_id!r}: image_id {problem or 'is empty'}; make the plan again")


def plan_fingerprint(plan: pd.DataFrame) -> str:
    """Names the content of a plan."""
    return fingerprint({"rows": plan[COLUMNS].to_csv(index=False), "batch": plan.attrs["batch"]})


def source_names(plan: pd.DataFrame) -> list[str]:
    """Each image once that a plan takes a layout or a style of."""
    styles = [name for names in plan["style_image_file_names"] for name in str(names).split(LIST_SEPARATOR)]
    return list(dict.fromkeys([*plan["layout_image_file_name"], *styles]))


def checked_sources(plan: pd.DataFrame, dataset: DatasetFolder) -> None:
    """Refuse a plan that uses images the dataset doesn't have, or patients of val or test.

    Raises:
        StedmError: with the first offending image.
    """
    _refuse_other_places(plan)
    splits = dict(zip(dataset.table["image_file_name"], dataset.table["split"], strict=True))
    for row in plan.itertuples():
        recipe = layout_recipe(row)
        annotated = ("unlabeled",) if recipe.kind == PREDICTED else ("train",)
        styles = [(name, ("unlabeled", "train")) for name in str(row.style_image_file_names).split(LIST_SEPARATOR)]
        for name, allowed in [(recipe.source, annotated), *styles]:
            if name not in splits:
                raise StedmError(f"plan row {row.image_id}: {name} is not in {dataset.root}; make the plan again")
            if splits[name] not in allowed:
                raise StedmError(
                    f"plan row {row.image_id}: {name} is of split {splits[name]}; "
                    f"only {' or '.join(allowed)} images may be used there"
                )


def _refuse_unknown_categories(config: SynthesisConfig, annotated: DatasetFolder, unlabeled: DatasetFolder) -> None:
    known = set(annotated.table["category"]) | set(unlabeled.table["category"])
    unknown = sorted(set(config.category_fractions) - known)
    if unknown:
        raise StedmError(
            f"{unlabeled.root}: category_fractions names {', '.join(map(repr, unknown))}, which no image has; "
            f"categories are {', '.join(map(repr, sorted(known)))}"
        )


def _refuse_held_out(dataset: DatasetFolder, role: str, allowed: set[str]) -> None:
    held_out = sorted(set(dataset.table["split"]) - allowed)
    if held_out:
        raise StedmError(f"{dataset.root}: {role} may not come from split {', '.join(held_out)}; give others")
