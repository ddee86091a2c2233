"""Data and evaluation: what is read, how much of it counts as annotated, and what is scored."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stedm.config.base import Part, Positive


class PhantomConfig(Part):
    """A procedural cohort, made inside the run folder (see stedm.phantom.patients)."""

    stain: Literal["her2", "he"] = "her2"
    """`her2`: DAB + haematoxylin, 2 classes, category = score 0..3. `he`: haematoxylin + eosin, 4 classes."""
    image_px: Positive = 64
    """Side of the square images in pixels."""
    mpp: Annotated[float, Field(gt=0)] = 2.0
    """Microns per pixel of the images."""
    patients: dict[Literal["train", "unlabeled", "val", "test"], int] = Field(
        default={"train": 4, "unlabeled": 24, "val": 8, "test": 24}
    )
    """Patients in each split."""
    train_categories: list[str] | None = None
    """Categories of the train patients in order, for example ["3", "3", "2", "1"]; null = balanced."""
    images_per_patient: Positive = 12
    seed: int = 0


class DataConfig(Part):
    """Which dataset folder, at which size, and how much of it counts as annotated."""

    path: Path | None = None
    """Dataset folder; relative paths are relative to the configuration file."""
    phantom: PhantomConfig | None = None
    """Make a phantom cohort instead of reading a folder."""
    image_px: Positive = 64
    """Side of the square images that all networks see; images are resized (area), masks too (nearest)."""
    cache_mb: Annotated[float, Field(ge=0)] | None = None
    """Memory for decoded images in megabytes, a process; images beyond it are read each time they are needed, with
    equal results. null = half of the machine's memory; 0 = none is kept."""
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


class EvaluationConfig(Part):
    """What is scored, and the statistics over patients."""

    split: Literal["val", "test"] = "test"
    unit: Literal["patient", "category"] = "patient"
    """Whose pixels are pooled before means, spread and tests: a patient's, or those of all images of a category
    (where an image is a patient of its own)."""
    bootstrap: Positive = 2000
    """Resamples of patients for the intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0

    @property
    def units(self) -> str:
        """Plural of `unit`."""
        return {"patient": "patients", "category": "categories"}[self.unit]
