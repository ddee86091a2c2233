"""Slides of which a part of the glass was scanned: positions count from its corner, in and out, as QuPath's do."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from torch import nn

from stedm.config import SlideSegmentationConfig, TilingConfig
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder
from stedm.data.tiles import tile_slides
from stedm.segmentation.model import SegmenterInfo
from stedm.segmentation.whole_slide import segment_slide
from stedm.slides import readers
from stedm.slides.slide import Slide

TISSUE = {"mpp": 4.0, "smallest_piece_um2": 100, "largest_hole_um2": 0}
BOX = (64, 64, 448, 320)


def _annotate(path, left, top, right, bottom):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties = {"objectType": "annotation", "classification": {"name": "tumour"}}
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def test_a_slide_begins_at_its_bounds(scn, write):
    slide = Slide.open(scn)
    assert (slide.reader, slide.size_px, slide.origin_px, slide.mpp) == ("openslide", (512, 384), (512, 256), 0.5)
    for x, y in ((0, 0), (200, 130), (448, 320)):
        expected = write.tissue()[y : y + 64, x : x + 64].astype(int)
        assert np.abs(slide.read(x, y, 64, 0.5) - expected).mean() < 8  # a pixel beside it would give 11
    assert (slide.read(-400, -200, 64, 0.5) > 240).all()
    assert slide.overview(2.0).shape == (96, 128, 3)


def test_bounds_that_make_no_sense_are_not_believed():
    names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
    for values, expected in (
        (("10", "20", "30", "40"), (10, 20, 30, 40)),
        (("-5", "0", "60", "500"), (0, 0, 55, 90)),
        (("200", "0", "10", "10"), (0, 0, 100, 90)),
        (("a", "0", "10", "10"), (0, 0, 100, 90)),
        (("0", "0", "-3", "10"), (0, 0, 100, 90)),
    ):
        properties = {f"openslide.{name}": value for name, value in zip(names, values, strict=True)}
        assert readers._bounds(properties, "openslide", (100, 90)) == expected
    assert readers._bounds({}, "openslide", (100, 90)) == (0, 0, 100, 90)


@pytest.mark.parametrize("table_only", [False, True])
def test_annotations_of_qupath_lie_on_the_tissue(scn, write, tmp_path, table_only):
    _annotate(tmp_path / "a.geojson", *BOX)
    (tmp_path / "slides.csv").write_text(
        "slide_id,patient_id,split,image,annotation\na,p,train,a.scn,a.geojson\nb,q,val,b.scn,a.geojson\n"
    )
    write.scn(tmp_path / "b.scn", write.tissue()[::-1].copy(), (512, 256), (1536, 1024))
    config = TilingConfig(tile_px=64, mpp=0.5, classes=["background", "tumour"], tissue=TISSUE)
    done = tile_slides(tmp_path / "slides.csv", tmp_path / "out", config, table_only=table_only)
    assert [note for note in done.notes if "slides with bounds: a, b;" in note]
    dataset = DatasetFolder.open(tmp_path / "out")
    table = dataset.table
    assert len(table) == 48
    assert table["fraction_tumour"].astype(float).min() == 1
    assert table["x"].astype(int).min() == table["y"].astype(int).min() == 64
    assert {*table["bounds_x"].astype(int), *table["bounds_y"].astype(int)} == {512, 256}
    assert (dataset.read_mask(0) == 1).all()
    assert np.abs(dataset.read_image(0).mean((0, 1)) - (190, 110, 165)).max() < 8
    assert [problem for problem in check_dataset(tmp_path / "out") if "only class tumour" not in problem] == []


def test_tiles_that_count_from_level_0_are_found(scn, tmp_path):
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,split,image\na,p,train,a.scn\n")
    tile_slides(
        tmp_path / "slides.csv", tmp_path / "out", TilingConfig(tile_px=64, mpp=0.5, tissue=TISSUE), table_only=True
    )
    path = tmp_path / "out" / "metadata.csv"
    path.write_text(pd.read_csv(path).drop(columns=["bounds_x", "bounds_y"]).to_csv(index=False))
    assert any("slide a has bounds at (512, 256)" in problem for problem in check_dataset(tmp_path / "out"))


class _Dark(nn.Module):
    """Class 1 where it is darker than glass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, images):
        dark = 20.0 * (0.6 - images.mean(1, keepdim=True))
        return torch.cat([-dark, dark], dim=1)


def test_predictions_lie_where_qupath_shows_the_tissue(scn, tmp_path):
    info = SegmenterInfo(architecture="unet", classes=["background", "tumour"], image_px=64, mpp=1.0)
    config = SlideSegmentationConfig(tolerance_um=0, label_map=True, smallest_um2=500, tissue=TISSUE)
    areas = segment_slide(_Dark(), info, Slide.open(scn), tmp_path / "a.geojson", config)
    [feature] = json.loads((tmp_path / "a.geojson").read_text())["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert np.abs([*ring.min(0), *ring.max(0)] - np.array(BOX)).max() <= 4
    labels = tifffile.imread(tmp_path / "a.ome.tif")
    assert labels.shape == (192, 256)
    assert (labels[40:150, 40:210] == 1).all()
    area = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1]) * 0.25e-6
    assert areas["area_mm2"][1] == pytest.approx(area, rel=0.02)
