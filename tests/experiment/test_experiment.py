"""`stedm run`: the whole path on a tiny cohort, resumable, and blind to what it must not see."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from stedm.config import RunConfig, SynthesisConfig, load_config, parse_config
from stedm.data import cache as samples
from stedm.data.folder import DatasetFolder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.errors import StedmError
from stedm.evaluation import scoring
from stedm.evaluation.counts import read_counts
from stedm.evaluation.scoring import evaluate_segmenter
from stedm.evaluation.stats import summarise
from stedm.experiment import experiment, labelling
from stedm.experiment.experiment import Experiment
from stedm.experiment.folder import claim
from stedm.io.images import write_png
from stedm.progress import Reporter
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.pseudo_labels import vote
from stedm.segmentation.train import train_segmenter
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import read_plan
from stedm.synthesis.style_bank import StyleBank

REPOSITORY = Path(__file__).parents[2]
ARMS = ["real", "real+stain", "ssl", "real+synthetic", "real+stain+synthetic", "real+stain+synthetic+ssl", "upper"]


@pytest.fixture
def tiny_config(tiny_run):
    """Factory of a configuration with all arms, without pseudo-labels."""

    def make(data: dict, **segmentation) -> RunConfig:
        values = tiny_run(data, **{"arms": ARMS, "seeds": [0, 1], **segmentation})
        values["diffusion"]["pseudo_labels"] = None
        return parse_config(values, "test")

    return make


def _files(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_whole_path_on_a_phantom_and_again(tmp_path, tiny_config):
    # Four classes: nothing on the way may think of two.
    phantom = {
        "stain": "he",
        "image_px": 32,
        "patients": {"train": 2, "unlabeled": 2, "val": 1, "test": 3},
        "images_per_patient": 2,
    }
    config = tiny_config({"phantom": phantom})
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
    unlabeled = Experiment(config, tmp_path / "run", Reporter(quiet=True)).unlabeled
    assert sorted(bank.farthest_pair()) == unlabeled.patients()
    # Anyone can compute the figures again from the counts.
    # (Distances are of images; they stand in per_patient.csv.)
    of_counts = {key: value for key, value in summary.items() if key != "stain_distance"}
    assert summarise(read_counts(report / "counts.parquet"), config.evaluation) == of_counts
    assert len(summary["stain_distance"]) == len(summary["comparisons"])
    assert "For whom" in html
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["packages"]["torch"]

    before = _files(tmp_path / "run")
    again = Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    assert again == summary
    after = _files(tmp_path / "run")
    redone = {path for path in after if after[path] != before.get(path)}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone


def test_masks_of_unlabeled_patients_are_never_opened_and_seeds_can_be_added(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    config = tiny_config({"path": root}, arms=["real", "ssl", "real+synthetic"], seeds=[0])
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    more = tiny_config({"path": root}, arms=["real", "real+synthetic"], seeds=[0, 1])
    summary = Experiment(more, tmp_path / "run", Reporter(quiet=True)).run()
    assert summary["arms"]["real"]["seeds"] == [0, 1]
    upper = tiny_config({"path": root}, arms=["upper"], seeds=[0])
    with pytest.raises(StedmError, match="unlabeled"):
        Experiment(upper, tmp_path / "upper", Reporter(quiet=True)).run()


def test_a_run_draws_with_its_student(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    values = tiny_config({"path": root}, arms=["real+synthetic"], seeds=[0]).model_dump()
    plain = parse_config(values, "test")
    small = {"calls": [1, 2], "teacher_steps": 2, "steps": 2, "batch": 2}
    values["diffusion"]["student"] |= small
    values["synthesis"] |= {"sampler": "student", "guidance": 2.0}
    config = parse_config(values, "test")
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    student = StyleDiffusion.from_pretrained(tmp_path / "run" / "student" / "model")
    assert student.student.guidance.style == 2.0
    table = pd.read_csv(tmp_path / "run" / "synthetic" / "metadata.csv")
    assert set(table["model_fingerprint"]) == {student.fingerprint}
    assert set(table["sampler"]) == {"student"}
    before = _files(tmp_path / "run")
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    redone = {path for path, time in _files(tmp_path / "run").items() if time != before.get(path)}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone

    # A run of an ordinary sampler is given a student later, by one verb, and tells when it has another one.
    Experiment(plain, tmp_path / "plain", Reporter(quiet=True)).train_diffusion()
    for steps, fits in ((2, True), (3, False)):
        values = plain.model_dump()
        values["diffusion"]["student"] |= small | {"steps": steps}
        experiment = Experiment(parse_config(values, "test"), tmp_path / "plain", Reporter(quiet=True))
        if fits:
            assert experiment.train_student().student.guidance.style == 1.5
        else:
            with pytest.raises(StedmError, match=r"holds another student \(steps differ"):
                experiment.train_student()


def test_arms_that_need_unlabeled_patients_say_so_before_anything_is_trained(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 2, "val": 1, "test": 2})
    for arm in ("ssl", "real+synthetic", "real+stain+synthetic+self-training"):
        with pytest.raises(StedmError, match=f"leave {re.escape(arm)} out"):
            Experiment(tiny_config({"path": root}, arms=[arm]), tmp_path / arm, Reporter(quiet=True)).check()


def test_a_run_wants_patients_to_score_before_anything_is_trained(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 2, "unlabeled": 1, "val": 1})
    with pytest.raises(StedmError, match=r"no image in split test; set evaluation\.split"):
        Experiment(tiny_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).check()


def test_without_masks_of_unlabeled_patients_there_is_no_arm_upper(tiny_dataset, tmp_path, capsys, tiny_config):
    root = tiny_dataset()
    table = pd.read_csv(root / "metadata.csv", dtype=str)
    table.loc[table["split"] == "unlabeled", "mask_file_name"] = ""
    table.to_csv(root / "metadata.csv", index=False)
    summary = Experiment(tiny_config({"path": root}, arms=["real", "upper"]), tmp_path / "run").run()
    assert list(summary["arms"]) == ["real"]
    assert "the arm upper is left out" in capsys.readouterr().err
    with pytest.raises(StedmError, match="no masks for the arm upper"):
        Experiment(tiny_config({"path": root}, arms=["upper"]), tmp_path / "alone").check()


def test_the_label_budget_limits_what_is_read(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 4, "unlabeled": 2, "val": 1, "test": 2})
    config = tiny_config({"path": root, "annotated_patients": 2, "draw": 1})
    experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    assert len(experiment.annotated.patients()) == 2
    assert set(experiment.plan()["layout_patient_id"]) <= set(experiment.annotated.patients())
    assert len(experiment.unlabeled.patients()) == 2


def test_a_refused_run_leaves_its_folder_to_the_mended_configuration(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 2, "unlabeled": 2, "val": 1, "test": 2})
    with pytest.raises(StedmError, match="6 annotated patients asked for, split train has 2"):
        Experiment(tiny_config({"path": root, "annotated_patients": 6}), tmp_path / "run", Reporter(quiet=True)).check()
    mended = tiny_config({"path": root, "annotated_patients": 2})
    experiment = Experiment(mended, tmp_path / "run", Reporter(quiet=True))
    experiment.check()
    assert "annotated_patients: 2" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_folder_is_not_shared_by_two_configurations_or_two_states_of_the_data(
    tiny_dataset, tmp_path, tiny_config
):
    root = tiny_dataset()
    Experiment(tiny_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).check()
    with pytest.raises(StedmError, match=r"segmentation\.steps: 2 there, 3 asked"):
        Experiment(tiny_config({"path": root}, steps=3), tmp_path / "run", Reporter(quiet=True))
    table = pd.read_csv(root / "metadata.csv", dtype=str)
    table.iloc[1:].to_csv(root / "metadata.csv", index=False)
    with pytest.raises(StedmError, match="changed since"):
        Experiment(tiny_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).check()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("keep")
    with pytest.raises(StedmError, match="not empty"):
        Experiment(tiny_config({"path": root}), tmp_path / "home", Reporter(quiet=True))


def test_a_run_goes_on_after_the_configuration_has_got_new_keys(tiny_dataset, tmp_path, tiny_config):
    config = tiny_config({"path": tiny_dataset(image_px=32)})
    run = tmp_path / "run"
    Experiment(config, run).train_diffusion()
    there = yaml.safe_load((run / "config.yaml").read_text())
    del there["synthesis"]["guidance"], there["diffusion"]["style"]["injection"]
    (run / "config.yaml").write_text(yaml.safe_dump(there))
    before = _files(run / "model")
    Experiment(config, run).train_diffusion()
    assert _files(run / "model") == before


def test_problems_of_the_data_stop_a_run_before_anything_is_trained(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset()
    next((root / "images").glob("train*")).write_bytes(b"broken")
    with pytest.raises(StedmError, match="train"):
        Experiment(tiny_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).run()
    assert not (tmp_path / "run" / "model").exists()


def test_an_unknown_encoder_stops_a_run_before_anything_is_trained(tiny_dataset, tmp_path, tiny_config):
    config = tiny_config({"path": tiny_dataset()}, encoder="tu-resnot")
    with pytest.raises(StedmError, match="resnot"):
        Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    assert not (tmp_path / "run" / "model").exists()


def test_a_segmenter_is_scored_on_its_own(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset()
    config = tiny_config({"path": root}, arms=["real"], seeds=[0])
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    model = tmp_path / "run" / "segmenters" / "real" / "seed-0" / "model"
    summary = evaluate_segmenter(model, root, "val", tmp_path / "report")
    assert summary["arms"]["real"]["n_patients"] == 2
    with pytest.raises(StedmError, match="use val or test"):
        evaluate_segmenter(model, root, "train", tmp_path / "other")


def flowers_like(tiny_dataset) -> Path:
    """Images that are patients of their own: four of each category in train, one of each elsewhere."""
    return tiny_dataset(patients={"train": 8, "unlabeled": 2, "val": 2, "test": 4}, images=1)


def test_categories_never_annotated_end_to_end(tiny_dataset, tmp_path, tiny_config):
    root = flowers_like(tiny_dataset)
    unseen = [f"trainP{number}-0.png" for number in (1, 3, 5, 7)]
    for name in [*unseen, "unlabeledP0-0.png", "unlabeledP1-0.png"]:
        (root / "masks" / name).write_bytes(b"not to be opened")
    data = {"path": root, "annotated_per_category": 2, "unseen_categories": ["b"]}
    config = tiny_config(data, arms=["real", "real+synthetic"], seeds=[0])
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"unit": "category"})})
    experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    summary = experiment.run()
    assert len(experiment.annotated) == 2
    assert set(experiment.annotated.table["category"]) == {"a"}
    assert len(experiment.unlabeled) == 6
    assert summary["arms"]["real"]["n_patients"] == 2
    assert summary["groups"]["unseen categories"]["categories"] == ["b"]
    assert summarise(read_counts(tmp_path / "run" / "report" / "counts.parquet"), config.evaluation) == summary
    with pytest.raises(StedmError, match=r"trainP1-0\.png"):
        Experiment(tiny_config(data, arms=["upper"]), tmp_path / "upper", Reporter(quiet=True)).run()


def test_unannotated_images_are_the_same_at_every_budget(tiny_dataset, tmp_path, tiny_config):
    root = flowers_like(tiny_dataset)
    runs = [
        Experiment(
            tiny_config({"path": root, "annotated_per_category": k, "unseen_categories": ["b"]}),
            tmp_path / str(k),
            Reporter(quiet=True),
        )
        for k in (1, 3)
    ]
    assert runs[0].unlabeled.table.equals(runs[1].unlabeled.table)
    assert set(runs[0].annotated.table["patient_id"]) < set(runs[1].annotated.table["patient_id"])
    # The upper bound has the masks of the unseen categories, and no image that ours doesn't have.
    shown = {*runs[0].annotated.patients(), *runs[0].unlabeled.patients()}
    assert set(runs[0]._upper_set().table["patient_id"]) == shown


def test_the_committed_flowers_configuration_fits_the_data(shared_data, tmp_path):
    config = load_config(REPOSITORY / "configs" / "flowers17.yaml")
    values = config.model_dump(mode="json")
    values["data"]["path"] = str(shared_data("flowers17"))
    experiment = Experiment(parse_config(values, "test"), tmp_path / "run", Reporter(quiet=True))
    with_masks = sorted(set(experiment.dataset.table["category"]) - {"cowslip"})
    assert set(config.data.unseen_categories) == {*with_masks[1::2], "cowslip"}
    assert experiment.annotated.table["category"].value_counts().to_dict() == dict.fromkeys(with_masks[::2], 3)
    assert set(with_masks[1::2]) < set(experiment.unlabeled.table["category"])
    plan = experiment.plan()
    shown = experiment.dataset.table.set_index("patient_id")["category"][plan["style_patient_id"]]
    assert shown.value_counts().between(60, 61).all()
    assert set(plan["category"]) == set(with_masks[::2])


def test_pseudo_labels_come_from_segmenters_of_annotated_images_and_reach_the_diffusion_model(
    tiny_dataset, tmp_path, tiny_config
):
    config = tiny_config({"path": str(tiny_dataset())}, arms=["real"], seeds=[0])
    asked = config.model_dump(mode="json")
    asked["diffusion"]["pseudo_labels"] = {"arm": "real", "confidence": 0.5, "steps": 2, "seeds": [0, 3]}
    with_labels = Experiment(parse_config(asked, "test"), tmp_path / "with", Reporter(quiet=True))
    model = with_labels.train_diffusion()
    labels = with_labels.pseudo_labels()
    assert len(labels) == len(with_labels.unlabeled)
    teachers = [tmp_path / f"with/teachers/seed-{seed}" for seed in (0, 3)]
    assert all((teacher / "model/config.json").is_file() for teacher in teachers)
    # What is compared later has no say in it.
    asked["segmentation"] |= {"seeds": [5], "steps": 3}
    other = Experiment(parse_config(asked, "test"), tmp_path / "other", Reporter(quiet=True))
    assert other.train_diffusion().fingerprint == model.fingerprint
    without = Experiment(config, tmp_path / "without", Reporter(quiet=True)).train_diffusion()
    assert not (tmp_path / "without/pseudo_labels").exists()
    assert model.fingerprint != without.fingerprint
    # What the vote wrote is kept.
    before = _files(tmp_path / "with")
    with_labels.train_diffusion()
    assert _files(tmp_path / "with") == before


def test_a_run_goes_on_on_another_machine_but_not_with_another_model(tmp_path, tiny_config):
    """How it is computed may change; run folders from before these keys existed go on."""
    config = tiny_config({"phantom": {}})
    claim(tmp_path / "run", config)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for key in ("workers", "accumulate", "compile", "activation_checkpointing"):
        del written["diffusion"][key]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "run" / "model").mkdir()

    def changed(**values) -> RunConfig:
        return config.model_copy(update={"diffusion": config.diffusion.model_copy(update=values)})

    claim(tmp_path / "run", changed(workers=2, compile=True, activation_checkpointing=True))
    with pytest.raises(StedmError, match=r"diffusion.accumulate: 1 there, 2 asked"):
        claim(tmp_path / "run", changed(accumulate=2))


def test_a_cohort_larger_than_the_memory_ends_in_the_same_weights_and_counts(
    tiny_dataset, tmp_path, monkeypatch, tiny_config
):
    held = []
    spread = samples._spread_slots
    monkeypatch.setattr(samples, "_spread_slots", lambda n, n_held: held.append(n_held / n) or spread(n, n_held))
    root, found, parts_held = tiny_dataset(), [], []
    for cache_mb, at_once in ((None, 64), (0.03, 4)):
        held.clear()
        config = tiny_config({"path": root, "cache_mb": cache_mb}, arms=["ssl"], seeds=[0])
        monkeypatch.setattr(scoring, "_IMAGES_AT_ONCE", at_once)
        run = Experiment(config, tmp_path / str(cache_mb), Reporter(quiet=True))
        run.train_diffusion()
        run.train_segmenters()
        files = sorted(run.folder.rglob("model/**/*.safetensors"))
        assert len(files) >= 2
        counts = run.counts().to_dict()
        in_training = len(held)
        files += sorted(run.synthesize().root.rglob("*.png"))
        found.append(([path.read_bytes() for path in files], counts))
        parts_held.append((held[:in_training], held[in_training:]))
    assert found[0] == found[1]
    assert [set(parts) for parts in parts_held[0]] == [{1.0}, {1.0}]
    training, synthesis = parts_held[1]
    assert 0 < min(training) < 1
    assert 0 <= min(synthesis) < 1
    # Another machine may have another memory.
    changed = config.model_copy(update={"data": config.data.model_copy(update={"cache_mb": 5})})
    Experiment(changed, run.folder, Reporter(quiet=True)).check()


def test_predicted_layouts_are_predicted_again_by_who_learned_from_them(tiny_dataset, tmp_path, tiny_run):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    values = tiny_run({"path": root}, arms=["real+stain+synthetic"], seeds=[0], mirror=True)
    values["synthesis"] |= {"layouts": "predicted", "start": 0.5, "rounds": 2, "predictors": 1}
    values["synthesis"]["first_layouts"] = "predicted"
    run = tmp_path / "run"
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    first, last = (pd.read_csv(run / part / "synthetic" / "metadata.csv") for part in ("rounds/1", "."))
    assert set(first["layout_kind"]) == set(last["layout_kind"]) == {"predicted"}
    assert set(last["start"]) == {0.5}
    assert not set(first["seed"]) & set(last["seed"])
    assert (run / "predictors" / "seed-0" / "model" / "config.json").is_file()
    layouts = DatasetFolder.open(run / "predicted_layouts")
    assert all(layouts.read_mask(row).max() <= 1 for row in range(len(layouts)))
    before = _files(run)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    redone = {path for path, time in _files(run).items() if time != before.get(path)}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone
    wrong = {**values, "diffusion": {**values["diffusion"], "objective": "eps"}}
    with pytest.raises(StedmError, match=r"synthesis\.start"):
        parse_config(wrong, "test")


def test_every_round_has_a_model_that_learned_from_the_labels_of_its_own_segmenters(tiny_dataset, tmp_path, tiny_run):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    values = tiny_run({"path": root}, arms=["real+stain+synthetic"], seeds=[0])
    values["diffusion"]["steps"] = 8
    values["diffusion"]["codec"] = {"kind": "kl", "channels": [8, 8], "norm_groups": 4, "steps": 2, "batch": 2}
    values["diffusion"]["pseudo_labels"] = {"confidence": 0.55, "steps": 4, "seeds": [0], "every_round": True}
    # Agreement 0: networks of so few steps contradict each other about everyone, whose labels are then hidden.
    values["synthesis"] |= {"layouts": "warp", "rounds": 2, "predictors": 2, "agreement": 0}
    run = tmp_path / "run"
    made = Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    made.run()
    # Labels of the second model are the vote of segmenters that learned from the first one's images, where sure.
    labels = made.pseudo_labels()
    voters = [load_segmenter(path)[0] for path in (run / "predictors").glob("*/model")]
    assert len(voters) == 2
    votes = vote(voters, np.stack([labels.read_image(row) for row in range(len(labels))])).numpy()
    masks = np.stack([labels.read_mask(row) for row in range(len(labels))])
    assert np.array_equal(np.where(votes.max(1) >= 0.55, votes.argmax(1), labels.info.ignore_index), masks)
    assert len(list((run / "teachers").glob("*/model"))) == 1
    assert len(list(run.rglob("reconstruction.json"))) == 1, "one first stage for all rounds"
    before_it = DatasetFolder.open(run / "rounds/1/pseudo_labels")
    assert any((before_it.read_mask(row) != labels.read_mask(row)).any() for row in range(len(labels)))
    first_weights, weights = (
        load_file(run / part / "model/denoiser/diffusion_pytorch_model.safetensors") for part in ("rounds/1", ".")
    )
    assert any(not torch.equal(tensor, first_weights[name]) for name, tensor in weights.items())
    # Each round's images are its own model's: drawing the first plan again with the second gives others.
    plan = read_plan(run / "rounds/1/plan.parquet")
    for number in (1, 2):
        synthesize(made.train_diffusion(number), plan, tmp_path / f"drawn-{number}")
    first, own, other = (
        DatasetFolder.open(path).read_image(0)
        for path in (run / "rounds/1/synthetic", tmp_path / "drawn-1", tmp_path / "drawn-2")
    )
    assert np.array_equal(first, own)
    assert not np.array_equal(first, other)
    before = _files(run)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    redone = {path for path, time in _files(run).items() if time != before.get(path)}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone


def test_a_later_model_begins_with_the_weights_of_the_one_before(tiny_dataset, tmp_path, tiny_run):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    # So small a rate leaves every weight where it was.
    tuned = {"steps": 3, "lr": 1e-12}
    values["diffusion"]["pseudo_labels"] |= {"every_round": True, "fine_tuning": tuned}
    values["synthesis"] |= {"layouts": "warp", "rounds": 2, "predictors": 1}
    run = tmp_path / "run"
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    first, last = (
        load_file(run / part / "model/denoiser/diffusion_pytorch_model.safetensors") for part in ("rounds/1", ".")
    )
    assert all(torch.allclose(tensor, first[name], atol=1e-6) for name, tensor in last.items())
    logged = [json.loads((run / part / "metrics.jsonl").read_text().splitlines()[-1]) for part in ("rounds/1", ".")]
    assert [row["step"] for row in logged] == [values["diffusion"]["steps"], tuned["steps"]]
    assert logged[1]["lr"] < 1e-11
    assert "for 3 steps more in each later one of 2 rounds" in (run / "report/report.html").read_text()


def test_the_first_of_several_rounds_has_no_layouts_by_who_saw_annotated_images_alone(tiny_dataset, tmp_path, tiny_run):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    values["synthesis"] |= {"layouts": {"predicted": 1, "recombine": 1}, "start": 0.5, "rounds": 2, "predictors": 1}
    run = tmp_path / "run"
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    first, last = (read_plan(run / part / "plan.parquet") for part in ("rounds/1", "."))
    assert set(first["layout_kind"]) == {"recombine"}
    assert set(first["start"]) == {1.0}
    assert set(last["layout_kind"]) == {"predicted", "recombine"}
    assert not (run / "rounds/1/predictors").exists()
    stages = list(json.loads((run / "provenance.json").read_text())["seconds"])
    # The voters of the second round have learned from the images of the first.
    drawn, trained = "draw synthetic images, round 1", "predicted layouts, round 2, segmenter 0"
    assert stages.index(drawn) < stages.index(trained)
    # A run from before there was the key had the same layouts in every round, and goes on as it began.
    older = yaml.safe_load((run / "config.yaml").read_text())
    del older["synthesis"]["first_layouts"], older["synthesis"]["agreement"]
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    with pytest.raises(StedmError, match=r"synthesis\.first_layouts"):
        Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    values["synthesis"]["first_layouts"] = values["synthesis"]["layouts"]
    with pytest.raises(StedmError, match=r"synthesis\.agreement"):
        Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    values["synthesis"]["agreement"] = 0
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True))


@pytest.mark.parametrize("first_labels", [{"confidence": 0.1}, None])
def test_patients_about_whom_segmenters_contradict_each_other_are_not_painted_to_either(
    tiny_dataset, tmp_path, tiny_run, first_labels
):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    labels = first_labels and {**first_labels, "steps": 2, "seeds": [0], "every_round": True}
    values["diffusion"]["pseudo_labels"] = labels
    values["synthesis"] |= {"layouts": {"predicted": 1, "warp": 1}, "rounds": 2, "predictors": 1, "n_images": 16}
    run = tmp_path / "run"
    made = Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    disputed, *others = made.unlabeled.patients()
    made.predicted_layouts()
    assert others
    # What a segmenter of a few steps sees is chance: here the first ones were sure of the opposite, or of the same.
    sure = made.pseudo_labels(1) if labels else None
    assert sure is None or sure.root == run / "rounds/1/pseudo_labels"
    first = run / ("rounds/1/pseudo_labels" if labels else "first_labels")
    seen = made.predicted_layouts()
    if not labels:
        shutil.copytree(seen.root, first)
    for row, (patient, name) in enumerate(zip(seen.table["patient_id"], seen.table["mask_file_name"], strict=True)):
        mask = np.ones_like(seen.read_mask(row))
        write_png(seen.root / name, mask)
        write_png(first / name, 1 - mask if patient == disputed else mask)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    note = f"about 1 of {1 + len(others)} unannotated patients: {disputed} (agreement.csv)"
    assert note in (run / "report/report.html").read_text()
    kinds = read_plan(run / "plan.parquet").groupby("style_patient_id")["layout_kind"].agg(set)
    assert kinds[disputed] == {"warp"}
    assert any("predicted" in kinds[patient] for patient in others)
    table = pd.read_csv(run / "agreement.csv", dtype={"patient_id": str}).set_index("patient_id")["agreement"]
    assert table[disputed] == 0
    assert set(table[others]) == {1}
    if labels:
        again = DatasetFolder.open(run / "pseudo_labels")
        for row, patient in enumerate(again.table["patient_id"]):
            assert (again.read_mask(row) == again.info.ignore_index).all() == (patient == disputed)


@pytest.mark.parametrize(
    ("layouts", "first", "expected"),
    [
        ({"predicted": 0.6, "warp": 0.3, "resample": 0.1}, None, {"warp": 0.75, "resample": 0.25}),
        ("predicted", None, {"warp": 1.0}),
        ("predicted", "procedural", {"procedural": 1.0}),
        ("predicted", {"predicted": 1, "warp": 1}, {"predicted": 0.5, "warp": 0.5}),
    ],
)
def test_layouts_of_the_first_round(layouts, first, expected):
    config = SynthesisConfig(layouts=layouts, first_layouts=first, start=0.8, rounds=2)
    assert config.of_round(1).layout_weights == pytest.approx(expected)
    assert config.of_round(1).start == (0.8 if "predicted" in expected else 1)
    assert config.of_round(2) == config
    with pytest.raises(ValueError, match="first_layouts"):
        SynthesisConfig(layouts=layouts, first_layouts=first or "warp")


def test_rounds_that_would_all_be_the_same_are_refused(tiny_dataset, tiny_run):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    again = {"pseudo_labels": {"every_round": True}}
    for diffusion, synthesis, reason in (
        ({}, {"rounds": 2}, "only predicted layouts and"),
        (again, {}, r"every_round: needs synthesis\.rounds"),
        (again | {"unlabeled_fraction": 0}, {"rounds": 2}, "unlabeled_fraction above 0"),
        (again, {"rounds": 2, "sampler": "student", "steps": 4}, "another synthesis.sampler than student"),
        ({"pseudo_labels": {"fine_tuning": {}}}, {}, "fine_tuning: is of later models; set every_round"),
    ):
        wrong = values | {
            "diffusion": values["diffusion"] | diffusion,
            "synthesis": values["synthesis"] | synthesis,
        }
        with pytest.raises(StedmError, match=reason):
            parse_config(wrong, "test")


def test_self_trained_segmenters_label_images_for_the_diffusion_model_too(
    tiny_dataset, tmp_path, tiny_run, monkeypatch
):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    values["diffusion"]["pseudo_labels"] = {"arm": "self-training", "confidence": 0.6}
    values["synthesis"] |= {"layouts": "predicted", "first_layouts": "predicted", "rounds": 2}
    values["segmentation"] |= {"steps": 4}
    monkeypatch.setattr(labelling, "SELF_TRAINING_ROUNDS", 1)
    monkeypatch.setattr(labelling, "SELF_TRAINING_TEACHERS", 2)
    run = tmp_path / "run"
    made = Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    made.run()
    assert not (run / "teachers").exists()
    own = run / "self_training" / "self-training" / "round-1"
    labels = made.pseudo_labels()
    teachers = [load_segmenter(path)[0] for path in own.glob("predictors/*/model")]
    assert len(teachers) == 2
    votes = vote(teachers, np.stack([labels.read_image(row) for row in range(len(labels))])).numpy()
    masks = np.stack([labels.read_mask(row) for row in range(len(labels))])
    assert np.array_equal(np.where(votes.max(1) >= 0.6, votes.argmax(1), labels.info.ignore_index), masks)
    # The first round paints to these labels; the second has predictors of its own.
    assert made.predicted_layouts(1).root == own / "labels"
    assert len(list((run / "predictors").glob("*/model"))) == 3
    assert not (run / "rounds/1/predictors").exists()


def test_teachers_label_images_for_self_training(tiny_dataset, tmp_path, tiny_run, monkeypatch):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    values = tiny_run({"path": root}, arms=["self-training", ours := "real+stain+synthetic+self-training"], seeds=[0])
    values["segmentation"] |= {"steps": 8}
    monkeypatch.setattr(labelling, "SELF_TRAINING_TEACHERS", 2)
    run = tmp_path / "run"
    trained = set()

    def note(*given, arm, synthetic, pseudo_labeled, **more):
        trained.add((arm, synthetic is not None, pseudo_labeled is not None))
        return train_segmenter(*given, arm=arm, synthetic=synthetic, pseudo_labeled=pseudo_labeled, **more)

    monkeypatch.setattr(experiment, "train_segmenter", note)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    rounds = [run / "self_training" / "self-training" / f"round-{number}" for number in (1, 2)]
    unlabeled = DatasetFolder.open(root).split("unlabeled").table["image_file_name"].tolist()
    labels = [DatasetFolder.open(folder / "labels") for folder in rounds]
    assert all(found.table["source_image_file_name"].tolist() == unlabeled for found in labels)
    assert all(len(list(folder.glob("predictors/*/model/config.json"))) == 2 for folder in rounds)
    # The last round's labels are the vote of its own teachers, for every pixel.
    teachers = [load_segmenter(path)[0] for path in sorted(rounds[1].glob("predictors/*/model"))]
    images = np.stack([labels[1].read_image(row) for row in range(len(unlabeled))])
    masks = np.stack([labels[1].read_mask(row) for row in range(len(unlabeled))])
    assert np.array_equal(vote(teachers, images).argmax(1), masks)
    # (arm, learned from synthetic images, from labels of teachers): beside synthetic images the first teachers have
    # learned from these too.
    assert trained == {
        ("real+stain", False, False),
        ("self-training", False, True),
        ("real+stain+synthetic", True, False),
        (ours, True, True),
    }
    before = _files(run)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    redone = {path for path, time in _files(run).items() if time != before.get(path) and not path.endswith(".lock")}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone
