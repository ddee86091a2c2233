"""`stedm run`: the whole path on a tiny cohort, resumable, and blind to what it must not see."""

import json
from pathlib import Path

import pandas as pd
import pytest

from stedm.config import RunConfig, parse_config
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts
from stedm.evaluation.stats import summarise
from stedm.experiment import Experiment, evaluate_segmenter, plan_pictures
from stedm.progress import Reporter
from stedm.style.bank import StyleBank

ARMS = ["real", "real+stain", "real+synthetic", "real+stain+synthetic", "upper"]


def _config(data: dict, **segmentation) -> RunConfig:
    values = {
        "name": "tiny",
        "data": {"picture_px": 32, **data},
        "diffusion": {
            "steps": 2,
            "batch": 4,
            "checkpoint_every_steps": 2,
            "denoiser": {"channels": [16, 16], "norm_groups": 8},
            "style": {"dim": 16, "channels": [8]},
        },
        "synthesis": {"n_pictures": 6, "batch": 3, "steps": 2},
        "segmentation": {
            "encoder": "tu-test_resnet",
            "encoder_depth": 3,
            "decoder_channels": [16, 8, 8],
            "steps": 2,
            "batch": 4,
            "arms": ARMS,
            "seeds": [0, 1],
            **segmentation,
        },
        "evaluation": {"bootstrap": 20},
    }
    return parse_config(values, "test")


def _files(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_whole_path_on_a_phantom_and_again(tmp_path):
    # Four classes: nothing on the way may think of two.
    phantom = {
        "stain": "he",
        "picture_px": 32,
        "patients": {"train": 2, "unlabeled": 2, "val": 1, "test": 3},
        "pictures_per_patient": 2,
    }
    config = _config({"phantom": phantom})
    summary = Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    assert list(summary["arms"]) == ARMS
    assert all(arm["n_patients"] == 3 and arm["seeds"] == [0, 1] for arm in summary["arms"].values())
    report = tmp_path / "run" / "report"
    assert sorted(path.name for path in report.iterdir()) == [
        "counts.parquet",
        "per_patient.csv",
        "report.html",
        "summary.json",
    ]
    bank = StyleBank.load(tmp_path / "run" / "style_bank.parquet")
    html = (report / "report.html").read_text()
    assert "From one style to another" in html
    assert sorted(bank.k_centre(2)) == Experiment(config, tmp_path / "run", Reporter(quiet=True)).unlabeled.patients()
    # Anyone can compute the figures again from the counts.
    assert summarise(read_counts(report / "counts.parquet"), config.evaluation) == summary
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["packages"]["torch"]

    before = _files(tmp_path / "run")
    again = Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    assert again == summary
    after = _files(tmp_path / "run")
    redone = {path for path in after if after[path] != before.get(path)}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone


def test_masks_of_unlabeled_patients_are_never_opened_and_seeds_can_be_added(tiny_dataset, tmp_path):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    config = _config({"path": root}, arms=["real", "real+synthetic"], seeds=[0])
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    more = _config({"path": root}, arms=["real", "real+synthetic"], seeds=[0, 1])
    summary = Experiment(more, tmp_path / "run", Reporter(quiet=True)).run()
    assert summary["arms"]["real"]["seeds"] == [0, 1]
    upper = _config({"path": root}, arms=["upper"], seeds=[0])
    with pytest.raises(StedmError, match="unlabeled"):
        Experiment(upper, tmp_path / "upper", Reporter(quiet=True)).run()


def test_a_plan_by_coverage_takes_its_styles_from_the_bank_of_the_run(tiny_dataset, tmp_path):
    values = _config({"path": tiny_dataset()}).model_dump()
    values["synthesis"] |= {"style_choice": "k-centre", "style_pictures": 2}
    config = parse_config(values, "test")
    experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    experiment.check()
    plan = experiment.plan()
    assert (tmp_path / "run" / "style_bank.parquet").is_file()
    assert plan["style_image_file_names"].str.count(";").eq(1).all()
    with pytest.raises(StedmError, match="needs a trained model"):
        plan_pictures(config, 2)


def test_the_label_budget_limits_what_is_read(tiny_dataset, tmp_path):
    root = tiny_dataset(patients={"train": 4, "unlabeled": 2, "val": 1, "test": 2})
    config = _config({"path": root, "annotated_patients": 2, "draw": 1})
    experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    assert len(experiment.annotated.patients()) == 2
    assert set(experiment.plan()["layout_patient_id"]) <= set(experiment.annotated.patients())
    assert len(experiment.unlabeled.patients()) == 2


def test_a_run_folder_is_not_shared_by_two_configurations_or_two_states_of_the_data(tiny_dataset, tmp_path):
    root = tiny_dataset()
    Experiment(_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).check()
    with pytest.raises(StedmError, match=r"segmentation\.steps: 2 there, 3 asked"):
        Experiment(_config({"path": root}, steps=3), tmp_path / "run", Reporter(quiet=True))
    table = pd.read_csv(root / "metadata.csv", dtype=str)
    table.iloc[1:].to_csv(root / "metadata.csv", index=False)
    with pytest.raises(StedmError, match="changed since"):
        Experiment(_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).check()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("keep")
    with pytest.raises(StedmError, match="not empty"):
        Experiment(_config({"path": root}), tmp_path / "home", Reporter(quiet=True))


def test_problems_of_the_data_stop_a_run_before_anything_is_trained(tiny_dataset, tmp_path):
    root = tiny_dataset()
    next((root / "images").glob("train*")).write_bytes(b"broken")
    with pytest.raises(StedmError, match="train"):
        Experiment(_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).run()
    assert not (tmp_path / "run" / "model").exists()


def test_an_unknown_encoder_stops_a_run_before_anything_is_trained(tiny_dataset, tmp_path):
    config = _config({"path": tiny_dataset()}, encoder="tu-resnot")
    with pytest.raises(StedmError, match="resnot"):
        Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    assert not (tmp_path / "run" / "model").exists()


def test_a_segmenter_is_scored_on_its_own(tiny_dataset, tmp_path):
    root = tiny_dataset()
    config = _config({"path": root}, arms=["real"], seeds=[0])
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    model = tmp_path / "run" / "segmenters" / "real" / "seed-0" / "model"
    summary = evaluate_segmenter(model, root, "val", tmp_path / "report")
    assert summary["arms"]["real"]["n_patients"] == 2
    with pytest.raises(StedmError, match="use val or test"):
        evaluate_segmenter(model, root, "train", tmp_path / "other")
