"""Guidance, the plan (which layout in whose style) and how its images are drawn."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stedm.config.base import Fraction, Part, Positive

LayoutKind = Literal["resample", "warp", "recombine", "procedural", "predicted"]
Layouts = LayoutKind | Annotated[dict[LayoutKind, Annotated[float, Field(gt=0)]], Field(min_length=1)]
"""A kind of layout, or a mixture as {kind: weight}."""
Sampler = Literal["ddim", "dpm++", "dpm++3m", "unipc", "euler", "heun", "student"]


class Guidance(Part):
    """Classifier-free guidance while an image is drawn (see stedm.diffusion.guidance for the formulas)."""

    style: Annotated[float, Field(ge=0)] = 1.5
    """Weight of the style; 1 = no guidance on style, and one network evaluation less a step."""
    layout: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the layout; 1 = no guidance on layout, and one network evaluation less a step."""
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Part of the sampling steps that is guided, as fractions of the number of steps, 0 = pure noise, 1 = finished
    (Kynkäänniemi et al. 2024); the other steps are plain conditional ones, of one network evaluation each."""
    rescale: Fraction = 0.0
    """How far the standard deviation of the guided prediction is brought back to that of the conditional one
    (Lin et al. 2024); 0 = not at all."""

    @model_validator(mode="after")
    def _ordered(self) -> "Guidance":
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"the guidance interval {self.interval} ends before it begins")
        return self

    def at(self, step: int, steps: int) -> "Guidance":
        """Guidance of one step (0 = the first, noisiest): this one inside the interval, none outside it."""
        start, stop = (round(fraction * steps) for fraction in self.interval)
        return self if start <= step < stop else Guidance(style=1.0)

    def network_calls(self, steps: int, sampler: Sampler = "dpm++") -> int:
        """Network evaluations for one image; those that one pass computes together count one by one.

        A step of `heun` evaluates twice, but for the last, which ends at sigma 0. A student holds its guidance: a step
        is one evaluation.
        """
        if sampler == "student":
            return steps
        guided = [self.at(step, steps) for step in range(steps)]
        evaluations = [2 if sampler == "heun" and step < steps - 1 else 1 for step in range(steps)]
        conditions = [1 + (part.style != 1.0) + (part.layout != 1.0) for part in guided]
        return sum(n * times for n, times in zip(conditions, evaluations, strict=True))


class Sampling(Part):
    """How an image is drawn from noise: the keys of `SynthesisConfig` that say it, as one object."""

    guidance: Guidance = Guidance()
    sampler: Sampler = "unipc"
    steps: Positive = 8
    time_shift: Annotated[float, Field(gt=0)] = 4.0
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Time at which the way begins: 1 = pure noise; below, a given image with so much noise (flow only)."""

    @property
    def network_calls(self) -> int:
        """Network evaluations for one image (a conditional + unconditional pair counts as two)."""
        return self.guidance.network_calls(self.steps, self.sampler)


_DEFAULT = Sampling()
_DEFAULT_GUIDANCE = _DEFAULT.guidance


class SynthesisConfig(Part):
    """The plan (which layout in whose style) and how its images are drawn."""

    n_images: Positive = 768
    style_images: Positive = 4
    """Style images per synthetic image, all of the same unannotated patient (fewer where the patient has fewer)."""
    match_category: bool = True
    """Prior knowledge: a patient of category c gets layouts of annotated patients of category c, where there are
    any, and of all annotated patients otherwise."""
    spread: Literal["patients", "categories"] = "patients"
    """Over what the images are spread evenly: unannotated patients, or their categories and in each its patients (for
    categories of very different size)."""
    layouts: Layouts = "resample"
    """Where layouts come from (stedm.layout.prior): `resample` = annotated ones as they are; `warp` = deformed ones;
    `recombine` = two of one category joined; `procedural` = random fields with the category's class fractions and
    structure sizes; `predicted` = what segmenters see in an image of the style patient (see `predictors`); or a
    mixture such as {resample: 0.5, warp: 0.5} (kind: weight)."""
    start: Annotated[float, Field(gt=0, le=1)] = _DEFAULT.start
    """Where the drawing of `predicted` layouts begins: 1 = at noise; 0.8 = at the image that the layout was predicted
    in, with noise up to time 0.8 (SDEdit, Meng et al. 2022), so that what layout and style don't contradict stays. Flow
    only."""
    rounds: Positive = 1
    """How often the synthetic set is drawn. From the second round on, segmenters that have learned from the images of
    the round before (arm real+stain+synthetic) label the unannotated images for `predicted` layouts, and for the
    diffusion model where `diffusion.pseudo_labels.every_round` says so."""
    first_layouts: Layouts | None = None
    """Layouts of the first of several rounds; null: those of `layouts` but `predicted` ones (`warp` if there are no
    others). What segmenters predict that have learned from annotated images alone may be wrong wherever the patients
    nobody annotated look different, and images painted to it teach the same error
    (results/predicted_layouts)."""
    agreement: Fraction = 0.8
    """From the second round on: the least agreement, for each patient, of what the segmenters see with what those of
    the annotated images are sure of (mean IoU over the foreground; stedm.experiment.agreement). Where it is lower
    the two contradict each other, and the patient's images get no predicted layouts, nor labels for the diffusion
    model; 0 = every patient's do."""
    predictors: Positive = 3
    """Segmenters that vote for predicted layouts, trained for this alone, as `segmentation` says; of arm real+stain
    where the first round has such layouts."""
    category_fractions: dict[str, dict[str, tuple[Fraction, Fraction]]] = {}
    """Prior knowledge of categories, such as {"3": {tumour: [0.4, 0.8]}}: their layouts are only those in which the
    class takes that part of the image (`predicted` ones are as they are seen). Categories without annotated layouts
    can be described in this way."""
    guidance: Annotated[float, Field(ge=0)] = _DEFAULT_GUIDANCE.style
    """Classifier-free guidance on style; 1 = none."""
    layout_guidance: Annotated[float, Field(ge=0)] = _DEFAULT_GUIDANCE.layout
    """Classifier-free guidance on the layout; 1 = none."""
    guidance_interval: tuple[Fraction, Fraction] = _DEFAULT_GUIDANCE.interval
    """Part of the sampling steps that is guided: fractions of the number of steps, 0 = pure noise, 1 = finished."""
    guidance_rescale: Fraction = _DEFAULT_GUIDANCE.rescale
    """How far the spread of the guided prediction is brought back to that of the conditional one (Lin et al. 2024)."""
    sampler: Sampler = _DEFAULT.sampler
    """Solver (see stedm.diffusion.sampler): `dpm++` of order 2, `dpm++3m` of order 3, `unipc`; `ddim` for the
    objectives eps and v; `euler` and `heun` (two network evaluations a step) for flow; `student` draws with the run's
    student in place of its diffusion model, in one of `diffusion.student.calls` steps (see stedm.diffusion.distill)."""
    steps: Positive = _DEFAULT.steps
    time_shift: Annotated[float, Field(gt=0)] = _DEFAULT.time_shift
    """More than 1 puts more of the steps near noise, where layout and colours are decided (Esser et al. 2024); 1 =
    evenly spaced in time. Sampler, steps and shift were chosen together (results/samplers)."""
    batch: Positive = 32
    seed: int = 0

    @model_validator(mode="after")
    def _knowledge_is_usable(self) -> "SynthesisConfig":
        for category, ranges in self.category_fractions.items():
            for name, (low, high) in ranges.items():
                if low > high:
                    raise ValueError(f"category_fractions.{category}.{name}: [{low}, {high}] must be [low, high]")
        if self.category_fractions and not self.match_category:
            raise ValueError("category_fractions needs match_category: true")
        if self.start < 1 and "predicted" not in self.layout_weights:
            raise ValueError("start: only predicted layouts have an image to begin at; set it to 1")
        if self.first_layouts is not None and self.rounds == 1:
            raise ValueError("first_layouts: needs rounds of 2 or more; the layouts of a single round are `layouts`")
        return self

    @property
    def layout_weights(self) -> dict[LayoutKind, float]:
        """Probability of each kind of layout."""
        return _weights(self.layouts)

    @property
    def weights_without_predicted(self) -> dict[LayoutKind, float]:
        """`layout_weights` of patients without predicted layouts; warped ones if there are no others."""
        others = {kind: weight for kind, weight in self.layout_weights.items() if kind != "predicted"}
        return _weights(others or "warp")

    def of_round(self, number: int) -> "SynthesisConfig":
        """What one round of several is planned by (the first is 1)."""
        if number > 1 or self.rounds == 1:
            return self
        layouts = self.weights_without_predicted if self.first_layouts is None else self.first_layouts
        if len(weights := _weights(layouts)) == 1:
            [layouts] = weights
        start = self.start if "predicted" in weights else 1.0
        return self.model_copy(update={"layouts": layouts, "start": start})

    @property
    def network_calls(self) -> int:
        """Network evaluations for one image (a conditional + unconditional pair counts as two)."""
        return self.sampling.network_calls

    @property
    def sampling(self) -> Sampling:
        """The sampling keys as one object."""
        return Sampling(guidance=self.full_guidance, sampler=self.sampler, steps=self.steps, time_shift=self.time_shift)

    @property
    def full_guidance(self) -> Guidance:
        """The guidance keys as one object."""
        return Guidance(
            style=self.guidance,
            layout=self.layout_guidance,
            interval=self.guidance_interval,
            rescale=self.guidance_rescale,
        )

    @model_validator(mode="after")
    def _valid_guidance(self) -> "SynthesisConfig":
        _ = self.full_guidance
        return self


def _weights(layouts: Layouts) -> dict[LayoutKind, float]:
    weights: dict[LayoutKind, float] = {layouts: 1.0} if isinstance(layouts, str) else layouts
    return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}
