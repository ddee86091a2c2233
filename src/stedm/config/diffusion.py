"""The diffusion model: U-Net, objective, training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stedm.config.base import Fraction, Part, Positive, TrainingConfig
from stedm.config.codec import CodecConfig, PixelCodecConfig, TrainedCodecConfig
from stedm.config.style import StyleConfig


class RecolourConfig(Part):
    """Training images and their style images recoloured alike (see stedm.style.recolour)."""

    probability: Fraction = 0.5
    """Part of the training samples that are recoloured; 0 = off."""
    haematoxylin: tuple[float, float] = (0.7, 1.3)
    """Range of the factor that scales the amount of a stain, drawn uniformly; below 0 counts as 0, so that
    (-0.5, 1.5) takes the stain away in a quarter of the recoloured samples."""
    eosin: tuple[float, float] = (0.7, 1.3)
    dab: tuple[float, float] = (0.7, 1.3)


class DenoiserConfig(Part):
    """The U-Net (diffusers' UNet2DModel; UNet2DConditionModel where the style enters by cross-attention)."""

    channels: list[Positive] = [48, 96, 128]
    """Widths of the levels; a multiple of `norm_groups` each."""
    blocks_per_level: Positive = 1
    attention: list[bool] | None = None
    """Self-attention per level; null = none but in the mid block."""
    norm_groups: Positive = 16
    layout_channels: Positive = 16
    """Channels that the layout embedding adds to the noisy latent."""
    skip: bool = False
    """Flow only: the best prediction that needs no network, which is linear in the noisy latent, is added to that of
    the U-Net, whose own output is scaled to unit variance (Karras et al. 2022, for the straight path)."""


class FineTuningConfig(Part):
    """Training of a model that begins with the weights of another; what isn't said here is as in `diffusion`."""

    steps: Positive = 1000
    lr: Annotated[float, Field(gt=0)] = 5e-4


class PseudoLabelConfig(Part):
    """Layouts of unannotated images as segmenters of the annotated ones see them (stedm.segmentation.pseudo_labels).

    The segmenters are the diffusion model's own: it doesn't depend on which arms, seeds and steps are compared later.
    Those of arm self-training are that arm's teachers, of `segmentation.self_training`, trained as long as the arms.
    They also predict the layouts of `synthesis.layouts: predicted`, in the first round.
    """

    arm: Literal["real", "real+stain", "ssl", "self-training"] = "real+stain"
    """How they are trained; everything that isn't said here is as in `segmentation`."""
    steps: Positive = 400
    """Not of arm self-training; nor are `seeds`."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    """One segmenter each; their mean probabilities vote."""
    confidence: Fraction = 0.9
    """Pixels in which the mean probability of the winning class is lower stay unknown."""
    every_round: bool = False
    """Train the diffusion model again in each round of `synthesis.rounds` after the first, with labels by the
    segmenters of that round, which have learned from the images of the model before. For patients about whom the
    segmenters of the annotated images are wrong, and with them the first model; each round costs as much as the
    first, but for `fine_tuning` (results/second_model)."""
    fine_tuning: FineTuningConfig | None = None
    """Let each model of `every_round` go on from the weights of the one before; null = each from nothing."""


class StudentConfig(TrainingConfig):
    """A student that draws in few network calls, distilled from the trained diffusion model (stedm.diffusion.distill).

    It holds the guidance of `synthesis`. It is trained by `stedm train student`, and by a run whose
    `synthesis.sampler` is student. `activation_checkpointing` is that of the diffusion model.
    """

    calls: Annotated[list[Positive], Field(min_length=1)] = [1, 2, 4]
    """Numbers of steps that it learns to draw in, of one network call each."""
    teacher_sampler: Literal["dpm++", "dpm++3m", "unipc", "euler", "heun"] = "unipc"
    teacher_steps: Positive = 8
    """A multiple of each of `calls`."""
    time_shift: Annotated[float, Field(gt=0)] = 4.0
    """Of the teacher's steps and of the student's own (see `synthesis.time_shift`, which a student ignores)."""
    steps: Positive = 400
    batch: Positive = 4
    """Images that the teacher draws a step; the student learns all its steps, the sum of `calls`, from each."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 15
    ema_decay: Fraction = 0.99
    """Largest decay of the averaged weights, which the student is saved with."""
    checkpoint_every_steps: Positive = 100

    @model_validator(mode="after")
    def _equal_pieces(self) -> "StudentConfig":
        odd = [k for k in self.calls if self.teacher_steps % k]
        if odd:
            raise ValueError(f"calls: {self.teacher_steps} teacher_steps can't be cut into {odd[0]} equal pieces")
        if sorted(set(self.calls)) != self.calls:
            raise ValueError("calls: give each number once, in rising order")
        return self


class DiffusionConfig(TrainingConfig):
    """Training of the style-extracting diffusion model."""

    codec: CodecConfig = PixelCodecConfig()
    cache_latents: bool = False
    """Encode each training image once (in each of its 8 symmetries) instead of in every step, into RUN/latents;
    for autoencoders, and with recolouring off."""
    style: StyleConfig = StyleConfig()
    recolour: RecolourConfig = RecolourConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: Literal["eps", "v", "flow"] = "flow"
    """What the network predicts: noise, velocity (Salimans & Ho 2022), or rectified flow (Liu et al. 2022)."""
    loss: Literal["l1", "l2"] = "l2"
    timesteps: Literal["uniform", "logit-normal"] = "logit-normal"
    """Distribution of training times; logit-normal as in Esser et al. 2024."""
    time_shift: Annotated[float, Field(gt=0)] = 1.0
    """More than 1 draws training times nearer to noise, as `synthesis.time_shift` does with the steps of the sampler;
    what those steps never come near needn't be learned."""
    weighting: Literal["none", "min-snr"] = "none"
    """Weights of training times in the loss: none, or min-SNR with gamma 5 (Hang et al. 2023)."""
    balance: Literal["patients", "images"] = "patients"
    """What is drawn uniformly for a sample: a patient and then one of the patient's images, so that patients with
    many images don't drown the others; or an image."""
    layout_dropout: Fraction = 0.1
    """Probability that an annotated sample is shown with its layout unknown."""
    unlabeled_fraction: Fraction = 0.5
    """Part of the samples that are unannotated images, trained under the "layout unknown" channel."""
    pseudo_labels: PseudoLabelConfig | None = None
    """Show unannotated images with the layout that segmenters predict (trained first, on the annotated images
    alone), unknown where these are unsure (after You et al. 2023); null = unknown everywhere."""
    steps: Positive = 4000
    batch: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    ema_decay: Fraction = 0.999
    """Largest decay of the averaged weights (diffusers' EMAModel ramps up to it); sampling uses these weights."""
    checkpoint_every_steps: Positive = 250
    student: StudentConfig = StudentConfig()
    activation_checkpointing: bool = False
    """Compute the activations of the U-Net's blocks (and of a timm style encoder) again in the backward pass instead
    of keeping them: less memory, slower steps, equal gradients."""
    seed: int = 0

    @model_validator(mode="after")
    def _one_injection_per_level(self) -> "DiffusionConfig":
        injection, levels = self.style.injection, len(self.denoiser.channels)
        if isinstance(injection, list):
            if len(injection) != levels + 1:
                raise ValueError(
                    f"style.injection has {len(injection)} entries for {levels} levels of the U-Net; "
                    "give one per level and one for the mid block"
                )
            if set(injection) & {"cross", "both"} and injection[-1] not in ("cross", "both"):
                raise ValueError(
                    "style.injection: cross-attention at a level needs it in the mid block (last entry) too"
                )
        return self

    @model_validator(mode="after")
    def _skip_of_the_straight_path(self) -> "DiffusionConfig":
        if self.denoiser.skip and self.objective != "flow":
            raise ValueError("denoiser.skip: is made for the objective flow; set it to false")
        return self

    @property
    def trains_codec(self) -> bool:
        """Whether the first stage is to be trained by the run."""
        return isinstance(self.codec, TrainedCodecConfig)

    @model_validator(mode="after")
    def _latents_that_stay(self) -> "DiffusionConfig":
        if self.cache_latents and self.codec.kind == "pixel":
            raise ValueError("cache_latents: the pixel codec costs nothing, there is nothing to cache; set it to false")
        if self.cache_latents and self.recolour.probability > 0:
            raise ValueError(
                "cache_latents: recolouring changes the pixels of every sample; set recolour.probability to 0, or "
                "cache_latents to false"
            )
        return self
