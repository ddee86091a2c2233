"""The composition prior: drawn layouts have the fractions of their category, and nobody else's layouts are in them."""

import numpy as np
import pandas as pd
import pytest

from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.errors import StedmError
from stedm.layout.measures import class_fractions, compare_layouts, component_areas
from stedm.layout.prior import LayoutPrior
from stedm.layout.random_field import SmoothField
from stedm.layout.recipe import KINDS, Texture, build_layout, carve, join, tissue_field, warp

NEW_KINDS = [kind for kind in KINDS if kind != "resample"]


def blobs(fractions: list[float], seed: int, image_px: int = 32) -> np.ndarray:
    """A layout of blobs with these class fractions, drawn without the code under test."""
    grid = np.arange(image_px) / image_px
    field = SmoothField(1.0, 1.0, 0.25, np.random.default_rng(seed))(grid, grid)
    edges = np.quantile(field, np.clip(np.cumsum(fractions)[:-1], 0, 1))
    return np.searchsorted(edges, field).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    def make(layouts: dict[str, list[np.ndarray]], n_classes: int = 2, split: str = "train") -> DatasetFolder:
        rows = []
        for category, masks in layouts.items():
            for number, mask in enumerate(masks):
                name = f"{category}-{number}.png"
                write_png(tmp_path / "images" / name, np.zeros((*mask.shape, 3), np.uint8))
                write_png(tmp_path / "masks" / name, mask)
                rows.append(
                    {
                        "image_file_name": f"images/{name}",
                        "mask_file_name": f"masks/{name}",
                        "patient_id": f"{category}{number}",
                        "split": split,
                        "category": category,
                    }
                )
        info = DatasetInfo("layouts", [f"class{index}" for index in range(n_classes)])
        write_metadata(tmp_path, info, pd.DataFrame(rows))
        return DatasetFolder.open(tmp_path)

    return make


@pytest.fixture
def two_categories(folder):
    """Category `few` has 0.1 to 0.3 of class 1, category `much` 0.6 to 0.8."""
    spread = np.linspace(-0.1, 0.1, 10)
    return folder(
        {
            "few": [blobs([0.8 - d, 0.2 + d], 10 + i) for i, d in enumerate(spread)],
            "much": [blobs([0.3 - d, 0.7 + d], 50 + i) for i, d in enumerate(spread)],
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fractions_follow_the_category(two_categories, kind):
    prior = LayoutPrior.fit(two_categories, 32)
    for category in ("few", "much"):
        real = prior.layouts[(two_categories.table["category"] == category).to_numpy()]
        distances = compare_layouts(prior.draw_many(kind, category, 60, seed=0), real, 2)
        assert distances["fraction"][1] < distances["fraction_floor"][1]
    other = compare_layouts(prior.draw_many(kind, "few", 60, seed=0), real, 2)
    assert other["fraction"][1] > 5 * other["fraction_floor"][1]


@pytest.mark.parametrize("kind", KINDS)
def test_layout_i_is_a_function_of_seed_and_i(two_categories, kind):
    first, again = (LayoutPrior.fit(two_categories, 32) for _ in range(2))
    drawn = first.draw_many(kind, "few", 6, seed=3)
    again.draw_many(kind, "much", 2, seed=9)
    assert np.array_equal(again.draw_many(kind, "few", 4, seed=3), drawn[:4])
    assert not np.array_equal(again.draw_many(kind, "few", 6, seed=4), drawn)
    assert drawn.dtype == np.uint8
    assert len({layout.tobytes() for layout in drawn}) > 3


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_new_layouts_are_new(two_categories, kind):
    prior = LayoutPrior.fit(two_categories, 32)
    known = {np.rot90(m, turn).tobytes() for layout in prior.layouts for m in (layout, layout.T) for turn in range(4)}
    drawn = prior.draw_many(kind, "few", 20, seed=0)
    # A part without class 1 joined to another one is what it was.
    assert sum(layout.tobytes() in known for layout in drawn) <= (5 if kind == "recombine" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_categories_are_not_mixed_and_an_unknown_one_draws_from_all(two_categories, kind):
    prior = LayoutPrior.fit(two_categories, 32)
    for category in ("few", "much"):
        recipes = [prior.recipe(kind, category, np.random.default_rng(i)) for i in range(30)]
        sources = {name for recipe in recipes for name in (recipe.source, recipe.second) if name}
        assert len(sources) > 5
        assert all(name.startswith(f"images/{category}-") for name in sources)
    for category in ("nobody's", None):
        sources = {prior.recipe(kind, category, np.random.default_rng(i)).source for i in range(30)}
        assert {name.split("-")[0] for name in sources} == {"images/few", "images/much"}


@pytest.mark.parametrize("kind", KINDS)
def test_eight_classes_at_64_px(folder, kind, monkeypatch):
    monkeypatch.setattr("stedm.layout.texture_fit._TRIALS", 4)
    shares = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])
    layouts = [blobs(np.random.default_rng(i).dirichlet(60 * shares).tolist(), i, 64) for i in range(6)]
    prior = LayoutPrior.fit(folder({"c": layouts}, n_classes=8), 64)
    drawn = prior.draw_many(kind, "c", 12, seed=0)
    assert drawn.shape == (12, 64, 64)
    assert set(np.unique(drawn)) == set(range(8))
    assert class_fractions(drawn, 8).mean(axis=0) == pytest.approx(prior.fractions.mean(axis=0), abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_one_annotated_layout_is_enough(folder, kind):
    layout = blobs([0.6, 0.4], 0)
    prior = LayoutPrior.fit(folder({"c": [layout]}), 32)
    drawn = prior.draw_many(kind, "c", 10, seed=0)
    assert class_fractions(drawn, 2)[:, 1].mean() == pytest.approx((layout == 1).mean(), abs=0.08)


def test_ignored_pixels_stay_unknown_and_count_nowhere(folder):
    layouts = [blobs([0.7, 0.3], i) for i in range(4)]
    for layout in layouts:
        layout[:8] = 255
    layouts.append(np.full((32, 32), 255, np.uint8))
    prior = LayoutPrior.fit(folder({"c": layouts}), 32)
    for kind in ("warp", "recombine"):
        drawn = prior.draw_many(kind, "c", 30, seed=0)
        assert set(np.unique(drawn)) == {0, 1, 255}
        assert (drawn == 255).mean() == pytest.approx((prior.layouts == 255).mean(), abs=0.12)
    drawn = prior.draw_many("procedural", "c", 20, seed=0)
    assert set(np.unique(drawn)) == {0, 1}
    known = [(layout == 1).sum() / (layout < 2).sum() for layout in layouts[:4]]
    assert (drawn == 1).mean() == pytest.approx(np.mean(known), abs=0.03)
    hidden = LayoutPrior.fit(prior.annotated.select([4]), 32)
    with pytest.raises(StedmError, match="ignored pixels only"):
        hidden.draw("procedural", "c", np.random.default_rng(0))


def test_a_warp_moves_by_its_amplitude_and_keeps_classes():
    layout = blobs([0.5, 0.3, 0.2], 1, 64)
    moved = [warp(layout, np.random.default_rng(i)) for i in range(8)]
    assert all(set(np.unique(m)) <= {0, 1, 2} for m in moved)
    assert np.mean([(m != layout).mean() for m in moved]) > 0.1
    still = [warp(layout, np.random.default_rng(i), amplitude_sides=0.0) for i in range(8)]
    assert all((a != b).any() for a, b in zip(moved, still, strict=True))
    assert np.array_equal(warp(np.full((16, 16), 255, np.uint8), np.random.default_rng(0)), np.full((16, 16), 255))


def test_a_seam_runs_where_layouts_agree():
    first, second = np.zeros((2, 32, 32), np.uint8)
    first[:, 12:20] = 1
    second[:, 12:20] = 2
    first[15], second[15] = 0, 0  # the two agree in this row
    joined = join(first, second, np.random.default_rng(0))
    assert set(np.unique(joined)) == {0, 1, 2}
    assert np.array_equal(joined[:6], first[:6])
    assert np.array_equal(joined[-6:], second[-6:])
    ends = [
        int(np.flatnonzero((join(first, second, np.random.default_rng(i)) == 1).any(axis=1)).max()) for i in range(9)
    ]
    assert ends.count(14) >= 6


def test_carving_has_the_asked_fractions_and_puts_classes_into_their_parents():
    texture = Texture((0.5, 0.3, 0.15, 0.05), (0.25, 0.2, 0.1, 0.1), (0.0, 0.85, 0.0, -0.5), (-1, 0, 1, 0))
    layout = carve(texture, 64, np.random.default_rng(0))
    assert class_fractions(layout[None], 4)[0] == pytest.approx(texture.fractions, abs=2 / 64**2)
    beside = np.concatenate([layout[:-1][layout[1:] == 2], layout[1:][layout[:-1] == 2]])
    assert (beside == 1).sum() > (beside == 0).sum()
    assert Texture.from_json(texture.to_json()) == texture


def test_cells_make_separate_bodies():
    def n_bodies(cells: float) -> float:
        fields = [tissue_field(64, 0.1, cells, np.random.default_rng(i)) for i in range(6)]
        return len(component_areas(np.stack([f > np.median(f) for f in fields]), 1)) / 6

    assert n_bodies(0.85) > 1.5 * n_bodies(0.0) > 3 * n_bodies(-0.85)


def test_the_fit_sees_how_large_structures_are(folder):
    grid = np.arange(64) / 64
    fields = [
        SmoothField(1.0, 1.0, scale, np.random.default_rng(i))(grid, grid) for scale in (0.1, 0.3) for i in range(6)
    ]
    layouts = [(field > 0).astype(np.uint8) for field in fields]
    prior = LayoutPrior.fit(folder({"fine": layouts[:6], "coarse": layouts[6:]}), 64)
    fine, coarse = (
        max(np.delete(prior.composition(c).scales, prior.composition(c).parents.index(-1))) for c in ("fine", "coarse")
    )
    assert 0.06 < fine < 0.16
    assert coarse > 1.8 * fine


LIMITS = {"few": {"class1": (0.25, 0.4)}, "new": {"class1": (0.45, 0.55)}, "much": {"class1": (0.6, 1.0)}}


@pytest.mark.parametrize("kind", KINDS)
def test_known_fractions_restrict_the_layouts(two_categories, kind):
    prior = LayoutPrior.fit(two_categories, 32, LIMITS)
    for category, n in (("few", 20), ("much", 10)):
        fractions = class_fractions(prior.draw_many(kind, category, n, seed=0), 2)[:, 1]
        low, high = LIMITS[category]["class1"]
        assert fractions.min() >= low - 1e-3
        assert fractions.max() <= high + 1e-3
    if kind != "procedural":
        with pytest.raises(StedmError, match="no annotated layout is within category_fractions of 'new'"):
            prior.draw(kind, "new", np.random.default_rng(0))


def test_procedural_layouts_reach_fractions_that_nobody_annotated(two_categories):
    prior = LayoutPrior.fit(two_categories, 32, LIMITS)
    fractions = class_fractions(prior.draw_many("procedural", "new", 20, seed=0), 2)[:, 1]
    assert ((fractions >= 0.449) & (fractions <= 0.551)).all()
    assert np.ptp(fractions) > 0.03


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"few": {"class9": (0, 1)}}, "no class 'class9'"),
        ({"few": {"class0": (0.6, 1), "class1": (0.5, 1)}}, "sum to 1"),
    ],
)
def test_impossible_knowledge_is_refused(two_categories, limits, message):
    with pytest.raises(StedmError, match=message):
        LayoutPrior.fit(two_categories, 32, limits)


@pytest.mark.parametrize("split", ["val", "test", "unlabeled"])
def test_only_train_layouts_are_taken(folder, split):
    dataset = folder({"c": [blobs([0.5, 0.5], 0)]}, split=split)
    with pytest.raises(StedmError, match=f"split {split}"):
        LayoutPrior.fit(dataset, 32)


def test_a_procedural_recipe_needs_no_layout(two_categories):
    recipe = LayoutPrior.fit(two_categories, 32).recipe("procedural", "few", np.random.default_rng(0))

    def read(name: str) -> np.ndarray:
        raise AssertionError(name)

    assert build_layout(recipe, read, 32).shape == (32, 32)


def test_distances_see_fractions_and_sizes_and_are_at_the_floor_for_equals():
    grid = np.arange(32) / 32
    fine, coarse = (
        np.stack([SmoothField(1.0, 1.0, scale, np.random.default_rng(i))(grid, grid) > 0 for i in range(30)])
        for scale in (0.1, 0.3)
    )
    fine, coarse = fine.astype(np.uint8), coarse.astype(np.uint8)
    same = compare_layouts(fine[::2], fine[1::2], 2)
    assert same["fraction"][1] < 2 * same["fraction_floor"][1]
    assert same["log_area"][1] < 2.5 * same["log_area_floor"][1]
    assert compare_layouts(fine, 0 * fine, 2)["fraction"][1] > 0.3
    other = compare_layouts(coarse, fine, 2)
    assert other["log_area"][1] > 3 * other["log_area_floor"][1]
    absent = compare_layouts(fine, fine, 3)
    assert np.isnan(absent["log_area"][2])
    assert absent["fraction"] == [0.0, 0.0, 0.0]
