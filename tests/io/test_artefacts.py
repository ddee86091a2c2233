"""The guarded reader: the content that was written, or one line."""

import contextlib
import json
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file

from stedm.errors import StedmError
from stedm.io.artefacts import Column, parse_json, read_csv_table, read_json, read_parquet, write_parquet
from stedm.io.weights import load_weights, read_weights


@dataclass
class _Settings:
    name: str
    px: Annotated[int, Field(ge=1, le=1024)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[" * 100_000,
        '{"name": "a", "px": 2e400}',
        '{"name": "a", "px": NaN}',
        '{"name": "a", "px": 8, "px": 16}',
        '{"name": "a", "px": "8"}',
        '{"name": "a", "px": true}',
        '{"name": "a", "px": 1099511627776}',
        '{"name": "a", "px": ' + "9" * 5000 + "}",
        '{"name": "a"}',
    ],
)
def test_json_is_what_its_schema_says_or_one_line(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(StedmError, match=r"settings\.json: .*; make it again") as error:
        read_json(path, _Settings, hint="make it again")
    assert "\n" not in str(error.value)
    path.write_text('{"name": "a", "px": 8}')
    assert read_json(path, _Settings) == _Settings("a", 8)


def test_json_that_is_no_text_missing_or_huge_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    with pytest.raises(StedmError, match="missing"):
        read_json(path, dict)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(StedmError, match="not readable"):
        read_json(path, dict)
    monkeypatch.setattr("stedm.io.artefacts.MOST_JSON_BYTES", 1)
    with pytest.raises(StedmError, match="too large"):
        read_json(path, dict)
    with pytest.raises(StedmError, match="key stands twice"):
        parse_json('{"a": {"b": 1, "b": 2}}', dict, "x")


COLUMNS = {
    "name": Column("text"),
    "n": Column("int", low=0, high=100),
    "score": Column("float", low=0, high=1, may_be_nan=True),
    "vector": Column("vector"),
}


@pytest.fixture
def table():
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    table = pd.DataFrame(
        {
            "name": [f"p{i}" for i in range(40)],
            "n": range(40),
            "score": [None if i == 3 else i / 40 for i in range(40)],
            "vector": list(vectors),
            "class": pd.Categorical(["a", "b"] * 20, categories=["b", "a"], ordered=True),
            "more": [None, "x"] * 20,
        }
    )
    table.attrs = {"batch": 8, "dataset": "/somewhere"}
    return table


def test_a_table_comes_back_as_it_was_with_its_attributes(tmp_path, table):
    write_parquet(table, tmp_path / "t.parquet")
    again = read_parquet(tmp_path / "t.parquet", COLUMNS, what="a list")
    pd.testing.assert_frame_equal(again, pd.read_parquet(tmp_path / "t.parquet"))
    assert again.attrs == table.attrs
    assert (again["name"].tolist(), again["class"].tolist()) == (table["name"].tolist(), table["class"].tolist())
    np.testing.assert_array_equal(np.stack(again["vector"]), np.stack(table["vector"]))


def test_no_flipped_bit_of_a_table_changes_what_is_read(tmp_path, table):
    path, same = tmp_path / "t.parquet", 0
    write_parquet(table, path)
    good, content = read_parquet(path, COLUMNS, what="a list"), path.read_bytes()
    for position in [*range(0, len(content), 23), *(content.find(b"pandas") - back for back in range(1, 6))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with contextlib.suppress(StedmError):  # no other error
            pd.testing.assert_frame_equal(read_parquet(path, COLUMNS, what="a list"), good)
            same += 1
    assert same < 150
    for length in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(StedmError, match="not a readable parquet"):
            read_parquet(path, COLUMNS, what="a list")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("n", [1.5] * 40, "not whole numbers"),
        ("n", [-1] * 40, "holds -1"),
        ("n", [2**40] * 40, "expected 0 to 100"),
        ("n", [True] * 40, "not whole numbers"),
        ("score", [np.inf] * 40, "holds inf"),
        ("score", ["a"] * 40, "not numbers"),
        ("name", list(range(40)), "column name"),
        ("name", [None] * 40, "column name"),
        ("vector", [[1.0], [1.0, 2.0]] * 20, "vectors"),
        ("vector", [[np.nan]] * 40, "not finite"),
        ("vector", ["a"] * 40, "vectors"),
    ],
)
def test_a_table_of_other_values_is_one_line(tmp_path, table, column, values, message):
    table.assign(**{column: values}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(StedmError, match=message):
        read_parquet(tmp_path / "t.parquet", COLUMNS, what="a list")
    table.drop(columns=column).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(StedmError, match=f"not a list: columns missing: {column}"):
        read_parquet(tmp_path / "t.parquet", COLUMNS, what="a list")


def test_a_csv_table_is_numbers_and_texts_or_one_line(tmp_path):
    path, columns = tmp_path / "t.csv", {"name": Column("text"), "n": Column("float", low=0, may_be_nan=True)}
    path.write_text("name,n,extra\n007,0.5,1\nb,,2\n")
    table = read_csv_table(path, columns)
    assert table["name"].tolist() == ["007", "b"]
    assert table["n"].isna().tolist() == [False, True]
    for text in ("", "name\n", "name,n\na,x\n", "name,n\na,-1\n", "name,n\na,1,2,3\n", '"name,n\na'):
        path.write_text(text)
        with pytest.raises(StedmError, match=r"t\.csv: "):
            read_csv_table(path, columns)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_one_line(tmp_path, value):
    weights = {"a": torch.zeros(3), "b": torch.ones(3)}
    weights["b"][1] = value
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(StedmError, match=r"w\.safetensors: b holds values that are not finite"):
        read_weights(tmp_path / "w.safetensors")


def test_whole_numbers_are_no_weights(tmp_path):
    network = torch.nn.Linear(2, 2)
    save_file({"weight": torch.ones(2, 2, dtype=torch.int32), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(StedmError, match="not weights of this network"):
        load_weights(network, read_weights(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")


def test_a_safetensors_header_with_a_flipped_bit_is_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}, path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in range(header):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with contextlib.suppress(StedmError):  # no other error
                read_weights(path)
    assert json.loads(content[8:header])["a.weight"]["shape"] == [2, 3]
