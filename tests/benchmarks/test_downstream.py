"""The driver of downstream comparisons, end to end on a miniature phantom: shared parts, resuming, pooled draws."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import controls
import downstream
import downstream_tables
from stedm.config import EvaluationConfig, PhantomConfig
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import symmetry
from stedm.errors import StedmError
from stedm.evaluation.counts import read_counts, write_counts
from stedm.evaluation.stats import bootstrap_interval, summarise
from stedm.experiment.experiment import Experiment
from stedm.experiment.rounds import SELF_TRAINING_ROUNDS
from stedm.phantom.cohort import make_phantom
from stedm.progress import Reporter
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.pseudo_labels import vote

pytestmark = pytest.mark.usefixtures("plain_reports_of_module", "no_quality")


@pytest.fixture(scope="module")
def no_quality():
    """Synthetic images are not looked at, which the driver doesn't ask for: a sixth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "quality", lambda _: None)
        yield


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("downstream") / "data"
    patients = {"train": 3, "unlabeled": 3, "val": 3, "test": 0}
    make_phantom(PhantomConfig(image_px=32, patients=patients, images_per_patient=3), root)
    return root


def _spec_file(folder: Path, data: Path, **changes) -> Path:
    spec = {
        "name": "tiny",
        "budgets": [2],
        "draws": [0, 1],
        "baseline": "real",
        "base": {
            "data": {"path": str(data), "image_px": 32},
            "diffusion": {
                "steps": 2,
                "batch": 2,
                "denoiser": {"channels": [16, 16], "norm_groups": 8},
                "style": {"dim": 16, "n_images": 2},
            },
            "rounds": {"number": 1, "voters": 1, "labels": None},
            "synthesis": {"n_images": 4, "batch": 4, "style_images": 1, "sampling": {"steps": 2}},
            "segmentation": {
                "encoder": "tu-test_resnet",
                "encoder_depth": 3,
                "decoder_channels": [16, 8, 8],
                "steps": 2,
                "batch": 2,
                "synthetic_fraction": 0.8,
                "mirror": False,
                "seeds": [0],
                "arms": ["real", "real+synthetic"],
            },
            "evaluation": {"split": "val"},
        },
        "variants": {
            "base": {},
            "guided": {"synthesis.sampling.guidance.style": 2},
            "half": {"segmentation.synthetic_fraction": 0.5},
        },
        **changes,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder / "spec.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, phantom) -> downstream.Comparison:
    """All runs of the specification, which nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    driven = downstream.Comparison(downstream.read_spec(_spec_file(folder, phantom)), folder / "runs")
    driven.run(quiet=True)
    return driven


@pytest.fixture
def copied(whole, tmp_path) -> downstream.Comparison:
    """All runs of the specification, for a test that takes some away; what is shared is not copied."""
    shutil.copytree(whole.folder, tmp_path / "runs", symlinks=True)
    return downstream.Comparison(whole.spec, tmp_path / "runs")


def test_runs_share_what_they_have_in_common(tmp_path, whole):
    driven, runs = whole, whole.folder
    # One model and two sets a draw; the segmenters of `real` once a draw, whatever the variant.
    assert len(list((runs / "shared/models").glob("*/model"))) == 2
    assert len(list((runs / "shared/sets").glob("*/synthetic"))) == 4
    assert len(list((runs / "shared/segmenters").glob("*/segmenters/real"))) == 2
    base, guided, half = (runs / name / "patients-2/draw-1" for name in ("base", "guided", "half"))
    assert (base / "synthetic").resolve() == (half / "synthetic").resolve() != (guided / "synthetic").resolve()
    assert (base / "model").resolve() == (guided / "model").resolve()
    assert not (half / "segmenters/real+synthetic").is_symlink()
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    driven.run(quiet=True)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")} == before

    tables = downstream_tables.write_table(driven, tmp_path / "table")
    summary = json.loads((tmp_path / "table/patients-2/summary.json").read_text())
    assert summary["arms"]["guided/real+synthetic"]["seeds"] == [0, 1000]
    compared = {(entry["a"], entry["b"]) for entry in summary["comparisons"]}
    assert ("guided/real+synthetic", "base/real+synthetic") in compared
    assert ("base/real+synthetic", "base/real") in compared
    between = next(e for e in summary["comparisons"] if (e["a"], e["b"]) == ("base/real+synthetic", "base/real"))
    by_draw = [
        json.loads((runs / f"base/patients-2/draw-{draw}/report/summary.json").read_text())["arms"] for draw in (0, 1)
    ]
    expected = [arms["real+synthetic"]["iou_mean"] - arms["real"]["iou_mean"] for arms in by_draw]
    assert list(between["delta_by_draw"].values()) == pytest.approx(expected)
    low, high = between["delta_ci_draws"]
    assert low <= between["delta_mean"] <= high
    best = summary["best_baseline"]["base/real+synthetic"]
    assert all(name.endswith("/real") for name in best["baseline_by_draw"].values())
    assert list(best["delta_by_draw"].values()) == pytest.approx(expected)

    downstream_tables.write_curve(driven, tmp_path / "table")
    curve = pd.read_csv(tmp_path / "table/curve.csv").set_index("arm")
    assert curve.loc["guided/real+synthetic", ["annotated_patients", "draws", "seeds"]].tolist() == [2, 2, 2]
    assert curve.loc["base/real", "iou_mean"] == pytest.approx(summary["arms"]["base/real"]["iou_mean"], abs=1e-4)
    assert (tmp_path / "table/curve.png").stat().st_size > 1000
    # The same networks under another variant's name.
    scores = pd.DataFrame(summary["arms"]).T["iou_mean"]
    assert scores["base/real"] == scores["guided/real"] == scores["half/real"]
    assert "| guided | real+synthetic |" in tables


def test_self_trained_segmenters_are_shared_where_the_part_of_labelled_images_is_the_same(tmp_path, phantom):
    file = _spec_file(tmp_path, phantom, draws=[0], baseline="self-training")
    values = yaml.safe_load(file.read_text())
    values["base"]["segmentation"] |= {"arms": ["self-training"]}
    file.write_text(yaml.safe_dump(values))
    downstream.Comparison(downstream.read_spec(file), tmp_path / "runs").run(quiet=True)
    base, guided, half = (
        (tmp_path / "runs" / name / "patients-2/draw-0/segmenters/self-training").resolve()
        for name in ("base", "guided", "half")
    )
    assert base == guided != half


def test_a_model_with_labels_of_self_training_shares_its_teachers_with_that_arm(tmp_path, phantom):
    file = _spec_file(tmp_path, phantom, draws=[0], baseline="self-training", variants={"base": {}})
    values = yaml.safe_load(file.read_text())
    values["base"]["rounds"]["labels"] = {"arm": "self-training"}
    values["base"]["segmentation"] |= {"arms": ["self-training", "real+synthetic"]}
    file.write_text(yaml.safe_dump(values))
    downstream.Comparison(downstream.read_spec(file), tmp_path / "runs").run(quiet=True)
    teachers = {path.resolve() for path in (tmp_path / "runs").glob("**/predictors/*/model/*.safetensors")}
    assert len(teachers) == SELF_TRAINING_ROUNDS
    assert all(path.is_relative_to(tmp_path / "runs/shared/teachers") for path in teachers)
    [model] = (tmp_path / "runs/shared/models").glob("*/model")
    assert (model.parent / "pseudo_labels/metadata.csv").is_file()
    assert (model.parent / "self_training").is_symlink()


def test_a_run_that_trains_a_model_in_every_round_begins_with_the_shared_one(tmp_path, phantom):
    again = {"rounds.number": 2, "rounds.fine_tune.steps": 1}
    own = again | {"control": "annotated-styles"}
    file = _spec_file(tmp_path, phantom, draws=[0], variants={"base": {}, "again": again, "own styles": own})
    values = yaml.safe_load(file.read_text())
    values["base"]["rounds"]["labels"] = {"arm": "real+stain"}
    file.write_text(yaml.safe_dump(values))
    runs = tmp_path / "runs"
    downstream.Comparison(downstream.read_spec(file), runs).run(quiet=True)
    base, last = ((runs / name / "patients-2/draw-0/model").resolve() for name in ("base", "again"))
    first = last.parent / "rounds/1/model"
    assert first.is_symlink()
    assert first.resolve() == base != last
    [shared] = (runs / "shared/models").glob("*/model")
    assert shared.resolve() == base
    # A control draws with the models of the whole set, in every round, and its own images teach its voters.
    lacking = (runs / "own styles/patients-2/draw-0/synthetic").resolve().parent
    assert lacking != last.parent
    assert [(lacking / part).resolve() for part in ("rounds/1/model", "model")] == [base, last]
    assert not (lacking / "rounds/1/synthetic").is_symlink()
    assert not (lacking / "predictors").is_symlink()


def test_runs_that_differ_in_their_rounds_share_those_that_both_have(tmp_path, phantom):
    labels = {"rounds.labels": {"arm": "real+stain"}}
    again = labels | {"rounds.fine_tune.steps": 1}
    variants = {
        "base": {},
        "one": labels,
        "first model": labels | {"rounds.number": 2, "rounds.fine_tune": None, "rounds.agreement": 0.5},
        "two": again | {"rounds.number": 2},
        "three": again | {"rounds.number": 3},
    }
    runs = tmp_path / "runs"
    file = _spec_file(tmp_path, phantom, draws=[0], variants=variants)
    downstream.Comparison(downstream.read_spec(file), runs).run(["one", "first model", "two", "three"], quiet=True)
    one, kept_model, two, three = (
        (runs / name / "patients-2/draw-0/synthetic").resolve().parent
        for name in ("one", "first model", "two", "three")
    )
    drawn, guessed = ("synthetic", "plan.parquet"), ("predictors", "predicted_layouts")
    # The first round has no predicted layouts.
    for later, number, earlier, parts in [
        (kept_model, 1, one, drawn),
        (two, 1, one, drawn),
        (three, 1, one, drawn),
        (three, 2, two, drawn + guessed),
    ]:
        for part in parts:
            assert (found := later / "rounds" / str(number) / part).exists()
            assert found.resolve() == (earlier / part).resolve()
    # What the segmenters of the annotated images see, which later ones are asked to agree with, isn't seen again.
    labels = one.parents[1] / "models" / (one / "model").resolve().parent.name / "pseudo_labels"
    found = [kept_model / "pseudo_labels", *(later / "rounds/1/pseudo_labels" for later in (two, three))]
    assert {path.resolve() for path in found} == {labels}
    assert (three / "rounds/2/model").resolve() == (two / "model").resolve()
    assert (two / "rounds/1/model").resolve() == (kept_model / "model").resolve() == (one / "model").resolve()
    # What the last round makes is its own.
    assert len({(folder / "synthetic").resolve() for folder in (one, kept_model, two, three)}) == 4
    voters = [(folder / "predictors").resolve() for folder in (kept_model, two, three)]
    # Those of a second round learn from the first round's images, whatever the second makes of their layouts.
    assert voters[0] == voters[1] != voters[2]


def test_runs_that_differ_in_what_the_last_round_paints_share_what_it_paints_by(tmp_path, phantom):
    two = {"rounds.labels": {"arm": "real", "confidence": 0}, "rounds.number": 2, "rounds.fine_tune.steps": 1}
    none = two | {"rounds.agreement": 0}
    variants = {
        "base": none,
        "all predicted": none | {"rounds.predicted.fraction": 1},
        "nobody doubted": two | {"rounds.agreement": 1e-9},
        "all doubted": two | {"rounds.agreement": 1},
        "trained longer": none | {"rounds.fine_tune.steps": 2},
    }
    spec, runs = downstream.read_spec(_spec_file(tmp_path, phantom, draws=[0], variants=variants)), tmp_path / "runs"
    downstream.Comparison(spec, runs).run(quiet=True)
    sets = {name: (runs / name / "patients-2/draw-0/synthetic").resolve().parent for name in variants}
    agreed = pd.read_csv(sets["base"] / "agreement.csv")["agreement"]
    assert agreed.between(0, 1, inclusive="neither").all(), "no threshold divides these patients"

    def made(part, *names):
        return {(sets[name] / part).resolve() for name in names or sets}

    assert len(made("synthetic")) == len(variants)
    assert len({path.resolve() for path in runs.glob("**/predictors/*/model/*.safetensors")}) == 1
    for part in ("predictors", "predicted_layouts", "agreement.csv"):
        assert len(made(part)) == 1, part
    for part in ("model", "pseudo_labels"):
        assert len(made(part, "base", "all predicted", "nobody doubted")) == 1
        assert len(made(part)) == 3
    # What was made before rounds were shared like this stays.
    shutil.rmtree(runs / "shared/votes")
    downstream.Comparison(spec, runs).run(quiet=True)
    assert not (runs / "shared/votes").exists()


def test_arms_are_compared_on_the_same_draws(copied):
    spec = copied.spec.model_copy(update={"compare": [("half/real+synthetic", "base/real")]})

    def compared():
        summary = downstream_tables.summary_of(spec, 2, downstream_tables.pooled_counts(copied, 2))
        return {(entry["a"], entry["b"]) for entry in summary["comparisons"]}

    assert ("half/real+synthetic", "base/real") in compared()
    shutil.rmtree(copied.folder / "half/patients-2/draw-1")
    assert ("half/real+synthetic", "base/real") not in compared()
    assert ("guided/real+synthetic", "base/real") in compared()


def test_a_table_keeps_what_is_known_of_runs_that_are_gone(tmp_path, copied, capsys):
    target = tmp_path / "table"
    whole = downstream_tables.write_table(copied, target)
    shutil.rmtree(tmp_path / "runs/base/patients-2/draw-0")
    shutil.rmtree(tmp_path / "runs/guided")
    verb = ["table", str(tmp_path / "runs"), "-o", str(target)]
    downstream.main([*verb, "--keep"])
    assert capsys.readouterr().out == whole
    downstream.main(["curve", str(tmp_path / "runs"), "-o", str(target), "--keep"])
    assert pd.read_csv(target / "curve.csv").set_index("arm").loc["base/real", "draws"] == 2
    # A run that is there counts, not what was known of it.
    counts = pd.read_parquet(target / "patients-2/counts.parquet")
    counts.loc[counts["seed"] >= 1000, "tp"] = 0
    write_counts(target / "patients-2/counts.parquet", counts)
    downstream.main([*verb, "--keep"])
    known = pd.read_parquet(target / "patients-2/counts.parquet").query("seed >= 1000")
    found = known.groupby("arm", observed=True)["tp"].sum()
    assert found["guided/real+synthetic"] == 0 < found["base/real"]
    capsys.readouterr()
    downstream.main(verb)
    assert "guided" not in capsys.readouterr().out


def test_an_interval_over_draws_is_wider_where_draws_differ():
    patients = np.random.default_rng(0).normal(0.02, 0.01, (40, 1))
    equal, unequal = patients.repeat(3, axis=1), patients + np.array([-0.02, 0.0, 0.02])
    config = EvaluationConfig()
    narrow, wide = (downstream_tables.interval_over_draws(part, config) for part in (equal, unequal))
    over_patients = bootstrap_interval(lambda x: x.mean(axis=-1), patients[:, 0], config=config)
    assert narrow == pytest.approx(over_patients, abs=0.001)
    assert wide[0] < narrow[0] - 0.008
    assert wide[1] > narrow[1] + 0.008


def test_what_an_arm_is_worth_in_patients_of_the_baseline():
    budgets, ious = [1, 4, 16], [0.5, 0.7, 0.8]
    assert downstream_tables.worth(0.7, budgets, ious) == pytest.approx(4)
    assert downstream_tables.worth(0.6, budgets, ious) == pytest.approx(2)
    assert downstream_tables.worth(0.75, budgets, ious) == pytest.approx(8)
    assert downstream_tables.worth(0.81, budgets, ious) is None


def test_controls_lack_one_thing_each(tmp_path, phantom):
    variants = {name: {"control": name} for name in ("shuffled-layouts", "copied-images", "annotated-styles")}
    variants["shuffled-styles"] = {"control": "shuffled-styles"}
    file = _spec_file(tmp_path, phantom, draws=[0], variants={"base": {}, **variants})
    driven = downstream.Comparison(downstream.read_spec(file), tmp_path / "runs")
    driven.run(quiet=True)
    cells = {name: tmp_path / "runs" / name / "patients-2/draw-0" for name in ("base", *variants)}
    sets = {name: DatasetFolder.open(cell / "synthetic") for name, cell in cells.items()}
    annotated = Experiment(driven.spec.config("base", 2, 0), cells["base"], Reporter(quiet=True)).context.annotated
    assert {len(found) for found in sets.values()} == {4}

    def masks(name):
        return [sets[name].read_mask(row).tobytes() for row in range(4)]

    def images(found):
        return [found.read_image(row).tobytes() for row in range(len(found))]

    assert images(sets["shuffled-layouts"]) == images(sets["base"])
    assert sorted(masks("shuffled-layouts")) == sorted(masks("base"))
    assert masks("shuffled-layouts") != masks("base")
    truth = [annotated.read_mask(row).tobytes() for row in range(len(annotated))]
    pairs = set(zip(images(annotated), truth, strict=True))
    assert set(zip(images(sets["copied-images"]), masks("copied-images"), strict=True)) <= pairs
    train = set(annotated.table["patient_id"])
    assert set(sets["annotated-styles"].table["patient_id"]) <= train
    assert not train & set(sets["base"].table["patient_id"])
    patient_of = DatasetFolder.open(phantom).table.set_index("image_file_name")["patient_id"]
    for row in sets["shuffled-styles"].table.itertuples():
        shown = {patient_of[name] for name in row.style_image_file_names.split(";")}
        assert len(shown) == 1
        assert not shown & (train | {row.patient_id})


def test_gates_keep_what_the_voters_of_the_pseudo_labels_see(tmp_path, phantom):
    variants = {
        name: {"control": name, "synthesis.n_images": 9}
        for name in ("agreed-images", "disputed-images", "agreed-pixels")
    }
    file = _spec_file(tmp_path, phantom, draws=[0], variants={"base": {"synthesis.n_images": 9}, **variants})
    values = yaml.safe_load(file.read_text())
    values["base"]["rounds"]["labels"] = {"arm": "real"}
    values["base"]["segmentation"]["steps"] = 30
    file.write_text(yaml.safe_dump(values))
    driven = downstream.Comparison(downstream.read_spec(file), tmp_path / "runs")
    driven.run(quiet=True)
    cells = {name: tmp_path / "runs" / name / "patients-2/draw-0" for name in ("base", *variants)}
    sets = {name: DatasetFolder.open(cell / "synthetic") for name, cell in cells.items()}
    whole = sets["base"]
    of_patient = whole.table["patient_id"].value_counts()
    assert len({path.resolve() for path in (tmp_path / "runs").glob("**/teachers/seed-0/model")}) == 1
    network = load_segmenter(next((tmp_path / "runs/shared/models").glob("*/teachers/seed-0/model")))[0]

    def seen(found):
        """Mean probability that the voter gives to the layouts of a set."""
        images = np.stack([found.read_image(row) for row in range(len(found))])
        masks = np.stack([found.read_mask(row) for row in range(len(found))]).astype(np.int64)
        return np.take_along_axis(vote([network], images).numpy(), masks[:, None], axis=1).mean()

    for name in ("agreed-images", "disputed-images"):
        assert sets[name].table["patient_id"].value_counts().to_dict() == ((of_patient + 1) // 2).to_dict()
    assert seen(sets["disputed-images"]) < seen(whole) < seen(sets["agreed-images"])

    gated, votes = sets["agreed-pixels"], []
    for row in range(len(whole)):
        probability, found = vote([network], whole.read_image(row)[None])[0].max(dim=0)
        asked = whole.read_mask(row)
        disputed = (found.numpy() != asked) & (probability.numpy() >= controls.SURE)
        assert (gated.read_mask(row) == np.where(disputed, whole.info.ignore_index, asked)).all()
        votes.append(disputed.any())
    assert any(votes), "the voter disputes nothing, so that this test shows nothing"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {"other": {}}}, "needs one called base"),
        ({"baseline": "ssl"}, "ssl is not an arm"),
        ({"variants": {"base": {}, "wrong": {"control": "nothing"}}}, "not one of shuffled-layouts"),
        ({"variants": {"base": {}, "wrong": {"synthesis.sampling.gidance": 2}}}, "gidance"),
        (
            {"variants": {"base": {}, "wrong": {"control": "unpainted-images"}}},
            r"wrong: set rounds\.predicted\.fraction",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(tmp_path, phantom, changes, said):
    with pytest.raises(StedmError, match=said):
        downstream.read_spec(_spec_file(tmp_path, phantom, **changes))


def test_the_curve_tells_variants_of_an_arm_apart():
    arms = ["base/real+stain", "base/real+synthetic", "guided/real+synthetic", "ssl/ssl", "weight 0.1/ssl"]
    labels = ["real+stain", "real+synthetic", "real+synthetic, guided", "ssl", "ssl, weight 0.1"]
    assert downstream_tables.arm_labels(arms) == dict(zip(arms, labels, strict=True))


def test_unpainted_images_are_those_that_the_layouts_were_predicted_in(tmp_path, phantom):
    variants = {"unpainted": {"control": "unpainted-images"}}
    file = _spec_file(tmp_path, phantom, draws=[0], variants={"base": {}, **variants})
    values = yaml.safe_load(file.read_text())
    values["base"]["rounds"] |= {"number": 2, "labels": {"arm": "real"}, "fine_tune": {"steps": 1}, "agreement": 0}
    values["base"]["rounds"]["predicted"] = {"fraction": 1, "start": 0.5}
    file.write_text(yaml.safe_dump(values))
    driven = downstream.Comparison(downstream.read_spec(file), tmp_path / "runs")
    driven.run(["unpainted"], quiet=True)
    driven.run(quiet=True)
    base, unpainted = (
        DatasetFolder.open(tmp_path / "runs" / name / "patients-2/draw-0/synthetic") for name in ("base", "unpainted")
    )
    # The layouts are those that were seen for the whole set.
    whole, lacking = (dataset.root.resolve().parent for dataset in (base, unpainted))
    for part in ("predictors", "rounds/1/synthetic"):
        assert (lacking / part).resolve() == (whole / part).resolve()
    dataset = DatasetFolder.open(phantom)
    row_of = {name: row for row, name in enumerate(dataset.table["image_file_name"])}
    for row, planned in enumerate(base.table.itertuples()):
        source = dataset.read_image(row_of[planned.layout_image_file_name])
        assert np.array_equal(unpainted.read_image(row), symmetry(source, planned.layout_symmetry))
        assert np.array_equal(unpainted.read_mask(row), base.read_mask(row))
        assert not np.array_equal(unpainted.read_image(row), base.read_image(row))


def test_the_headline_is_a_report_over_draws_under_plain_names(tmp_path, phantom, whole):
    file = _spec_file(tmp_path, phantom, variants={"base": {}})
    driven = downstream.Comparison(downstream.read_spec(file), whole.folder)
    downstream_tables.write_headline(driven, tmp_path / "headline")
    summary = json.loads((tmp_path / "headline/summary.json").read_text())
    assert list(summary["arms"]) == ["real", "real+synthetic"]
    assert summary["arms"]["real"]["seeds"] == [0, 1000]
    [entry] = [e for e in summary["comparisons"] if (e["a"], e["b"]) == ("real+synthetic", "real")]
    assert set(entry["delta_by_draw"]) == set(entry["sd_ratio_by_draw"]) == {"0", "1"}
    assert entry["delta_mean"] == pytest.approx(np.mean(list(entry["delta_by_draw"].values())))
    assert (tmp_path / "headline/arms.png").stat().st_size > 1000
    counts = read_counts(tmp_path / "headline/counts.parquet")
    assert summarise(counts, driven.spec.config("base", 2, 0).evaluation)["arms"] == summary["arms"]
    both = _spec_file(
        tmp_path, phantom, draws=[0], variants={"base": {}, "guided": {"synthesis.sampling.guidance.style": 2}}
    )
    several = downstream.Comparison(downstream.read_spec(both), whole.folder)
    with pytest.raises(StedmError, match="in several variants"):
        downstream_tables.write_headline(several, tmp_path / "none")
    values = yaml.safe_load(both.read_text())
    values |= {"names": {"guided/real+synthetic": "guided", "guided/real": "real again"}}
    values["compare"] = [["guided/real+synthetic", "base/real+synthetic"]]
    both.write_text(yaml.safe_dump(values))
    named = downstream.Comparison(downstream.read_spec(both), whole.folder)
    downstream_tables.write_headline(named, tmp_path / "named")
    summary = json.loads((tmp_path / "named/summary.json").read_text())
    assert set(summary["arms"]) == {"real", "real+synthetic", "guided", "real again"}
    assert ("guided", "real+synthetic") in {(entry["a"], entry["b"]) for entry in summary["comparisons"]}
