"""The configuration of a run: frozen pydantic models, YAML files, `--set a.b=c` overrides, fingerprint, JSON schema.

Every default of the package stands in this file once. An unknown key is an error. The docstring under a field is its
description in the JSON schema (`stedm config schema`), so that editors complete and explain it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from stedm.errors import StedmError
from stedm.files import fingerprint

Arm = Literal["real", "real+stain", "real+synthetic", "real+stain+synthetic", "upper"]
Precision = Literal["auto", "fp32", "bf16"]
LayoutKind = Literal["resample", "warp", "recombine", "procedural"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
_Model = TypeVar("_Model", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PhantomConfig(_Part):
    """A procedural cohort, made inside the run folder (see stedm.data.phantom)."""

    stain: Literal["her2", "he"] = "her2"
    """`her2`: DAB + haematoxylin, 2 classes, category = score 0..3. `he`: haematoxylin + eosin, 4 classes."""
    picture_px: Positive = 64
    """Side of the square pictures in pixels."""
    mpp: Annotated[float, Field(gt=0)] = 2.0
    """Microns per pixel of the pictures."""
    patients: dict[Literal["train", "unlabeled", "val", "test"], int] = Field(
        default={"train": 4, "unlabeled": 24, "val": 8, "test": 24}
    )
    """Patients in each split."""
    train_categories: list[str] | None = None
    """Categories of the train patients in order, for example ["3", "3", "2", "1"]; null = balanced."""
    pictures_per_patient: Positive = 12
    seed: int = 0


class DataConfig(_Part):
    """Which dataset folder, at which size, and how much of it counts as annotated."""

    path: Path | None = None
    """Dataset folder; relative paths are relative to the configuration file."""
    phantom: PhantomConfig | None = None
    """Make a phantom cohort instead of reading a folder."""
    picture_px: Positive = 64
    """Side of the square pictures that all networks see; pictures are resized (area), masks too (nearest)."""
    annotated_patients: Positive | None = None
    """Label budget: how many patients of the `train` split count as annotated; null = all. The others are left out,
    so that the set of unannotated patients is the same at every budget."""
    annotated_per_category: Positive | None = None
    """Label budget in pictures instead of patients: so many pictures of each category that has annotations (k-shot,
    for pictures that belong to nobody, such as photographs); null = no such limit. The others are left out."""
    unseen_categories: list[str] | None = None
    """Categories nobody annotated: patients of the `train` split with such pictures count as `unlabeled`. Their
    pictures are style sources, their masks are opened by the arm `upper` alone; in val and test they are scored."""
    draw: int = 0
    """Which random choice of annotated patients (they are drawn balanced over categories) or pictures."""

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


class StyleConfig(_Part):
    """Style encoder E_s, aggregation block, style sampling and injection."""

    encoder: str = "conv"
    """`conv` (small, convolutional, see `channels`), or the name of any timm backbone."""
    channels: list[Positive] = [24, 48, 96]
    """Widths of the `conv` encoder, each level halves the picture."""
    pooling: Literal["statistics", "head"] = "statistics"
    """How a timm backbone's features become a vector: `statistics` = mean and standard deviation of the channels of
    all levels; `head` = its pooled output and one linear layer (paper)."""
    weights: Path | None = None
    """Local .safetensors file with the backbone's weights as published by timm; null = from scratch."""
    trainable: bool = True
    """false = encoder and aggregation stay at their initial weights (what the released reference does)."""
    dim: Positive = 256
    """Length of the style vector."""
    aggregation: Literal["none", "mean", "max", "linear", "set-vit", "attention"] = "mean"
    """How the vectors of several style pictures become one (see stedm.style.aggregation); `linear` and `set-vit` take
    `n_pictures` at most, also at generation."""
    injection: Literal["mid", "own-block", "all", "cross"] | list[Literal["none", "scale-shift", "cross", "both"]] = (
        "all"
    )
    """Where the style enters the U-Net: `all` = scale and shift of every ResBlock; `mid` = those of the mid block only;
    `own-block` = one more ResBlock in the mid block, for the style alone (released reference); `cross` =
    cross-attention to style tokens at every level; or a list with one choice a level of the U-Net, fine to coarse, and
    one for the mid block."""
    tokens: Positive = 8
    """Style tokens for cross-attention, all projected from the style vector."""
    sampling: Literal["none", "augmented", "nearby", "multi-patch", "cohort"] = "cohort"
    """Which pictures are the query styles in training: `augmented` = the picture itself, strongly deformed; `nearby` =
    pictures of the same slide within one tile's distance; `multi-patch` = random tissue patches of other pictures of
    the same slide; `cohort` = other pictures of the same patient. With one picture only all are as `augmented`."""
    n_pictures: Positive = 4
    """Style pictures per training sample."""
    dropout: Fraction = 0.25
    """Probability that a training sample sees the learned null style instead (classifier-free guidance)."""

    @model_validator(mode="after")
    def _weights_of_a_backbone(self) -> "StyleConfig":
        if self.weights is not None and (self.encoder == "conv" or self.aggregation == "set-vit"):
            raise ValueError("weights: only a timm encoder takes published weights; name it in `encoder`")
        return self


class TrainingConfig(_Part):
    """What every training loop needs (see stedm.engine)."""

    steps: Positive
    batch: Positive = 16
    lr: Annotated[float, Field(gt=0)]
    warmup_steps: Annotated[int, Field(ge=0)]
    """The learning rate rises linearly in these steps and then falls to 0 along a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    checkpoint_every_steps: Positive
    precision: Precision = "auto"
    """`bf16`, `fp32`, or `auto`: bf16 where the machine is fast at it."""


class RecolourConfig(_Part):
    """Training pictures and their style pictures recoloured alike (see stedm.style.recolour)."""

    probability: Fraction = 0.5
    """Part of the training samples that are recoloured; 0 = off."""
    haematoxylin: tuple[float, float] = (0.7, 1.3)
    """Range of the factor that scales the amount of a stain, drawn uniformly; below 0 counts as 0, so that
    (-0.5, 1.5) takes the stain away in a quarter of the recoloured samples."""
    eosin: tuple[float, float] = (0.7, 1.3)
    dab: tuple[float, float] = (0.7, 1.3)


class DenoiserConfig(_Part):
    """The U-Net (diffusers' UNet2DModel; UNet2DConditionModel where the style enters by cross-attention)."""

    channels: list[Positive] = [48, 96, 128]
    """Widths of the levels; a multiple of `norm_groups` each."""
    blocks_per_level: Positive = 1
    attention: list[bool] | None = None
    """Self-attention per level; null = none but in the mid block."""
    norm_groups: Positive = 16
    layout_channels: Positive = 16
    """Channels that the layout embedding adds to the noisy latent."""


class PixelCodecConfig(_Part):
    """No first stage: pixels, folded so that each s x s square becomes one position with 3 s^2 channels."""

    kind: Literal["pixel"] = "pixel"
    space_to_depth: Positive = 2


class AutoencoderCodecConfig(_Part):
    """A trained diffusers autoencoder (AutoencoderKL, VQModel, AutoencoderTiny, AutoencoderDC, ...), used as it is."""

    kind: Literal["autoencoder"]
    path: Path | None = None
    """Folder of the autoencoder: config.json and safetensors."""
    hub_id: str | None = None
    """Or its name on the Hugging Face hub, read from the local hub cache only: nothing is ever downloaded."""
    subfolder: str = ""
    """Folder of the autoencoder inside `hub_id`, for example `vae`."""

    @model_validator(mode="after")
    def _one_source(self) -> "AutoencoderCodecConfig":
        if (self.path is None) == (self.hub_id is None):
            raise ValueError("give either path (a diffusers folder) or hub_id, not both")
        return self


class TrainedCodecConfig(TrainingConfig):
    """An autoencoder that the run trains first, on annotated and unannotated pictures together (RUN/codec)."""

    channels: list[Positive] = [32, 64, 128]
    """Widths of the levels, a multiple of `norm_groups` each; every level but the last halves the picture."""
    latent_channels: Positive
    blocks_per_level: Positive = 1
    norm_groups: Positive = 16
    mid_attention: bool = True
    """Self-attention at the coarsest level."""
    initial_weights: Path | None = None
    """Start from a diffusers folder, or from a checkpoint of CompVis' latent-diffusion (.ckpt, .safetensors), which
    is converted; its architecture must be the one described here."""
    steps: Annotated[int, Field(ge=0)] = 4000
    """0 = `initial_weights` as they are."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema_decay: Fraction = 0.999
    """Largest decay of the averaged weights, which are the ones saved."""
    checkpoint_every_steps: Positive = 250
    seed: int = 0

    @property
    def factor(self) -> int:
        """Side of a picture / side of its latent."""
        return 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _widths_and_weights(self) -> "TrainedCodecConfig":
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of norm_groups ({self.norm_groups})")
        if self.steps == 0 and self.initial_weights is None:
            raise ValueError("steps is 0: give initial_weights, or train for some steps")
        return self


class KLCodecConfig(TrainedCodecConfig):
    """Variational autoencoder (diffusers AutoencoderKL)."""

    kind: Literal["kl"]
    latent_channels: Positive = 4
    kl_weight: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of the Kullback-Leibler divergence of a picture against the L1 error of a picture, both as sums over the
    picture (Rombach et al. 2022)."""


class VQCodecConfig(TrainedCodecConfig):
    """Vector-quantised autoencoder (diffusers VQModel)."""

    kind: Literal["vq"]
    latent_channels: Positive = 3
    num_vq_embeddings: Positive = 512
    """Codes."""
    codebook_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the codebook and commitment terms against the mean L1 error."""


def _codec_kind(value: Any) -> str:
    return value.get("kind", "pixel") if isinstance(value, dict) else getattr(value, "kind", "pixel")


CodecConfig = Annotated[
    Annotated[PixelCodecConfig, Tag("pixel")]
    | Annotated[AutoencoderCodecConfig, Tag("autoencoder")]
    | Annotated[KLCodecConfig, Tag("kl")]
    | Annotated[VQCodecConfig, Tag("vq")],
    Discriminator(_codec_kind),
]


class DiffusionConfig(TrainingConfig):
    """Training of the style-extracting diffusion model."""

    codec: CodecConfig = PixelCodecConfig()
    cache_latents: bool = False
    """Encode each training picture once (in each of its 8 symmetries) instead of in every step, into RUN/latents;
    for autoencoders, and with recolouring off."""
    style: StyleConfig = StyleConfig()
    recolour: RecolourConfig = RecolourConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: Literal["eps", "v", "flow"] = "flow"
    """What the network predicts: noise, velocity (Salimans & Ho 2022), or rectified flow (Liu et al. 2022)."""
    loss: Literal["l1", "l2"] = "l2"
    timesteps: Literal["uniform", "logit-normal"] = "logit-normal"
    """Distribution of training times; logit-normal as in Esser et al. 2024."""
    layout_dropout: Fraction = 0.1
    """Probability that an annotated sample is shown with its layout unknown."""
    unlabeled_fraction: Fraction = 0.5
    """Part of the samples that are unannotated pictures, trained under the "layout unknown" channel."""
    steps: Positive = 4000
    batch: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    ema_decay: Fraction = 0.999
    """Largest decay of the averaged weights (diffusers' EMAModel ramps up to it); sampling uses these weights."""
    checkpoint_every_steps: Positive = 250
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


class Guidance(_Part):
    """Classifier-free guidance while a picture is drawn (see stedm.diffusion.guidance for the formulas)."""

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

    def network_calls(self, steps: int) -> int:
        """Network evaluations for one picture; those that one pass computes together count one by one."""
        guided = [self.at(step, steps) for step in range(steps)]
        return sum(1 + (part.style != 1.0) + (part.layout != 1.0) for part in guided)


_DEFAULT_GUIDANCE = Guidance()


class SynthesisConfig(_Part):
    """The plan (which layout in whose style) and how its pictures are drawn."""

    n_pictures: Positive = 768
    style_pictures: Positive = 4
    """Style pictures per synthetic picture, all of the same unannotated patient (fewer where the patient has fewer)."""
    match_category: bool = True
    """Prior knowledge: a patient of category c gets layouts of annotated patients of category c, where there are
    any, and of all annotated patients otherwise."""
    spread: Literal["patients", "categories"] = "patients"
    """Over what the pictures are spread evenly: unannotated patients, or their categories and in each its patients (for
    categories of very different size)."""
    style_choice: Literal["random", "k-centre"] = "random"
    """`k-centre`: patients, and the style pictures of each, are taken so that they cover the cohort's style vectors
    (greedy farthest-point choice in the style bank of the run's model)."""
    layouts: LayoutKind | Annotated[dict[LayoutKind, Annotated[float, Field(gt=0)]], Field(min_length=1)] = "resample"
    """Where layouts come from (stedm.layout.prior): `resample` = annotated ones as they are; `warp` = deformed ones;
    `recombine` = two of one category joined; `procedural` = random fields with the category's class fractions and
    structure sizes; or a mixture such as {resample: 0.5, warp: 0.5} (kind: weight)."""
    category_fractions: dict[str, dict[str, tuple[Fraction, Fraction]]] = {}
    """Prior knowledge of categories, such as {"3": {tumour: [0.4, 0.8]}}: their layouts are only those in which the
    class takes that part of the picture. Categories without annotated layouts can be described in this way."""
    guidance: Annotated[float, Field(ge=0)] = _DEFAULT_GUIDANCE.style
    """Classifier-free guidance on style; 1 = none."""
    layout_guidance: Annotated[float, Field(ge=0)] = _DEFAULT_GUIDANCE.layout
    """Classifier-free guidance on the layout; 1 = none."""
    guidance_interval: tuple[Fraction, Fraction] = _DEFAULT_GUIDANCE.interval
    """Part of the sampling steps that is guided: fractions of the number of steps, 0 = pure noise, 1 = finished."""
    guidance_rescale: Fraction = _DEFAULT_GUIDANCE.rescale
    """How far the spread of the guided prediction is brought back to that of the conditional one (Lin et al. 2024)."""
    sampler: Literal["ddim", "dpm++", "unipc", "euler"] = "dpm++"
    steps: Positive = 12
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
        return self

    @property
    def layout_weights(self) -> dict[LayoutKind, float]:
        """Probability of each kind of layout."""
        weights = {self.layouts: 1.0} if isinstance(self.layouts, str) else self.layouts
        return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}

    @property
    def network_calls(self) -> int:
        """Network evaluations for one picture (a conditional + unconditional pair counts as two)."""
        return self.full_guidance.network_calls(self.steps)

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


class StainAugmentConfig(_Part):
    """Colour augmentation of the `+stain` arms."""

    hed_sigma: Annotated[float, Field(ge=0)] = 0.2
    """Strength of the haematoxylin-eosin-DAB jitter: each stain is scaled by 1 +- sigma (Tellez et al. 2018)."""
    hed_bias: Annotated[float, Field(ge=0)] = 0.02
    """Largest amount, in natural optical density, that is added to or taken from each stain."""
    brightness: Annotated[float, Field(ge=0)] = 0.15
    contrast: Annotated[float, Field(ge=0)] = 0.15
    saturation: Annotated[float, Field(ge=0)] = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    """Largest turn of the colours, as a part of the colour circle."""
    blur_sigma_px: Annotated[float, Field(ge=0)] = 0.8
    """Largest Gaussian blur in pixels (applied to half of the samples)."""
    probability: Fraction = 0.9
    """Part of the samples that are augmented at all."""


class SegmentationConfig(TrainingConfig):
    """Segmentation networks: one per arm and seed, all with the same steps."""

    architecture: str = "unet"
    """Any architecture name of segmentation_models_pytorch."""
    encoder: str = "tu-resnet10t"
    """Any encoder of segmentation_models_pytorch; `tu-NAME` for a timm backbone."""
    encoder_depth: Annotated[int, Field(ge=3, le=5)] = 4
    decoder_channels: list[Positive] = [64, 32, 16, 8]
    """One width per level of `encoder_depth`, coarse to fine; used by unet, unetplusplus and manet."""
    encoder_weights: Path | None = None
    """Local .safetensors file with encoder weights, as published by timm for `tu-` encoders and by
    segmentation_models_pytorch for the others; null = from scratch. Nothing is ever downloaded."""
    steps: Positive = 400
    lr: Annotated[float, Field(gt=0)] = 3e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 0.1
    dice_weight: Annotated[float, Field(ge=0)] = 0.9
    synthetic_fraction: Fraction = 0.8
    """Part of the training samples that are synthetic, in the `+synthetic` arms (paper: 0.8)."""
    stain: StainAugmentConfig = StainAugmentConfig()
    arms: list[Arm] = ["real", "real+stain", "real+synthetic", "real+stain+synthetic"]
    seeds: list[int] = [0, 1]
    checkpoint_every_steps: Positive = 400

    @property
    def takes_decoder_channels(self) -> bool:
        """Whether the decoder has one width per encoder level; the others keep their own widths."""
        return self.architecture.lower() in ("unet", "unetplusplus", "manet")

    @model_validator(mode="after")
    def _one_width_per_level(self) -> "SegmentationConfig":
        if self.takes_decoder_channels and len(self.decoder_channels) != self.encoder_depth:
            raise ValueError(
                f"decoder_channels has {len(self.decoder_channels)} widths for encoder_depth {self.encoder_depth}; "
                "give one per level"
            )
        return self


class EvaluationConfig(_Part):
    """What is scored, and the statistics over patients."""

    split: Literal["val", "test"] = "test"
    unit: Literal["patient", "category"] = "patient"
    """Whose pixels are pooled before means, spread and tests: a patient's, or those of all pictures of a category
    (where a picture is a patient of its own)."""
    bootstrap: Positive = 2000
    """Resamples of patients for the intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: int = 0

    @property
    def units(self) -> str:
        """Plural of `unit`."""
        return {"patient": "patients", "category": "categories"}[self.unit]


class RunConfig(_Part):
    """One whole experiment, `stedm run`."""

    name: str
    seed: int = 0
    """Added to the seeds of the parts, so that one number repeats the whole run with other random numbers."""
    data: DataConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def fingerprint(self) -> str:
        """Names this configuration: equal for equal content, whatever the order of keys in the file."""
        return fingerprint(self.model_dump(mode="json"))


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides, validate.

    Relative paths inside the file are taken relative to the file. Raises `StedmError` with one line per problem.
    """
    path = Path(path)
    return parse_config(_read_values(path, overrides), source=str(path), base=path.parent)


def load_phantom_config(path: str | Path | None, overrides: list[str] | None = None) -> PhantomConfig:
    """The phantom part of a run configuration, or the default one; overrides are `picture_px=128` and the like."""
    if path is not None:
        phantom = load_config(path, [f"data.phantom.{text}" for text in overrides or []]).data.phantom
        if phantom is None:
            raise StedmError(f"{path}: has no data.phantom")
        return phantom
    return checked(PhantomConfig, _read_values(None, overrides), "--set")


def _read_values(path: Path | None, overrides: list[str] | None) -> dict[str, Any]:
    """Plain values of a YAML file (of nothing if None) with overrides."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path is not None and not path.is_file():
        raise StedmError(f"{path}: no such configuration file")
    for text in overrides or []:
        if "=" not in text:
            raise StedmError(f"--set {text}: write it as key=value, for example --set diffusion.steps=500")
    try:
        read = OmegaConf.load(path) if path is not None else OmegaConf.create()
        values = OmegaConf.to_container(OmegaConf.merge(read, OmegaConf.from_dotlist(overrides or [])), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise StedmError(f"{path}: not a readable YAML configuration ({_one_line(error)})") from error
    if not isinstance(values, dict):
        raise StedmError(f"{path}: a configuration is a mapping of keys to values")
    return values


def parse_config(values: dict[str, Any], source: str, base: Path | None = None) -> RunConfig:
    """Validate plain values; `base` is the folder that relative paths refer to."""
    config = checked(RunConfig, values, source)
    return config if base is None else _resolve_paths(config, base)


def checked(model: type[_Model], values: dict[str, Any], source: str) -> _Model:
    """Validate plain values as a part of the configuration; `StedmError` with one line per problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{source}: {'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors()]
        raise StedmError("\n".join(lines)) from error


def _resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """Make every `Path` of the configuration absolute, so that a run folder means the same from anywhere."""

    def resolve(part: BaseModel) -> BaseModel:
        changed = {}
        for key, value in part:
            if isinstance(value, Path):
                changed[key] = (base / value.expanduser()).resolve()
            elif isinstance(value, BaseModel):
                changed[key] = resolve(value)
        return part.model_copy(update=changed)

    resolved = resolve(config)
    assert isinstance(resolved, RunConfig)
    return resolved


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML; reading it again gives an equal configuration."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
