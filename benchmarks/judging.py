"""What the drivers of this folder share: the measured cohort, the judges of one dataset, intervals over seeds."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t as student_t

from controls import with_shuffled_layouts
from judges import PhantomJudge, style_and_content_encoders, train_judge_segmenter
from phantom_truth import parameter_error, phantom_parameters
from stedm.config import PhantomConfig, RunConfig, SegmentationConfig, parse_config
from stedm.config.base import with_key
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.quality import (
    ColourSpace,
    ImageEncoder,
    ImageSet,
    Measure,
    Segment,
    layout_iou,
    measure_appearance,
    retrieval_chance,
)
from stedm.io.files import write_json, write_text
from stedm.progress import Reporter
from stedm.seeds import numpy_generator

MEASURES = {
    "retrieval_top1": "own patient retrieved, top 1",
    "retrieval_mrr": "own patient retrieved, mean reciprocal rank",
    "colour_distance": "stain distance to the own patient (SD between patients)",
    "layout_iou": "layout IoU by an independent segmenter",
    "kid": "KID",
    "error_second_stain_od": "error of the stain on tumour (OD)",
    "correlation_second_stain_od": "correlation with the true stain on tumour",
    "error_haematoxylin": "error of the haematoxylin concentration",
    "correlation_haematoxylin": "correlation with the true haematoxylin concentration",
    "error_white": "error of the white balance",
}
"""What tables show, in this order; measures.json may hold more."""
LOWER_IS_BETTER = ("colour_distance", "kid", "error_")
RESAMPLES = 4000


class Part(BaseModel):
    """A part of a specification."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- specifications of runs ---------------------------------------------------------------------------------------


class RunSpec(Part):
    """A base configuration, and variants of it: {name: {"synthesis.sampling.steps": 4, ...}}."""

    name: str
    base: dict[str, Any]
    variants: dict[str, dict[str, Any]]

    def check(self) -> None:
        """Build every configuration before anything is trained; `StedmError` where that fails."""
        raise NotImplementedError

    def _config(self, variant: str, settings: dict[str, Any]) -> RunConfig:
        """The base with dotted keys set; `StedmError` for keys that stedm doesn't know."""
        values = {"name": f"{self.name}, {variant}", **self.base}
        for key, value in settings.items():
            values = with_key(with_key(values, key, None), key, value)  # a mapping that is there is replaced
        return parse_config(values, source=f"variant {variant}")


_Spec = TypeVar("_Spec", bound=RunSpec)


def read_run_spec(path: Path, kind: type[_Spec]) -> _Spec:
    """Read and check a specification; a relative data.path is relative to the file."""
    if not path.is_file():
        raise StedmError(f"{path}: no such specification")
    try:
        spec = kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise StedmError(f"{path}: {' '.join(str(error).split())}") from error
    if data_path := spec.base.get("data", {}).get("path"):
        spec.base["data"]["path"] = str((path.parent / data_path).resolve())
    spec.check()
    return spec


# ---- cohort -------------------------------------------------------------------------------------------------------


class Cohort(Part):
    """Which unannotated patients are drawn and measured."""

    patients: int = 24
    style_images: int = Field(default=10, description="style images a patient has to choose from, at most")
    reference_images: int = 4
    least_images: int = Field(default=12, description="patients with fewer images are not measured")


def split_cohort(unlabeled: DatasetFolder, cohort: Cohort) -> tuple[DatasetFolder, DatasetFolder]:
    """Style images and reference images of the measured patients; a fixed choice, disjoint.

    Raises:
        StedmError: fewer than two patients have enough images.
    """
    rows_of = unlabeled.table.groupby("patient_id").indices
    enough = sorted(patient for patient, rows in rows_of.items() if len(rows) >= cohort.least_images)
    if len(enough) < 2 or cohort.least_images <= cohort.reference_images:
        raise StedmError(
            f"{unlabeled.root}: {len(enough)} unannotated patients have {cohort.least_images} images; set "
            "cohort.least_images lower (and above cohort.reference_images)"
        )
    pool, reference = [], []
    for patient in sorted(numpy_generator(0, "cohort").permutation(enough)[: cohort.patients]):
        rows = numpy_generator(0, "cohort", str(patient)).permutation(rows_of[patient])
        reference += rows[: cohort.reference_images].tolist()
        pool += rows[cohort.reference_images :][: cohort.style_images].tolist()
    return unlabeled.select(sorted(pool)), unlabeled.select(sorted(reference))


# ---- judges -------------------------------------------------------------------------------------------------------


class Jury:
    """Every judge of one dataset, and the bounds between which their measures lie.

    Args:
        dataset: train and val with masks, unlabeled images of the measured patients.
        annotated: the images whose layouts are painted; bounds of the layout are measured on them.
        folder: segmenter, phantom cohort and bounds.json are made here once.
        phantom: configuration of the phantom that `dataset` is, for the judge of its true parameters.
        encoders: for style and for content, instead of the usual ones.
    """

    def __init__(
        self,
        dataset: DatasetFolder,
        annotated: DatasetFolder,
        folder: Path,
        *,
        image_px: int,
        cohort: Cohort,
        colours: ColourSpace,
        segmentation: SegmentationConfig,
        phantom: PhantomConfig | None = None,
        phantom_patients: int = 96,
        encoders: tuple[ImageEncoder, ImageEncoder] | None = None,
    ):
        self.dataset, self.annotated, self.folder = dataset, annotated, folder
        self.image_px, self.cohort, self.colours = image_px, cohort, colours
        self.segmentation, self.phantom, self.phantom_patients = segmentation, phantom, phantom_patients
        self._encoders = encoders

    def measure(self, images: ImageSet) -> dict[str, Measure]:
        """All measures of synthetic images whose masks are the layouts that were asked for."""
        measures = self._appearance(images)
        info = self.dataset.info
        measures["layout_iou"] = layout_iou(self._segment, images, info.classes, info.ignore_index)
        if self.phantom is not None:
            judge, truth = self._phantom_judge, phantom_parameters(self.dataset.root)
            measures |= parameter_error(judge.regressor, images, truth, len(info.classes))
        return measures

    def bounds(self, reporter: Reporter) -> dict[str, dict[str, float]]:
        """{"real": ..., "chance": ...}: real images in the place of synthetic ones; guessing. Made once."""
        path = self.folder / "bounds.json"
        with locked(self.folder.with_name(f".{self.folder.name}.lock")):
            if not path.is_file():
                if problems := check_dataset(self.dataset.root, read_unlabeled_masks=False):
                    raise StedmError("\n".join(problems))
                with reporter.stage("judges and bounds"):
                    write_json(path, self._bounds())
        return json.loads(path.read_text(encoding="utf-8"))

    def _bounds(self) -> dict[str, dict[str, float]]:
        info, pool = self.dataset.info, ImageSet.read(self.pool, self.image_px)
        annotated = ImageSet.read(self.annotated, self.image_px, with_masks=True)
        real = self._appearance(pool)
        real["layout_iou"] = layout_iou(self._segment, annotated, info.classes, info.ignore_index)
        # Each patient's images under the next patient's name: what a model that ignores style could reach at best.
        patients = np.unique(pool.patients)
        swapped = np.roll(patients, 1)[np.searchsorted(patients, pool.patients)]
        chance = {
            **retrieval_chance(len(patients)),
            "colour_distance": self._appearance(ImageSet(pool.images, swapped))["colour_distance"].value,
            "layout_iou": layout_iou(
                self._segment, with_shuffled_layouts(annotated), info.classes, info.ignore_index
            ).value,
        }
        if self.phantom is not None:
            judge, truth = self._phantom_judge, phantom_parameters(self.dataset.root).loc[patients]
            own_truth = phantom_parameters(judge.folder)
            real |= parameter_error(judge.regressor, judge.images("val"), own_truth, len(info.classes))
            for name in judge.regressor.names:
                chance[f"error_{name}"] = float((truth[name] - truth[name].mean()).abs().mean())
                chance[f"correlation_{name}"] = 0.0
        return {"real": {name: measure.value for name, measure in real.items()}, "chance": chance}

    def _appearance(self, images: ImageSet) -> dict[str, Measure]:
        style, content = self.encoders
        reference = ImageSet.read(self.reference, self.image_px)
        return measure_appearance(images, reference, style_encoder=style, content_encoder=content, colours=self.colours)

    @property
    def pool(self) -> DatasetFolder:
        """Real images of the measured patients that a plan may give as style images."""
        return self._measured_images[0]

    @property
    def reference(self) -> DatasetFolder:
        """Real images of the measured patients that no plan gives."""
        return self._measured_images[1]

    @cached_property
    def _measured_images(self) -> tuple[DatasetFolder, DatasetFolder]:
        return split_cohort(self.dataset.split("unlabeled"), self.cohort)

    @cached_property
    def encoders(self) -> tuple[ImageEncoder, ImageEncoder]:
        """For style and for content."""
        return self._encoders or style_and_content_encoders()

    @cached_property
    def _segment(self) -> Segment:
        return train_judge_segmenter(self.segmentation, self.dataset, self.folder / "segmenter", self.image_px)

    @cached_property
    def _phantom_judge(self) -> PhantomJudge:
        assert self.phantom is not None
        judge = PhantomJudge(self.folder / "phantom", self.phantom, self.phantom_patients)
        judge.cohort  # noqa: B018  made now, so that its parameters can be read
        return judge


# ---- folders and statistics ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a killed process is gone with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(folder: Path, spec: Part, may_change: tuple[str, ...]) -> None:
    """Write spec.yaml; keys in `may_change` may be extended later, what all results share may not change."""
    path, values = folder / "spec.yaml", spec.model_dump(mode="json")
    if path.is_file():
        there: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        differing = [key for key in values if key not in may_change and values[key] != there.get(key)]
        if differing:
            raise StedmError(f"{folder}: was begun with another {', '.join(differing)}; give another -o")
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values (seeds, patients).

    Bootstrap of seeds and of patients, both drawn anew and independently (Owen 2007, "The pigeonhole bootstrap"). With
    one column, a measure without values per patient: Student's t over seeds. NaN where there is too little to tell.
    """
    seeds, patients = values.shape
    if patients > 1:
        generator = numpy_generator(0, "ablation bootstrap", seeds, patients)
        rows, columns = (generator.integers(n, size=(RESAMPLES, n)) for n in (seeds, patients))
        means = np.nanmean(values[rows[:, :, None], columns[:, None, :]], axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)
    if seeds < 2:
        return float("nan"), float("nan")
    half = float(student_t.ppf(0.975, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds))
    return float(values.mean()) - half, float(values.mean()) + half


def wrapped(text: str, width: int = 26) -> str:
    """Text on lines of about `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
