"""One whole experiment, and how it is read from and written to YAML."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, model_validator

from stedm.config.base import Part, checked, read_values
from stedm.config.data import DataConfig, EvaluationConfig, PhantomConfig
from stedm.config.diffusion import DiffusionConfig
from stedm.config.machine import MachineConfig
from stedm.config.recolour import RecolourConfig
from stedm.config.rounds import RoundsConfig
from stedm.config.segmentation import SegmentationConfig
from stedm.config.synthesis import SynthesisConfig
from stedm.errors import StedmError
from stedm.io.files import fingerprint
from stedm.io.yaml_text import yaml_text

Preset = Literal["cpu", "gpu", "paper"]
_LARGEST_IMAGE_PX: dict[Preset, int] = {"cpu": 64, "gpu": 256, "paper": 512}
_LARGEST_WITHOUT_LATENTS_PX = 128


class RunConfig(Part):
    """One whole experiment, `stedm run`. A file needs `name` and `data.path`; the defaults are what is recommended."""

    name: str
    preset: Preset = "cpu"
    """Sizes that follow from the machine, under what the file says: `cpu` = the defaults; `gpu` and `paper` as
    src/stedm/config/presets has them."""
    seed: int = 0
    """One number repeats the whole run with other random numbers."""
    data: DataConfig
    machine: MachineConfig = MachineConfig()
    recolour: RecolourConfig = RecolourConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    rounds: RoundsConfig = RoundsConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _start_that_can_be(self) -> "RunConfig":
        predicted = self.rounds.predicted
        if predicted and predicted.start < 1 and self.diffusion.objective != "flow":
            raise ValueError("rounds.predicted.start: below 1 needs diffusion.objective flow; set it to 1")
        return self

    @property
    def largest_image_px(self) -> int:
        """Side of the images that networks see, where the data have larger ones and `data.image_px` is null: pixels
        without an autoencoder cost too much beyond 128 px."""
        largest = _LARGEST_IMAGE_PX[self.preset]
        return min(largest, _LARGEST_WITHOUT_LATENTS_PX) if self.diffusion.codec.kind == "pixel" else largest

    @property
    def learns_from_labels(self) -> bool:
        """Whether the diffusion model is shown pseudo-labels of unannotated images."""
        return self.rounds.labels is not None and self.diffusion.unlabeled_fraction > 0

    @property
    def fine_tunes(self) -> bool:
        """Whether each round has a diffusion model of its own."""
        return self.rounds.last > 1 and self.rounds.fine_tune is not None and self.learns_from_labels

    @property
    def fingerprint(self) -> str:
        """Names this configuration: equal for equal content, whatever the order of keys in the file."""
        return fingerprint(self.model_dump(mode="json"))


def load_config(path: str | Path, overrides: list[str] | None = None, preset: str | None = None) -> RunConfig:
    """Read a YAML file, apply `a.b=c` overrides, validate. A dataset folder instead of a file means all defaults.

    Relative paths inside the file are taken relative to the file. Raises `StedmError` with one line per problem.
    """
    path = Path(path)
    given = overrides or []
    if preset is not None:
        given = [*given, f"preset={preset}"]
    if path.is_dir():
        values = {"name": path.resolve().name, **read_values(None, given)}
        values["data"] = {"path": str(path.resolve()), **(values.get("data") or {})}
        return parse_config(values, source=str(path), base=Path())
    if path.name in ("dataset.yaml", "metadata.csv", "metadata.parquet"):
        raise StedmError(f"{path}: is a part of a dataset folder; give the folder, or a configuration")
    return parse_config(read_values(path, given), source=str(path), base=path.parent)


def load_phantom_config(path: str | Path | None, overrides: list[str] | None = None) -> PhantomConfig:
    """The phantom part of a run configuration, or the default one; overrides are `image_px=128` and the like."""
    if path is not None:
        phantom = load_config(path, [f"data.phantom.{text}" for text in overrides or []]).data.phantom
        if phantom is None:
            raise StedmError(f"{path}: has no data.phantom; add it, or leave --config out")
        return phantom
    return checked(PhantomConfig, read_values(None, overrides), "--set")


def parse_config(values: dict[str, Any], source: str, base: Path | None = None) -> RunConfig:
    """Validate plain values, which lie over those of their preset; relative paths refer to the folder `base`."""
    config = checked(RunConfig, _over_preset(values), source)
    return config if base is None else resolve_paths(config, base)


def _over_preset(values: dict[str, Any]) -> dict[str, Any]:
    from importlib.resources import files

    import yaml

    file = files("stedm.config") / "presets" / f"{values.get('preset', 'cpu')}.yaml"
    return _over(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, values) if file.is_file() else values


def _over(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, `values` over `below`; a part of another `kind` replaces the one below whole."""
    merged = dict(below)
    for key, value in values.items():
        there = below.get(key)
        both = isinstance(there, dict) and isinstance(value, dict)
        # Keys that the kind below doesn't have are those of another one.
        of_this_kind = both and value.get("kind", there.get("kind")) == there.get("kind") and set(value) <= set(there)
        alike = of_this_kind if both and "kind" in there else both
        merged[key] = _over(there, value) if alike else value
    return merged


def resolve_paths(config: RunConfig, base: Path) -> RunConfig:
    """Make every `Path` of the configuration absolute, so that a run folder means the same from anywhere."""

    def resolve(part: BaseModel) -> BaseModel:
        changed = {}
        for key, value in part:
            if isinstance(value, Path):
                changed[key] = (base / value.expanduser()).resolve()
            elif key == "source" and (folder := base / Path(value).expanduser()).is_dir():
                # A folder of an autoencoder; else a name on the Hugging Face hub.
                changed[key] = str(folder.resolve())
            elif isinstance(value, BaseModel):
                changed[key] = resolve(value)
        return part.model_copy(update=changed)

    resolved = resolve(config)
    assert isinstance(resolved, RunConfig)
    return resolved


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML; reading it again gives an equal configuration."""
    return yaml_text(config.model_dump(mode="json"))
