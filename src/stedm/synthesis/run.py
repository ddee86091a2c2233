"""Execute a plan: pictures with known masks, as a dataset folder."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from stedm.config import Guidance
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.data.samples import PictureCache
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.errors import StedmError
from stedm.files import write_json
from stedm.layout.recipe import build_layout
from stedm.seeds import numpy_generator
from stedm.style.sampling import style_views
from stedm.synthesis.plan import ADDED_COLUMNS, LIST_SEPARATOR, checked_sources, layout_recipe, plan_fingerprint

# Rows that agree in these are drawn in one call.
_SETTINGS = ["guidance", *ADDED_COLUMNS, "sampler", "steps"]


def synthesize(
    model: StyleDiffusion,
    plan: pd.DataFrame,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the pictures of a plan that are missing in `folder`; a killed run goes on where it was.

    The plan is cut into batches at fixed places and a batch with a missing picture is drawn again whole, so that every
    picture is the same to the bit with or without interruption.

    Args:
        shard: (i, n) draws only the batches i, i + n, i + 2 n, ...; shards may run at the same time.
        on_progress: called with (pictures drawn, pictures of this shard); those of the last batch may still be written.

    Returns:
        True when the set is complete (metadata.csv is then written), False while other shards have work left.

    Raises:
        StedmError: the folder holds pictures of another plan or model, or the plan breaks the leakage rules.
    """
    dataset = DatasetFolder.open(plan.attrs["dataset"], unseen_categories=plan.attrs.get("unseen_categories"))
    checked_sources(plan, dataset)
    _claim(folder, plan, model)
    painter = _Painter(model, dataset)
    size = int(plan.attrs["batch"])
    batches = [plan.iloc[start : start + size] for start in range(0, len(plan), size)][shard[0] :: shard[1]]
    done, total = 0, sum(len(batch) for batch in batches)
    with _Writer(folder) as writer:
        for batch in batches:
            if not all(_is_drawn(folder, image_id) for image_id in batch["image_id"]):
                writer.write(batch["image_id"], *painter(batch))
            done += len(batch)
            if on_progress:
                on_progress(done, total)
    if not all(_is_drawn(folder, image_id) for image_id in plan["image_id"]):
        return False
    _write_table(folder, plan, dataset.info, model.fingerprint)
    return True


def guidance_of(row: pd.Series) -> Guidance:
    """The guidance that a row of a plan asks for."""
    return Guidance(
        style=row["guidance"],
        layout=row["layout_guidance"],
        interval=(row["guidance_start"], row["guidance_stop"]),
        rescale=row["guidance_rescale"],
    )


def parse_shard(text: str) -> tuple[int, int]:
    """`3/8` (the third of eight) to (2, 8)."""
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise StedmError(f"--shard {text}: write it as I/N with 1 <= I <= N, for example 3/8")
    return int(first) - 1, int(second)


class _Writer:
    """Writes one batch in a thread while the next is drawn; two are never held back. Leaving it waits for the last.

    Encoding PNG files took a tenth of the time of a small network, and lets go of the interpreter's lock.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write-png")
        self._batch: Future[None] | None = None

    def write(self, image_ids: Sequence[str], pictures: np.ndarray, masks: np.ndarray) -> None:
        """Hand a batch over; raises what went wrong with the one before (such as a full disk)."""
        self._wait()
        self._batch = self._thread.submit(self._write, list(image_ids), pictures, masks)

    def _write(self, image_ids: list[str], pictures: np.ndarray, masks: np.ndarray) -> None:
        for image_id, picture, mask in zip(image_ids, pictures, masks, strict=True):
            write_png(self.folder / _mask_name(image_id), mask)
            write_png(self.folder / _image_name(image_id), picture)

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


class _Painter:
    """Plan rows to pictures and masks."""

    def __init__(self, model: StyleDiffusion, dataset: DatasetFolder):
        if model.classes != dataset.info.classes:
            raise StedmError(f"{dataset.root}: its classes {dataset.info.classes} are not the model's {model.classes}")
        self.model, self.unknown_index = model, dataset.info.ignore_index
        self.cache = PictureCache(dataset, model.picture_px)
        self._row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}

    def _layout(self, image_file_name: str) -> np.ndarray:
        return self.cache.mask(self._row_of[image_file_name])

    def __call__(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        masks = np.stack(
            [
                build_layout(layout_recipe(row), self._layout, self.model.picture_px)
                for row in rows.itertuples(index=False)
            ]
        )
        styles = [self._style(row) for row in rows.itertuples()]
        pictures = np.zeros((*masks.shape, 3), np.uint8)
        for same in rows.groupby(_SETTINGS).indices.values():
            first = rows.iloc[same[0]]
            pictures[same] = self.model.generate(
                masks[same],
                [styles[i] for i in same],
                guidance=guidance_of(first),
                steps=int(first["steps"]),
                time_shift=float(first["time_shift"]),
                sampler=first["sampler"],
                seed=rows["seed"].iloc[same].tolist(),
                batch=len(rows),
            )
        return pictures, masks

    def _style(self, row) -> list[np.ndarray]:
        """The row's style pictures; of a model that learned from deformed ones, deformed views of them."""
        pictures = [self.cache.picture(self._row_of[name]) for name in row.style_image_file_names.split(LIST_SEPARATOR)]
        if self.model.style_sampling != "augmented":
            return pictures
        views = max(1, self.model.denoiser.config.style_pictures // len(pictures))
        return [
            view
            for number, picture in enumerate(pictures)
            for view in style_views(picture, views, numpy_generator(row.seed, "style-views", number))
        ]


def _claim(folder: Path, plan: pd.DataFrame, model: StyleDiffusion) -> None:
    """Note in the folder which plan and model its pictures are of; refuse another's."""
    claim = {"plan": plan_fingerprint(plan), "model": model.fingerprint}
    path = folder / "synthesis.json"
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != claim:
            raise StedmError(
                f"{folder}: holds pictures of another plan or model; give another folder or remove this one"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise StedmError(f"{folder}: not empty and not a synthetic set; give another folder")
    write_json(path, claim)


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
    write_metadata(folder, synthetic, table)


def _image_name(image_id: str) -> str:
    return f"images/{image_id}.png"


def _mask_name(image_id: str) -> str:
    return f"masks/{image_id}.png"


def _is_drawn(folder: Path, image_id: str) -> bool:
    return (folder / _image_name(image_id)).is_file() and (folder / _mask_name(image_id)).is_file()
