"""What files say of themselves: resolutions that are believed, pixels that are RGB, headers that are damaged."""

import struct
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from stedm.errors import StedmError
from stedm.slides import readers
from stedm.slides.resolution import ome_mpp, stated_mpp
from stedm.slides.slide import Slide
from stedm.slides.tiff_header import tiff_pages
from stedm.slides.tissue import TissueMask

# ---- resolution ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 360, 600, 1200, 2400, 4800, 5080, 7200, 8000, 9600])
@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_the_resolution_of_a_print_is_none(tmp_path, write, dpi, unit):
    per_unit = dpi if unit == "INCH" else dpi / 2.54
    path = write.tiff(tmp_path / "a.tif", write.tissue(128, 128), resolution=(per_unit,) * 2, resolutionunit=unit)
    with pytest.raises(
        StedmError, match=r"a\.tif: the file doesn't say its resolution \(its header says .* no scanner's\); .*mpp"
    ):
        Slide.open(path)
    assert Slide.open(path, 0.5).mpp == 0.5


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_resolution_of_a_scanner_is_believed(tmp_path, write, mpp):
    assert Slide.open(write.tiff(tmp_path / "a.tif", write.tissue(128, 128), mpp)).mpp == pytest.approx(mpp, rel=1e-4)


def test_axes_that_disagree_are_refused(tmp_path, write):
    array = write.tissue(128, 128)
    with pytest.raises(StedmError, match=r"a\.tif: its header says 0\.25 microns per pixel across and 0\.5 down;.*mpp"):
        Slide.open(write.tiff(tmp_path / "a.tif", array, (0.25, 0.5)))
    assert Slide.open(write.tiff(tmp_path / "a.tif", array, (0.25, 0.5)), 0.5).mpp == 0.5
    with pytest.raises(StedmError, match="across"):
        Slide.open(write.tiff(tmp_path / "a.tif", array, (0.5, 0.51)))
    assert Slide.open(write.tiff(tmp_path / "a.tif", array, (0.5, 0.502))).mpp == pytest.approx(0.501, abs=1e-4)


def _ome(path, array, tags=None, **metadata):
    options = {} if tags is None else {"resolution": (1e4 / tags,) * 2, "resolutionunit": "CENTIMETER"}
    metadata = {"axes": "YXS", **metadata}
    tifffile.imwrite(path, array, ome=True, photometric="rgb", tile=(64, 64), metadata=metadata, **options)
    return path


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
@pytest.mark.parametrize(("value", "unit"), [(0.25, "µm"), (250.0, "nm"), (0.00025, "mm")])
def test_ome_goes_before_the_tags(tmp_path, write, value, unit, reader, monkeypatch):
    if reader == "tiffslide":
        monkeypatch.setattr(readers, "_openslide", lambda: None)
    sizes = {f"PhysicalSize{axis}": value for axis in "XY"} | {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    slide = Slide.open(_ome(tmp_path / "a.ome.tif", write.tissue(128, 128), tags=1.0, **sizes))
    assert (slide.reader, slide.mpp) == (reader, pytest.approx(0.25))


def test_ome_of_a_screen_or_of_two_sizes(tmp_path, write):
    array = write.tissue(128, 128)
    with pytest.raises(StedmError, match=r"352\.8"):
        Slide.open(_ome(tmp_path / "a.ome.tif", array, PhysicalSizeX=352.78, PhysicalSizeY=352.78))
    with pytest.raises(StedmError, match=r"its OME-XML says 0\.25 .* 0\.5 down"):
        Slide.open(_ome(tmp_path / "a.ome.tif", array, PhysicalSizeX=0.25, PhysicalSizeY=0.5))


def test_the_ome_image_of_the_slides_size_counts():
    def image(side, size):
        return f'<Image><Pixels SizeX="{side}" SizeY="{side}" PhysicalSizeX="{size}" PhysicalSizeY="{size}"/></Image>'

    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{image(100, 4)}{image(900, 0.25)}</OME>'
    assert ome_mpp(xml, (900, 900))[1:] == (0.25, 0.25)
    assert ome_mpp(xml, (7, 7))[1:] == (4, 4)
    for damaged in (xml[:-9], xml.replace("0.25", "a"), xml.replace("0.25", "-1"), f'<?xml encoding="UGF-8"?>{xml}'):
        assert ome_mpp(damaged, (900, 900))[1:] == (None, None)


def test_the_first_that_can_be_meant_counts(tmp_path):
    assert stated_mpp(tmp_path, [("a", None, None), ("b", "85", "85"), ("c", "nan", "1"), ("d", 0.5, 0.5)]) == 0.5


# ---- pixels -------------------------------------------------------------------------------------------------------


def test_pixels_that_are_rgb_are_read_right(tmp_path, write):
    rgb = write.tissue(128, 128, (0, 0, 128, 128))
    alpha = np.full((128, 128, 1), 255, np.uint8)
    written = {
        "rgba": write.tiff(tmp_path / "rgba.tif", np.dstack([rgb, alpha]), extrasamples=["unassalpha"]),
        "planar": write.tiff(tmp_path / "planar.tif", np.moveaxis(rgb, -1, 0).copy(), planarconfig="separate"),
        "rgb16": write.tiff(tmp_path / "rgb16.tif", rgb.astype(np.uint16) * 257),
    }
    for name, path in written.items():
        assert np.abs(Slide.open(path).read(0, 0, 128, 1.0).astype(int) - rgb).max() <= 1, name


def test_pixels_that_are_not_rgb_are_refused_in_one_line(tmp_path, write):
    rgb = write.tissue(128, 128)
    grey, planes = rgb[..., 1].copy(), np.moveaxis(rgb, -1, 0).copy()
    options = {"photometric": "minisblack"}
    contiguous = {"planarconfig": "contig", **options}
    for name, array, given, message in (
        ("grey8", grey, options, "pixels are grey with 1 channel of 8 bits"),
        ("grey16", grey.astype(np.uint16) * 257, options, "pixels are grey with 1 channel of 16 bits"),
        ("grey strips", grey, {"tile": None, **options}, "pixels are grey"),
        ("seven", np.repeat(grey[..., None], 7, -1), contiguous, "pixels are grey with 7 channels"),
        ("planes", planes, options, "pixels are grey with 1 channel of 8 bits, in 3 planes"),
        ("planes.ome", planes, {"ome": True, "metadata": {"axes": "CYX"}, **options}, "in 3 planes"),
        ("planes in strips", planes, {"tile": None, **options}, "in 3 planes"),
        ("five", np.repeat(grey[..., None], 5, -1), {"extrasamples": [0, 0]}, "pixels have 5 channels"),
        ("four", np.repeat(grey[..., None], 4, -1), {"extrasamples": [0]}, "pixels have 4 channels"),
        ("float", rgb.astype(np.float32) / 255, {}, "numbers of 32 bits"),
        ("palette", grey, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "a palette"),
    ):
        with pytest.raises(StedmError, match=message) as error:
            Slide.open(write.tiff(tmp_path / f"{name}.tif", array, **given))
        assert f"{name}.tif" in str(error.value)
        assert "\n" not in str(error.value)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with pytest.raises(StedmError, match="pixels are grey"):
        Slide.open(tmp_path / "grey.png", 1.0)


# ---- damaged headers ----------------------------------------------------------------------------------------------


def _changed(path, change):
    """The file with the directories' entries as `change(data, {tag: place of its value})` leaves them, classic TIFF."""
    data, places = bytearray(path.read_bytes()), {}
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        places[struct.unpack_from("<H", data, at)[0]] = at + 8
    places["next"], places["first"], places["count"] = first + 2 + 12 * count, first, first
    change(data, places)
    path.write_bytes(data)
    return path


DAMAGES = {
    "itself": (lambda data, at: struct.pack_into("<I", data, at["next"], at["first"]), "without an end"),
    "far away": (lambda data, at: struct.pack_into("<I", data, at["next"], 2**31), "behind the end"),
    "no image": (lambda data, at: struct.pack_into("<I", data, 4, 0), "no image"),
    "entries": (lambda data, at: struct.pack_into("<H", data, at["count"], 60_000), "damaged header"),
    "wide": (lambda data, at: struct.pack_into("<I", data, at[256], 2**30), "needs .* tiles, and has 4"),
    "high": (lambda data, at: struct.pack_into("<I", data, at[257], 2**24), "needs .* tiles, and has 4"),
    "flat": (lambda data, at: struct.pack_into("<I", data, at[257], 0), "has no size"),
    "huge tiles": (lambda data, at: struct.pack_into("<I", data, at[322], 2**28), "has tiles of"),
    "no tiles": (lambda data, at: struct.pack_into("<I", data, at[323], 0), "has tiles of"),
    "a tile of gigabytes": (
        lambda data, at: struct.pack_into("<I", data, struct.unpack_from("<I", data, at[325])[0], 2**32 - 9),
        "larger than the file",
    ),
    "tiles elsewhere": (lambda data, at: struct.pack_into("<I", data, at[324], 2**30), "behind the end"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_headers_are_one_line(tmp_path, write, damage):
    change, message = DAMAGES[damage]
    path = _changed(write.tiff(tmp_path / "a.tif", write.tissue(128, 128)), change)
    with pytest.raises(StedmError, match=f"a.tif: not readable as a slide .*{message}") as error:
        Slide.open(path)
    assert "\n" not in str(error.value)


def test_a_reader_that_hangs_is_one_line(tmp_path, write, monkeypatch):
    path, hold = write.tiff(tmp_path / "a.tif", write.tissue(128, 128)), threading.Event()

    def hangs(path):
        hold.wait()
        raise ValueError

    monkeypatch.setattr(readers, "_OPENING_SECONDS", 0.01)
    for reader in ("openslide", "tiffslide"):
        monkeypatch.setitem(readers._READERS, reader, hangs)
    try:
        with pytest.raises(
            StedmError, match=r"a\.tif: not readable as a slide \(openslide: not open after 0\.01 seconds"
        ):
            Slide.open(path)
    finally:
        hold.set()
    monkeypatch.undo()
    assert Slide.open(path).size_px == (128, 128)


def test_directories_below_others_are_looked_at(tmp_path, write):
    array = write.tissue(256, 256)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True, byteorder=">") as writer:
        writer.write(array, tile=(64, 64), photometric="rgb", subifds=2, metadata=None)
        for step in (2, 4):
            writer.write(array[::step, ::step].copy(), tile=(64, 64), photometric="rgb", subfiletype=1, metadata=None)
    assert sorted(page.size for page in tiff_pages(tmp_path / "a.tif")) == [(64, 64), (128, 128), (256, 256)]


def test_a_slide_that_is_larger_than_any_is_not_read_whole(tmp_path, write):
    slide = Slide.open(write.tiff(tmp_path / "a.tif", write.tissue(512, 512)), mpp=1e5)
    with pytest.raises(StedmError, match="which no slide is; correct its mpp"):
        slide.overview(1.0)
    assert TissueMask.of(slide).mask.shape == (512, 512)
