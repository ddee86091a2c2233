"""A folder's manifest: what it names is read only as it was written."""

import hashlib
import json

import pytest

from stedm.errors import StedmError
from stedm.io import manifest
from stedm.io.manifest import verify, verify_folder, verify_sum, write_manifest, write_sum


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "table.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "part" / "weights.bin").write_bytes(bytes(range(256)))
    (tmp_path / ".DS_Store").write_bytes(b"of a file manager, which writes it again")
    write_manifest(tmp_path)
    return tmp_path


def test_the_sums_are_those_of_sha256sum(folder):
    sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    assert sums == {
        "part/weights.bin": hashlib.sha256(bytes(range(256))).hexdigest(),
        "table.csv": hashlib.sha256(b"a,b\n1,2\n").hexdigest(),
    }
    verify_folder(folder)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_file_is_one_line_that_names_it(folder, damage):
    path = folder / "part" / "weights.bin"
    verify(folder, "part/weights.bin")  # remembered, and yet seen to be another afterwards
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.unlink() if damage == "remove" else path.write_bytes(
        {"flip": bytes(content), "truncate": content[:128], "empty": b""}[damage]
    )
    with pytest.raises(StedmError, match=r"weights\.bin: .* run the same command again") as error:
        verify_folder(folder)
    assert "\n" not in str(error.value)
    verify(folder, "table.csv")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"made_by": "stedm"}', '{"made_by": "stedm", "sha256": {"a": 1}}'])
def test_a_damaged_manifest_is_one_line(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StedmError, match=r"manifest\.json: damaged"):
        verify(folder, "table.csv")


def test_files_without_a_manifest_or_with_that_of_others_are_read_as_they_are(tmp_path, folder):
    (folder / "manifest.json").unlink()
    verify(folder, "table.csv")
    (folder / "manifest.json").write_text('{"name": "an app of somebody"}')
    verify(folder, "table.csv")


def test_a_file_that_the_manifest_does_not_name_is_refused(folder):
    (folder / "new.csv").write_text("a\n")
    with pytest.raises(StedmError, match=r"new\.csv"):
        verify(folder, "new.csv")


def test_a_file_is_hashed_once(folder, monkeypatch):
    verify_folder(folder)
    monkeypatch.setattr(manifest, "sha256_of", lambda path: pytest.fail("hashed again"))
    verify_folder(folder)


def test_a_single_file_has_its_sum_beside_it(tmp_path):
    path = tmp_path / "agreement.csv"
    path.write_text("patient_id\nA\nB\n")
    verify_sum(path)
    write_sum(path, path)
    verify_sum(path)
    path.write_text("patient_id\nA\n")
    with pytest.raises(StedmError, match=r"agreement\.csv: damaged"):
        verify_sum(path)
