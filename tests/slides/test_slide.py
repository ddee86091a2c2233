"""Reading slides: right pixels at any resolution, from any reader, in any process."""

import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from stedm.config import PhantomConfig
from stedm.errors import StedmError
from stedm.io.images import write_png
from stedm.phantom.slides import draw_phantom_slide, write_phantom_slide
from stedm.slides import readers
from stedm.slides import slide as slides
from stedm.slides.slide import Slide

SIZE = (1300, 1024)


@pytest.fixture(scope="session")
def phantom_slide():
    """A phantom slide of 1300 x 1024 px at 0.5 microns a pixel."""
    return draw_phantom_slide(PhantomConfig(image_px=256), "train", 0, SIZE, unit_px=512)


@pytest.fixture(scope="session")
def written(phantom_slide, tmp_path_factory):
    """The same slide as SVS, OME-TIFF and PNG, by kind."""
    folder = tmp_path_factory.mktemp("slides")
    write_phantom_slide(phantom_slide, folder / "a.svs", "aperio")
    write_phantom_slide(phantom_slide, folder / "a.ome.tif", "ome")
    write_png(folder / "a.png", phantom_slide.region(0, 0, *SIZE))
    return {"aperio": folder / "a.svs", "ome": folder / "a.ome.tif", "png": folder / "a.png"}


def _open(written, kind) -> Slide:
    return Slide.open(written[kind], mpp=0.5 if kind == "png" else None)


def _mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


KINDS = pytest.mark.parametrize("kind", ["aperio", "ome", "png"])


@pytest.mark.parametrize(
    ("kind", "reader", "downsamples"),
    [("aperio", "openslide", [1, 4]), ("ome", "tiffslide", [1, 4]), ("png", "image", [1])],
)
def test_what_is_known_of_a_slide(written, kind, reader, downsamples):
    slide = _open(written, kind)
    assert (slide.size_px, slide.mpp, slide.reader) == (SIZE, 0.5, reader)
    assert slide.downsamples == pytest.approx(downsamples)


@KINDS
@pytest.mark.parametrize("name", ["a::b", "[1] 50% #1 & ${HOME} {y}*? 'Ü'"])
def test_folders_may_be_called_anything(written, tmp_path, kind, name):
    """An OME-TIFF lost its levels in a folder with ::, and what TiffSlide alone reads was refused there."""
    (tmp_path / name).mkdir()
    path = shutil.copy(written[kind], tmp_path / name)
    slide, plain = Slide.open(path, mpp=0.5), _open(written, kind)
    assert (slide.reader, slide.downsamples) == (plain.reader, plain.downsamples)
    assert np.array_equal(slide.read(301, 203, 64, 1.0), plain.read(301, 203, 64, 1.0))


@KINDS
def test_level_0_is_read_to_the_pixel(written, phantom_slide, kind):
    tile = _open(written, kind).read(301, 203, 256, 0.5)
    assert tile.shape == (256, 256, 3)
    assert tile.dtype == np.uint8
    assert _mean_difference(tile, phantom_slide.region(301, 203, 256, 256)) < (0.01 if kind == "png" else 3)


@KINDS
@pytest.mark.parametrize("mpp", [0.25, 0.7, 1.0, 2.0, 3.3])
def test_any_resolution_shows_the_same_place(written, phantom_slide, kind, mpp):
    """Against an independent reduction of the truth: block means on a fine grid at the places of the tile's pixels."""
    slide, side = _open(written, kind), 96
    x, y = 260.0, 180.0
    tile = slide.read(x, y, side, mpp)
    scale = mpp / 0.5
    truth = phantom_slide.region(0, 0, *SIZE).astype(float)
    fine = (np.arange(side * 8) + 0.5) / 8 * scale
    columns, rows = (np.clip(np.floor(at + fine), 0, n - 1).astype(int) for at, n in ((x, SIZE[0]), (y, SIZE[1])))
    expected = truth[np.ix_(rows, columns)].reshape(side, 8, side, 8, 3).mean(axis=(1, 3))
    difference = _mean_difference(tile, expected)
    assert difference < 4
    step = max(1, round(0.5 / mpp))  # a pixel of the slide or of the tile, whichever is larger
    for moved in (tile[:, step:], expected[:, :-step]), (tile[:-step], expected[step:]):
        assert difference < 0.6 * _mean_difference(*moved)


@KINDS
@pytest.mark.parametrize("mpp", [0.5, 0.9, 1.0, 4.0])
def test_tiles_meet_without_a_seam(written, kind, mpp, monkeypatch):
    slide = _open(written, kind)
    whole = slide.read(-40, 31, 200, mpp)
    step = 100 * mpp / 0.5
    for i in (0, 1):
        for j in (0, 1):
            part = slide.read(-40 + j * step, 31 + i * step, 100, mpp)
            assert np.abs(part.astype(int) - whole[100 * i : 100 * i + 100, 100 * j : 100 * j + 100]).max() <= 1
    # Large regions are read in pieces.
    monkeypatch.setattr(slides, "_LARGEST_READ_PX", 64)
    assert np.abs(slide.read(-40, 31, 200, mpp).astype(int) - whole).max() <= 1


def test_coarse_tiles_come_from_coarse_levels(written, monkeypatch):
    slide, seen = _open(written, "aperio"), []
    read = readers._OpenSlideFile.read
    monkeypatch.setattr(
        readers._OpenSlideFile, "read", lambda self, level, *a: seen.append(level) or read(self, level, *a)
    )
    # 1.97 is 2 percent finer than level 1: fine enough; 1.9 is not.
    for mpp in (0.5, 1.0, 1.9, 1.97, 2.0, 8.0):
        slide.read(0, 0, 32, mpp)
    assert seen == [0, 0, 0, 1, 1, 1]


@KINDS
def test_white_outside_the_slide(written, kind):
    slide = _open(written, kind)
    for mpp in (0.5, 1.3):
        assert (slide.read(-5000, 0, 64, mpp) == 255).all()
        assert (slide.read(0, SIZE[1] + 1000, 64, mpp) == 255).all()
        over = slide.read(SIZE[0] - 32 * mpp / 0.5, 100, 64, mpp)
        assert (over[:, 34:] == 255).all()
        assert (over[:, :30] < 255).any(axis=-1).all()


def test_transparent_parts_are_white(tmp_path):
    pixels = np.full((64, 64, 4), (90, 20, 120, 255), np.uint8)
    pixels[:, 32:] = (0, 0, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tile = Slide.open(tmp_path / "a.png", mpp=1).read(0, 0, 64, 1.0)
    assert (tile[:, 32:] == 255).all()
    assert (tile[:, :32] == (90, 20, 120)).all()
    assert (np.asarray(readers.on_white(Image.fromarray(pixels)))[:, 32:] == 255).all()


def test_a_given_resolution_goes_before_the_files(written):
    assert Slide.open(written["aperio"], mpp=0.25).mpp == 0.25


def test_problems_are_one_clear_line(written, tmp_path):
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "cut.svs").write_bytes(written["aperio"].read_bytes()[:2000])
    (tmp_path / "cut.ome.tif").write_bytes(written["ome"].read_bytes()[:-100_000])
    write_png(tmp_path / "plain.png", np.zeros((8, 8, 3), np.uint8))
    for path, mpp, message in (
        (tmp_path / "none.svs", None, "no such slide"),
        (tmp_path / "text.svs", None, "not readable as a slide"),
        (tmp_path / "cut.svs", None, "not readable as a slide"),
        (tmp_path / "cut.ome.tif", None, "not readable as a slide"),
        (tmp_path / "plain.png", None, "doesn't say its resolution"),
        (tmp_path / "plain.png", -1.0, "mpp must be a positive number"),
    ):
        with pytest.raises(StedmError, match=message) as problem:
            Slide.open(path, mpp)
        assert path.name in str(problem.value)
        assert len(str(problem.value).splitlines()) == 1
    with pytest.raises(StedmError, match="mpp must be positive"):
        Slide.open(written["aperio"]).read(0, 0, 8, 0.0)


def test_a_damaged_tile_is_an_error_and_the_rest_can_still_be_read(written, tmp_path):
    damaged = tmp_path / "damaged.svs"
    content = bytearray(written["aperio"].read_bytes())
    # The first scan of image data that is not in the first tile row.
    start = [i for i in range(len(content) - 2) if content[i : i + 2] == b"\xff\xda"][12]
    content[start - 300 : start + 400] = bytes(700)
    damaged.write_bytes(content)
    slide, errors = Slide.open(damaged), []
    places = [(x, y) for x in range(0, SIZE[0], 256) for y in range(0, SIZE[1], 256)]
    for x, y in places:
        try:
            slide.read(x, y, 64, 0.5)
        except StedmError as error:
            errors.append(str(error))
    assert 0 < len(errors) < len(places) / 2
    assert all("damaged.svs: damaged at level 0" in error for error in errors)


def test_without_readers_the_line_says_what_to_install(written, monkeypatch):
    monkeypatch.setattr(readers, "_openslide", lambda: None)
    assert Slide.open(written["aperio"]).reader == "tiffslide"
    monkeypatch.setattr(readers, "_tiffslide", lambda: None)
    with pytest.raises(StedmError, match=r"pip install \"stedm\[slides\]\""):
        Slide.open(written["aperio"])
    assert Slide.open(written["png"], mpp=1).reader == "image"


def test_openslide_is_read_the_same_by_its_public_way(written, monkeypatch):
    slide = _open(written, "aperio")
    tile = slide.read(-30, 301, 128, 0.5)
    monkeypatch.setattr(readers, "_argb", lambda *arguments: None)
    np.testing.assert_array_equal(slide.read(-30, 301, 128, 0.5), tile)


def test_transparent_parts_of_openslide_are_white(written, monkeypatch):
    """As in slides of which only the tissue was scanned."""
    slide, argb = _open(written, "aperio"), readers._argb
    tile = slide.read(300, 300, 64, 0.5)

    def half(*arguments):
        pixels = argb(*arguments).reshape(64, 64)
        pixels[:, 32:] = 0
        return pixels

    def region(self, location, level, size):
        pixels = np.dstack([tile, np.full((64, 64), 255, np.uint8)])
        pixels[:, 32:] = 0
        return Image.fromarray(pixels)

    monkeypatch.setattr(readers, "_argb", half)
    monkeypatch.setattr("openslide.OpenSlide.read_region", region)
    shown = slide.read(300, 300, 64, 0.5)
    np.testing.assert_array_equal(shown[:, :32], tile[:, :32])
    assert (shown[:, 32:] == 255).all()


def test_openslide_and_tiffslide_agree(written, monkeypatch):
    one = Slide.open(written["aperio"])
    with monkeypatch.context() as patch:
        patch.setattr(readers, "_openslide", lambda: None)
        other = Slide.open(written["aperio"])
    assert (one.reader, other.reader) == ("openslide", "tiffslide")
    for mpp in (0.5, 1.1, 2.5):
        # Their JPEG decoders differ in the interpolation of colour.
        assert _mean_difference(one.read(-30, 301, 128, mpp), other.read(-30, 301, 128, mpp)) < 1


def test_a_strip_tiff_is_a_plain_image(tmp_path, phantom_slide):
    Image.fromarray(phantom_slide.region(0, 0, 64, 64)).save(tmp_path / "a.tif", dpi=(72, 72))
    with pytest.raises(StedmError, match="doesn't say its resolution"):
        Slide.open(tmp_path / "a.tif")
    assert Slide.open(tmp_path / "a.tif", mpp=1).reader == "image"


def _checksum(job) -> int:
    slide, x = job
    return int(slide.read(x, 100, 64, 0.8).astype(int).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_open_their_own_files(written, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    jobs = [(_open(written, kind), x, 100, 64, 0.8) for x in (0, 200, 400) for kind in ("aperio", "ome", "png")]
    expected = [Slide.read(*job) for job in jobs]
    with multiprocessing.get_context(method).Pool(1) as pool:
        np.testing.assert_array_equal(pool.starmap(Slide.read, jobs), expected)
    np.testing.assert_array_equal([Slide.read(*job) for job in jobs], expected)


def test_a_pickled_slide_holds_no_file(written):
    slide = pickle.loads(pickle.dumps(_open(written, "aperio")))
    assert slide.read(300, 300, 16, 0.5).shape == (16, 16, 3)
    assert len(pickle.dumps(slide)) < 2000


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_MOST_OPEN", 3)
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        write_png(path, np.full((8, 8, 3), i, np.uint8))
    opened = [Slide.open(path, mpp=1) for path in paths]
    for _ in range(2):
        for i, slide in enumerate(opened):
            assert (slide.read(0, 0, 4, 1.0) == i).all()
            assert len(readers._files) <= 3


def test_a_file_that_was_replaced_is_opened_again(tmp_path):
    for value in (10, 20):
        write_png(tmp_path / "a.png", np.full((8, 8, 3), value, np.uint8))
        assert (Slide.open(tmp_path / "a.png", mpp=1).read(0, 0, 4, 1.0) == value).all()


def test_threads_share_slides_beyond_the_limit(written, monkeypatch):
    monkeypatch.setattr(readers, "_MOST_OPEN", 1)
    jobs = [(_open(written, kind), x) for x in range(0, 600, 150) for kind in ("aperio", "ome", "png")]
    expected = [_checksum(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_checksum, jobs)) == expected


def test_the_phantom_slide_is_the_same_on_every_level(phantom_slide):
    fine, coarse = phantom_slide.region(256, 256, 256, 256), phantom_slide.region(64, 64, 64, 64, downsample=4)
    inside = (phantom_slide.tissue(np.arange(256, 512) + 0.5, np.arange(256, 512) + 0.5)).all()
    assert inside
    assert _mean_difference(fine.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)), coarse) < 1
    truth = phantom_slide.truth(0, 0, *SIZE)
    assert set(np.unique(truth)) == {0, 1}
    assert not truth[~phantom_slide.tissue(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)].any()
