"""The plan: which layout is painted in whose style, a row an image, decided before any image is drawn.

Layouts come from annotated patients, styles from patients nobody annotated. Prior knowledge about tissue composition
enters here: the category of a slide (diagnosis, score) is known without pixel annotation, and a patient gets layouts
of annotated patients of its own category where there are any (paper, section 3). stedm.layout.prior decides on them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stedm.config import SynthesisConfig
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import N_SYMMETRIES
from stedm.errors import StedmError
from stedm.io.files import fingerprint, replacing
from stedm.layout.prior import LayoutPrior
from stedm.layout.recipe import KINDS, PREDICTED, LayoutRecipe, Texture
from stedm.seeds import numpy_generator, seed_for
from stedm.style.sampling import rows_by_patient

LIST_SEPARATOR = ";"
COLUMNS = [
    "image_id",
    "layout_image_file_name",
    "layout_patient_id",
    "layout_symmetry",
    "style_patient_id",
    "style_image_file_names",
    "category",
    "seed",
    "guidance",
    "layout_guidance",
    "guidance_start",
    "guidance_stop",
    "guidance_rescale",
    "time_shift",
    "start",
    "sampler",
    "steps",
]
# What plans were drawn with before they had these columns.
ADDED_COLUMNS = {
    "layout_guidance": 1.0,
    "guidance_start": 0.0,
    "guidance_stop": 1.0,
    "guidance_rescale": 0.0,
    "time_shift": 1.0,
    "start": 1.0,
}
LAYOUT_COLUMNS = {"layout_kind": "resample", "layout_seed": 0, "layout_second_image": "", "layout_texture": ""}
"""How a layout is made from its source (see `LayoutRecipe`), and what a plan without these columns means."""


def make_plan(
    config: SynthesisConfig,
    annotated: DatasetFolder,
    unlabeled: DatasetFolder,
    *,
    seed: int = 0,
    image_px: int | None = None,
    predicted: DatasetFolder | None = None,
) -> pd.DataFrame:
    """Plan `config.n_images` images, spread evenly over the unannotated patients, or over their categories.

    Row i is a pure function of (seed, i), so that a longer plan begins with the shorter one. The table's `attrs` name
    the dataset folder and the batch size that synthesis uses.

    Args:
        image_px: side at which layouts are measured, that of the model; needed unless all layouts are resampled
            and `config.category_fractions` is empty.
        predicted: layouts of the unannotated images (stedm.segmentation.pseudo_labels), for layouts of kind
            predicted. Patients without any there get the other kinds (warped ones if there are no others). The
            table's `attrs` name its folder.

    Raises:
        StedmError: a patient of val or test is among the sources, one of them is empty, the predicted layouts
            are missing, or no layout is within `config.category_fractions`.
    """
    if len(annotated) == 0 or len(unlabeled) == 0:
        raise StedmError(f"{annotated.root}: a plan needs annotated images (layouts) and unannotated ones (styles)")
    _refuse_held_out(annotated, "layouts", {"train"})
    _refuse_held_out(unlabeled, "styles", {"unlabeled", "train"})
    seed = seed_for(seed + config.seed, "plan")
    patients = rows_by_patient(unlabeled.table)
    queues = _queues(unlabeled.table, config, seed)
    _refuse_unknown_categories(config, annotated, unlabeled)
    prior = LayoutPrior.fit(annotated, image_px, config.category_fractions)
    if PREDICTED in config.layout_weights and predicted is None:
        raise StedmError("plan: predicted layouts need trained segmenters; use `stedm run`")
    seen = set() if predicted is None else set(predicted.table["patient_id"])
    sources = annotated.table.set_index("image_file_name")
    rows = []
    for i in range(config.n_images):
        generator = numpy_generator(seed, "row", i)
        turn, queue = i // len(queues), queues[i % len(queues)]
        patient = queue[turn % len(queue)]
        category, shown = _style(unlabeled.table, patients[patient], config, generator)
        weights = config.layout_weights if patient in seen else config.weights_without_predicted
        kinds = sorted(weights)
        kind = numpy_generator(seed, "layout kind", i).choice(kinds, p=[weights[kind] for kind in kinds]).item()
        if kind == PREDICTED:
            # An image isn't its own style, unless the patient has no other.
            source, shown = unlabeled.table.iloc[shown[0]], shown[1:] if len(shown) > 1 else shown
            recipe = LayoutRecipe(kind, source["image_file_name"], int(generator.integers(N_SYMMETRIES)))
        else:
            recipe = prior.recipe(kind, category if config.match_category else None, generator)
            source = sources.loc[recipe.source]
        names = unlabeled.table["image_file_name"].iloc[shown[: config.style_images]]
        rows.append(
            {
                "image_id": f"synthetic-{i:06d}",
                "style_patient_id": patient,
                "style_image_file_names": LIST_SEPARATOR.join(names),
                "seed": seed_for(seed, "noise", i),
                **_layout_columns(recipe, source),
                **_sampling_columns(config),
                "start": float(config.start) if kind == PREDICTED else 1.0,
            }
        )
    plan = pd.DataFrame(rows, columns=[*COLUMNS, *LAYOUT_COLUMNS])
    plan.attrs = {
        "dataset": str(annotated.root.resolve()),
        "batch": config.batch,
        "unseen_categories": list(annotated.unseen_categories),
    }
    if predicted is not None:
        plan.attrs["predicted_layouts"] = str(predicted.root.resolve())
    return plan


def _layout_columns(recipe: LayoutRecipe, source: pd.Series) -> dict[str, Any]:
    """How a row's layout is made, and of whose."""
    return {
        "layout_image_file_name": recipe.source,
        "layout_patient_id": source["patient_id"],
        "category": source["category"],
        "layout_symmetry": recipe.symmetry,
        "layout_kind": recipe.kind,
        "layout_seed": recipe.seed,
        "layout_second_image": recipe.second,
        "layout_texture": recipe.texture.to_json() if recipe.texture else "",
    }


def _sampling_columns(config: SynthesisConfig) -> dict[str, Any]:
    """How a row's image is drawn."""
    return {
        "guidance": float(config.guidance),
        "layout_guidance": float(config.layout_guidance),
        "guidance_start": float(config.guidance_interval[0]),
        "guidance_stop": float(config.guidance_interval[1]),
        "guidance_rescale": float(config.guidance_rescale),
        "sampler": config.sampler,
        "steps": config.steps,
        "time_shift": float(config.time_shift),
    }


def _queues(table: pd.DataFrame, config: SynthesisConfig, seed: int) -> list[list[str]]:
    """Unannotated patients in the random order of their turns; with `spread: categories` one queue a category, which
    take turns."""
    order = numpy_generator(seed, "patients").permutation(sorted(set(table["patient_id"]))).tolist()
    if config.spread == "patients":
        return [order]
    category_of = table.groupby("patient_id")["category"].agg(lambda values: values.mode().iloc[0])
    categories = numpy_generator(seed, "categories").permutation(sorted(set(category_of))).tolist()
    return [[patient for patient in order if category_of[patient] == name] for name in categories]


def _style(
    table: pd.DataFrame,
    patient_rows: np.ndarray,
    config: SynthesisConfig,
    generator: np.random.Generator,
) -> tuple[str, np.ndarray]:
    """Draw a category that the patient has, and of its images one more than are shown as style, in random order."""
    categories = table["category"].iloc[patient_rows].to_numpy()
    category = str(generator.choice(categories))
    rows = generator.permutation(patient_rows[categories == category])
    return category, rows[: config.style_images + 1]


def layout_recipe(row: Any) -> LayoutRecipe:
    """How the layout of a plan row is made; the row is one of `itertuples()` of a plan or of a synthetic set's table.

    Raises:
        StedmError: the row describes no layout.
    """
    kind, seed, second, text = (getattr(row, name, default) for name, default in LAYOUT_COLUMNS.items())
    try:
        texture = Texture.from_json(text) if kind == "procedural" else None
    except (ValueError, KeyError, TypeError) as error:
        raise StedmError(f"plan row {row.image_id}: layout_texture is not readable; make the plan again") from error
    if kind not in (*KINDS, PREDICTED) or (kind == "recombine" and not second):
        raise StedmError(f"plan row {row.image_id}: layout_kind {kind!r} is not usable; make the plan again")
    second = second if kind == "recombine" else ""
    return LayoutRecipe(kind, row.layout_image_file_name, int(row.layout_symmetry), int(seed), second, texture)


def write_plan(plan: pd.DataFrame, path: str | Path) -> None:
    """Write `plan.parquet` atomically."""
    with replacing(path) as temporary:
        plan.to_parquet(temporary, index=False)


def read_plan(path: str | Path) -> pd.DataFrame:
    """Read a plan; StedmError with one line if it isn't one."""
    path = Path(path)
    if not path.is_file():
        raise StedmError(f"{path}: no such plan; make one with `stedm plan CONFIG.yaml -n N -o plan.parquet`")
    try:
        plan = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StedmError(f"{path}: not a readable parquet file ({' '.join(str(error).split())})") from error
    missing = [name for name in COLUMNS if name not in plan and name not in ADDED_COLUMNS]
    if missing or not {"dataset", "batch"} <= set(plan.attrs):
        raise StedmError(
            f"{path}: not a plan ({'columns missing: ' + ', '.join(missing) if missing else 'no dataset named'})"
        )
    if plan.empty or plan["image_id"].duplicated().any():
        raise StedmError(f"{path}: a plan needs at least one row and no image_id twice")
    defaults = ADDED_COLUMNS | LAYOUT_COLUMNS
    return plan.assign(**{name: value for name, value in defaults.items() if name not in plan})


def plan_fingerprint(plan: pd.DataFrame) -> str:
    """Names the content of a plan; an added column counts where it changes something."""
    defaults = ADDED_COLUMNS | LAYOUT_COLUMNS
    changed = [name for name in defaults if name in plan and (plan[name] != defaults[name]).any()]
    columns = [name for name in [*COLUMNS, *LAYOUT_COLUMNS] if name not in defaults or name in changed]
    return fingerprint({"rows": plan[columns].to_csv(index=False), "batch": plan.attrs["batch"]})


def checked_sources(plan: pd.DataFrame, dataset: DatasetFolder) -> None:
    """Refuse a plan that uses images the dataset doesn't have, or patients of val or test.

    Raises:
        StedmError: with the first offending image.
    """
    splits = dict(zip(dataset.table["image_file_name"], dataset.table["split"], strict=True))
    for row in plan.itertuples():
        recipe = layout_recipe(row)
        annotated = ("unlabeled",) if recipe.kind == PREDICTED else ("train",)
        layouts = [(name, annotated) for name in (recipe.source, recipe.second) if name]
        styles = [(name, ("unlabeled", "train")) for name in str(row.style_image_file_names).split(LIST_SEPARATOR)]
        for name, allowed in layouts + styles:
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
        raise StedmError(f"{dataset.root}: {role} may not come from split {', '.join(held_out)}")
