"""Damage to files: by bytes, by what the format is made of, and by what a file system can do."""

import copy
import csv
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

Rng = np.random.Generator
_FILE_SYSTEM = 0.04
_BYTES = 0.45

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**40, 2**63, 10**400, 1e308, -1.5, 1e-320, float("nan"), float("inf"),
    "", " ", "x", "1", "nan", "../../x", "/etc/passwd", "a/b", "a" * 100_000, "\x00", "=1+1", "é\u200b",
    "${oc.env:HOME}",
    [], {}, [[]], [None], {"": ""}, [1, 2, 3], ["a", "a"], {"x": {"y": 1}},
]  # fmt: skip
"""Values that stand where another was expected."""


def damage(path: Path, rng: Rng) -> str:
    """Change a file in place so that its content is another; returns what was done, in a word or two."""
    before = path.read_bytes()
    if rng.random() < _FILE_SYSTEM:
        return _pick(_FILES, rng)(path, before)
    for _ in range(20):
        by_format = FORMATS.get(path.suffix.lower())
        what = by_bytes if by_format is None or rng.random() < _BYTES else by_format
        try:
            after, done = what(before, rng)
        except Exception:  # a content that isn't of its format cannot be damaged by it
            after, done = by_bytes(before, rng)
        if after != before:
            path.write_bytes(after)
            return done
    path.write_bytes(before + b"\0")
    return "a byte more"


def _pick(choices: Any, rng: Rng) -> Any:
    return list(choices)[int(rng.integers(len(choices)))]


# ---- bytes --------------------------------------------------------------------------------------------------------


def by_bytes(content: bytes, rng: Rng) -> tuple[bytes, str]:
    data, n = bytearray(content), len(content)
    if n == 0:
        return bytes(rng.integers(0, 256, 16, np.uint8)), "bytes for nothing"
    # Half of the changes lie near the beginning, where formats say what comes.
    place = int(rng.integers(min(n, 512) if rng.random() < 0.5 else n))
    size = int(min(n - place, 2 ** rng.integers(0, 10)))
    kind = _pick(("bit", "bit", "bits", "byte", "cut", "cut", "hole", "zeros", "ones", "insert", "twice", "empty"), rng)
    if kind == "bit":
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "bits":
        for spot in rng.integers(0, n, int(rng.integers(2, 20))):
            data[int(spot)] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        data[place] = int(rng.integers(256))
    elif kind == "cut":
        data = data[:place]
    elif kind == "hole":
        del data[place : place + size]
    elif kind in ("zeros", "ones"):
        data[place : place + size] = (b"\0" if kind == "zeros" else b"\xff") * size
    elif kind == "insert":
        data[place:place] = rng.integers(0, 256, size, np.uint8).tobytes()
    elif kind == "twice":
        data[place:place] = data[place : place + size]
    else:
        data = bytearray()
    return bytes(data), f"bytes: {kind}"


# ---- JSON and YAML ------------------------------------------------------------------------------------------------


def by_value(root: Any, rng: Rng) -> tuple[Any, str]:
    """A copy of nested dicts and lists with one thing changed."""
    root = copy.deepcopy(root)
    places = list(_places(root))
    if not places:
        return _pick(ODD, rng), "root"
    holder, key = places[int(rng.integers(len(places)))]
    kind = _pick(("replace", "replace", "replace", "delete", "rename", "swap", "number", "deep"), rng)
    if kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "swap":
        other, other_key = places[int(rng.integers(len(places)))]
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == "number" and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * _pick((-1, 0, 2, 10, 1e6, 0.5), rng) + _pick((0, 1, -1), rng)
    elif kind == "deep":
        holder[key] = json.loads("[" * 400 + "]" * 400)
    else:
        kind, holder[key] = "replace", copy.deepcopy(_pick(ODD, rng))
    return root, f"value: {kind}"


def _places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def by_json(content: bytes, rng: Rng) -> tuple[bytes, str]:
    text, kind = content.decode("utf-8"), rng.random()
    if kind < 0.1:
        return _by_text(text, rng)
    if kind < 0.15:
        return b"[" * 100_000, "a deep list"
    value, done = by_value(json.loads(text), rng)
    return json.dumps(value).encode("utf-8", "surrogatepass"), done


def by_yaml(content: bytes, rng: Rng) -> tuple[bytes, str]:
    text, kind = content.decode("utf-8"), rng.random()
    if kind < 0.2:
        return _by_text(text, rng)
    if kind < 0.3:
        extra = _pick(
            (
                "a: !!python/object/apply:os.system [true]\n",
                "b: &b [x, x]\nc: &c [*b, *b]\n" + "".join(f"k{i}: &k{i} [*c, *c]\n" for i in range(3)),
                "x: *nowhere\n",
                "? [a, b]\n: c\n",
                "1: 2\n",
                "\tx: 1\n",
                "<<: {name: y}\n",
                bomb(9),
            ),
            rng,
        )
        return (text + extra if rng.random() < 0.5 else extra + text).encode(), "YAML of its own kind"
    value, done = by_value(yaml.safe_load(text), rng)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass"), done


def bomb(levels: int) -> str:
    """YAML aliases: ten times as many values in each level."""
    lines = ["n0: &n0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"n{i}: &n{i} [{', '.join([f'*n{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + f"\nname: *n{levels - 1}\nclasses: *n{levels - 1}\n"


def _by_text(text: str, rng: Rng) -> tuple[bytes, str]:
    lines = text.splitlines(keepends=True)
    row = int(rng.integers(max(1, len(lines))))
    kind = _pick(("twice", "without", "order", "utf-16", "latin", "bom", "crlf", "tail"), rng)
    if kind == "twice":
        lines[row:row] = lines[row : row + 1]
    elif kind == "without":
        del lines[row : row + 1]
    elif kind == "order":
        lines = [lines[int(i)] for i in rng.permutation(len(lines))]
    done = f"lines: {kind}"
    text = "".join(lines)
    if kind == "utf-16":
        return text.encode("utf-16"), done
    if kind == "latin":
        return text.replace("e", "é").encode("latin-1", "replace"), done
    if kind == "bom":
        return b"\xef\xbb\xbf" + text.encode(), done
    if kind == "crlf":
        return text.replace("\n", "\r\n").encode(), done
    return (text + ("\x00garbage" if kind == "tail" else "")).encode(), done


# ---- tables -------------------------------------------------------------------------------------------------------


def by_csv(content: bytes, rng: Rng) -> tuple[bytes, str]:
    text = content.decode("utf-8")
    if rng.random() < 0.15:
        return _by_text(text, rng)
    rows = list(csv.reader(io.StringIO(text)))
    row, column = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    kind = _pick(("cell", "cell", "cell", "column", "columns", "row", "rows", "longer", "header", "quote", "sep"), rng)
    if kind == "cell":
        rows[row][column] = str(_pick(ODD, rng))
    elif kind == "column":
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    elif kind == "columns":
        rows = [[*cells, cells[column]] for cells in rows]
    elif kind == "row":
        del rows[row]
    elif kind == "rows":
        rows.append(rows[row])
    elif kind == "longer":
        rows[row] += ["x"] * int(rng.integers(1, 4))
    elif kind == "header":
        rows[0][column] = _pick(("", "x", rows[0][0], "split", "patient_id"), rng)
    made = io.StringIO()
    csv.writer(made, delimiter=";" if kind == "sep" else ",", lineterminator="\n").writerows(rows)
    return (text.replace(",", ',"', 1) if kind == "quote" else made.getvalue()).encode(
        "utf-8", "replace"
    ), f"table: {kind}"


def by_parquet(content: bytes, rng: Rng) -> tuple[bytes, str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    name = _pick(table.column_names, rng)
    column, place = table[name], table.column_names.index(name)
    kind = _pick(("drop", "rename", "text", "nulls", "cell", "cut", "twice", "order", "bare", "attrs", "number"), rng)
    if kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rename":
        table = table.rename_columns([f"{name}x" if each == name else each for each in table.column_names])
    elif kind == "text":
        table = table.set_column(place, name, pa.array([str(value)[:50] for value in column.to_pylist()]))
    elif kind == "nulls":
        table = table.set_column(place, name, pa.nulls(len(table), column.type))
    elif kind == "number":
        table = table.set_column(place, name, pa.array(rng.integers(-3, 3, len(table))))
    elif kind == "cell":
        values = column.to_pylist()
        row, odd = int(rng.integers(len(values))), _pick(ODD, rng)
        is_number = isinstance(values[row], int | float)
        values[row] = _pick((None, -1, 2**40, 0), rng) if is_number else odd if isinstance(odd, str) else None
        table = table.set_column(place, name, pa.array(values))
    elif kind == "cut":
        table = table.slice(0, int(rng.integers(len(table))))
    elif kind == "twice":
        table = pa.concat_tables([table, table])
    elif kind == "order":
        table = table.take(rng.permutation(len(table)))
    elif kind == "bare":
        table = table.replace_schema_metadata(None)
    else:
        told = dict(table.schema.metadata)
        changed, _ = by_value(json.loads(told[b"pandas"]), rng)
        table = table.replace_schema_metadata({**told, b"pandas": json.dumps(changed).encode()})
    made = io.BytesIO()
    pq.write_table(table, made)
    return made.getvalue(), f"parquet: {kind}"


# ---- weights and images -------------------------------------------------------------------------------------------


def by_safetensors(content: bytes, rng: Rng) -> tuple[bytes, str]:
    from safetensors.numpy import load, save

    kind = _pick(("header", "header", "length", "nan", "inf", "zeros", "drop", "add", "rename", "shape", "dtype"), rng)
    size = struct.unpack("<Q", content[:8])[0]
    if kind == "header":
        value, _ = by_value(json.loads(content[8 : 8 + size]), rng)
        header = json.dumps(value).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(header)) + header + content[8 + size :], "weights: header"
    if kind == "length":
        wrong = _pick((0, 1, size + 1, size - 1, 2**20, 2**40, 2**63), rng)
        return struct.pack("<Q", wrong) + content[8:], "weights: length"
    weights = {name: np.array(value) for name, value in load(content).items()}
    name = _pick(sorted(weights), rng)
    value = weights[name]
    if kind in ("nan", "inf", "zeros"):
        if value.dtype.kind != "f" or value.size == 0:
            return content, ""
        value.reshape(-1)[int(rng.integers(value.size))] = {"nan": np.nan, "inf": np.inf, "zeros": 0.0}[kind]
    elif kind == "drop":
        del weights[name]
    elif kind == "add":
        weights["surprise"] = np.zeros(3, np.float32)
    elif kind == "rename":
        weights[f"{name}x"] = weights.pop(name)
    elif kind == "shape":
        weights[name] = value.reshape(-1)[:-1] if value.size > 1 else np.zeros(5, value.dtype)
    else:
        weights[name] = value.astype(np.float16 if value.dtype == np.float32 else np.float32)
    return save(weights, metadata={"format": "pt"}), f"weights: {kind}"


def by_png(content: bytes, rng: Rng) -> tuple[bytes, str]:
    """Chunks that are changed, and have the checksums of what they now are; or a whole image with other pixels."""
    if rng.random() < 0.25:
        return _other_pixels(content, rng), "PNG: pixels"
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    kind = _pick(("size", "size", "mode", "drop", "twice", "data", "new", "order"), rng)
    which = int(rng.integers(len(chunks)))
    head = bytearray(chunks[0][1])
    if kind == "size":
        sides = [int(value) for value in struct.unpack(">II", chunks[0][1][:8])]
        sides[int(rng.integers(2))] = int(_pick((0, 1, 31, 33, 2000, 40_000, 2**31 - 1), rng))
        chunks[0] = (chunks[0][0], struct.pack(">II", *sides) + chunks[0][1][8:])
    elif kind == "mode":
        head[8 + int(rng.integers(5))] = int(rng.integers(0, 17))
        chunks[0] = (chunks[0][0], bytes(head))
    elif kind == "drop":
        del chunks[which]
    elif kind == "twice":
        chunks.insert(which, chunks[which])
    elif kind == "data":
        chunks[which] = (chunks[which][0], by_bytes(chunks[which][1], rng)[0])
    elif kind == "new":
        name = _pick((b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"gAMA", b"eXIf", b"acTL", b"abcD"), rng)
        chunks.insert(1, (name, bytes(rng.integers(0, 256, int(rng.integers(0, 60)), np.uint8))))
    else:
        chunks = [chunks[int(i)] for i in rng.permutation(len(chunks))]
    parts = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return content[:8] + b"".join(parts), f"PNG: {kind}"


def _other_pixels(content: bytes, rng: Rng) -> bytes:
    """A part of the image from elsewhere in it."""
    made = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        width, height = image.size
        corner = [int(rng.integers(side)) for side in (width, height)]
        image.paste(image.transpose(Image.Transpose.ROTATE_180).crop((0, 0, width // 2, height // 2)), corner)
        image.save(made, format="PNG")
    return made.getvalue()


def by_tiff(content: bytes, rng: Rng) -> tuple[bytes, str]:
    """Entries of the directories: another type, count or value."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = struct.unpack(order + "H", content[2:4])[0] == 43
    first = struct.unpack(order + ("Q" if is_big else "I"), content[8:16] if is_big else content[4:8])[0]
    count = struct.unpack(order + ("Q" if is_big else "H"), content[first : first + (8 if is_big else 2)])[0]
    size, start = (20, first + 8) if is_big else (12, first + 2)
    data, at = bytearray(content), start + size * int(rng.integers(count))
    part, width = _pick(((0, 2), (2, 2), (4, 8 if is_big else 4), (size - (8 if is_big else 4), 4)), rng)
    value = int(_pick((0, 1, 3, 7, 255, 65_535, 2**24, 2**31 - 1), rng)) % 256**width
    data[at + part : at + part + width] = value.to_bytes(width, "little" if order == "<" else "big")
    return bytes(data), "TIFF: directory"


FORMATS: dict[str, Callable[[bytes, Rng], tuple[bytes, str]]] = {
    ".json": by_json,
    ".geojson": by_json,
    ".yaml": by_yaml,
    ".csv": by_csv,
    ".parquet": by_parquet,
    ".safetensors": by_safetensors,
    ".png": by_png,
    ".tif": by_tiff,
    ".tiff": by_tiff,
    ".svs": by_tiff,
}


# ---- file systems -------------------------------------------------------------------------------------------------


def _gone(path: Path, content: bytes) -> str:
    path.unlink()
    return "file: gone"


def _folder(path: Path, content: bytes) -> str:
    path.unlink()
    path.mkdir()
    return "file: a folder"


def _loop(path: Path, content: bytes) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "file: a link to itself"


def _dangling(path: Path, content: bytes) -> str:
    path.unlink()
    path.symlink_to("nowhere")
    return "file: a link to nowhere"


def _pipe(path: Path, content: bytes) -> str:
    path.unlink()
    os.mkfifo(path)
    return "file: a pipe"


_FILES = (_gone, _folder, _loop, _dangling, _pipe)


def remove(path: Path) -> None:
    """Whatever it is now."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
