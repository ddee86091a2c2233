"""A killed writer leaves the old file or the new one, nothing between."""

import json

import pytest

from stedm.files import fingerprint, replacing, write_json, write_text


def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_litter(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail_half_way() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for content in ("one", "two"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1.5]}


def test_a_fingerprint_ignores_key_order_and_sees_content():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
