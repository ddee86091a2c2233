"""A killed writer leaves the old file or the new one, nothing between."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stedm.errors import StedmError
from stedm.io.files import claim, fingerprint, replacing, require_new, write_json, write_once, write_text


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


def test_of_several_writers_of_the_same_file_the_first_wins(tmp_path, monkeypatch):
    assert write_once(tmp_path / "new" / "a.txt", "one") == "one"
    assert write_once(tmp_path / "new" / "a.txt", "two") == "one"
    # The other one comes between looking and writing.
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "a.txt" and real(path))
    assert write_once(tmp_path / "new" / "a.txt", "three") == "one"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_job_arrays_claim_one_folder_at_the_same_moment(tmp_path):
    """Half-written claims of others and what they write after theirs are no reason to refuse the folder."""

    def work(number: int) -> None:
        options = {"another": lambda: "another", "not_empty": "not empty"}
        claim(tmp_path / f"{number // 8}" / "claim.txt", "x", lambda text: text == "x", **options)
        (tmp_path / f"{number // 8}" / f"piece-{number}.txt").touch()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(400)))
    assert len(list(tmp_path.glob("*/*.txt"))) == 450


def test_what_file_managers_leave_in_a_folder_is_nothing(tmp_path):
    for name in (".DS_Store", "Thumbs.db", "._a.png"):
        (tmp_path / name).touch()
    require_new(tmp_path, "a test")
    claim(tmp_path / "claim.txt", "x", "x".__eq__, another=str, not_empty="not empty")
    for place in (tmp_path, tmp_path / "claim.txt"):
        with pytest.raises(StedmError, match="is there and not empty; give a new folder for a test"):
            require_new(place, "a test")


@pytest.mark.parametrize("place", [".", "a/.."])
def test_the_folder_that_one_is_in_is_no_new_one(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StedmError, match="has no name of its own; give a new folder for a test"):
        require_new(Path(place), "a test")


def test_a_folder_with_other_things_is_not_claimed(tmp_path):
    options = {"another": lambda: "another", "not_empty": "not empty"}
    (tmp_path / "mine.txt").touch()
    with pytest.raises(StedmError, match="not empty"):
        claim(tmp_path / "claim.txt", "x", lambda text: True, **options)
    (tmp_path / "claim.txt").write_text("y")
    with pytest.raises(StedmError, match="another"):
        claim(tmp_path / "claim.txt", "x", lambda text: text == "x", **options)
