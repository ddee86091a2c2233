"""The chain of benchmarks/slide_chain.py on small slides: slides and annotations in, polygons out."""

import json
from dataclasses import replace

import numpy as np
import pytest

import slide_chain
import stedm.diffusion.train
from slide_chain import Size, compare, passed, run_chain, tile_counts, write_cohort

SMALL = Size(1024, train=1, unlabeled=1, val=1, test=1, tile_px=32, diffusion_steps=4, segmenter_steps=40)
SMALL = replace(SMALL, synthetic_images=8, cache_mb=0.1)
MODEL = "run/segmenters/real+synthetic/seed-0/model"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folder, result, and the images that the training of the diffusion model was given as styles only."""
    folder, shown = tmp_path_factory.mktemp("chain"), []
    train = stedm.diffusion.train.train_diffusion
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            stedm.diffusion.train,
            "train_diffusion",
            lambda *a, **k: shown.append(k["style_sources"]) or train(*a, **k),
        )
        return folder, run_chain(folder, SMALL), shown[0]


def test_the_chain_from_slides_to_polygons_agrees_with_itself(chain):
    folder, result, _ = chain
    assert result["tile_images_before_training"] == 0
    assert result["files_added_by_training"] == []
    assert min(result["export_iou"].values()) >= 0.99
    # The maps are the same (next line), but masks of tiles and the truth of the slide differ in some border pixels: on
    # one small slide 0.001, a little more or less by the number of threads that the network was trained with.
    assert max(result["difference_without_overlap"].values()) <= 0.002
    assert result["pixels_that_differ_without_overlap"] <= 1e-4 * result["pixels_compared"]
    # Tiles of 32 px are mostly border: what blending gains there is seen.
    assert max(result["difference"].values()) <= 0.05
    assert result["tissue_in_tiles"] > 0.9
    # It has learned something, or agreement would mean little.
    assert result["slide_iou"]["tumour"] > 0.5
    assert sorted(path.name for path in (folder / "dataset").iterdir()) == [
        ".tiling",
        "dataset.yaml",
        "metadata.csv",
        "slides.csv",
        "tiling.yaml",
    ]
    assert sorted(path.name for path in (folder / "segmented").iterdir()) == [
        ".segment",
        "areas.csv",
        "test0.csv",
        "test0.geojson",
        "test0.ome.tif",
    ]


def test_training_sees_the_unannotated_tissue_of_annotated_slides_as_style(chain):
    folder, result, style_only = chain
    counts = tile_counts(folder / "dataset")
    assert counts == result["tiles"]
    assert len(style_only) == counts["train_style_only"] > 10
    assert set(style_only.table["slide_id"]) == {"train0"}
    assert (style_only.table["y"] > 400).all(), "below the annotated part"


def test_what_is_measured_sees_a_map_that_is_moved(chain):
    """By four pixels of the map."""
    folder, _, _ = chain
    slides = write_cohort(folder, SMALL)
    path = folder / "segmented" / "test0.geojson"
    whole = path.read_text()
    features = json.loads(whole)
    for feature in features["features"]:
        parts = feature["geometry"]["coordinates"]
        for ring in parts if feature["geometry"]["type"] == "Polygon" else [r for part in parts for r in part]:
            ring[:] = [[x + 4 * slide_chain.SCALE, y] for x, y in ring]
    path.write_text(json.dumps(features))
    try:
        moved = compare(slides["test0"], "test0", folder, folder / MODEL)
    finally:
        path.write_text(whole)
    assert slide_chain.iou(moved["export"]).min() < 0.95


def test_a_chain_passes_only_if_all_of_it_does():
    good = {"tile_images_before_training": 0, "files_added_by_training": [], "export_iou": {"a": 0.991}}
    good |= {"difference": {"a": 0.009}, "difference_without_overlap": {"a": 0.0005}}
    assert passed(good)
    for change in (
        {"tile_images_before_training": 1},
        {"files_added_by_training": ["images/a.png"]},
        {"export_iou": {"a": 1.0, "b": 0.98}},
        {"difference": {"a": 0.0, "b": 0.02}},
        {"difference_without_overlap": {"a": 0.002}},
        {"difference": {"a": 0.0, "b": np.nan}},
    ):
        assert not passed({**good, **change})


def test_slides_and_annotations_that_are_there_are_kept(chain):
    folder, _, _ = chain
    files = [*(folder / "slides").iterdir(), *(folder / "annotations").iterdir()]
    before = [path.stat().st_mtime_ns for path in files]
    write_cohort(folder, SMALL)
    assert len(files) == 7
    assert [path.stat().st_mtime_ns for path in files] == before
