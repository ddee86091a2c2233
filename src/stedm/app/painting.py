"""The Paint tab: which layout, whose style, how; and what an independent segmenter sees in the result."""

import base64
import binascii
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from stedm.app.files import png
from stedm.app.opened import Opened
from stedm.config import Guidance
from stedm.data.folder import rows_by_patient
from stedm.errors import StedmError
from stedm.io.ownership import PAINTED
from stedm.layout.prior import LayoutPrior
from stedm.layout.recipe import LayoutRecipe, build_layout
from stedm.seeds import numpy_generator
from stedm.synthesis.plan import COLUMNS, LIST_SEPARATOR, write_plan

MOST_STYLE_IMAGES = 16
"""Of a patient: more change the style little and take their time."""
MOST_KEPT = 64
"""Painted images, and uploaded ones, that stay in memory."""
PAINTED_BY_HAND = "painted by hand"
Set = Literal["annotated", "unlabeled", "held_out"]
Step = Callable[[int, int], None]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageOf(_Part):
    """A style image: a row of a set, or an upload."""

    set: Set | None = None
    row: Annotated[int, Field(ge=0)] = 0
    upload: int | None = None


class Style(_Part):
    """Whose style: that of images, or of a patient, or one between those of two patients."""

    images: Annotated[list[ImageOf], Field(max_length=MOST_STYLE_IMAGES)] = []
    set: Set = "unlabeled"
    patient: int | None = None
    other: int | None = None
    """Another patient of the set."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 = `patient`, 1 = `other`."""


class Recipe(_Part):
    """Where the layout is from, as long as nobody has painted in it."""

    kind: Literal["resample", "warp"]
    row: Annotated[int, Field(ge=0)]
    symmetry: Annotated[int, Field(ge=0, le=7)] = 0
    seed: str = "0"
    """A whole number; as text, because JavaScript rounds large ones."""


class Order(_Part):
    """One image to paint."""

    layout: Annotated[str, Field(max_length=2 << 20)]
    """Class indices, a byte a pixel, row by row, in base64; 255 = unknown."""
    recipe: Recipe | None = None
    style: Style
    style_guidance: Annotated[float, Field(ge=0, le=20)] = 1.5
    layout_guidance: Annotated[float, Field(ge=0, le=20)] = 1.0
    steps: Annotated[int, Field(ge=1, le=200)] = 8
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] = 0


@dataclass(frozen=True)
class Painted:
    """A painted image and what is known about it."""

    image: np.ndarray
    mask: np.ndarray
    seen: np.ndarray | None
    row: dict[str, Any]
    is_plan_row: bool
    """Whether `stedm synthesize` paints the same image of `row`."""


class Painting:
    """Everything that the Paint tab asks for; images that were painted or uploaded stay in memory."""

    def __init__(self, opened: Opened):
        self.opened = opened
        self.painted: OrderedDict[int, Painted] = OrderedDict()
        self.uploads: OrderedDict[int, np.ndarray] = OrderedDict()
        self._number = 0

    # ---- layouts --------------------------------------------------------------------------------------------------

    def layout_of(self, recipe: Recipe) -> np.ndarray:
        """uint8 (H, W) of class indices; 255 = unknown."""
        cache = self.opened.images("annotated")
        _check_row(len(cache), recipe.row)
        made = LayoutRecipe(recipe.kind, str(recipe.row), recipe.symmetry, _whole(recipe.seed))
        layout = build_layout(made, lambda row: cache.mask(int(row)))
        return np.where(layout < len(cache.dataset.info.classes), layout, np.uint8(255))

    def from_prior(self, category: str | None, seed: int) -> Recipe:
        """A warped annotated layout, of a category as in a plan."""
        cache, config = self.opened.images("annotated"), self.opened.config
        limits = config.synthesis.category_fractions if config else None
        prior = self.opened.once("prior", lambda: LayoutPrior(cache.dataset, cache.image_px, limits))
        found = prior.recipe("warp", category or None, numpy_generator(seed, "app", "layout"))
        return Recipe(kind="warp", row=prior.names.index(found.source), symmetry=found.symmetry, seed=str(found.seed))

    # ---- styles ---------------------------------------------------------------------------------------------------

    def upload(self, image: np.ndarray) -> int:
        """Keep a style image; its number."""
        return self._keep(self.uploads, image)

    def patients(self, name: Set) -> list[tuple[str, np.ndarray]]:
        """Patients of a set and their rows, in order of their ids."""
        return self.opened.once(
            f"patients {name}", lambda: list(rows_by_patient(self.opened.images(name).dataset.table).items())
        )

    def rows_shown(self, name: Set, patient: int) -> list[int]:
        """Rows of a patient whose images show the style, spread over all of them."""
        patients = self.patients(name)
        _check_row(len(patients), patient)
        rows = patients[patient][1]
        most = min(len(rows), MOST_STYLE_IMAGES, self.opened.model().largest_style_set or len(rows))
        return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)].tolist()

    def _image(self, image: ImageOf) -> np.ndarray:
        if image.upload is not None:
            if image.upload not in self.uploads:
                raise StedmError("an uploaded style image is no longer there; upload it again")
            return self.uploads[image.upload]
        cache = self.opened.images(image.set or "")
        _check_row(len(cache), image.row)
        return cache.image(image.row)

    def _style_images(self, style: Style, seed: int) -> list[np.ndarray]:
        """What the model is shown of the images that were picked, or of the (first) patient."""
        if style.patient is not None:
            cache = self.opened.images(style.set)
            images = [cache.image(row) for row in self.rows_shown(style.set, style.patient)]
            return self.opened.model().shown(images, seed)
        if not style.images:
            raise StedmError("no style is chosen: pick a patient or at least one image")
        most = self.opened.model().largest_style_set
        if most is not None and len(style.images) > most:
            raise StedmError(f"this model takes {most} style images at most; remove some")
        return self.opened.model().shown([self._image(image) for image in style.images], seed)

    def style_of(self, style: Style, seed: int) -> dict[str, Any]:
        """The style as arguments of `StyleDiffusion.generate`; between two patients on a straight line, as
        `StyleBank.interpolate` goes."""
        ends = [style, style.model_copy(update={"patient": style.other})][: 1 if style.other is None else 2]
        shown = [self._style_images(end, seed) for end in ends]
        if style.other is None:
            return {"style": shown[0]}
        first, last = self.opened.model().style_vectors(shown)
        return {"style_vectors": (1.0 - style.weight) * first + style.weight * last}

    # ---- painting -------------------------------------------------------------------------------------------------

    def paint(self, order: Order, on_step: Step = lambda done, of: None) -> int:
        """Paint an image and keep it; its number."""
        model = self.opened.model()
        layout = self._layout_in(order)
        guidance = Guidance(style=order.style_guidance, layout=order.layout_guidance)
        sampling = self.opened.sampling.model_copy(update={"guidance": guidance, "steps": order.steps})
        style = self.style_of(order.style, order.seed)
        (image,) = model.generate(layout, **style, sampling=sampling, seed=[order.seed], on_step=on_step)
        judge = self.opened.judge
        segmenter = self.opened.segmenter(judge) if judge else None
        seen = segmenter.predict(image) if segmenter and segmenter.classes == model.classes else None
        row, is_plan_row = self._plan_row(order, sampling.model_dump_json())
        return self._keep(self.painted, Painted(image, layout, seen, row, is_plan_row))

    def _layout_in(self, order: Order) -> np.ndarray:
        side = self.opened.model().image_px
        try:
            pixels = np.frombuffer(base64.b64decode(order.layout, validate=True), np.uint8)
        except binascii.Error as error:
            raise StedmError("the layout did not arrive whole; paint again") from error
        if pixels.size != side * side:
            raise StedmError(f"the layout has {pixels.size} pixels; this model paints {side} x {side}")
        return pixels.reshape(side, side)

    def _plan_row(self, order: Order, sampling: str) -> tuple[dict[str, Any], bool]:
        """The image as a row of a plan, and whether plans may have such: nothing by hand, nothing from elsewhere."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
        row |= {"image_id": "painted", "layout_symmetry": 0, "layout_seed": 0, "seed": order.seed, "start": 1.0}
        row |= {"layout_kind": PAINTED_BY_HAND, "sampling": sampling}
        if order.recipe is not None:
            table = self.opened.images("annotated").dataset.table
            _check_row(len(table), order.recipe.row)
            source = table.iloc[order.recipe.row]
            row |= {"layout_image_file_name": source["image_file_name"], "layout_patient_id": source["patient_id"]}
            row |= {"layout_kind": order.recipe.kind, "layout_symmetry": order.recipe.symmetry}
            row["layout_seed"] = _whole(order.recipe.seed)
        tables, names, style = {name: cache.dataset.table for name, cache in self.opened.sets.items()}, [], order.style
        if style.patient is not None:
            names = [(style.set, number) for number in self.rows_shown(style.set, style.patient)]
        elif all(image.set for image in style.images):
            names = [(image.set, image.row) for image in style.images]
        sources = [tables[name].iloc[number] for name, number in names]
        row["style_image_file_names"] = LIST_SEPARATOR.join(source["image_file_name"] for source in sources)
        row["style_patient_id"] = LIST_SEPARATOR.join(dict.fromkeys(source["patient_id"] for source in sources))
        row["category"] = sources[0]["category"] if sources else ""
        one_patient = style.other is None and len({source["patient_id"] for source in sources}) == 1
        from_data = one_patient and all(name != "held_out" for name, _ in names)
        if style.other is not None:
            row["style_patient_id"] += f"{LIST_SEPARATOR}{self.patients(style.set)[style.other][0]}"
            row["style_weight"] = style.weight
        return row, bool(from_data and order.recipe is not None)

    def zip_of(self, number: int) -> bytes:
        """`image.png`, `mask.png`, `row.json`; and `plan.parquet` where `stedm synthesize` can paint it again."""
        painted, file = self.kept(number), io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive, TemporaryDirectory(prefix="stedm-app-") as folder:
            archive.writestr("image.png", png(painted.image, software=PAINTED))
            archive.writestr("mask.png", png(painted.mask))
            archive.writestr("row.json", json.dumps(painted.row, indent=2) + "\n")
            if painted.is_plan_row:
                dataset = self.opened.images("annotated").dataset
                plan = pd.DataFrame([{name: painted.row[name] for name in COLUMNS}])
                plan.attrs = {"dataset": str(dataset.root.resolve()), "batch": 1}
                plan.attrs["unseen_categories"] = list(dataset.unseen_categories)
                write_plan(plan, Path(folder) / "plan.parquet")
                archive.write(Path(folder) / "plan.parquet", "plan.parquet")
        return file.getvalue()

    def kept(self, number: int) -> Painted:
        """A painted image; `StedmError` where it was painted too long ago."""
        if number not in self.painted:
            raise StedmError("this image is no longer kept; paint it again")
        return self.painted[number]

    def _keep(self, shelf: OrderedDict, thing: Any) -> int:
        self._number += 1
        shelf[self._number] = thing
        while len(shelf) > MOST_KEPT:
            shelf.popitem(last=False)
        return self._number


def agreement(mask: np.ndarray, seen: np.ndarray, n_classes: int) -> float | None:
    """Part of the pixels with a known class in which a segmenter sees just that."""
    known = mask < n_classes
    return float((mask == seen)[known].mean()) if known.any() else None


def _check_row(n: int, row: int) -> None:
    if not 0 <= row < n:
        raise StedmError(f"no such row: {row} of {n}")


def _whole(text: str) -> int:
    if not (text.isdigit() and len(text) < 21):
        raise StedmError(f"seed {text[:30]!r}: not a whole number; give one")
    return int(text)
