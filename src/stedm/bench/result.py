"""What a target has measured: figures, tables, notes; as plain values for JSON, and on the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass
class Result:
    """Names carry their units: `_s`, `_ms`, `_bytes`, `gflop`; a name with `share` is a fraction of 1."""

    target: str
    figures: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    """By title; the rows of a table have the same keys in the same order."""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"figures": self.figures, "tables": self.tables, "notes": self.notes}


def print_result(shown: "Result | Mapping[str, Any]") -> None:
    """Print a result, or the description of the machine, as tables on stdout."""
    from rich.console import Console

    # In a file or pipe there is no width to keep to.
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    if not isinstance(shown, Result):
        _print_figures(console, "machine", shown)
        return
    if shown.figures:
        _print_figures(console, shown.target, shown.figures)
    for title, rows in shown.tables.items():
        _print_rows(console, f"{shown.target}: {title}", rows)
    for note in shown.notes:
        console.print(note)


def _print_figures(console: Any, title: str, figures: Mapping[str, Any]) -> None:
    rows = [{"name": _words(name), "value": text(name, value)} for name, value in figures.items()]
    _print_rows(console, title, rows, head=False)


def _print_rows(console: Any, title: str, rows: list[Row], head: bool = True) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_header=head
    )
    columns = list(rows[0]) if rows else []
    for name in columns:
        words = isinstance(rows[0][name], str)
        table.add_column(_words(name), justify="left" if words else "right", no_wrap=words)
    for row in rows:
        table.add_row(*(text(name, row[name]) for name in columns))
    console.print(table)


def _words(name: str) -> str:
    return name.replace("_", " ")


def text(name: str, value: Any) -> str:
    """A value as the table shows it: shares in per cent, numbers to three digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if "share" in name:
            return f"{100 * value:.1f} %"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
