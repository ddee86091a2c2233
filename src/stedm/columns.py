"""Text in fixed-width columns for a terminal, whatever is in it: wide letters, accents, tabs, names without an end."""

import unicodedata
from collections.abc import Collection, Sequence

LONGEST_NAME = 40


def width(text: str) -> int:
    """Columns of a terminal that a text takes: two for Chinese, Japanese and Korean letters, none for accents."""
    return sum(_width(character) for character in text)


def fitted(text: object, most: int = LONGEST_NAME) -> str:
    """A name on one line in at most so many columns; of a longer one its beginning and its end, where names differ."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    if width(shown) <= most:
        return shown
    head, tail = "", ""
    while width(head) < most * 2 // 3 - 1:
        head, shown = head + shown[0], shown[1:]
    while width(head) + 1 + width(tail) + _width(shown[-1]) <= most:
        tail, shown = shown[-1] + tail, shown[:-1]
    return f"{head}…{tail}"


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), rule: bool = False) -> str:
    """Rows of cells as lines; `right` are the columns whose cells end together, `rule` draws a line under the first."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for number, (cell, wide) in enumerate(zip(row, widths, strict=True)):
            space = " " * (wide - width(cell))
            cells.append(space + cell if number in right else cell + space)
        lines.append("  ".join(cells).rstrip())
    if rule:
        lines.insert(1, "  ".join("-" * wide for wide in widths))
    return "\n".join(lines)


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
