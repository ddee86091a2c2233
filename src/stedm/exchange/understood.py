"""What was understood of a source, for a terminal."""

from collections import Counter

import pandas as pd

from stedm.columns import aligned, fitted
from stedm.exchange.importing import Understood
from stedm.io.tables import SPLITS

_COLUMNS = {
    "patient_id": "patients",
    "slide_id": "slides",
    "category": "categories",
    "split": "split",
    "mpp": "microns per px",
}
_MOST, _WIDE = 6, 60


def understood_text(found: Understood) -> str:
    """A table of what the source is, what its masks mean and where patients, categories and the split are from."""
    images, rows = found.source.images, found.rows
    annotated = [image for image in images if image.is_annotated]
    masks = [str(len(annotated)), _formats([image.mask for image in annotated if image.mask])]
    lines = [
        ["source", f"{found.source.root}: {found.source.kind}"],
        ["images", f"{len(images)} {_formats([image.path for image in images])}, {_sizes(found)}"],
        ["masks", f"{' '.join(filter(None, masks))}: {found.labels.encoding}"],
        *_classes(found),
    ]
    for column, name in _COLUMNS.items():
        if column in rows and (rows[column] != "").any() and column in found.sources:
            values = rows[column][rows[column].astype(str) != ""]
            # How many are in each split stands in the table below.
            counted = "" if column == "split" else f"{_counted(column, values)}, "
            lines.append([name, f"{counted}{found.sources[column]}"])
    if "mpp" not in rows:
        lines.append([_COLUMNS["mpp"], "not known; --mpp says it (for slides, and to see images at one resolution)"])
    lines.append(["licence", fitted(found.source.licence, _WIDE) or "not said; fill it in in dataset.yaml"])
    if found.unused:
        lines.append(["left out", f"columns {', '.join(fitted(name, _WIDE) for name in found.unused[:_MOST])}"])
    return f"{aligned(lines)}\n\n{_split_table(rows)}"


def _classes(found: Understood) -> list[list[str]]:
    parts = [(f"{index} {name}", found.fractions[name]) for index, name in enumerate(found.labels.classes)]
    parts += [("ignored", found.fractions["ignored"])] if found.fractions["ignored"] else []
    shown = [f"{fitted(name)} {part:.1%}" for name, part in parts[:_MOST]]
    return [["classes", ", ".join(shown) + (f" and {len(parts) - _MOST} more" if parts[_MOST:] else "")]]


def _formats(paths: list) -> str:
    return ", ".join(name for name, _ in Counter(path.suffix[1:].upper() for path in paths).most_common())


def _sizes(found: Understood) -> str:
    sizes = sorted(set(found.sizes.values()))
    ends = [" x ".join(map(str, size)) for size in (sizes[0], sizes[-1])]
    return f"{ends[0]} px" if len(sizes) == 1 else f"{len(sizes)} sizes, {ends[0]} to {ends[1]} px"


def _counted(column: str, values: pd.Series) -> str:
    if column in ("patient_id", "slide_id"):
        return str(values.nunique())
    if column == "mpp":
        return " to ".join(dict.fromkeys(f"{end:.4g}" for end in (values.min(), values.max())))
    counts = values.value_counts()
    return ", ".join(f"{fitted(name)} {count}" for name, count in list(counts.items())[:_MOST]) + (
        " ..." if len(counts) > _MOST else ""
    )


def _split_table(rows: pd.DataFrame) -> str:
    """Patients and images of each split, and of each category in it."""
    categories = sorted(set(rows["category"]) - {""})[:_MOST]
    head = ["split", "patients", "images", "masks", *(fitted(name, 24) for name in categories)]
    table = [head]
    for split in SPLITS:
        of_split = rows[rows["split"] == split]
        counts = [of_split["patient_id"].nunique(), len(of_split), int(of_split["annotated"].sum())]
        counts += [int((of_split["category"] == name).sum()) for name in categories]
        table.append([split, *map(str, counts)])
    return aligned(table, right=set(range(1, len(head))))
