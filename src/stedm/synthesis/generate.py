"""Execute a plan: images with known masks, as a dataset folder."""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import ValidationError

from stedm.config import MachineConfig, Sampling
from stedm.data.cache import ImageCache
from stedm.data.card import README, read_card
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.data.memory import CacheBudget
from stedm.data.pieces import file_name
from stedm.data.pseudonyms import Pseudonyms
from stedm.data.squares import with_squares
from stedm.data.symmetry import symmetry
from stedm.errors import StedmError
from stedm.io.artefacts import parse_json
from stedm.io.files import claim, write_text
from stedm.io.images import class_palette, synthetic_by
from stedm.layout.recipe import PREDICTED, LayoutRecipe, build_layout
from stedm.synthesis.ahead import Writer, made_ahead, n_threads
from stedm.synthesis.card import synthetic_card
from stedm.synthesis.encoded_once import EncodedOnce
from stedm.synthesis.plan import LIST_SEPARATOR, checked_sources, layout_recipe, plan_fingerprint, source_names
from stedm.workers.pool import Pool, Work, check_shared

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion

_SOFTWARE = "stedm synthesize"
"""Into every image."""


def synthesize(
    model: "StyleDiffusion",
    plan: pd.DataFrame,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    pool: Pool | None = None,
    model_folder: Path | None = None,
    machine: MachineConfig | None = None,
    memory: CacheBudget | None = None,
    pseudonymise: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the images of a plan that are missing in `folder`; a killed run goes on where it was.

    The plan is cut into batches at fixed places and a batch with a missing image is drawn again whole, so that every
    image is the same to the bit with or without interruption.

    Args:
        shard: (i, n) draws only the batches i, i + n, i + 2 n, ...; shards may run at the same time.
        pool: who draws the batches (see stedm.workers.pool); None = this process, with the model where it is. Worker
            processes read the model from `model_folder` and draw on `machine` (None = a GPU where there is one).
        memory: what decoded style images may take in this process (None = what all other folders share).
        pseudonymise: no id of a patient and no name of a source image in the table; the images can then not be drawn
            again from it.
        on_progress: called with (images drawn, images of this shard), first with those that were there; those of the
            last batch may still be written.

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
        job = DrawJob(
            _absolute(model_folder),
            machine or MachineConfig(precision=model.precision),
            _absolute(dataset.root),
            _absolute(folder),
            None if predicted is None else _absolute(predicted.root),
            tuple(name for name in names if file_name(name) != name),
        )
        drawn = (missing[number] for number, _ in pool.run(job, missing))
    if on_progress:
        on_progress(done, total)  # else the first batch would seem to have been there
    for batch in drawn:
        done += len(batch)
        if on_progress:
            on_progress(done, total)
    # What was drawn on other machines may not be visible here at once: only the others' shards are looked for.
    if shard[1] > 1 and not _are_drawn(folder, plan):
        return False
    if read_card(folder) is None:
        write_text(folder / README, synthetic_card(plan, dataset, model.fingerprint, pseudonymise))
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
    machine: MachineConfig
    dataset: Path
    folder: Path
    predicted: Path | None = None
    squares: tuple[str, ...] = ()
    uses_gpu: ClassVar[bool] = True

    def open(self) -> Work:
        from stedm.diffusion.pipeline import StyleDiffusion

        for path in filter(None, (self.model, self.dataset, self.folder / "synthesis.json", self.predicted)):
            check_shared(path)
        predicted = DatasetFolder.open(self.predicted) if self.predicted else None
        dataset = with_squares(DatasetFolder.open(self.dataset), self.squares)
        painter = _Painter(StyleDiffusion.from_pretrained(self.model).on(self.machine), dataset, predicted)
        return lambda batch: _draw_piece(painter, self.folder, batch)


def _drawn_here(painter: "_Painter", folder: Path, batches: list[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    with _writer(folder, painter.description) as write, contextlib.closing(made_ahead(painter.ready, batches)) as made:
        for batch, ready in zip(batches, made, strict=True):
            write(batch["image_id"], *painter.paint(ready))
            yield batch


def _draw_piece(painter: "_Painter", folder: Path, batch: pd.DataFrame) -> None:
    with _writer(folder, painter.description) as write:
        write(batch["image_id"], *painter.paint(painter.ready(batch)))


def _writer(folder: Path, description: str) -> Writer:
    """Writes images and masks by id."""

    def write(image_id: str, image: np.ndarray, mask: np.ndarray) -> None:
        write_png(folder / _mask_name(image_id), mask, palette=class_palette())
        write_png(folder / _image_name(image_id), image, software=_SOFTWARE, description=description)

    return Writer(write)


@dataclass(frozen=True)
class _Ready:
    """Rows of a plan with all that is read for them."""

    rows: pd.DataFrame
    recipes: list[LayoutRecipe]
    masks: np.ndarray
    styles: list[list[str]]
    """Names of the style images of each row."""
    images: dict[str, np.ndarray]
    """Those by name, and the images that are painted anew."""


class _Painter:
    """Plan rows to images and masks."""

    def __init__(self, model: "StyleDiffusion", dataset: DatasetFolder, predicted: DatasetFolder | None = None):
        if model.classes != dataset.info.classes:
            raise StedmError(
                f"{dataset.root}: its classes {dataset.info.classes} are not the model's {model.classes}; "
                "give what it was trained on"
            )
        self.model, self.unknown_index = model, dataset.info.ignore_index
        self.description = synthetic_by(model.fingerprint)
        self.cache = ImageCache(dataset, model.image_px)
        self._row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
        self._threads = ThreadPoolExecutor(n_threads(), thread_name_prefix="read-image")
        self.encoded = EncodedOnce(model) if EncodedOnce.suits(model) else None
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

    def ready(self, rows: pd.DataFrame) -> _Ready:
        """Read what painting rows of a plan needs; for rows in the order in which they are painted."""
        recipes = [layout_recipe(row) for row in rows.itertuples(index=False)]
        styles = [row.style_image_file_names.split(LIST_SEPARATOR) for row in rows.itertuples()]
        # Images may be shown by several rows, and may not stay in the cache.
        shown = list(dict.fromkeys(name for names in styles for name in names))
        begun = [recipe.source for recipe, start in zip(recipes, rows["start"], strict=True) if start < 1]
        names = list(dict.fromkeys([*begun, *(shown if self.encoded is None else self.encoded.unread(shown))]))
        images = self._threads.map(lambda name: self.cache.image(self._row_of[name]), names)
        masks = np.stack([self._layout(recipe) for recipe in recipes])
        return _Ready(rows, recipes, masks, styles, dict(zip(names, images, strict=True)))

    def _styles(self, ready: _Ready, same: np.ndarray) -> dict[str, Any]:
        """The style of some of the rows, as `generate` takes it."""
        if self.encoded is not None:
            return {"style_vectors": self.encoded.vectors([ready.styles[i] for i in same], ready.images)}
        seeds = ready.rows["seed"].tolist()
        return {"style": [self.model.shown([ready.images[name] for name in ready.styles[i]], seeds[i]) for i in same]}

    def _starts(self, ready: _Ready, same: np.ndarray) -> np.ndarray:
        recipes = [ready.recipes[i] for i in same]
        return np.stack([symmetry(ready.images[recipe.source], recipe.symmetry) for recipe in recipes])

    def paint(self, ready: _Ready) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (n, px, px, 3) and masks uint8 (n, px, px)."""
        rows, masks = ready.rows, ready.masks
        images = np.zeros((*masks.shape, 3), np.uint8)
        # Rows that agree in these are drawn in one call.
        for same in rows.groupby(["sampling", "start"]).indices.values():
            first = rows.iloc[same[0]]
            start = float(first["start"])
            images[same] = self.model.generate(
                masks[same],
                **self._styles(ready, same),
                sampling=sampling_of(first),
                seed=rows["seed"].iloc[same].tolist(),
                start_images=self._starts(ready, same) if start < 1 else None,
                start=start,
                batch=len(rows),
            )
        return images, masks


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
