"""`stedm run`: the whole path on a tiny cohort, resumable, and blind to what it must not see."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from stedm.config import MachineConfig, RunConfig, load_config, parse_config, to_yaml
from stedm.data import cache as samples
from stedm.data.budget import choose_annotated
from stedm.data.folder import DatasetFolder
from stedm.data.pseudonyms import Pseudonyms
from stedm.diffusion import train as diffusion_training
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.errors import StedmError
from stedm.evaluation import scoring
from stedm.evaluation.counts import read_counts
from stedm.evaluation.scoring import evaluate_segmenter
from stedm.evaluation.stats import summarise
from stedm.experiment import segmenters
from stedm.experiment.agenda import agenda
from stedm.experiment.experiment import Experiment
from stedm.experiment.folder import claim
from stedm.experiment.resolve import resolve
from stedm.io.images import write_png
from stedm.progress import Reporter
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.pseudo_labels import vote
from stedm.segmentation.train import train_segmenter
from stedm.synthesis.plan import read_plan
from stedm.synthesis.style_bank import StyleBank

REPOSITORY = Path(__file__).parents[2]
ARMS = ["real", "real+stain", "ssl", "real+synthetic", "real+stain+synthetic", "real+stain+synthetic+ssl", "upper"]


@pytest.fixture
def tiny_config(tiny_run):
    """Factory of a configuration with all arms, without pseudo-labels."""

    def make(data: dict, **segmentation) -> RunConfig:
        values = tiny_run(data, **{"arms": ARMS, "seeds": [0, 1], **segmentation})
        values["rounds"] = {"number": 1, "labels": None}
        return parse_config(values, "test")

    return make


_NOT_OF_COUNTS = ("stain_distance", "quality", "short_training")


def _run_as_announced(config: RunConfig, folder: Path) -> dict:
    """The summary; the stages that ran are those that were announced, in that order."""
    experiment = Experiment(config, folder, Reporter(quiet=True))
    announced = [stage.name for stage in agenda(experiment)]
    summary = experiment.run()
    assert [name for name in experiment.reporter.seconds if name != "phantom patients"] == announced
    return summary


def _files(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_whole_path_on_a_phantom_and_again(tmp_path, tiny_config, request):
    # Four classes: nothing on the way may think of two.
    phantom = {
        "stain": "he",
        "image_px": 32,
        "patients": {"train": 2, "unlabeled": 2, "val": 1, "test": 3},
        "images_per_patient": 2,
    }
    config = tiny_config({"phantom": phantom})
    summary = _run_as_announced(config, tmp_path / "run")
    assert list(summary["arms"]) == ARMS
    assert all(arm["n_patients"] == 3 and arm["seeds"] == [0, 1] for arm in summary["arms"].values())
    report = tmp_path / "run" / "report"
    assert sorted(path.name for path in report.iterdir()) == [
        "counts.parquet",
        "manifest.json",
        "per_patient.csv",
        "report.html",
        "summary.json",
    ]
    bank = StyleBank.load(tmp_path / "run" / "style_bank.parquet")
    html = (report / "report.html").read_text()
    assert "From one style to another" in html
    again = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    assert sorted(bank.patients) == again.context.unlabeled.patients()
    # Anyone can compute the figures again from the counts.
    # (Distances and quality are of images, in per_patient.csv and RUN/quality.json; how long it learned is configured.)
    of_counts = {key: value for key, value in summary.items() if key not in _NOT_OF_COUNTS}
    assert summarise(read_counts(report / "counts.parquet"), config.evaluation) == of_counts
    assert len(summary["stain_distance"]) == len(summary["comparisons"])
    assert "For whom" in html
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["packages"]["torch"]

    assert not list((tmp_path / "run").rglob("checkpoints")), "finished networks keep their checkpoints"
    before = _files(tmp_path / "run")
    # As a kill just after a network was finished leaves them.
    left = [tmp_path / "run" / name / "checkpoints/step-00000002" for name in (".", "segmenters/ssl/seed-1")]
    for folder in left:
        folder.mkdir(parents=True)
    request.getfixturevalue("plain_reports")
    again = _run_as_announced(config, tmp_path / "run")
    assert again == summary
    assert not list((tmp_path / "run").rglob("checkpoints"))
    after = _files(tmp_path / "run")
    redone = {path for path in after if after[path] != before.get(path)}
    assert all("/report/" in path or path.endswith("config.yaml") for path in redone), redone


def test_masks_of_unlabeled_patients_are_never_opened_and_seeds_can_be_added(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    config = tiny_config({"path": root}, arms=["real", "ssl", "real+synthetic"], seeds=[0])
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).train_segmenters()
    more = tiny_config({"path": root}, arms=["real", "real+synthetic"], seeds=[0, 1])
    summary = Experiment(more, tmp_path / "run", Reporter(quiet=True)).run()
    assert summary["arms"]["real"]["seeds"] == [0, 1]
    shared = Experiment(more, tmp_path / "run", Reporter(quiet=True), pseudonymise=True)
    assert shared.report() == summary
    _holds_no_ids(tmp_path / "run" / "report_pseudonymised", shared.context.dataset, tmp_path, summary)
    upper = tiny_config({"path": root}, arms=["upper"], seeds=[0])
    with pytest.raises(StedmError, match="unlabeled"):
        Experiment(upper, tmp_path / "upper", Reporter(quiet=True)).run()


def test_arms_that_need_unlabeled_patients_say_so_before_anything_is_trained(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 2, "val": 1, "test": 2})
    for arm in ("ssl", "real+synthetic", "real+stain+synthetic+self-training"):
        with pytest.raises(StedmError, match=f"leave {re.escape(arm)} out"):
            Experiment(tiny_config({"path": root}, arms=[arm]), tmp_path / arm, Reporter(quiet=True)).check()


def test_a_run_wants_patients_to_score_before_anything_is_trained(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 2, "unlabeled": 1, "val": 1})
    with pytest.raises(StedmError, match=r"no image in split test; set evaluation\.split"):
        Experiment(tiny_config({"path": root}), tmp_path / "run", Reporter(quiet=True)).check()


@pytest.mark.usefixtures("plain_reports")
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


def test_a_run_says_what_looks_wrong_and_refuses_a_budget_without_a_class(tiny_dataset, tmp_path, capsys, tiny_config):
    root = tiny_dataset(patients={"train": 2, "unlabeled": 1, "val": 1, "test": 1}, images=1)
    write_png(root / "masks" / "valP0-0.png", np.full((32, 32), 255, np.uint8))
    Experiment(tiny_config({"path": root}), tmp_path / "run").check()
    assert "warning: masks of split val: every pixel is ignored" in capsys.readouterr().err
    (chosen,) = choose_annotated(DatasetFolder.open(root), 1, 0)
    write_png(root / "masks" / f"{chosen}-0.png", np.zeros((32, 32), np.uint8))
    Experiment(tiny_config({"path": root}), tmp_path / "all").check()
    with pytest.raises(StedmError, match="annotated train images hold only class background"):
        Experiment(tiny_config({"path": root, "annotated_patients": 1}), tmp_path / "one").check()


def test_the_label_budget_limits_what_is_read(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset(patients={"train": 4, "unlabeled": 2, "val": 1, "test": 2})
    config = tiny_config({"path": root, "annotated_patients": 2, "draw": 1})
    experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    assert len(experiment.context.annotated.patients()) == 2
    assert set(experiment.last_round.plan()["layout_patient_id"]) <= set(experiment.context.annotated.patients())
    assert len(experiment.context.unlabeled.patients()) == 2


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


def test_a_folder_that_a_file_manager_has_shown_is_still_new(tiny_dataset, tmp_path, tiny_config):
    root, run = tiny_dataset(), tmp_path / "run"
    run.mkdir()
    (run / ".DS_Store").touch()
    image = next((root / "images").glob("train*"))
    good = image.read_bytes()
    image.write_bytes(b"broken")
    with pytest.raises(StedmError, match="train"):
        Experiment(tiny_config({"path": root}), run, Reporter(quiet=True)).check()
    assert [path.name for path in run.iterdir()] == [".DS_Store"]
    image.write_bytes(good)
    Experiment(tiny_config({"path": root}, steps=3), run, Reporter(quiet=True)).check()


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


def _holds_no_ids(report: Path, dataset: DatasetFolder, folder: Path, summary: dict) -> None:
    """Of patients, nor where anything lies; and the same figures."""
    text = "".join((report / name).read_text() for name in ("report.html", "per_patient.csv", "summary.json"))
    text += read_counts(report / "counts.parquet").to_csv()
    found = [name for name in [*dataset.patients(), *dataset.table["image_file_name"], str(folder)] if name in text]
    assert not found, found
    assert re.search(r"patient-\d", text)
    renamed = json.dumps(summary)
    for patient in dataset.patients():
        renamed = renamed.replace(f'"{patient}"', f'"{Pseudonyms(dataset).patients([patient])[0]}"')
    assert json.loads((report / "summary.json").read_text()) == json.loads(renamed)


def test_a_segmenter_is_scored_on_its_own(tiny_dataset, tmp_path, tiny_config):
    root = tiny_dataset()
    config = tiny_config({"path": root}, arms=["real"], seeds=[0])
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    model = tmp_path / "run" / "segmenters" / "real" / "seed-0" / "model"
    summary = evaluate_segmenter(model, root, "val", tmp_path / "report")
    assert summary["arms"]["real"]["n_patients"] == 2
    assert "<dt>Split</dt><dd>val</dd>" in (tmp_path / "report" / "report.html").read_text()
    evaluate_segmenter(model, root, "val", tmp_path / "shared", pseudonymise=True)
    _holds_no_ids(tmp_path / "shared", DatasetFolder.open(root), tmp_path, summary)
    with pytest.raises(StedmError, match="use val or test"):
        evaluate_segmenter(model, root, "train", tmp_path / "other")


def flowers_like(tiny_dataset) -> Path:
    """Images that are patients of their own: four of each category in train, one of each elsewhere."""
    return tiny_dataset(patients={"train": 8, "unlabeled": 2, "val": 2, "test": 4}, images=1)


@pytest.mark.usefixtures("plain_reports")
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
    assert len(experiment.context.annotated) == 2
    assert set(experiment.context.annotated.table["category"]) == {"a"}
    assert len(experiment.context.unlabeled) == 6
    assert summary["arms"]["real"]["n_patients"] == 2
    assert summary["groups"]["unseen categories"]["categories"] == ["b"]
    assert summary.pop("quality")["layout"]["verdict"]
    assert "8 images" in summary.pop("short_training")
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
    assert runs[0].context.unlabeled.table.equals(runs[1].context.unlabeled.table)
    assert set(runs[0].context.annotated.table["patient_id"]) < set(runs[1].context.annotated.table["patient_id"])
    # The upper bound has the masks of the unseen categories, and no image that ours doesn't have.
    shown = {*runs[0].context.annotated.patients(), *runs[0].context.unlabeled.patients()}
    assert set(runs[0].context.with_all_masks.table["patient_id"]) == shown


def test_the_committed_flowers_configuration_fits_the_data(shared_data, tmp_path):
    config = load_config(REPOSITORY / "configs" / "flowers17.yaml")
    values = config.model_dump(mode="json")
    values["data"]["path"] = str(shared_data("flowers17"))
    experiment = Experiment(parse_config(values, "test"), tmp_path / "run", Reporter(quiet=True))
    with_masks = sorted(set(experiment.context.dataset.table["category"]) - {"cowslip"})
    assert set(config.data.unseen_categories) == {*with_masks[1::2], "cowslip"}
    assert experiment.context.annotated.table["category"].value_counts().to_dict() == dict.fromkeys(with_masks[::2], 3)
    assert set(with_masks[1::2]) < set(experiment.context.unlabeled.table["category"])
    plan = experiment.last_round.plan()
    shown = experiment.context.dataset.table.set_index("patient_id")["category"][plan["style_patient_id"]]
    assert shown.value_counts().between(60, 61).all()
    assert set(plan["category"]) == set(with_masks[::2])


def test_pseudo_labels_come_from_segmenters_of_annotated_images_and_reach_the_diffusion_model(
    tiny_dataset, tmp_path, tiny_config
):
    config = tiny_config({"path": str(tiny_dataset())}, arms=["real"], seeds=[0])
    asked = config.model_dump(mode="json")
    asked["rounds"] = {"number": 1, "voters": 2, "labels": {"arm": "real", "confidence": 0.5}}
    with_labels = Experiment(parse_config(asked, "test"), tmp_path / "with", Reporter(quiet=True))
    model = with_labels.last_round.model()
    labels = with_labels.last_round.pseudo_labels()
    assert len(labels) == len(with_labels.context.unlabeled)
    teachers = [tmp_path / f"with/teachers/seed-{seed}" for seed in (0, 1)]
    assert all((teacher / "model/config.json").is_file() for teacher in teachers)
    # What is compared later has no say in it.
    asked["segmentation"] |= {"seeds": [5], "arms": ["real+stain"]}
    other = Experiment(parse_config(asked, "test"), tmp_path / "other", Reporter(quiet=True))
    assert other.last_round.model().fingerprint == model.fingerprint
    without = Experiment(config, tmp_path / "without", Reporter(quiet=True)).last_round.model()
    assert not (tmp_path / "without/pseudo_labels").exists()
    assert model.fingerprint != without.fingerprint
    # What the vote wrote is kept.
    before = _files(tmp_path / "with")
    with_labels.last_round.model()
    assert _files(tmp_path / "with") == before


def test_a_run_goes_on_on_another_machine_but_not_with_another_model(tmp_path, tiny_config):
    config = resolve(tiny_config({"phantom": {}}))
    claim(tmp_path / "run", config)
    (tmp_path / "run" / "model").mkdir()
    machine = MachineConfig(workers=2, compile=True, activation_checkpointing=True, accumulate=2, cache_mb=1)
    claim(tmp_path / "run", config.model_copy(update={"machine": machine}))
    with pytest.raises(StedmError, match=r"diffusion.batch: 4 there, 2 asked"):
        claim(
            tmp_path / "run",
            config.model_copy(update={"diffusion": config.diffusion.model_copy(update={"batch": 2})}),
        )


def test_sizes_follow_from_the_data(tiny_dataset, tmp_path):
    root = tiny_dataset(image_px=40, patients={"train": 4, "unlabeled": 1, "test": 1})
    for patients, arm in ((None, "real+stain"), (3, "self-training")):
        values = {"name": "x", "data": {"path": str(root), "annotated_patients": patients}}
        config = resolve(parse_config(values, "test"))
        assert config.data.image_px == 32
        assert config.rounds.labels.arm == arm
        assert resolve(config) == config
    assert "image_px: 32" in to_yaml(config)
    given = parse_config({"name": "x", "data": {"path": str(root), "image_px": 48}}, "test")
    assert resolve(given).data.image_px == 48
    large = resolve(parse_config({"name": "x", "data": {"phantom": {"image_px": 128}}}, "test"))
    assert large.data.image_px == 128


def test_a_cohort_larger_than_the_memory_ends_in_the_same_weights_and_counts(
    tiny_dataset, tmp_path, monkeypatch, tiny_config
):
    held = []
    spread = samples._spread_slots
    monkeypatch.setattr(samples, "_spread_slots", lambda n, n_held: held.append(n_held / n) or spread(n, n_held))
    root, found, parts_held = tiny_dataset(), [], []
    for cache_mb, at_once in ((None, 64), (0.03, 4)):
        held.clear()
        config = tiny_config({"path": root}, arms=["ssl"], seeds=[0])
        config = config.model_copy(update={"machine": MachineConfig(cache_mb=cache_mb)})
        monkeypatch.setattr(scoring, "_IMAGES_AT_ONCE", at_once)
        run = Experiment(config, tmp_path / str(cache_mb), Reporter(quiet=True))
        run.last_round.model()
        run.train_segmenters()
        files = sorted(run.folder.rglob("model/**/*.safetensors"))
        assert len(files) >= 2
        counts = run.counts().to_dict()
        in_training = len(held)
        files += sorted(run.last_round.synthetic().root.rglob("*.png"))
        found.append(([path.read_bytes() for path in files], counts))
        parts_held.append((held[:in_training], held[in_training:]))
    assert found[0] == found[1]
    assert [set(parts) for parts in parts_held[0]] == [{1.0}, {1.0}]
    training, synthesis = parts_held[1]
    assert 0 < min(training) < 1
    assert 0 <= min(synthesis) < 1
    # Another machine may have another memory.
    changed = config.model_copy(update={"machine": MachineConfig(cache_mb=5)})
    Experiment(changed, run.folder, Reporter(quiet=True)).check()


def _redone(run: Path, before: dict[str, int]) -> set[str]:
    """Files written since, but for the report and what says who is at work."""
    redone = {path for path, time in _files(run).items() if time != before.get(path)}
    return {path for path in redone if "/report/" not in path and not path.endswith(("config.yaml", ".lock"))}


@pytest.fixture
def closed_dataset(tiny_dataset):
    """A cohort whose masks of unlabeled patients can't be opened."""
    root = tiny_dataset()
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    return root


@pytest.mark.usefixtures("plain_reports")
def test_segmenters_that_learned_from_synthetic_images_predict_layouts(closed_dataset, tmp_path, tiny_run):
    values = tiny_run({"path": closed_dataset}, arms=["real+stain+synthetic"], seeds=[0], mirror=True)
    values["rounds"] = {"voters": 1, "labels": None, "predicted": {"fraction": 1, "start": 0.5}, "agreement": 0}
    run = tmp_path / "run"
    _run_as_announced(parse_config(values, "test"), run)
    first, last = (pd.read_csv(run / part / "synthetic" / "metadata.csv") for part in ("rounds/1", "."))
    assert set(first["layout_kind"]) == {"warp"}
    assert set(last["layout_kind"]) == {"predicted"}
    assert (set(first["start"]), set(last["start"])) == ({1.0}, {0.5})
    assert not set(first["seed"]) & set(last["seed"])
    assert (run / "predictors" / "seed-0" / "model" / "config.json").is_file()
    assert not (run / "rounds/1/predictors").exists()
    # One model for both rounds.
    assert (run / "model").is_dir()
    assert not (run / "rounds/1/model").exists()
    layouts = DatasetFolder.open(run / "predicted_layouts")
    assert all(layouts.read_mask(row).max() <= 1 for row in range(len(layouts)))
    stages = list(json.loads((run / "provenance.json").read_text())["seconds"])
    # The voters of the second round have learned from the images of the first.
    drawn, trained = "draw synthetic images, round 1", "predicted layouts, round 2, segmenter 0"
    assert stages.index(drawn) < stages.index(trained)
    before = _files(run)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    assert not _redone(run, before)
    wrong = {**values, "diffusion": {**values["diffusion"], "objective": "eps"}}
    with pytest.raises(StedmError, match=r"rounds\.predicted\.start"):
        parse_config(wrong, "test")


@pytest.mark.usefixtures("plain_reports")
def test_every_round_has_a_model_that_learned_from_the_labels_of_its_own_segmenters(closed_dataset, tmp_path, tiny_run):
    values = tiny_run({"path": closed_dataset}, arms=["real+stain+synthetic"], seeds=[0])
    values["diffusion"]["steps"] = 8
    values["rounds"] = {
        "voters": 2,
        "labels": {"arm": "real+stain", "confidence": 0.55},
        "fine_tune": {"steps": 3, "lr": 0.0001},
        "predicted": None,
        "agreement": 0,
    }
    run = tmp_path / "run"
    _run_as_announced(parse_config(values, "test"), run)
    first, last = (StyleDiffusion.from_pretrained(folder / "model") for folder in (run / "rounds/1", run))
    assert first.fingerprint != last.fingerprint
    for folder, steps, model in ((run / "rounds/1", 8, first), (run, 3, last)):
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])["step"] == steps
        table = pd.read_csv(folder / "synthetic" / "metadata.csv")
        assert set(table["model_fingerprint"]) == {model.fingerprint}
    for folder, voters in ((run / "rounds/1", "teachers"), (run, "predictors")):
        networks = [load_segmenter(path, machine=MachineConfig())[0] for path in sorted((run / voters).glob("*/model"))]
        assert len(networks) == 2
        labels = DatasetFolder.open(folder / "pseudo_labels")
        images = np.stack([labels.read_image(row) for row in range(len(labels))])
        masks = np.stack([labels.read_mask(row) for row in range(len(labels))])
        votes = vote(networks, images).numpy()
        assert np.array_equal(np.where(votes.max(1) >= 0.55, votes.argmax(1), labels.info.ignore_index), masks)
    # The second began with the weights of the first: a few small steps away.
    before, after = (
        load_file(folder / "model/denoiser/diffusion_pytorch_model.safetensors") for folder in (run / "rounds/1", run)
    )
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.01
    files = _files(run)
    Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).run()
    assert not _redone(run, files)


@pytest.mark.parametrize("learns_from_labels", [True, False])
def test_patients_about_whom_segmenters_contradict_each_other_are_not_painted_to_either(
    tiny_dataset, tmp_path, tiny_run, learns_from_labels, request
):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    labels = {"arm": "real+stain", "confidence": 0.1} if learns_from_labels else None
    values["rounds"] = {"voters": 1, "labels": labels, "fine_tune": {"steps": 2}}
    values["synthesis"]["n_images"] = 16
    run = tmp_path / "run"
    last = Experiment(parse_config(values, "test"), run, Reporter(quiet=True)).last_round
    disputed, *others = last.context.unlabeled.patients()
    assert others
    # What a segmenter of a few steps sees is chance: here the first ones were sure of the opposite, or of the same.
    first, seen = last.first.first_labels(), last.predicted_layouts()
    assert first.root == run / ("rounds/1/pseudo_labels" if learns_from_labels else "first_labels")
    for row, (patient, name) in enumerate(zip(seen.table["patient_id"], seen.table["mask_file_name"], strict=True)):
        mask = np.ones_like(seen.read_mask(row))
        write_png(seen.root / name, mask)
        write_png(first.root / name, 1 - mask if patient == disputed else mask)
    for labels in (first, seen):
        (labels.root / "manifest.json").unlink()  # changed on purpose
    if not learns_from_labels:
        request.getfixturevalue("plain_reports")
    _run_as_announced(parse_config(values, "test"), run)
    note = f"about 1 of {1 + len(others)} unannotated patients: {disputed} (agreement.csv)"
    assert (note in (run / "report/report.html").read_text()) == learns_from_labels
    kinds = read_plan(run / "plan.parquet").groupby("style_patient_id")["layout_kind"].agg(set)
    assert kinds[disputed] == {"warp"}
    assert any("predicted" in kinds[patient] for patient in others)
    table = pd.read_csv(run / "agreement.csv", dtype={"patient_id": str}).set_index("patient_id")["agreement"]
    assert table[disputed] == 0
    assert set(table[others]) == {1}
    if learns_from_labels:
        again = DatasetFolder.open(run / "pseudo_labels")
        for row, patient in enumerate(again.table["patient_id"]):
            assert (again.read_mask(row) == again.info.ignore_index).all() == (patient == disputed)


@pytest.mark.usefixtures("plain_reports")
def test_self_trained_segmenters_label_images_for_the_diffusion_model_too(tiny_dataset, tmp_path, tiny_run):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain+synthetic"], seeds=[0])
    values["rounds"] = {"number": 1, "voters": 2, "labels": {"arm": "self-training", "confidence": 0.6}}
    values["segmentation"]["steps"] = 4
    run = tmp_path / "run"
    made = Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    made.run()
    assert not (run / "teachers").exists()
    own = run / "self_training" / "self-training" / "round-2"
    labels = made.last_round.pseudo_labels()
    teachers = [load_segmenter(path)[0] for path in sorted(own.glob("predictors/*/model"))]
    assert len(teachers) == 2
    votes = vote(teachers, np.stack([labels.read_image(row) for row in range(len(labels))])).numpy()
    masks = np.stack([labels.read_mask(row) for row in range(len(labels))])
    assert np.array_equal(np.where(votes.max(1) >= 0.6, votes.argmax(1), labels.info.ignore_index), masks)


@pytest.mark.usefixtures("plain_reports")
def test_arms_and_diffusion_model_are_told_the_same_about_stains(tiny_dataset, tmp_path, tiny_run, monkeypatch):
    values = tiny_run({"path": tiny_dataset()}, arms=["real+stain", "ssl", "upper", "real+stain+synthetic"], seeds=[0])
    values["recolour"] = {"probability": 0.7, "dab": [-0.6, 1.4]}
    told = []
    for where, name in ((segmenters, "train_segmenter"), (diffusion_training, "train_diffusion")):
        plain = getattr(where, name)
        note = lambda *a, recolour, plain=plain, **more: told.append(recolour) or plain(*a, recolour=recolour, **more)  # noqa: E731
        monkeypatch.setattr(where, name, note)
    config = parse_config(values, "test")
    Experiment(config, tmp_path / "run", Reporter(quiet=True)).run()
    assert len(told) >= 5
    assert all(one == config.recolour for one in told)


@pytest.mark.usefixtures("plain_reports")
def test_teachers_label_images_for_self_training(closed_dataset, tmp_path, tiny_run, monkeypatch):
    ours = "real+stain+synthetic+self-training"
    values = tiny_run({"path": closed_dataset}, arms=["self-training", ours], seeds=[0])
    values["rounds"] = {"number": 1, "voters": 2, "labels": None}
    values["segmentation"]["steps"] = 8
    run = tmp_path / "run"
    trained = set()

    def note(*arguments, arm, synthetic, pseudo_labeled, **more):
        trained.add((arm, synthetic is not None, pseudo_labeled is not None))
        return train_segmenter(*arguments, arm=arm, synthetic=synthetic, pseudo_labeled=pseudo_labeled, **more)

    monkeypatch.setattr(segmenters, "train_segmenter", note)
    _run_as_announced(parse_config(values, "test"), run)
    rounds = [run / "self_training" / "self-training" / f"round-{number}" for number in (1, 2)]
    unlabeled = DatasetFolder.open(closed_dataset).split("unlabeled").table["image_file_name"].tolist()
    labels = [DatasetFolder.open(folder / "labels") for folder in rounds]
    assert all(found.table["source_image_file_name"].tolist() == unlabeled for found in labels)
    assert all(len(list(folder.glob("predictors/*/model/config.json"))) == 2 for folder in rounds)
    # The last round's labels are the vote of its own teachers, for every pixel.
    at = {"machine": MachineConfig()}  # in the precision that the run has
    teachers = [load_segmenter(path, **at)[0] for path in sorted(rounds[1].glob("predictors/*/model"))]
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
    assert not _redone(run, before)
