"""Whose images they are: a table (CSV or Excel) with a row an image or a row a patient, or a pattern of file names."""

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.errors import StedmError
from stedm.exchange.source import SourceImage, normal, some, split_word
from stedm.io.files import require_file, visible_files
from stedm.io.tables import SPLITS, refuse_columns_twice

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".xlsm", ".ods")
_ROLES = {
    "patient_id": (
        r"patient[-_ ]?(id|nr|no|number|name)?",
        r"(case|subject|donor|person|fall|animal)[-_ ]?(id|nr|no|number|name)?",
        r"(?!.*(age|sex|gender|grade|status)).*patient.*",  # what is known of a patient doesn't say who it is
        r"(case|subject|donor|person|fall|animal).*",
    ),
    "slide_id": (r"slide[-_ ]?(id|nr|no|name)?", r"(wsi|block|section|slide).*"),
    "split": (r"split", r"(sub)?set|partition|fold"),
    "category": (
        r"category",
        r"(diagnosis|grade|score|grading|subtype|histology|type).*",
        r"(class|label|group|stage).*",
    ),
    "x": (r"x",),
    "y": (r"y",),
    "mpp": (r"mpp", r"(microns|um|\u00b5m|\u03bcm)[-_ /]*(per)?[-_ /]*(pixel|px)"),
    "slide_mpp": (r"slide_mpp",),
}
"""Columns of a dataset's table, and what people call them, the surest name first."""
_FIELDS = ("patient", "slide", "category", "split")
_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|bmp)$")


@dataclass(frozen=True)
class People:
    """Facts of each image by its key, and where they are from in words by column."""

    facts: dict[str, dict[str, str]]
    sources: dict[str, str]
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Columns of the table that were not taken over."""


def find_people(root: Path, images: Sequence[SourceImage], given: str | None) -> People:
    """What `--patients` says: a table or a pattern; without it the table in the folder that names its images, of
    several the first that has patients.

    Raises:
        StedmError: the table can't be read or names no image, an image has no row, or a pattern doesn't fit.
    """
    if given is not None and "{" in given:
        return _by_pattern(images, given)
    if given is not None:
        path = next((place for place in (Path(given), root / given) if place.is_file()), None)
        if path is None:
            raise StedmError(
                f"{given}: no such table; --patients takes a CSV or Excel file, or a pattern such as {{patient}}_*"
            )
        return people_of(read_people(path), path, images)
    without_patients = None
    for path in visible_files(root, deep=False):
        # Excel keeps a file ~$NAME beside a table that is open in it.
        if path.suffix.lower() in TABLE_SUFFIXES and path.suffix != ".txt" and not path.name.startswith("~$"):
            table = read_people(path)
            if _image_column(table, images) is not None:
                if "patient_id" in _roles(table):
                    return people_of(table, path, images)
                without_patients = without_patients or (table, path)
    return People({}, {}) if without_patients is None else people_of(*without_patients, images)


# ---- tables -----------------------------------------------------------------------------------------------------


def read_people(path: Path) -> pd.DataFrame:
    """A table as text: CSV with any separator, byte order mark and line ends, or the first sheet of a workbook."""
    try:
        require_file(path)
        table = _workbook(path) if path.suffix.lower() in TABLE_SUFFIXES[3:] else _separated(path)
    except (OSError, ValueError, csv.Error, pd.errors.ParserWarning) as error:
        raise StedmError(f"{path}: not readable as a table ({' '.join(str(error).split())}); save it as CSV") from error
    table = table.rename(columns=lambda name: str(name).strip().strip('"'))
    table = table.apply(lambda column: column.str.strip())
    table = table.loc[(table != "").any(axis=1), [name for name in table if not str(name).startswith("Unnamed:")]]
    if table.empty:
        raise StedmError(f"{path}: holds no rows; give the table of the images or patients")
    return table.reset_index(drop=True)


def decoded(path: Path) -> str:
    """The text of a file, whatever system wrote it, with \\n at the end of lines; `StedmError` for what is no text."""
    try:
        require_file(path)
        data = path.read_bytes()
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = data.decode("utf-16")
        else:
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = data.decode("cp1252")  # what spreadsheets and editors of Windows write
    except (OSError, UnicodeDecodeError) as error:
        raise StedmError(f"{path}: not readable as text ({error}); save it in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _separated(path: Path) -> pd.DataFrame:
    lines = decoded(path)
    if lines.startswith("sep=") and "\n" in lines:
        lines = lines.split("\n", 1)[1]
    head = lines.split("\n", 1)[0]
    separator = max(",;\t|", key=head.count)
    refuse_columns_twice(path, head, separator)
    how = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "index_col": False}
    with warnings.catch_warnings():
        # Pandas only warns of rows longer than the header, and drops their end.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(io.StringIO(lines), sep=separator, **how)


def _workbook(path: Path) -> pd.DataFrame:
    try:
        import python_calamine  # noqa: F401 - pandas finds it by its name
    except ImportError as error:
        raise StedmError(
            f'{path}: Excel files need python-calamine: pip install "stedm[data]"; or save it as CSV'
        ) from error
    try:
        table = pd.read_excel(path, engine="calamine", dtype=object, keep_default_na=False)
    except Exception as error:  # of damaged files the reader raises errors of its own
        raise ValueError(str(error)) from error
    return table.map(_cell).astype(str)


def _cell(value: Any) -> str:
    # Spreadsheets hold every number as a float: patient 7, not 7.0.
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def people_of(table: pd.DataFrame, path: Path, images: Sequence[SourceImage]) -> People:
    """Facts of the images from a table: the column that names images is found by what it holds, the others by name."""
    roles = _roles(table)
    column = _image_column(table, images)
    if column is not None:
        roles = {role: name for role, name in roles.items() if name != column}
        row_of, extra = _rows_by_image(table, column, path, images)
    elif "patient_id" in roles:
        row_of, extra = _rows_by_patient(table, roles["patient_id"], path, images), 0
    else:
        raise StedmError(
            f"{path}: no column names images (as {images[0].key}) and none is called patient; the columns are "
            f"{', '.join(table.columns[:8])}"
        )
    notes = [f"{path.name}: {extra} rows name no image here"] if extra else []
    facts, problems = {}, []
    for key, row in row_of.items():
        facts[key] = {role: value for role, name in roles.items() if (value := str(table.at[row, name]))}
        for role in {"mpp", "slide_mpp", "x", "y"} & set(facts[key]):
            facts[key][role] = facts[key][role].replace(",", ".")
        if split := facts[key].get("split"):
            if (word := split_word(split)) is None:
                problems.append(f"{path}: split {split!r} of {key} is none of train, unlabeled, val, test")
            facts[key]["split"] = word or ""
    if "patient_id" in roles and (bare := [key for key in facts if "patient_id" not in facts[key]]):
        problems.append(f"{path}: no patient for {some(bare)}; fill column {roles['patient_id']}")
    if problems:
        raise StedmError.of(problems)
    used = {column, *roles.values()}
    return People(
        facts,
        {role: f"{path.name}, column {name}" for role, name in roles.items()},
        notes,
        [name for name in table if name not in used],
    )


def _roles(table: pd.DataFrame) -> dict[str, str]:
    """The column of the table for each column of a dataset's."""
    roles: dict[str, str] = {}
    for role, patterns in _ROLES.items():
        for pattern in patterns:
            named = [name for name in table if re.fullmatch(pattern, name.casefold()) and name not in roles.values()]
            if named and role not in roles:
                roles[role] = named[0]
    return roles


def _names(image: SourceImage) -> list[str]:
    """What a table may call an image, the fullest name first."""
    names = [*_tails(image.key), *_tails(str(image.path))]
    return sorted(dict.fromkeys(names), key=lambda name: -name.count("/"))


def _tails(name: str) -> list[str]:
    """A name with all of its folders, then with one less at a time; with and without the ending of an image file."""
    parts = normal(name).removeprefix("./").split("/")
    tails = ["/".join(parts[first:]) for first in range(len(parts))]
    return list(dict.fromkeys(name for tail in tails for name in (tail, _SUFFIX.sub("", tail))))


def _image_column(table: pd.DataFrame, images: Sequence[SourceImage]) -> str | None:
    """The column most of whose cells are names of images."""
    known = {name for image in images for name in _names(image)}
    # Different ones: patients 1 to 8 are no names of images 1.png to 16.png.
    found = {name: sum(bool(known & set(_tails(cell))) for cell in set(table[name])) for name in table}
    best = max(found, key=found.__getitem__)
    return best if found[best] >= max(1, min(len(images), len(table)) // 2) and found[best] > 0 else None


def _rows_by_image(
    table: pd.DataFrame, column: str, path: Path, images: Sequence[SourceImage]
) -> tuple[dict[str, int], int]:
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(table[column]):
        for name in _tails(cell):
            rows.setdefault(name, []).append(row)
    # One name of several images or rows tells nothing: fuller ones do.
    shared = Counter(name for image in images for name in _names(image))
    row_of, bare = {}, []
    for image in images:
        found = next((rows[n] for n in _names(image) if n in rows and shared[n] == 1), [])
        if len(found) > 1:
            raise StedmError(f"{path}: {image.key} is in {len(found)} rows, as {table[column][found[0]]}; keep one")
        bare += [] if found else [image.key]
        row_of |= {image.key: found[0]} if found else {}
    if bare:
        raise StedmError(f"{path}: no row for {some(bare)} in column {column}; add it, or move the image away")
    return row_of, len(table) - len(set(row_of.values()))


def _rows_by_patient(table: pd.DataFrame, column: str, path: Path, images: Sequence[SourceImage]) -> dict[str, int]:
    """By the patient whose id is a part of the image's name; P1-2 and not P1, where both are."""
    twice = [patient for patient, n in Counter(table[column]).items() if n > 1]
    if twice:
        raise StedmError(f"{path}: patient {some(twice)} is in several rows, and no column names images; keep one row")
    patterns = [
        (re.compile(rf"(?<![^\W_]){re.escape(normal(p))}(?![^\W_])"), row) for row, p in enumerate(table[column]) if p
    ]
    row_of, bare, doubtful = {}, [], []
    for image in images:
        name = normal(image.key)
        found = [(range(*match.span()), row) for pattern, row in patterns for match in pattern.finditer(name)]
        rows = {row for part, row in found if not any(_lies_in(part, other) for other, _ in found)}
        bare += [] if rows else [image.key]
        doubtful += [image.key] if len(rows) > 1 else []
        row_of[image.key] = min(rows, default=0)
    if doubtful:
        raise StedmError(
            f"{path}: several patients of column {column} are part of the name of {some(doubtful)}; add a column that "
            "names images, or give a pattern such as --patients {patient}_*"
        )
    if bare:
        raise StedmError(
            f"{path}: no patient of column {column} is part of the name of {some(bare)}; add a column that names images"
        )
    return row_of


def _lies_in(part: range, other: range) -> bool:
    return len(part) < len(other) and other.start <= part.start and part.stop <= other.stop


# ---- patterns ---------------------------------------------------------------------------------------------------


def _by_pattern(images: Sequence[SourceImage], pattern: str) -> People:
    """`{patient}_*`, `{category}/{patient}/*`: names of files, and of folders where there is a slash."""
    bare = _SUFFIX.sub("", pattern)
    fields = re.findall(r"\{(\w*)\}", bare)
    if "patient" not in fields or set(fields) - set(_FIELDS) or len(set(fields)) < len(fields):
        raise StedmError(
            f"--patients {pattern!r}: a pattern has {{patient}} once, and may have {{slide}}, {{category}}, {{split}}"
        )
    parts = re.split(r"(\{\w+\}|\*)", bare)
    regex = "".join(
        f"(?P<{part[1:-1]}>[^/]+?)" if part[:1] == "{" else "[^/]*" if part == "*" else re.escape(part)
        for part in parts
    )
    facts, strangers = {}, []
    for image in images:
        found = re.fullmatch(rf"(?:.*/)?{regex}", image.path.with_suffix("").as_posix())
        if found is None:
            strangers.append(image.path.name)
            continue
        said = {
            role if role in ("category", "split") else f"{role}_id": text for role, text in found.groupdict().items()
        }
        if "split" in said:
            word = split_word(said["split"])
            if word is None:
                raise StedmError(
                    f"--patients {pattern!r}: {said['split']!r} of {image.path.name} is none of {', '.join(SPLITS)}"
                )
            said["split"] = word
        facts[image.key] = said
    if strangers:
        raise StedmError(f"--patients {pattern!r}: doesn't fit {some(strangers)}; * stands for any letters")
    roles = {name if name in ("category", "split") else f"{name}_id" for name in fields}
    return People(facts, dict.fromkeys(roles, f"names, {pattern}"))
