"""The guarded reader of what stedm has written itself: JSON, parquet and CSV, against a schema.

Whatever a damaged, truncated or made-up file holds, the answer is its content, checked, or a `StedmError` of one line.
Parquet files carry the SHA-256 of their content; those without it (from elsewhere) are checked by their schema alone.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from stedm.errors import StedmError
from stedm.io.files import replacing, require_file
from stedm.io.tables import read_cells

MOST_JSON_BYTES = 64 << 20
MOST_ROWS = 20_000_000
MOST_TABLE_BYTES = 16 << 30
"""Of a table in memory, as its file says."""
_SUM = "sha256"
_T = TypeVar("_T")


# ---- JSON ---------------------------------------------------------------------------------------------------------


def read_json(path: str | Path, schema: type[_T], *, hint: str = "") -> _T:
    """Read a JSON file as a pydantic model, a dataclass or a type; types are strict, NaN and keys twice are refused.

    hint: what to do about a bad file.
    """
    path = Path(path)
    try:
        require_file(path)
        if (size := path.stat().st_size) > MOST_JSON_BYTES:
            raise StedmError(f"{path}: {size} bytes, too large for what it should be{_then(hint)}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StedmError(f"{path}: missing{_then(hint)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StedmError(f"{path}: not readable ({error}){_then(hint)}") from error
    return parse_json(text, schema, str(path), hint=hint)


def parse_json(text: str, schema: type[_T], source: str, *, hint: str = "") -> _T:
    """JSON text as `read_json` reads it; `source` begins the line of an error."""
    try:
        # Pydantic's own parser takes NaN and the last of two equal keys.
        json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_twice)
        return TypeAdapter(schema).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StedmError(f"{source}: {where and where + ': '}{first['msg']}{_then(hint)}") from error
    except (ValueError, RecursionError) as error:
        raise StedmError(f"{source}: not valid JSON ({error}){_then(hint)}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _then(hint: str) -> str:
    return f"; {hint}" if hint else ""


# ---- tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """What a column of a table holds.

    kind: `text` (never missing), `int`, `float`, or `vector` (equally long lists of finite floats).
    low, high: bounds of numbers. may_be_nan: whether a number may be missing. optional: whether the column may be.
    """

    kind: Literal["text", "int", "float", "vector"] = "text"
    low: float = -float("inf")
    high: float = float("inf")
    may_be_nan: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    def problem(self, values: pd.Series) -> str:
        """What is wrong with the values; "" = nothing."""
        if self.kind == "text":
            bad = [value for value in values.unique() if not isinstance(value, str)]
            bad = bad or [value for value in values.unique() if self.choices and value not in self.choices]
            return f"holds {str(bad[0])[:40]!r}" if bad else ""
        if self.kind == "vector":
            return _vector_problem(values)
        if self.kind == "int" and not pd.api.types.is_integer_dtype(values.dtype):
            return f"holds {values.dtype}, not whole numbers"
        if not pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype):
            return f"holds {values.dtype}, not numbers"
        numbers = values.to_numpy(float, na_value=np.nan)
        if np.isnan(numbers).any() and not self.may_be_nan:
            return "has empty cells"
        outside = numbers[(numbers < self.low) | (numbers > self.high) | np.isinf(numbers)]
        return f"holds {outside[0]:g}, expected {self.low:g} to {self.high:g}" if len(outside) else ""


def _vector_problem(values: pd.Series) -> str:
    try:
        stacked = np.stack([np.asarray(value, np.float32) for value in values])
    except (ValueError, TypeError):
        return "holds something else than equally long vectors"
    if stacked.ndim != 2 or stacked.shape[1] == 0:
        return "holds something else than equally long vectors"
    return "" if np.isfinite(stacked).all() else "holds values that are not finite"


def check_table(table: pd.DataFrame, columns: Mapping[str, Column], source: str, hint: str = "") -> None:
    """`StedmError` with one line where columns are missing, or for the first that holds something else."""
    missing = [name for name, column in columns.items() if name not in table and not column.optional]
    if missing:
        raise StedmError(f"{source}: columns missing: {', '.join(missing)}{_then(hint)}")
    for name, column in columns.items():
        if name in table and (problem := column.problem(table[name])):
            raise StedmError(f"{source}: column {name} {problem}{_then(hint)}")


def write_parquet(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table with its `attrs` and the SHA-256 of both, atomically."""
    sealed = table.copy(deep=False)
    sealed.attrs = {**table.attrs, _SUM: content_sum(table)}
    with replacing(path) as temporary:
        sealed.to_parquet(temporary, index=False)


def read_parquet(path: str | Path, columns: Mapping[str, Column], *, what: str, hint: str = "") -> pd.DataFrame:
    """Read a table of `write_parquet`, or of others, with at least these columns.

    what: such as `a plan`, for the line that says that it isn't one; hint: what to do then.
    """
    path = Path(path)
    try:
        told = pq.read_metadata(path)
        size = sum(told.row_group(i).total_byte_size for i in range(told.num_row_groups))
        if told.num_rows > MOST_ROWS or size > MOST_TABLE_BYTES:
            raise StedmError(f"{path}: {told.num_rows} rows of {size} bytes, too large for it{_then(hint)}")
        if b"pandas" not in (told.metadata or {}):
            # Without it the sum could be gone too.
            raise StedmError(f"{path}: not {what}, or damaged{_then(hint)}")
        table = pd.read_parquet(path)
        wanted = table.attrs.pop(_SUM, None)
        found = content_sum(table) if wanted is not None else None
    except StedmError:
        raise
    except Exception as error:  # the reader raises whatever a damaged file makes it raise
        raise StedmError(f"{path}: not a readable parquet file ({_short(error)}){_then(hint)}") from error
    if found != wanted:
        raise StedmError(f"{path}: damaged or changed since it was written (its SHA-256 is another){_then(hint)}")
    if not table.columns.is_unique:
        raise StedmError(f"{path}: has a column twice{_then(hint)}")
    check_table(table, columns, f"{path}: not {what}", hint)
    return table


def content_sum(table: pd.DataFrame) -> str:
    """SHA-256 of what a table says: equal before it is written and after it is read."""
    attrs = {key: value for key, value in table.attrs.items() if key != _SUM}
    digest = hashlib.sha256(json.dumps(attrs, sort_keys=True).encode())
    for name, values in table.items():
        digest.update(json.dumps([str(name), len(values)]).encode())
        if len(values) and isinstance(values.iloc[0], np.ndarray):
            stacked = np.stack(values.to_list())
            digest.update(stacked.dtype.str.encode() + stacked.tobytes())
        elif isinstance(values.dtype, pd.CategoricalDtype):
            kinds = [list(values.cat.categories), values.cat.codes.tolist(), bool(values.cat.ordered)]
            digest.update(json.dumps(kinds, default=str).encode())
        else:
            cells = [None if gone else value for value, gone in zip(values.tolist(), values.isna(), strict=True)]
            digest.update(json.dumps(cells, default=str).encode())
    return digest.hexdigest()


def read_csv_table(path: str | Path, columns: Mapping[str, Column], *, hint: str = "") -> pd.DataFrame:
    """Read a CSV table that stedm wrote: columns of `columns` as they say there, all others as numbers."""
    path = Path(path)
    texts = {name: str for name, column in columns.items() if column.kind == "text"}
    try:
        table = read_cells(path)
        numbers = {name: pd.to_numeric(table[name].mask(table[name] == "")) for name in table if name not in texts}
        table = table.assign(**numbers)
    except FileNotFoundError as error:
        raise StedmError(f"{path}: missing{_then(hint)}") from error
    except Exception as error:  # pandas' parsers raise whatever a damaged file makes them raise
        raise StedmError(f"{path}: not a readable table ({_short(error)}){_then(hint)}") from error
    check_table(table, columns, str(path), hint)
    return table


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
