"""Style sampling: the right patient and slide, never the target itself, a pure function of the generator.

Every image of the datasets here is of one colour of its own, so that a style image tells where it comes from.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stedm.config import DiffusionConfig, StyleConfig
from stedm.data.cache import ImageCache
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata, write_png
from stedm.data.symmetry import N_SYMMETRIES, symmetry
from stedm.diffusion.train import DiffusionSamples
from stedm.errors import StedmError
from stedm.seeds import numpy_generator
from stedm.style.sampling import SAMPLINGS, StyleSampler, style_views, unannotated_tissue

PX = 8
KINDS = sorted(SAMPLINGS)


def _colour(row: int) -> tuple[int, int, int]:
    return 10 + 5 * row, 60, 30


def _folder(root: Path, rows: list[dict], image_px: int = PX) -> Path:
    for row in range(len(rows)):
        write_png(root / f"images/{row}.png", np.full((image_px, image_px, 3), _colour(row), np.uint8))
        write_png(root / f"masks/{row}.png", np.eye(image_px, dtype=np.uint8))
    table = pd.DataFrame(rows)
    table["image_file_name"] = [f"images/{row}.png" for row in range(len(rows))]
    table["mask_file_name"] = [f"masks/{row}.png" for row in range(len(rows))]
    write_metadata(root, DatasetInfo("colours", ["a", "b"]), table.assign(split="train"))
    assert check_dataset(root) == []
    return root


@pytest.fixture
def cache(tmp_path):
    """Function: metadata rows to an image cache."""
    return lambda rows, **options: ImageCache(DatasetFolder.open(_folder(tmp_path / "d", rows, **options)), PX)


def _shown_rows(sampler: StyleSampler, row: int, *seed: int) -> list[int]:
    """From which rows the style images are; checks present, padding, shape and type on the way."""
    shown, present = sampler(row, numpy_generator(0, row, *seed))
    assert shown.shape == (sampler.n_images, PX, PX, 3)
    assert (shown.dtype, present.dtype) == (np.uint8, bool)
    n = int(present.sum())
    assert present.tolist() == [True] * n + [False] * (sampler.n_images - n)
    assert (shown[n:] == 0).all()
    rows = (shown[:n, 0, 0, 0].astype(int) - 10) // 5
    for image, origin in zip(shown[:n], rows, strict=True):
        assert (image == _colour(origin)).all()
    return rows.tolist()


def _cohort(positions: bool = True, slides: bool = True) -> list[dict]:
    """Two patients with two slides of nine tiles each (3 x 3, touching); slide ids repeat from patient to patient."""
    rows = []
    for patient in "PQ":
        for slide in ("s1", "s2"):
            for i in range(9):
                row = {"patient_id": patient, "slide_id": slide, "x": PX * (i % 3), "y": PX * (i // 3), "mpp": 0.5}
                if not positions:
                    del row["x"], row["y"], row["mpp"]
                if not slides:
                    del row["slide_id"]
                rows.append(row)
    return rows


def _allowed(kind: str, row: int, positions: bool, slides: bool) -> set[int]:
    """Rows that may show the style of `row` of `_cohort`."""
    patient = set(range(18)) if row < 18 else set(range(18, 36))
    slide = {other for other in patient if other // 9 == row // 9} if slides else patient
    # Where slides are not told apart, tiles at the same place of two slides may be the same tissue.
    same_place = {other for other in patient if other % 9 == row % 9 and (not slides or other == row)}
    out = same_place if positions else {row}
    if kind == "augmented":
        return {row}
    if kind == "cohort":
        return patient - out
    if kind == "multi-patch" or not positions:
        return slide - out
    y, x = divmod(row % 9, 3)
    return {o for o in slide if max(abs(o % 9 // 3 - y), abs(o % 9 % 3 - x)) == 1}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
@pytest.mark.parametrize(("positions", "slides"), [(True, True), (True, False), (False, True), (False, False)])
def test_styles_come_from_where_they_may_and_from_everywhere_there(cache, kind, positions, slides):
    images = cache(_cohort(positions, slides))
    sampler = StyleSampler(images, kind, 20)
    for row in (0, 4, 13, 35):
        seen = {origin for seed in range(10) for origin in _shown_rows(sampler, row, seed)}
        assert seen == _allowed(kind, row, positions, slides)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_style_images(cache, kind):
    images = cache(_cohort())
    available = {"none": 0, "nearby": 3, "cohort": 17}
    for n in range(1, 21):
        shown = _shown_rows(StyleSampler(images, kind, n), 0)
        assert len(shown) == min(n, available.get(kind, n))
        if kind in available:
            assert len(set(shown)) == len(shown), "an image twice although there are others"


@pytest.mark.parametrize("kind", ["nearby", "multi-patch", "cohort"])
def test_tiles_that_overlap_the_target_are_left_out(cache, kind):
    """Half a tile of step: neighbours show half of the target's own layout."""
    rows = [{"patient_id": "P", "slide_id": "s", "x": PX // 2 * i, "y": 0} for i in range(8)]
    sampler = StyleSampler(cache(rows), kind, 10)
    # Tile 2 covers 8..16: 0 and 4 touch it, 5 begins half a tile behind it, 6 a whole one; 1 and 3 overlap it.
    expected = {0, 4, 5} if kind == "nearby" else {0, 4, 5, 6, 7}
    assert {origin for seed in range(9) for origin in _shown_rows(sampler, 2, seed)} == expected


def test_nearby_falls_back_to_the_slide_and_then_to_the_image_itself(cache):
    place = {"x": 0, "y": 0}
    rows = [
        {"patient_id": "P", "slide_id": "far", **place},
        {"patient_id": "P", "slide_id": "far", "x": 100 * PX, "y": 0},
        {"patient_id": "P", "slide_id": "unknown"},
        {"patient_id": "P", "slide_id": "unknown", **place},
        {"patient_id": "P", "slide_id": "alone", **place},
        {"patient_id": "P", "slide_id": "alone but for an overlap", **place},
        {"patient_id": "P", "slide_id": "alone but for an overlap", "x": 1, "y": 1},
        {"patient_id": "Q", "slide_id": "far", "x": PX, "y": 0},
    ]
    images = cache(rows)
    for kind in ("nearby", "multi-patch"):
        sampler = StyleSampler(images, kind, 3)
        assert [set(_shown_rows(sampler, row)) for row in range(8)] == [{1}, {0}, {3}, {2}, {4}, {5}, {6}, {7}]


def test_tiles_are_near_by_their_side_on_the_slide_not_in_training(cache):
    """Stored at 16 px and 1.0 microns from a slide of 0.25 microns: tiles are 64 level-0 pixels wide."""
    rows = [{"patient_id": "P", "slide_id": "s", "x": 64 * i, "y": 0, "mpp": 1.0, "slide_mpp": 0.25} for i in range(4)]
    sampler = StyleSampler(cache(rows, image_px=16), "nearby", 5)
    assert [set(_shown_rows(sampler, row)) for row in range(4)] == [{1}, {0, 2}, {1, 3}, {2}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_is_a_function_of_the_generator(tiny_dataset, kind):
    images = ImageCache(DatasetFolder.open(tiny_dataset(images=5)), 32)
    sampler, again = StyleSampler(images, kind, 2), StyleSampler(images, kind, 2)
    again(1, numpy_generator(5))
    first, same, other = (s(3, numpy_generator(seed))[0] for s, seed in ((sampler, 1), (again, 1), (sampler, 2)))
    assert np.array_equal(first, same)
    assert np.array_equal(first, other) == (kind == "none")


@pytest.mark.parametrize("kind", ["augmented", "nearby", "multi-patch", "cohort"])
def test_a_single_image_is_never_shown_as_it_is(tiny_dataset, kind):
    images = ImageCache(DatasetFolder.open(tiny_dataset(images=1)), 32)
    shown, present = StyleSampler(images, kind, 3)(0, numpy_generator(0))
    assert present.all()
    target = images.image(0)
    assert not any(np.array_equal(symmetry(target, k), image) for image in shown for k in range(N_SYMMETRIES))
    # The colours are the target's own, the arrangement isn't.
    assert abs(shown.mean(axis=(0, 1, 2)) - target.mean(axis=(0, 1))).max() < 60


def test_views_of_a_users_image_are_those_of_training(cache):
    images = cache([{"patient_id": "P"}])
    shown, _ = StyleSampler(images, "augmented", 3)(0, numpy_generator(4))
    assert np.array_equal(shown, style_views(images.image(0), 3, numpy_generator(4)))


@pytest.mark.parametrize("kind", ["nearby", "multi-patch"])
def test_kinds_that_need_slides_refuse_data_without(tmp_path, kind):
    config = DiffusionConfig(style=StyleConfig(sampling=kind))
    bare = DatasetFolder.open(_folder(tmp_path / "bare", [{"patient_id": "P"}, {"patient_id": "Q"}]))
    with pytest.raises(StedmError, match=f"{kind} needs several images of a slide.*add slide_id or set"):
        DiffusionSamples(config, bare, bare, PX, seed=0)
    # Two images of a patient, or a slide_id, are enough.
    several = DatasetFolder.open(_folder(tmp_path / "several", [{"patient_id": "P"}, {"patient_id": "P"}]))
    named = DatasetFolder.open(_folder(tmp_path / "named", [{"patient_id": "P", "slide_id": "s"}]))
    for dataset in (several, named):
        assert DiffusionSamples(config, bare, dataset, PX, seed=0)[0]["valid"].shape == (4,)


# ---- slides annotated in part -------------------------------------------------------------------------------------


def _annotated_in_part(root: Path) -> tuple[DatasetFolder, DatasetFolder]:
    """`_cohort` with P's tiles 4 (middle of s1) and 9 (corner of s2) annotated, Q's not at all; and the annotated part.

    One tile more of P, 0, has a mask but is left out, as by a label budget.
    """
    _folder(root, _cohort())
    table = pd.read_csv(root / "metadata.csv")
    table.loc[~table.index.isin([0, 4, 9]), "mask_file_name"] = ""
    table.to_csv(root / "metadata.csv", index=False)
    dataset = DatasetFolder.open(root)
    return dataset, dataset.select([4, 9])


@pytest.mark.parametrize("kind", ["nearby", "multi-patch", "cohort"])
def test_slides_annotated_in_part_show_all_their_tissue_as_style(tmp_path, kind):
    dataset, annotated = _annotated_in_part(tmp_path / "d")
    others = unannotated_tissue(dataset, annotated)
    assert set(others.table["patient_id"]) == {"P"}
    config = DiffusionConfig(style=StyleConfig(sampling=kind, dropout=0.0, n_images=20), unlabeled_fraction=0.0)
    samples, again = (DiffusionSamples(config, annotated, None, PX, 0, style_sources=others) for _ in range(2))
    seen: dict[int, set[int]] = {4: set(), 9: set()}
    for i in range(40):
        item, same = samples[i], again[i]
        assert all(bool((item[key] == same[key]).all()) for key in item)
        target, shown = (int(item["image"][0, 0, 0]) - 10) // 5, item["style"][item["valid"]][:, 0, 0, 0].int()
        assert (item["layout"] < 2).all() or (item["layout"] == 2).all()
        seen[target] |= set(((shown - 10) // 5).tolist())
    first, second = set(range(1, 9)) - {4}, set(range(10, 18))
    expected = {
        "nearby": {4: first, 9: {10, 12, 13}},
        "multi-patch": {4: first, 9: second},
        "cohort": {4: first | second | {9}, 9: first | second | {4}},
    }
    assert seen == expected[kind]
    # They are shown, but no training images, and the table of names is that of the training images.
    assert samples.names == ["images/4.png", "images/9.png"]
    assert samples.some_images(9).shape[0] == 2
    assert {int(samples[i]["row"]) for i in range(20)} == {0, 1}


def test_rows_of_unannotated_patients_are_numbered_behind_the_annotated_ones(tmp_path):
    """As the cache of latents counts them, whatever is shown as style besides."""
    dataset, annotated = _annotated_in_part(tmp_path / "d")
    unlabeled = dataset.select(dataset.table["patient_id"] == "Q")
    config = DiffusionConfig(unlabeled_fraction=1.0)
    samples = DiffusionSamples(
        config, annotated, unlabeled, PX, 0, style_sources=unannotated_tissue(dataset, annotated)
    )
    item = samples[0]
    name = samples.names[int(item["row"])]
    assert name == f"images/{(int(item['image'][0, 0, 0]) - 10) // 5}.png"


def test_style_sources_are_images_of_train_without_a_mask(tiny_dataset):
    root = tiny_dataset()
    table = pd.read_csv(root / "metadata.csv")
    table.loc[table.index % 3 > 0, "mask_file_name"] = ""
    table.to_csv(root / "metadata.csv", index=False)
    dataset = DatasetFolder.open(root)
    found = unannotated_tissue(dataset, dataset.select(dataset.table["split"] == "train"))
    assert (found.table["split"] == "train").all()
    assert len(found) == 4
    assert len(unannotated_tissue(dataset, dataset.split("train").select([0]))) == 2
    with pytest.raises(StedmError, match="not a part"):
        dataset.followed_by(DatasetFolder.open(tiny_dataset(name="other")))
