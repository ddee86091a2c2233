"""The page of all configuration keys, from the docstrings of stedm.config; and how many there are, used and unused.

python benchmarks/configuration_page.py docs/configuration.md
python benchmarks/configuration_page.py --count
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stedm.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ("configs/*.yaml", "configs/paper/*.yaml", "src/stedm/config/presets/*.yaml", "benchmarks/*.yaml")


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration."""

    path: str
    field: FieldInfo


def sections(model: type[BaseModel] = RunConfig, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Each part of the configuration with its dotted path, the parts of a union one by one."""
    yield path, model
    for name, field in model.model_fields.items():
        for part in _parts(field.annotation):
            yield from sections(part, f"{path}.{name}" if path else name)


def keys(model: type[BaseModel], path: str) -> list[Key]:
    """The leaves of one part."""
    return [
        Key(f"{path}.{name}" if path else name, field)
        for name, field in model.model_fields.items()
        if not list(_parts(field.annotation))
    ]


def all_keys() -> list[str]:
    """Distinct dotted paths of all leaves."""
    return sorted({key.path for path, model in sections() for key in keys(model, path)})


def used_keys() -> set[str]:
    """Keys that a committed configuration sets."""
    found: set[str] = set()
    for pattern in COMMITTED:
        for file in sorted(ROOT.glob(pattern)):
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            base = values.pop("base", {})
            variants = values.pop("variants", {})
            # A specification of runs varies these by itself (benchmarks/downstream.py).
            found |= {
                f"data.{'draw' if key == 'draws' else 'annotated_patients'}"
                for key in ("draws", "budgets")
                if key in values
            }
            for mapping in (values, base):
                found |= set(_flat(mapping))
            for variant in variants.values():
                for key, value in variant.items():
                    found |= set(_flat(value, f"{key}.")) if isinstance(value, dict) else {key}
                    found.add(key)
    return {key for key in all_keys() if any(there == key or there.startswith(f"{key}.") for there in found)}


def page() -> str:
    """docs/configuration.md."""
    lines = [
        "# All configuration keys",
        "",
        f"{len(all_keys())} keys; a file needs `name` and `data.path`. Made from the docstrings of `stedm.config`",
        "by `python benchmarks/configuration_page.py docs/configuration.md`; a test checks that it is current.",
    ]
    for path, model in sections():
        found = keys(model, path)
        if not found:
            continue
        doc = " ".join((model.__doc__ or "").split())
        title = path or "Top level"
        kind = model.model_fields.get("kind")
        if kind is not None and path.endswith("codec"):
            title += f", kind {get_args(kind.annotation)[0]}"
        lines += ["", f"## {title}", doc, "", "| key | type | default | |", "|---|---|---|---|"]
        for key in found:
            text = " ".join((key.field.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{key.path}` | {_type(key.field.annotation)} | {_default(key.field)} | {text} |")
    return "\n".join(lines) + "\n"


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _parts(argument)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def _type(annotation: Any) -> str:
    text = str(annotation) if get_origin(annotation) else getattr(annotation, "__name__", str(annotation))
    for old, new in (("typing.", ""), ("pathlib.", ""), ("NoneType", "null"), ("None", "null")):
        text = text.replace(old, new)
    while "Annotated[" in text:
        start = text.index("Annotated[")
        depth, end = 0, start + len("Annotated[") - 1
        for end in range(start + len("Annotated[") - 1, len(text)):
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            if depth == 0:
                break
        inner = text[start + len("Annotated[") : end]
        text = text[:start] + inner.split(", FieldInfo")[0].split(", Gt")[0] + text[end + 1 :]
    text = re.sub(r"Optional\[(\w+)\]", r"\1 or null", text)
    return text.replace("Literal[", "one of [").replace("|", "or")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return (
        "null"
        if value is None
        else f"`{yaml.safe_dump(value, default_flow_style=True).strip().removesuffix('...').strip()}`"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        yield f"{prefix}{key}"


def main() -> None:
    if sys.argv[1:] == ["--count"]:
        unused = sorted(set(all_keys()) - used_keys())
        print(f"{len(all_keys())} keys, {len(unused)} in no committed configuration: {', '.join(unused) or '-'}")
    else:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
