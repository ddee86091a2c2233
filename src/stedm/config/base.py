"""What every part of the configuration is made of."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stedm.errors import StedmError

Precision = Literal["auto", "fp32", "bf16"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
_Model = TypeVar("_Model", bound=BaseModel)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TrainingConfig(Part):
    """What every training loop needs (see stedm.training.trainer)."""

    steps: Positive
    batch: Positive = 16
    lr: Annotated[float, Field(gt=0)]


def checked(model: type[_Model], values: dict[str, Any], source: str) -> _Model:
    """Validate plain values as a part of the configuration; `StedmError` with one line per problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{source}: {'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors()]
        raise StedmError("\n".join(lines)) from error


def read_values(path: Path | None, overrides: list[str] | None) -> dict[str, Any]:
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
        merged = OmegaConf.merge(read, OmegaConf.from_dotlist(overrides or []))
        _refuse_resolvers(OmegaConf.to_container(merged, resolve=False), str(path or "--set"))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise StedmError(f"{path}: not a readable YAML configuration ({_one_line(error)})") from error
    if not isinstance(values, dict):
        raise StedmError(f"{path}: a configuration is a mapping of keys to values")
    return values


def _refuse_resolvers(value: Any, source: str, key: str = "") -> None:
    """Refuse `${oc.env:NAME}` and the like: a configuration of somebody else would carry secrets of the environment
    into config.yaml and the report. `${a.b}`, the value of another key, is fine."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            _refuse_resolvers(item, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and ":" in value.partition("${")[2]:
        raise StedmError(f"{source}: {key}: {value[:40]!r} would be filled in from elsewhere; write the value itself")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
