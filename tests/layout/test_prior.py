"""The composition prior: layouts have the fractions of their category, and nobody else's layouts are in them."""

import numpy as np
import pandas as pd
import pytest

from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.errors import StedmError
from stedm.layout.prior import LayoutPrior, class_fractions
from stedm.layout.random_field import SmoothField
from stedm.layout.recipe import KINDS, warp
from stedm.seeds import numpy_generator


def draw(prior: LayoutPrior, kind: str, category: str | None, n: int, seed: int = 0) -> np.ndarray:
    """`n` layouts (n, image_px, image_px)."""
    generators = [numpy_generator(seed, "layout", i) for i in range(n)]
    return np.stack([prior.build(prior.recipe(kind, category, generator)) for generator in generators])


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
    prior = LayoutPrior(two_categories, 32)
    for category, share in (("few", 0.2), ("much", 0.7)):
        drawn = class_fractions(draw(prior, kind, category, 60), 2)[:, 1]
        assert drawn.mean() == pytest.approx(share, abs=0.03)
        real = prior.fractions[(two_categories.table["category"] == category).to_numpy(), 1]
        assert 0.5 < drawn.std() / real.std() < 1.8


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_is_a_function_of_its_generator_alone(two_categories, kind):
    first, again = (LayoutPrior(two_categories, 32) for _ in range(2))
    drawn = draw(first, kind, "few", 6, seed=3)
    draw(again, kind, "much", 2, seed=9)
    assert np.array_equal(draw(again, kind, "few", 4, seed=3), drawn[:4])
    assert not np.array_equal(draw(again, kind, "few", 6, seed=4), drawn)
    assert drawn.dtype == np.uint8
    assert len({layout.tobytes() for layout in drawn}) > 3


def test_warped_layouts_are_new(two_categories):
    prior = LayoutPrior(two_categories, 32)
    known = {np.rot90(m, turn).tobytes() for layout in prior.layouts for m in (layout, layout.T) for turn in range(4)}
    assert not any(layout.tobytes() in known for layout in draw(prior, "warp", "few", 20))


@pytest.mark.parametrize("kind", KINDS)
def test_categories_are_not_mixed_and_an_unknown_one_draws_from_all(two_categories, kind):
    prior = LayoutPrior(two_categories, 32)
    for category in ("few", "much"):
        recipes = [prior.recipe(kind, category, np.random.default_rng(i)) for i in range(30)]
        sources = {recipe.source for recipe in recipes}
        assert len(sources) > 5
        assert all(name.startswith(f"images/{category}-") for name in sources)
    for category in ("nobody's", None):
        sources = {prior.recipe(kind, category, np.random.default_rng(i)).source for i in range(30)}
        assert {name.split("-")[0] for name in sources} == {"images/few", "images/much"}


@pytest.mark.parametrize("kind", KINDS)
def test_eight_classes_at_64_px(folder, kind):
    shares = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])
    layouts = [blobs(np.random.default_rng(i).dirichlet(60 * shares).tolist(), i, 64) for i in range(6)]
    prior = LayoutPrior(folder({"c": layouts}, n_classes=8), 64)
    drawn = draw(prior, kind, "c", 12)
    assert drawn.shape == (12, 64, 64)
    assert set(np.unique(drawn)) == set(range(8))
    assert class_fractions(drawn, 8).mean(axis=0) == pytest.approx(prior.fractions.mean(axis=0), abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_one_annotated_layout_is_enough(folder, kind):
    layout = blobs([0.6, 0.4], 0)
    prior = LayoutPrior(folder({"c": [layout]}), 32)
    drawn = draw(prior, kind, "c", 10)
    assert class_fractions(drawn, 2)[:, 1].mean() == pytest.approx((layout == 1).mean(), abs=0.08)


def test_ignored_pixels_stay_unknown_and_count_nowhere(folder):
    layouts = [blobs([0.7, 0.3], i) for i in range(4)]
    for layout in layouts:
        layout[:8] = 255
    layouts.append(np.full((32, 32), 255, np.uint8))
    prior = LayoutPrior(folder({"c": layouts}), 32)
    drawn = draw(prior, "warp", "c", 30)
    assert set(np.unique(drawn)) == {0, 1, 255}
    assert (drawn == 255).mean() == pytest.approx((prior.layouts == 255).mean(), abs=0.12)
    known = [(layout == 1).sum() / (layout < 2).sum() for layout in layouts[:4]]
    assert prior.fractions[:4, 1] == pytest.approx(known)
    # A layout of which nothing is known is within no limits.
    limited = LayoutPrior(prior.annotated, 32, {"c": {"class1": (0.0, 1.0)}})
    assert {limited.recipe("resample", "c", np.random.default_rng(i)).source for i in range(30)} == {
        f"images/c-{number}.png" for number in range(4)
    }


def test_a_warp_moves_by_its_amplitude_and_keeps_classes():
    layout = blobs([0.5, 0.3, 0.2], 1, 64)
    moved = [warp(layout, np.random.default_rng(i)) for i in range(8)]
    assert all(set(np.unique(m)) <= {0, 1, 2} for m in moved)
    assert np.mean([(m != layout).mean() for m in moved]) > 0.1
    still = [warp(layout, np.random.default_rng(i), amplitude_sides=0.0) for i in range(8)]
    assert all((a != b).any() for a, b in zip(moved, still, strict=True))
    assert np.array_equal(warp(np.full((16, 16), 255, np.uint8), np.random.default_rng(0)), np.full((16, 16), 255))


LIMITS = {"few": {"class1": (0.25, 0.4)}, "new": {"class1": (0.45, 0.55)}, "much": {"class1": (0.6, 1.0)}}


@pytest.mark.parametrize("kind", KINDS)
def test_known_fractions_restrict_the_layouts(two_categories, kind):
    prior = LayoutPrior(two_categories, 32, LIMITS)
    for category, n in (("few", 20), ("much", 10)):
        fractions = class_fractions(draw(prior, kind, category, n), 2)[:, 1]
        low, high = LIMITS[category]["class1"]
        assert fractions.min() >= low - 1e-3
        assert fractions.max() <= high + 1e-3
    with pytest.raises(StedmError, match="no annotated layout is within category_fractions of 'new'"):
        prior.recipe(kind, "new", np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_category_without_layouts_gets_those_of_others_that_fit(two_categories, kind):
    prior = LayoutPrior(two_categories, 32, {"new": {"class1": (0.65, 1.0)}})
    recipes = [prior.recipe(kind, "new", np.random.default_rng(i)) for i in range(30)]
    assert {recipe.source.split("-")[0] for recipe in recipes} == {"images/much"}
    assert class_fractions(np.stack([prior.build(recipe) for recipe in recipes]), 2)[:, 1].min() >= 0.65 - 1e-6


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"few": {"class9": (0, 1)}}, "no class 'class9'"),
        ({"few": {"class0": (0.6, 1), "class1": (0.5, 1)}}, "sum to 1"),
    ],
)
def test_impossible_knowledge_is_refused(two_categories, limits, message):
    with pytest.raises(StedmError, match=message):
        LayoutPrior(two_categories, 32, limits)


@pytest.mark.parametrize("split", ["val", "test", "unlabeled"])
def test_only_train_layouts_are_taken(folder, split):
    dataset = folder({"c": [blobs([0.5, 0.5], 0)]}, split=split)
    with pytest.raises(StedmError, match=f"split {split}"):
        LayoutPrior(dataset, 32)
