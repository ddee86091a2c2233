"""One whole experiment, and how it is read from and written to YAML."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, model_validator

from stedm.config.base import Part, checked, read_values
from stedm.config.data import DataConfig, EvaluationConfig, PhantomConfig
from stedm.config.diffusion import DiffusionConfig
from stedm.config.segmentation import SegmentationConfig
from stedm.config.synthesis import SynthesisConfig
from stedm.errors import StedmError
from stedm.io.files import fingerprint


class RunConfig(Part):
    """One whole experiment, `stedm run`."""

    name: str
    seed: int = 0
    """Added to the seeds of the parts, so that one number repeats the whole run with other random numbers."""
    data: DataConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _student_that_can_be(self) -> "RunConfig":
        diffusion, synthesis = self.diffusion, self.synthesis
        if synthesis.sampler == "student" and diffusion.objective != "flow":
            raise ValueError(f"synthesis.sampler: a student needs diffusion.objective flow, not {diffusion.objective}")
        if synthesis.sampler == "student" and synthesis.steps not in diffusion.student.calls:
            raise ValueError(
                f"synthesis.steps: {synthesis.steps} is not one of diffusion.student.calls {diffusion.student.calls}"
            )
        return self

    @model_validator(mode="after")
    def _start_that_can_be(self) -> "RunConfig":
        diffusion, synthesis = self.diffusion, self.synthesis
        if synthesis.start < 1 and (diffusion.objective != "flow" or synthesis.sampler == "student"):
            raise ValueError("synthesis.start: below 1 needs diffusion.objective flow and another sampler than student")
        return self

    @model_validator(mode="after")
    def _rounds_that_differ(self) -> "RunConfig":
        labels, synthesis = self.diffusion.pseudo_labels, self.synthesis
        every_round = labels is not None and labels.every_round
        if synthesis.rounds > 1 and not every_round and "predicted" not in synthesis.layout_weights:
            raise ValueError(
                "synthesis.rounds: only predicted layouts and diffusion.pseudo_labels.every_round change from round to "
                "round; set it to 1"
            )
        if every_round and synthesis.rounds == 1:
            raise ValueError("diffusion.pseudo_labels.every_round: needs synthesis.rounds of 2 or more")
        if every_round and self.diffusion.unlabeled_fraction == 0:
            raise ValueError("diffusion.pseudo_labels.every_round: needs diffusion.unlabeled_fraction above 0")
        if every_round and synthesis.sampler == "student":
            raise ValueError("diffusion.pseudo_labels.every_round: needs another synthesis.sampler than student")
        if labels is not None and labels.fine_tuning is not None and not every_round:
            raise ValueError("diffusion.pseudo_labels.fine_tuning: is of later models; set every_round to true")
        return self

    @property
    def retrains(self) -> bool:
        """Whether each round of the synthetic set has a diffusion model of its own."""
        return self.diffusion.pseudo_labels is not None and self.diffusion.pseudo_labels.every_round

    @property
    def fingerprint(self) -> str:
        """Names this configuration: equal for equal content, whatever the order of keys in the file."""
        return fingerprint(self.model_dump(mode="json"))


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides, validate.

    Relative paths inside the file are taken relative to the file. Raises `StedmError` with one line per problem.
    """
    path = Path(path)
    return parse_config(read_values(path, overrides), source=str(path), base=path.parent)


def load_phantom_config(path: str | Path | None, overrides: list[str] | None = None) -> PhantomConfig:
    """The phantom part of a run configuration, or the default one; overrides are `image_px=128` and the like."""
    if path is not None:
        phantom = load_config(path, [f"data.phantom.{text}" for text in overrides or []]).data.phantom
        if phantom is None:
            raise StedmError(f"{path}: has no data.phantom")
        return phantom
    return checked(PhantomConfig, read_values(None, overrides), "--set")


def parse_config(values: dict[str, Any], source: str, base: Path | None = None) -> RunConfig:
    """Validate plain values; `base` is the folder that relative paths refer to."""
    config = checked(RunConfig, values, source)
    return config if base is None else _resolve_paths(config, base)


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
