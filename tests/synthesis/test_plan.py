"""The plan: layouts of annotated patients, styles of unannotated ones, nothing of val or test."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stedm.config import Guidance, PredictedConfig, Sampling, SynthesisConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.layout.prior import LayoutPrior, class_fractions
from stedm.layout.recipe import KINDS
from stedm.synthesis.generate import synthesize
from stedm.synthesis.plan import (
    COLUMNS,
    LIST_SEPARATOR,
    checked_sources,
    layout_recipe,
    make_plan,
    plan_fingerprint,
    read_plan,
    write_plan,
)

MIXTURE = dict.fromkeys(KINDS, 1.0)


@pytest.fixture
def dataset(tiny_dataset):
    return DatasetFolder.open(tiny_dataset(patients={"train": 4, "unlabeled": 3, "val": 2, "test": 2}))


def _plan(dataset, n=30, seed=0, **settings) -> pd.DataFrame:
    config = SynthesisConfig(n_images=n, **{"layouts": "resample", **settings})
    return make_plan(config, dataset.split("train"), dataset.split("unlabeled"), image_px=32, seed=seed)


def test_sources_come_from_the_right_patients(dataset):
    plan = _plan(dataset)
    table = dataset.table.set_index("image_file_name")
    assert set(table.loc[plan["layout_image_file_name"], "split"]) == {"train"}
    for row in plan.itertuples():
        shown = table.loc[row.style_image_file_names.split(LIST_SEPARATOR)]
        assert set(shown["patient_id"]) == {row.style_patient_id}
        assert set(shown["split"]) == {"unlabeled"}
    counts = plan["style_patient_id"].value_counts()
    assert counts.tolist() == [10, 10, 10]


def test_layouts_match_the_category_of_the_style_patient(dataset):
    plan = _plan(dataset)
    category_of = dataset.table.set_index("patient_id")["category"].groupby(level=0).first()
    layout_categories = category_of[plan["layout_patient_id"]].to_numpy()
    assert (layout_categories == category_of[plan["style_patient_id"]].to_numpy()).all()
    assert (layout_categories == plan["category"]).all()
    free = _plan(dataset, match_category=False)
    assert (category_of[free["layout_patient_id"]].to_numpy() != category_of[free["style_patient_id"]].to_numpy()).any()


def test_a_longer_plan_begins_with_the_shorter_one(dataset):
    pd.testing.assert_frame_equal(_plan(dataset, 40).iloc[:10], _plan(dataset, 10))
    assert plan_fingerprint(_plan(dataset, 10)) != plan_fingerprint(_plan(dataset, 10, seed=1))


@pytest.mark.parametrize(("layouts", "styles"), [("val", "unlabeled"), ("train", "test"), ("unlabeled", "unlabeled")])
def test_held_out_patients_are_refused(dataset, layouts, styles):
    with pytest.raises(StedmError, match="may not come from split"):
        make_plan(SynthesisConfig(n_images=2), dataset.split(layouts), dataset.split(styles))


@pytest.mark.parametrize("column", ["layout_image_file_name", "style_image_file_names"])
def test_an_edited_plan_is_refused_too(dataset, column):
    plan = _plan(dataset, 3)
    for name, message in (("images/testP0-1.png", "split test"), ("images/nowhere.png", "not in")):
        edited = plan.copy()
        edited.loc[1, column] = name
        with pytest.raises(StedmError, match=message):
            checked_sources(edited, dataset)
    checked_sources(plan, dataset)


def test_written_plans_read_back_and_other_files_are_refused(dataset, tmp_path):
    write_plan(_plan(dataset, 3), tmp_path / "plan.parquet")
    again = read_plan(tmp_path / "plan.parquet")
    assert plan_fingerprint(again) == plan_fingerprint(_plan(dataset, 3))
    assert again.attrs["dataset"] == str(dataset.root.resolve())
    with pytest.raises(StedmError, match="no such plan"):
        read_plan(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(StedmError, match="not a readable parquet"):
        read_plan(tmp_path / "text.parquet")
    again[["seed"]].to_parquet(tmp_path / "short.parquet")
    with pytest.raises(StedmError, match="columns missing"):
        read_plan(tmp_path / "short.parquet")


def test_images_spread_evenly_over_categories_where_asked(dataset):
    # Of three unannotated patients two are of category a and one of b.
    plan = _plan(dataset, 40, spread="categories")
    counts = plan["style_patient_id"].value_counts().to_dict()
    assert counts == {"unlabeledP1": 20, "unlabeledP0": 10, "unlabeledP2": 10}
    pd.testing.assert_frame_equal(plan.iloc[:10], _plan(dataset, 10, spread="categories"))


def test_unseen_categories_give_styles_and_no_layouts(tiny_dataset, tmp_path):
    root = tiny_dataset(patients={"train": 4, "unlabeled": 1, "val": 1, "test": 1})
    dataset = DatasetFolder.open(root, unseen_categories=["b"])
    plan = _plan(dataset, 30)
    assert set(plan["layout_patient_id"]) == {"trainP0", "trainP2"}
    assert set(plan["style_patient_id"]) == {"trainP1", "trainP3", "unlabeledP0"}
    checked_sources(plan, dataset)
    # Whoever executes the plan holds the same categories back.
    plan.loc[0, "layout_image_file_name"] = "images/trainP1-0.png"
    write_plan(plan, tmp_path / "plan.parquet")
    with pytest.raises(StedmError, match=r"trainP1-0\.png is of split unlabeled"):
        synthesize(None, read_plan(tmp_path / "plan.parquet"), tmp_path / "set")


def test_how_a_row_is_drawn_is_part_of_the_plan(dataset):
    sampling = Sampling(guidance=Guidance(style=2.0), steps=3)
    plan = _plan(dataset, 3, sampling=sampling)
    assert [Sampling.model_validate_json(text) for text in plan["sampling"]] == [sampling] * 3
    assert plan_fingerprint(plan) != plan_fingerprint(_plan(dataset, 3))


def test_rows_of_a_mixture_differ_only_in_how_the_layout_is_made(dataset):
    plain, mixed = _plan(dataset, 60), _plan(dataset, 60, layouts=MIXTURE)
    assert set(plain["layout_kind"]) == {"resample"}
    assert mixed["layout_kind"].value_counts().min() > 5
    assert set(mixed["layout_kind"]) == set(KINDS)
    same = [name for name in COLUMNS if not name.startswith("layout")]
    pd.testing.assert_frame_equal(plain[same], mixed[same])
    resampled = (mixed["layout_kind"] == "resample").to_numpy()
    pd.testing.assert_frame_equal(plain[resampled], mixed[resampled])
    pd.testing.assert_frame_equal(mixed.iloc[:20], _plan(dataset, 20, layouts=MIXTURE))


def test_layouts_of_a_seed_stay_what_they_are(dataset):
    # Stored values, of 5207792: a change of the order in which generators are drawn changes every run.
    plan = _plan(dataset, 5, layouts={"resample": 1, "warp": 1})
    prior = LayoutPrior(dataset.split("train"), 32)
    rows = [
        (row.layout_image_file_name, row.layout_symmetry, row.layout_kind, row.layout_seed, row.seed)
        for row in plan.itertuples()
    ]
    assert rows == [
        ("images/trainP3-1.png", 5, "warp", 8354428355789825957, 4607569398932998430),
        ("images/trainP2-1.png", 2, "resample", 0, 3646835182613991357),
        ("images/trainP2-2.png", 0, "resample", 0, 4638190540226086706),
        ("images/trainP3-0.png", 0, "warp", 7144001220604878389, 9164796914325123404),
        ("images/trainP2-0.png", 1, "resample", 0, 7297619080547748802),
    ]
    sizes = [int((prior.build(layout_recipe(row)) == 1).sum()) for row in plan.itertuples()]
    assert sizes == pytest.approx([208, 116, 258, 139, 128], abs=1)


def test_weights_of_a_mixture_are_followed(dataset):
    kinds = _plan(dataset, 200, layouts={"resample": 3, "warp": 1})["layout_kind"]
    assert (kinds == "warp").mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_every_kind_come_from_train_patients_of_the_category(dataset, kind):
    plan = _plan(dataset, layouts=kind)
    checked_sources(plan, dataset)
    table = dataset.table.set_index("image_file_name")
    category_of = dataset.table.groupby("patient_id")["category"].first()
    for row in plan.itertuples():
        source = layout_recipe(row).source
        assert table.at[source, "split"] == "train"
        assert table.at[source, "category"] == category_of[row.style_patient_id]


def test_kinds_of_layouts_that_are_not_known_are_refused(dataset):
    plan = _plan(dataset, 3)
    plan.loc[1, "layout_kind"] = "recombine"
    with pytest.raises(StedmError, match="layout_kind 'recombine' is not known"):
        checked_sources(plan, dataset)


def test_known_fractions_choose_the_layouts(dataset):
    train = dataset.split("train")
    fractions = class_fractions(np.stack([train.read_mask(row) for row in range(len(train))]), 2)[:, 1]
    fraction_of = dict(zip(train.table["image_file_name"], fractions, strict=True))
    in_a = (train.table["category"] == "a").to_numpy()
    low = float(np.median(fractions[in_a]))
    plan = _plan(dataset, 40, category_fractions={"a": {"disc": [low, 1.0]}})
    shown = plan[plan["category"] == "a"]["layout_image_file_name"].map(fraction_of)
    assert len(shown) > 5
    assert shown.min() >= low - 1e-6
    plain = _plan(dataset, 40)
    assert plain[plain["category"] == "a"]["layout_image_file_name"].map(fraction_of).min() < low
    with pytest.raises(StedmError, match="no annotated layout is within category_fractions of 'a'"):
        _plan(dataset, category_fractions={"a": {"disc": [0.95, 1.0]}})
    with pytest.raises(StedmError, match="'c', which no image has"):
        _plan(dataset, category_fractions={"c": {"disc": [0.0, 1.0]}})
    with pytest.raises(StedmError, match="no class 'ring'"):
        _plan(dataset, category_fractions={"a": {"ring": [0.0, 1.0]}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category_fractions": {"a": {"disc": [0.6, 0.4]}}}, "must be .low, high"),
        ({"category_fractions": {"a": {"disc": [0.0, 0.4]}}, "match_category": False}, "needs match_category"),
        ({"layouts": {}}, "at least 1 item"),
        ({"layouts": {"warp": 0}}, "greater than 0"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SynthesisConfig(**settings)


@pytest.fixture
def predicted(dataset, predicted_ones, tmp_path):
    return predicted_ones(dataset.split("unlabeled"), tmp_path / "predicted")


def test_predicted_layouts_are_of_an_image_of_the_style_patient(dataset, predicted):
    sources = dataset.split("train"), dataset.split("unlabeled")
    half = PredictedConfig(fraction=0.5, start=0.8)
    plan = make_plan(SynthesisConfig(n_images=60), *sources, image_px=32, predicted=predicted, predicted_config=half)
    rows = plan[plan["layout_kind"] == "predicted"]
    assert 15 < len(rows) < 45
    table = dataset.table.set_index("image_file_name")
    assert (table.loc[rows["layout_image_file_name"], "patient_id"].to_numpy() == rows["style_patient_id"]).all()
    assert (rows["layout_patient_id"] == rows["style_patient_id"]).all()
    shown = [names.split(LIST_SEPARATOR) for names in rows["style_image_file_names"]]
    assert not any(name in names for name, names in zip(rows["layout_image_file_name"], shown, strict=True))
    assert set(rows["start"]) == {0.8}
    assert set(plan.loc[plan["layout_kind"] == "warp", "start"]) == {1.0}
    checked_sources(plan, dataset)
    # A plan that takes what was predicted for an annotated image, or in one of test, is refused.
    for split in ("train", "test"):
        plan.loc[rows.index[0], "layout_image_file_name"] = table.index[table["split"] == split][0]
        with pytest.raises(StedmError, match=f"is of split {split}"):
            checked_sources(plan, dataset)


def test_patients_without_predicted_layouts_get_the_other_kinds(dataset, predicted):
    sources = dataset.split("train"), dataset.split("unlabeled")
    without = sources[1].patients()[0]
    some = predicted.select((predicted.table["patient_id"] != without).to_numpy())
    for fraction, other in ((0.75, "resample"), (1.0, "warp")):
        config = SynthesisConfig(n_images=60, layouts=other)
        options = {"image_px": 32, "predicted_config": PredictedConfig(fraction=fraction)}
        plan = make_plan(config, *sources, predicted=some, **options)
        kinds = plan.groupby("style_patient_id")["layout_kind"].agg(set)
        assert kinds.pop(without) == {other}
        assert all("predicted" in found for found in kinds)
        # The rows of the others are those of a plan with all layouts.
        whole = make_plan(config, *sources, predicted=predicted, **options)
        others = plan["style_patient_id"] != without
        pd.testing.assert_frame_equal(plan[others], whole[others])


def test_the_only_image_of_a_patient_is_its_own_style(dataset, predicted):
    unlabeled = dataset.split("unlabeled")
    alone = unlabeled.select(~unlabeled.table["patient_id"].duplicated())
    every = PredictedConfig(fraction=1.0)
    sources = dataset.split("train"), alone
    plan = make_plan(SynthesisConfig(n_images=3), *sources, image_px=32, predicted=predicted, predicted_config=every)
    assert (plan["style_image_file_names"] == plan["layout_image_file_name"]).all()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sampling", '{"steps": 1099511627776}', "sampling: steps"),
        ("sampling", "{", "not valid JSON"),
        ("layout_kind", "procedural", "layout_kind"),
        ("layout_symmetry", 8, "layout_symmetry"),
        ("seed", -1, "seed"),
        ("start", 2.0, "start"),
        ("style_patient_id", None, "style_patient_id"),
        ("image_id", "synthetic-000000", "no image_id twice"),
    ],
)
def test_a_plan_of_values_that_no_plan_has_is_one_line(dataset, tmp_path, column, value, message):
    plan = _plan(dataset, 3)
    write_plan(plan.assign(**{column: value}), tmp_path / "plan.parquet")
    with pytest.raises(StedmError, match=message) as error:
        read_plan(tmp_path / "plan.parquet")
    assert "\n" not in str(error.value)
    plan.attrs["batch"] = 2**40
    write_plan(plan, tmp_path / "plan.parquet")
    with pytest.raises(StedmError, match="batch"):
        read_plan(tmp_path / "plan.parquet")
