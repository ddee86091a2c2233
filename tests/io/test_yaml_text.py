"""YAML as people mean it, and back as it was."""

import pytest
import yaml

from stedm.io.yaml_text import parse_yaml, read_yaml, yaml_text

TEXTS = [
    "1e-4",
    "12:30",
    "2024-01-01",
    "010",
    "08",
    "no",
    "x${HOME}",
    "1_0",
    "",
    " x ",
    "0x1f",
    ".5",
    "~",
    "=",
    "a: b #c",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1_000", 1000),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("2024-01-01", "2024-01-01"),
        ("0o17", "0o17"),
        ("${HOME}", "${HOME}"),
        ("null", None),
        ("'010'", "010"),
    ],
)
def test_values_are_what_they_look_like(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "found duplicate key c on line 2"),
        ("{1: tumour, 1: stroma}", "found duplicate key 1 on line 1"),
        ("seeds: [08]", "08 has a leading zero"),
        ("a: &x [1]\nb: *x", r"\*x on line 2 is an alias; write the value"),
        ("a: 1\n---\nb: 1", "single document"),
    ],
)
def test_what_can_be_meant_in_two_ways_is_refused(text, said):
    with pytest.raises(yaml.YAMLError, match=said):
        parse_yaml(text)


def test_what_is_written_is_read_as_it_was_by_every_reader(tmp_path):
    values = {"texts": TEXTS, "numbers": [0, -7, 1e-5, 0.0015, 1e22, True, None], "3": {"gland": [0.1, 0.2]}}
    text = yaml_text(values)
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text) == values
    assert "&" not in yaml_text([TEXTS, TEXTS])
