"""YAML as people mean it: what users write, and what stedm writes for them."""

import re
from pathlib import Path
from typing import Any

import yaml

from stedm.io.files import require_file

_LARGEST_BYTES = 10 * 10**6
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_NUMBER = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: 1e-4 is a number, a date and 12:30 are texts, a key that is there twice is an
    error, and so are aliases, with which a few lines become gigabytes, and 010, which would be eight."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"*{event.anchor} on line {event.start_mark.line + 1} is an alias; write the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"found duplicate key {key.value} on line {key.start_mark.line + 1}")
            seen |= {(key.tag, str(key.value))}
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        if node.style is None and _LEADING_ZERO.fullmatch(node.value):
            hint = f"leave it out, or write '{node.value}' if it is a name"
            raise yaml.YAMLError(f"{node.value} has a leading zero; {hint}")
        return super().construct_scalar(node)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that any reader could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        style = "'" if _LEADING_ZERO.fullmatch(data) else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)


def _resolvers(others: dict[str, list]) -> dict[str, list]:
    left_out = {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp")}
    return {first: [pair for pair in pairs if pair[0] not in left_out] for first, pairs in others.items()}


_Loader.yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers)
_Dumper.add_representer(str, _Dumper.represent_str)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))
    _kind.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("-+.0123456789"))


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; `OSError`, `ValueError` or `YAMLError` with what is wrong."""
    require_file(path)
    if path.stat().st_size > _LARGEST_BYTES:
        raise ValueError("larger than 10 MB")
    values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    return {} if values is None else values


def parse_yaml(text: str) -> Any:
    """The same of a text."""
    try:
        return yaml.load(text, _Loader)
    except (RecursionError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def yaml_text(values: Any, *, short: bool = False) -> str:
    """Plain values as YAML, which `read_yaml` and other readers read as they were; `short`: a list on a line."""
    flow = None if short else False
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow)
