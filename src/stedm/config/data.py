"""Data and evaluation: what is read, how much of it counts as annotated, and what is scored."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from stedm.config.base import Part, Positive


class PhantomConfig(Part):
    """A procedural cohort, made inside the run folder (see stedm.phantom.patients)."""

    stain: Literal["her2", "chromogen", "he"] = "her2"
    """`her2`: DAB + haematoxylin, 2 classes, category = score 0..3. `chromogen`: the same in the colours of three
    laboratories (category). `he`: haematoxylin + eosin, 4 classes."""
    image_px: Positive = 64
    """Side of the square images in pixels; each shows 128 microns of tissue."""
    patients: dict[Literal["train", "unlabeled", "val", "test"], int] = {
        "train": 4,
        "unlabeled": 24,
        "val": 8,
        "test": 24,
    }
    """Patients in each split."""
    train_categories: list[str] | None = None
    """Categories of the train patients in order, for example ["3", "3", "2", "1"]; null = balanced."""
    images_per_patient: Positive = 12
    seed: int = 0

    @property
    def mpp(self) -> float:
        """Microns per pixel of the images."""
        return 128.0 / self.image_px


class DataConfig(Part):
    """Which dataset folder, at which size, and how much of it counts as annotated."""

    path: Path | None = None
    """Dataset folder; relative paths are relative to the configuration file."""
    phantom: PhantomConfig | None = None
    """Make a phantom cohort instead of reading a folder."""
    image_px: Positive | None = None
    """Side of the square images that all networks see; images are reduced to it (area), masks too (nearest), oblong
    ones are cut into squares. null = that of the data, at most 64 px (preset `cpu`), 256 (`gpu`), 512 (`paper`)."""
    annotated_patients: Positive | None = None
    """Label budget: how many patients of the `train` split count as annotated; null = all. The others are left out,
    so that the set of unannotated patients is the same at every budget."""
    annotated_per_category: Positive | None = None
    """Label budget in images instead of patients: so many images of each category that has annotations (k-shot,
    for images that belong to nobody, such as photographs); null = no such limit. The others are left out."""
    unseen_categories: list[str] | None = None
    """Categories nobody annotated: patients of the `train` split with such images count as `unlabeled`. Their
    images are style sources, their masks are opened by the arm `upper` alone; in val and test they are scored."""
    draw: int = 0
    """Which random choice of annotated patients (they are drawn balanced over categories) or images."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if (self.path is None) == (self.phantom is None):
            raise ValueError("give either data.path (a dataset folder) or data.phantom, not both")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> "DataConfig":
        if self.annotated_patients is not None and self.annotated_per_category is not None:
            raise ValueError("give either data.annotated_patients or data.annotated_per_category, not both")
        return self

    @property
    def side(self) -> int:
        """`image_px` of a resolved configuration."""
        assert self.image_px is not None, "resolve the configuration first (stedm.experiment.resolve)"
        return self.image_px


class EvaluationConfig(Part):
    """What is scored."""

    bootstrap: ClassVar[int] = 2000
    """Resamples of patients for the intervals."""
    confidence: ClassVar[float] = 0.95
    seed: ClassVar[int] = 0

    split: Literal["val", "test"] = "test"
    unit: Literal["patient", "category"] = "patient"
    """Whose pixels are pooled before means, spread and tests: a patient's, or those of all images of a category
    (where an image is a patient of its own)."""

    @property
    def units(self) -> str:
        """Plural of `unit`."""
        return {"patient": "patients", "category": "categories"}[self.unit]
