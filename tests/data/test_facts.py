"""What a check found in files is remembered, and only as long as they are as they were."""

import os

import numpy as np
import pytest

from stedm.data import check
from stedm.data.check import examine
from stedm.data.facts import RememberedFacts
from stedm.io.images import class_palette, write_png


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names = []
    for kind in ("image_facts", "mask_facts"):
        of = getattr(check, kind)
        monkeypatch.setattr(check, kind, lambda root, name, large, of=of: names.append(name) or of(root, name, large))
    return names


@pytest.fixture
def examined(tiny_dataset, tmp_path):
    """Function: what an examination finds, with what the ones before it have left; the folder is its `root`."""

    def run(**options):
        return examine(run.root, remembered=RememberedFacts(tmp_path / "facts", run.root), **options)

    run.root = tiny_dataset()
    return run


def test_the_second_examination_decodes_nothing_and_finds_the_same(examined, decoded):
    root = examined.root
    write_png(root / "masks" / "trainP0-0.png", np.eye(32, dtype=np.uint8), palette=class_palette())
    (root / "images" / "trainP1-0.png").write_bytes((root / "images" / "trainP0-1.png").read_bytes())
    fresh = examine(root)
    assert fresh.warnings
    first = examined()
    assert str(first) == str(fresh)
    decoded.clear()
    assert str(examined()) == str(fresh)  # NaN equals nothing
    assert decoded == []


def test_a_file_that_was_written_touched_or_lost_is_looked_at_again(examined, decoded):
    root = examined.root
    assert examined().problems == []
    image, mask = root / "images" / "trainP0-0.png", root / "masks" / "trainP0-1.png"
    touched, lost = root / "images" / "trainP1-1.png", root / "images" / "unlabeledP0-0.png"
    times = mask.stat()
    image.write_bytes(b"no image")
    write_png(mask, np.full((32, 32), 9, np.uint8))
    os.utime(mask, ns=(times.st_atime_ns, times.st_mtime_ns))  # the time of change still tells
    touched.touch()
    lost.unlink()
    decoded.clear()
    problems = examined().problems
    assert sorted(decoded) == sorted(str(path.relative_to(root)) for path in (image, mask, touched, lost))
    assert len(problems) == 3
    decoded.clear()
    assert examined().problems == problems
    assert "images/trainP0-0.png" in decoded, "what can't be read isn't remembered"
    assert "masks/trainP0-1.png" not in decoded


def test_masks_of_unlabeled_images_stay_closed(examined, decoded):
    examined(read_unlabeled_masks=False)
    assert not [name for name in decoded if name.startswith("masks/unlabeled")]


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", None])
def test_a_damaged_memory_or_one_of_another_version_is_no_memory(examined, decoded, tmp_path, monkeypatch, content):
    found = examined()
    if content is None:
        monkeypatch.setattr("stedm.data.facts.__version__", "0.0.0")
    else:
        (tmp_path / "facts").write_bytes(content)
    decoded.clear()
    assert str(examined()) == str(found)
    assert len(decoded) > 10


def test_a_run_that_goes_on_decodes_no_image(tiny_dataset, tiny_run, tmp_path, decoded):
    from stedm.config import parse_config
    from stedm.experiment.experiment import Experiment
    from stedm.progress import Reporter

    config = parse_config(tiny_run({"path": str(tiny_dataset())}), "test")
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).check()
    assert decoded
    decoded.clear()
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).check()
    assert decoded == []
