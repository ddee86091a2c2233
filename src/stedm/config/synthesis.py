"""Sampling, and the plan: which layout in whose style."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stedm.config.base import Fraction, Part, Positive

LayoutKind = Literal["resample", "warp"]
Layouts = LayoutKind | Annotated[dict[LayoutKind, Annotated[float, Field(gt=0)]], Field(min_length=1)]
"""A kind of layout, or a mixture as {kind: weight}."""
Sampler = Literal["ddim", "dpm++", "unipc", "euler"]


class Guidance(Part):
    """Classifier-free guidance (see stedm.diffusion.guidance for the formulas)."""

    style: Annotated[float, Field(ge=0)] = 1.5
    """Weight of the style; 1 = no guidance on style, and one network evaluation less a step."""
    layout: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the layout; 1 = no guidance on layout, and one network evaluation less a step."""


class Sampling(Part):
    """How an image is drawn from noise. Sampler, steps and shift were chosen together (results/samplers)."""

    guidance: Guidance = Guidance()
    sampler: Sampler = "unipc"
    """Solver (see stedm.diffusion.sampler): `dpm++` of order 2, `unipc`; `ddim` for the objectives eps and v; `euler`
    for flow."""
    steps: Annotated[int, Field(gt=0, le=1000)] = 8
    time_shift: Annotated[float, Field(gt=0)] = 4.0
    """More than 1 puts more of the steps near noise, where layout and colours are decided (Esser et al. 2024); 1 =
    evenly spaced in time."""

    @property
    def nfe(self) -> int:
        """Network function evaluations for one image; those that one pass computes together count one by one."""
        return self.steps * (1 + (self.guidance.style != 1.0) + (self.guidance.layout != 1.0))


class SynthesisConfig(Part):
    """The plan (which layout in whose style) and how its images are drawn."""

    n_images: Positive = 1024
    style_images: Positive = 4
    """Style images per synthetic image, all of the same unannotated patient (fewer where the patient has fewer)."""
    match_category: bool = True
    """Prior knowledge: a patient of category c gets layouts of annotated patients of category c, where there are
    any, and of all annotated patients otherwise."""
    spread: Literal["patients", "categories"] = "patients"
    """Over what the images are spread evenly: unannotated patients, or their categories and in each its patients (for
    categories of very different size)."""
    layouts: Layouts = "warp"
    """What is done to annotated layouts (stedm.layout.prior): `resample` = nothing; `warp` = deformed; or a
    mixture such as {resample: 0.5, warp: 0.5} (kind: weight)."""
    category_fractions: dict[str, dict[str, tuple[Fraction, Fraction]]] = {}
    """Prior knowledge of categories, such as {"3": {tumour: [0.4, 0.8]}}: their layouts are only those in which the
    class takes that part of the image (predicted ones are as they are seen). Of a category without annotated layouts
    they are the layouts of the others that fit."""
    sampling: Sampling = Sampling()
    batch: Positive = 32
    """Images drawn at once."""

    @model_validator(mode="after")
    def _knowledge_is_usable(self) -> "SynthesisConfig":
        for category, ranges in self.category_fractions.items():
            for name, (low, high) in ranges.items():
                if low > high:
                    raise ValueError(f"category_fractions.{category}.{name}: [{low}, {high}] must be [low, high]")
        if self.category_fractions and not self.match_category:
            raise ValueError("category_fractions needs match_category: true")
        return self

    @property
    def layout_weights(self) -> dict[str, float]:
        """Probability of each kind of layout."""
        weights: dict[str, float] = {self.layouts: 1.0} if isinstance(self.layouts, str) else dict(self.layouts)
        return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}
