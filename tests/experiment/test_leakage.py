"""Nobody learns from what must not be seen: other values there, and every artefact is the same to the bit.

`make soak` tries the same with all arms and both codecs (docs/reliability.md).
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stedm.config import parse_config
from stedm.experiment.experiment import Experiment
from stedm.io.images import write_png
from stedm.progress import Reporter

SCORED = (
    *("counts-test.parquet", "report/", "quality", "README.md"),
    *("provenance.json", "data_files", ".data_times", ".data_facts"),
)
"""What is made of held-out patients (cards tell scores), and what names the data."""
OF_THE_PROCESS = ("metrics.jsonl", "random_states_0.pkl", ".lock")
"""What holds seconds, the state of generators that nobody reads again, or nothing."""


def _files(run: Path) -> dict[str, bytes]:
    files = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(OF_THE_PROCESS)}


def _replace_what_must_not_be_seen(root: Path) -> None:
    """Noise for images of val and test, and the opposite masks for them and for unlabeled patients."""
    for path in [*root.glob("images/val*"), *root.glob("images/test*")]:
        noise = np.random.default_rng(len(path.name)).integers(0, 256, np.asarray(Image.open(path)).shape)
        write_png(path, noise.astype(np.uint8))
    for split in ("val", "test", "unlabeled"):
        for path in root.glob(f"masks/{split}*"):
            write_png(path, 1 - np.asarray(Image.open(path)))


@pytest.fixture
def two_runs(tiny_dataset, tiny_run, tmp_path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a run, and of the same run on data that differ in what must not be seen."""
    root = tiny_dataset()
    values = tiny_run({"path": root}, arms=["ssl", "self-training", "real+stain+synthetic", "upper"], seeds=[0])
    values["rounds"] = {"voters": 1, "labels": {"arm": "real+stain", "confidence": 0.5}, "fine_tune": {"steps": 2}}
    found = []
    for name in ("before", "after"):
        # In the same folder, since plans name theirs.
        Experiment(parse_config(values, "test"), tmp_path / "run", Reporter(quiet=True)).run()
        (tmp_path / "run").rename(tmp_path / name)
        found.append(_files(tmp_path / name))
        _replace_what_must_not_be_seen(root)
    return found[0], found[1]


@pytest.mark.usefixtures("plain_reports")
def test_held_out_patients_and_unlabeled_masks_reach_no_artefact_but_those_of_upper(two_runs):
    before, after = two_runs
    assert set(before) == set(after)
    differing = {name for name in before if before[name] != after[name]}
    leaked = {name for name in differing if not any(part in name for part in SCORED) and "/upper/" not in name}
    assert leaked == set()
    compared = set(before) - differing
    for part in ("model/denoiser", "plan.parquet", "synthetic/images", "pseudo_labels/masks", "segmenters/ssl/"):
        assert any(part in name for name in compared), part
    # The trial can fail: what may see them does.
    assert "segmenters/upper/seed-0/model/model.safetensors" in differing
    assert "segmenters/ssl/seed-0/counts-test.parquet" in differing
