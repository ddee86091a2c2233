"""Execute a plan: images with known masks, as a dataset folder."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from stedm.config import Sampling
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.data.memory import CacheBudget
from stedm.data.pieces import file_name
from stedm.data.pseudonyms import Pseudonyms
from stedm.data.squares import with_squares
from stedm.data.symmetry import symmetry
from stedm.errors import StedmError
from stedm.io.artefacts import parse_json
from stedm.io.files import claim
from stedm.io.images import class_palette
from stedm.layout.recipe import PREDICTED, LayoutRecipe, build_layout
from stedm.seeds import numpy_generator
from stedm.style.sampling import style_views
from stedm.synthesis.plan import LIST_SEPARATOR, checked_sources, layout_recipe, plan_fingerprint, source_names
from stedm.workers.pool import Pool, Work, check_shared

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion


def synthesize(
    model: "StyleDiffusion",
    plan: pd.DataFrame,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    pool: Pool | None = None,
    model_folder: Path | None = None,
    memory: CacheBudget | None = None,
    pseudonymise: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the images of a plan that are missing in `folder`; a killed run goes on where it was.

    The plan is cut into batches at fixed places and a batch with a missing image is drawn again whole, so that every
    image is the same to the bit with or without interruption.

    Args:
        shard: (i, n) draws only the batches i, i + n, i + 2 n, ...; shards may run at the same time.
        pool: who draws the batches (see stedm.workers.pool); None = this process. The others' worker processes read
            the model from `model_folder`.
        memory: what decoded style images may take in this process (None = what all other folders share).
        pseudonymise: no id of a patient and no name of a source image in the table; the images can then not be drawn
            again from it.
        on_progress: called with (images drawn, images of this shard); those of the last batch may still be written.

    Returns:
        True when the set is complete (metadata.csv is then written), False while other shards have work left.

    Raises:
        StedmError: the folder holds images of another plan or model, or the plan breaks the leakage rules.
    """
    unseen = plan.attrs.get("unseen_categories")
    dataset = DatasetFolder.open(plan.attrs["dataset"], unseen_categories=unseen, memory=memory)
    names = source_names(plan)
    dataset = with_squares(dataset, names)
    checked_sources(plan, dataset)
    _claim(folder, plan, model)
    predicted = _open_predicted(plan, memory)
    painter = _Painter(model, dataset, predicted)
    size = int(plan.attrs["batch"])
    batches = [plan.iloc[start : start + size] for start in range(0, len(plan), size)][shard[0] :: shard[1]]
    missing = [batch for batch in batches if not _are_drawn(folder, batch)]
    total = sum(map(len, batches))
    done = total - sum(map(len, missing))
    if pool is None or pool.is_here:
        drawn = _drawn_here(painter, folder, missing)
    else:
        there = None if predicted is None else _absolute(predicted.root)
        paths = _absolute(model_folder), model.precision, _absolute(dataset.root), _absolute(folder), there
        job = DrawJob(*paths, squares=tuple(name for name in names if file_name(name) != name))
        drawn = (missing[number] for number, _ in pool.run(job, missing))
    for batch in drawn:
        done += len(batch)
        if on_progress:
            on_progress(done, total)
    # What was drawn on other machines may not be visible here at once: only the others' shards are looked for.
    if shard[1] > 1 and not _are_drawn(folder, plan):
        return False
    written = Pseudonyms(dataset).table(plan) if pseudonymise else plan
    _write_table(folder, written, dataset.info, model.fingerprint)
    return True


def sampling_of(row: Any) -> Sampling:
    """How a row of a plan is drawn.

    Raises:
        StedmError: the row doesn't say it.
    """
    try:
        return Sampling.model_validate_json(row["sampling"])
    except ValidationError as error:
        raise StedmError(f"plan row {row['image_id']}: sampling is not readable; make the plan again") from error


@dataclass(frozen=True)
class DrawJob:
    """Drawing of batches by worker processes: a piece is the rows of one batch."""

    model: Path
    precision: str
    dataset: Path
    folder: Path
    predicted: Path | None = None
    squares: tuple[str, ...] = ()
    uses_gpu: ClassVar[bool] = True

    def open(self) -> Work:
        for path in filter(None, (self.model, self.dataset, self.folder / "synthesis.json", self.predicted)):
            check_shared(path)
        predicted = DatasetFolder.open(self.predicted) if self.predicted else None
        dataset = with_squares(DatasetFolder.open(self.dataset), self.squares)
        painter = _Painter(load_painter(self.model, self.precision), dataset, predicted)
        return lambda batch: _write(self.folder, batch["image_id"], *painter(batch))


def load_painter(folder: Path, precision: str = "auto") -> "StyleDiffusion":
    """The model, on the GPU where there is one."""
    from stedm.diffusion.pipeline import StyleDiffusion

    model = StyleDiffusion.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    model.precision = precision
    return model


def _drawn_here(painter: "_Painter", folder: Path, batches: list[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    with _Writer(folder) as writer:
        for batch in batches:
            writer.write(batch["image_id"], *painter(batch))
            yield batch


class _Writer:
    """Writes one batch in a thread while the next is drawn; two are never held back. Leaving it waits for the last.

    Encoding PNG files took a tenth of the time of a small network, and lets go of the interpreter's lock.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-png")
        self._batch: Future[None] | None = None

    def write(self, image_ids: Sequence[str], images: np.ndarray, masks: np.ndarray) -> None:
        """Hand a batch over; raises what went wrong with the one before (such as a full disk)."""
        self._wait()
        self._batch = self._thread.submit(_write, self.folder, list(image_ids), images, masks)

    def _wait(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._thread:  # joins it
            if kind is None:
                self._wait()


def _write(folder: Path, image_ids: Sequence[str], images: np.ndarray, masks: np.ndarray) -> None:
    for image_id, image, mask in zip(image_ids, images, masks, strict=True):
        write_png(folder / _mask_name(image_id), mask, palette=class_palette())
        write_png(folder / _image_name(image_id), image)


class _Painter:
    """Plan rows to images and masks."""

    def __init__(self, model: "StyleDiffusion", dataset: DatasetFolder, predicted: DatasetFolder | None = None):
        if model.classes != dataset.info.classes:
            raise StedmError(f"{dataset.root}: its classes {dataset.info.classes} are not the model's {model.classes}")
        self.model, self.unknown_index = model, dataset.info.ignore_index
        self.cache = ImageCache(dataset, model.image_px)
        self._row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
        if predicted is not None:
            self._predicted = ImageCache(predicted, model.image_px)
            names = predicted.table["source_image_file_name"]
            self._predicted_row_of = {name: row for row, name in enumerate(names)}

    def _mask(self, image_file_name: str) -> np.ndarray:
        return self.cache.mask(self._row_of[image_file_name])

    def _predicted_mask(self, image_file_name: str) -> np.ndarray:
        return self._predicted.mask(self._predicted_row_of[image_file_name])

    def _layout(self, recipe: LayoutRecipe) -> np.ndarray:
        return build_layout(recipe, self._predicted_mask if recipe.kind == PREDICTED else self._mask)

    def _start_image(self, recipe: LayoutRecipe) -> np.ndarray:
        return symmetry(self.cache.image(self._row_of[recipe.source]), recipe.symmetry)

    def __call__(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        recipes = [layout_recipe(row) for row in rows.itertuples(index=False)]
        masks = np.stack([self._layout(recipe) for recipe in recipes])
        styles = [self._style(row) for row in rows.itertuples()]
        images = np.zeros((*masks.shape, 3), np.uint8)
        # Rows that agree in these are drawn in one call.
        for same in rows.groupby(["sampling", "start"]).indices.values():
            first = rows.iloc[same[0]]
            start = float(first["start"])
            begun = np.stack([self._start_image(recipes[i]) for i in same]) if start < 1 else None
            images[same] = self.model.generate(
                masks[same],
                [styles[i] for i in same],
                sampling=sampling_of(first),
                seed=rows["seed"].iloc[same].tolist(),
                start_images=begun,
                start=start,
                batch=len(rows),
            )
        return images, masks

    def _style(self, row) -> list[np.ndarray]:
        """The row's style images; of a model that learned from deformed ones, deformed views of them."""
        images = [self.cache.image(self._row_of[name]) for name in row.style_image_file_names.split(LIST_SEPARATOR)]
        if self.model.style_sampling != "augmented":
            return images
        views = max(1, self.model.denoiser.aggregate.n_images // len(images))
        return [
            view
            for number, image in enumerate(images)
            for view in style_views(image, views, numpy_generator(row.seed, "style-views", number))
        ]


def _claim(folder: Path, plan: pd.DataFrame, model: "StyleDiffusion") -> None:
    """Note in the folder which plan and model its images are of; refuse another's."""
    noted = {"plan": plan_fingerprint(plan), "model": model.fingerprint}
    again = "remove the folder and run again"
    claim(
        folder / "synthesis.json",
        json.dumps(noted, indent=2) + "\n",
        lambda text: parse_json(text, dict[str, str], str(folder / "synthesis.json"), hint=again) == noted,
        another=lambda: f"{folder}: holds images of another plan or model; give another folder or remove this one",
        not_empty=f"{folder}: not empty and not a synthetic set; give another folder",
    )


def _open_predicted(plan: pd.DataFrame, memory: CacheBudget | None) -> DatasetFolder | None:
    """The layouts that segmenters saw, where the plan has rows of them.

    Raises:
        StedmError: the folder isn't named, is gone, or lacks a layout.
    """
    rows = plan[plan["layout_kind"] == PREDICTED]
    if rows.empty:
        return None
    if "predicted_layouts" not in plan.attrs:
        raise StedmError("plan: has predicted layouts and doesn't say where they are; make the plan again")
    predicted = DatasetFolder.open(plan.attrs["predicted_layouts"], memory=memory)
    if missing := sorted(set(rows["layout_image_file_name"]) - set(predicted.table["source_image_file_name"])):
        raise StedmError(f"{predicted.root}: no layout of {missing[0]}; make the plan again")
    return predicted


def _write_table(folder: Path, plan: pd.DataFrame, info: DatasetInfo, model_fingerprint: str) -> None:
    table = pd.DataFrame(
        {
            "image_file_name": [_image_name(image_id) for image_id in plan["image_id"]],
            "mask_file_name": [_mask_name(image_id) for image_id in plan["image_id"]],
            "patient_id": plan["style_patient_id"],
            "slide_id": "",
            "split": "train",
        }
    )
    table = pd.concat([table, plan.reset_index(drop=True)], axis=1)
    table["model_fingerprint"] = model_fingerprint
    synthetic = DatasetInfo(f"{info.name} (synthetic)", info.classes, info.ignore_index, info.licence, info.citation)
    write_metadata(folder, synthetic, table, sealed=True)


def _image_name(image_id: str) -> str:
    return f"images/{image_id}.png"


def _mask_name(image_id: str) -> str:
    return f"masks/{image_id}.png"


def _are_drawn(folder: Path, rows: pd.DataFrame) -> bool:
    names = (name(image_id) for image_id in rows["image_id"] for name in (_image_name, _mask_name))
    return all((folder / name).is_file() for name in names)


def _absolute(path: Path) -> Path:
    # Worker processes may run in another folder.
    return Path(path).resolve()
