"""What every part of the configuration is made of."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from stedm.errors import StedmError
from stedm.io.yaml_text import parse_yaml, read_yaml

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
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
    """What is probably meant: `; did you mean steps?` for an unknown key."""
    kind, given = error["type"], error["input"]
    if kind == "string_type" and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if kind == "list_type" and isinstance(given, str | int | float):
        return f"; write [{given}]"
    if kind == "invalid_key":
        return "; put it in quotes, or is its comma a decimal point?"
    if kind != "extra_forbidden":
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


def read_values(path: Path | None, overrides: list[str] | None) -> dict[str, Any]:
    """Plain values of a YAML file (of nothing if None) with overrides."""
    if path is not None and not path.is_file():
        raise StedmError(f"{path}: no such configuration file; give a YAML file or a dataset folder")
    where = path if path is not None else "--set"
    try:
        values = read_yaml(path) if path is not None else {}
        if not isinstance(values, dict):
            raise StedmError(
                f"{path}: a configuration is a mapping of keys to values; write lines such as `name: my cohort`"
            )
        for text in overrides or []:
            key, equals, value = text.partition("=")
            if not equals:
                raise StedmError(f"--set {text}: write it as key=value, for example --set diffusion.steps=500")
            values = with_key(values, key.strip(), _override(value.strip()))
        return values
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise StedmError(f"{where}: not a readable YAML configuration ({_one_line(error)}); correct it") from error


def _override(text: str) -> Any:
    value = parse_yaml(text)
    # What begins with " #" is a part of a path here, and no comment.
    return text if isinstance(value, str) and text[:1] not in "'\"" else value


def with_key(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The mapping with `a.b.c` set; to a mapping that is there another one is added."""
    first, _, rest = key.partition(".")
    there = values.get(first)
    if rest:
        value = with_key(there if isinstance(there, dict) else {}, rest, value)
    return _over(values, {first: value})


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, one over the other."""
    nested = {name for name in above if isinstance(above[name], dict) and isinstance(below.get(name), dict)}
    return {**below, **{name: _over(below[name], part) if name in nested else part for name, part in above.items()}}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
