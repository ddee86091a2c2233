"""Provenance says with which code, on which data."""

import subprocess
from pathlib import Path

import pytest

from stedm.data.folder import DatasetFolder
from stedm.data.provenance import provenance
from stedm.version import __version__


def test_it_names_version_packages_and_data(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    found = provenance(dataset)
    assert found["stedm"] == __version__
    assert found["packages"]["torch"]
    assert found["data"] == {"root": str(dataset.root), "fingerprint": dataset.fingerprint}
    assert provenance(dataset.split("train"))["data"]["fingerprint"] != dataset.fingerprint


def test_it_names_the_commit_of_a_checkout(tiny_dataset):
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip("no git checkout")
    assert asked.stdout.strip() in provenance(DatasetFolder.open(tiny_dataset()))["git"]
