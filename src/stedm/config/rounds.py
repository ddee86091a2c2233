"""Rounds: who labels the images of patients nobody annotated, and what a later round does with these labels.

In the first round segmenters that know annotated images alone label the others, the diffusion model learns from these
labels, and annotated layouts are painted in the styles of unannotated patients. In each later round segmenters that
have learned from the synthetic images of the round before label anew; the diffusion model goes on with their labels,
and a part of the synthetic images is painted to them. Why: results/history.md.
"""

from typing import Annotated, Literal

from pydantic import Field

from stedm.config.base import Fraction, Part, Positive


class PseudoLabelConfig(Part):
    """Pseudo-labels for the diffusion model: what segmenters see in unannotated images, unknown where these are
    unsure (after You et al. 2023)."""

    arm: Literal["real", "real+stain", "ssl", "self-training"] | None = None
    """How the segmenters of the first round are trained; null = self-training with three annotated patients or fewer,
    else real+stain."""
    confidence: Fraction = 0.9
    """Pixels in which the mean probability of the winning class is lower stay unknown."""


class FineTuneConfig(Part):
    """Training of the diffusion model of a later round, which goes on from the weights of the one before."""

    steps: Positive = 1000
    lr: Annotated[float, Field(gt=0)] = 5e-4


class PredictedConfig(Part):
    """Synthetic images painted to what the segmenters of a later round see in an image of the style patient."""

    fraction: Fraction = 0.5
    """Part of the synthetic images; the others have annotated layouts as `synthesis.layouts` says."""
    start: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Where painting begins: 1 = at noise; 0.8 = at the image that the layout was predicted in, with noise up to time
    0.8 (SDEdit, Meng et al. 2022), so that what layout and style don't contradict stays. Below 1 for flow only."""


class RoundsConfig(Part):
    """Rounds of labelling, diffusion training and synthesis. A later round changes what `fine_tune` and `predicted`
    say; without both there is one."""

    number: Positive = 2
    voters: Positive = 3
    """Segmenters that vote, wherever unannotated images are labelled."""
    labels: PseudoLabelConfig | None = PseudoLabelConfig()
    """Labels of unannotated images for the diffusion model; null = their layouts are unknown to it, in every round."""
    fine_tune: FineTuneConfig | None = FineTuneConfig()
    """The model of each later round goes on with that round's labels; null = one model for all rounds."""
    predicted: PredictedConfig | None = PredictedConfig()
    """Predicted layouts in later rounds; null = none."""
    agreement: Fraction = 0.8
    """The least agreement, for each patient, of what the segmenters of a later round see with what the first ones are
    sure of (mean IoU over the foreground). Where it is lower the two contradict each other, and the patient gets
    neither predicted layouts nor labels; 0 = every patient does."""

    @property
    def last(self) -> int:
        """The number of the last round; the first is 1."""
        return self.number if self.predicted or (self.fine_tune and self.labels) else 1
