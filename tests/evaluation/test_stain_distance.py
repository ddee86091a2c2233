import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import EvaluationConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata
from stedm.evaluation.counts import counts_table
from stedm.evaluation.report import write_report
from stedm.evaluation.stain_distance import gains_by_distance, stain_distance

CONFIG = EvaluationConfig()
PURPLE, PINK, BROWN = (120, 70, 160), (220, 130, 180), (150, 100, 60)


def _cohort(folder, colours) -> ImageCache:
    """A dataset folder with two noisy images of each patient in its colour."""
    rng, rows = np.random.default_rng(0), []
    for patient, colour in colours.items():
        for number in range(2):
            name = f"{patient}-{number}.png"
            pixels = np.clip(rng.normal(colour, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
            folder.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
            rows.append({"image_file_name": name, "patient_id": patient, "split": "unlabeled", "category": "0"})
    table = pd.DataFrame(rows).assign(mask_file_name="", slide_id="")
    write_metadata(folder, DatasetInfo("tiny", ["background", "gland"], 255), table)
    return ImageCache(DatasetFolder.open(folder), 16)


def _counts(scores) -> pd.DataFrame:
    """Counts that give patient i of each arm the IoU scores[arm][i]."""
    tables = []
    for arm, values in scores.items():
        cells = [[[0, 0, 0, 1000], [round(v * 1000), 0, 1000 - round(v * 1000), 0]] for v in values]
        ids = [f"p{i:02d}" for i in range(len(values))]
        tables.append(counts_table(arm, 0, ids, ["0"] * len(ids), cells, ["background", "gland"]))
    return pd.concat(tables, ignore_index=True)


def test_the_distance_is_that_of_the_nearest_annotated_patient(tmp_path):
    annotated = _cohort(tmp_path / "a", {"A": PURPLE, "B": PINK})
    scored = _cohort(tmp_path / "s", {"like A": PURPLE, "like B": PINK, "neither": BROWN})
    found = stain_distance(annotated, scored)
    assert list(found.index) == ["like A", "like B", "neither"]
    assert found[["like A", "like B"]].max() < 0.3 < 1.0 < found["neither"]
    # With B not annotated, its look-alike is far.
    assert stain_distance(_cohort(tmp_path / "a1", {"A": PURPLE}), scored)["like B"] > 1.0


def test_without_a_spread_between_patients_there_is_no_distance(tmp_path):
    one = _cohort(tmp_path / "one", {"A": PURPLE})
    assert stain_distance(one, one).isna().all()


def test_a_gain_that_grows_with_the_distance_is_told(tmp_path):
    baseline = np.linspace(0.4, 0.6, 10)
    gain = np.linspace(-0.1, 0.3, 10)
    counts = _counts({"real": baseline, "real+synthetic": baseline + gain})
    ids = [f"p{i:02d}" for i in range(10)]
    distances = pd.Series(np.linspace(0.2, 2.0, 10) ** 2, index=ids)
    summary = write_report(tmp_path, counts, title="t", evaluation=CONFIG, distances=distances)
    (told,) = summary["stain_distance"]
    assert (told["a"], told["b"], told["n_patients"]) == ("real+synthetic", "real", 10)
    assert told["spearman"] == pytest.approx(1.0)
    assert told["delta_near"] == pytest.approx(gain[:5].mean(), abs=1e-3)
    assert told["delta_far"] == pytest.approx(gain[5:].mean(), abs=1e-3)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    table = pd.read_csv(tmp_path / "per_patient.csv")
    assert table.groupby("patient_id")["stain_distance"].first().to_dict() == pytest.approx(distances.to_dict())
    # What the page says can be computed again from the table.
    assert gains_by_distance(table, [("real+synthetic", "real")])[0]["delta_far"] == pytest.approx(told["delta_far"])
    html = (tmp_path / "report.html").read_text()
    assert "For whom" in html
    assert f"{gain[5:].mean():+.3f} in the other" in html


def test_without_distances_the_report_has_no_such_section(tmp_path):
    summary = write_report(tmp_path, _counts({"real": [0.5, 0.6], "upper": [0.6, 0.7]}), title="t", evaluation=CONFIG)
    assert "stain_distance" not in summary
    assert "For whom" not in (tmp_path / "report.html").read_text()
