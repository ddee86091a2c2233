"""What every part of the configuration is made of."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from stedm.errors import StedmError
from stedm.io.files import require_file

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
_LARGEST_YAML_BYTES = 10 * 10**6
_Model = TypeVar("_Model", bound=BaseModel)


class Part(BaseModel):
    # Infinite steps, weights or sizes are nowhere meant.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1: `lr: true` would be a learning rate."""
        types = set(_types(cls.model_fields[info.field_name].annotation)) if info.field_name else set()
        if types & {int, float} and bool not in types and any(type(part) is bool for part in _parts(value)):
            raise ValueError("is a truth value; write a number")
        return value


def _types(annotation: Any) -> Iterator[Any]:
    """All types that an annotation is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)


def _parts(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _parts(part)


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
        lines = [
            f"{source}: {'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}{_meant(model, e)}"
            for e in error.errors()
        ]
        raise StedmError("\n".join(lines)) from error


def _meant(model: type[BaseModel], error: Any) -> str:
    """`; did you mean steps?` for an unknown key."""
    if error["type"] != "extra_forbidden":
        return ""
    *path, name = error["loc"]
    models: list[Any] = [model]
    for key in path:
        fields = [part.model_fields[key] for part in models if key in part.model_fields]
        # A part that is one of several kinds adds the name of its kind to the path.
        found = [kind for field in fields for kind in _types(field.annotation) if hasattr(kind, "model_fields")]
        models = found or models
    known = [name for part in models for name in part.model_fields]
    close = get_close_matches(str(name), known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file that a user wrote.

    Keys that are there twice, aliases that grow and numbers with a leading zero are errors.
    Raises `OSError`, `ValueError` or `YAMLError` with what is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    require_file(path)
    if path.stat().st_size > _LARGEST_YAML_BYTES:
        raise ValueError("larger than 10 MB")
    try:
        _refuse_leading_zeros(path.read_text(encoding="utf-8"))
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _refuse_leading_zeros(text: str) -> None:
    # YAML 1.1 reads 010 as eight and 08 as a text, which becomes eight too.
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken) and token.plain and re.fullmatch(r"[-+]?0[0-9_]+", token.value):
            raise ValueError(
                f"{token.value} has a leading zero; leave it out, or write '{token.value}' if it is a name"
            )


def read_values(path: Path | None, overrides: list[str] | None) -> dict[str, Any]:
    """Plain values of a YAML file (of nothing if None) with overrides."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if path is not None and not path.is_file():
        raise StedmError(f"{path}: no such configuration file; give a YAML file or a dataset folder")
    for text in overrides or []:
        if "=" not in text:
            raise StedmError(f"--set {text}: write it as key=value, for example --set diffusion.steps=500")
    try:
        read = read_yaml(path) if path is not None else {}
        for text in overrides or []:
            _refuse_leading_zeros(text.partition("=")[2])
        merged = OmegaConf.merge(OmegaConf.create(read), OmegaConf.from_dotlist(overrides or []))
        _refuse_resolvers(OmegaConf.to_container(merged, resolve=False), str(path or "--set"))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        where = path if path is not None else "--set"
        raise StedmError(f"{where}: not a readable YAML configuration ({_one_line(error)}); correct it") from error
    if not isinstance(values, dict):
        raise StedmError(
            f"{path}: a configuration is a mapping of keys to values; write lines such as `name: my cohort`"
        )
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
