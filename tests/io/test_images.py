"""What image files are read as, and what is refused in a line."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.data.check import examine
from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata
from stedm.errors import StedmError
from stedm.io import images as module
from stedm.io.images import class_palette, image_size, mask_as_shown, read_image_file, read_mask_file, write_png

ORIENTATIONS = range(1, 9)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _layout(height: int, width: int) -> np.ndarray:
    """A mask that no turn leaves as it is."""
    mask = np.zeros((height, width), np.uint8)
    mask[:8, : width // 2] = 1
    return mask


@pytest.fixture
def turned(tmp_path):
    """Function: a dataset with one image of an orientation, a dark region where its mask is 1, as a JPEG or PNG."""

    def make(orientation: int, size: tuple[int, int], *, drawn_as_shown: bool, suffix: str = "jpg") -> DatasetFolder:
        mask = _layout(*size)
        stored = Image.fromarray(np.where(mask[..., None], 20, 230).astype(np.uint8).repeat(3, axis=2))
        (tmp_path / "images").mkdir(exist_ok=True)
        stored.save(tmp_path / "images" / f"a.{suffix}", exif=_exif(orientation), quality=100)
        if drawn_as_shown:
            mask = (read_image_file(tmp_path, f"images/a.{suffix}")[..., 0] < 128).astype(np.uint8)
        write_png(tmp_path / "masks" / "a.png", mask)
        row = {"image_file_name": f"images/a.{suffix}", "mask_file_name": "masks/a.png"}
        table = pd.DataFrame([{**row, "patient_id": "P", "split": "train"}])
        write_metadata(tmp_path, DatasetInfo("x", ["glass", "tissue"]), table)
        return DatasetFolder.open(tmp_path)

    return make


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("drawn_as_shown", [False, True])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_the_mask_of_an_oblong_image_is_turned_as_its_image_is(turned, orientation, drawn_as_shown, suffix):
    dataset = turned(orientation, (32, 48), drawn_as_shown=drawn_as_shown, suffix=suffix)
    image, mask = dataset.read_image(0), dataset.read_mask(0)
    shown = (48, 32) if orientation > 1 else (32, 48)
    assert image.shape[:2] == mask.shape == shown
    assert np.array_equal(image[..., 0] < 128, mask == 1)
    assert dataset.image_size(0) == shown[::-1]
    found = examine(dataset.root)
    assert not found.problems
    is_told = any("EXIF orientation" in line and "masks/a.png" in line for line in found.warnings)
    assert is_told == (orientation > 1 and not drawn_as_shown)


@pytest.mark.parametrize(("orientation", "size"), [(2, (32, 48)), (3, (32, 48)), (4, (32, 48)), (6, (32, 32))])
def test_where_sizes_do_not_tell_the_image_is_refused(turned, orientation, size):
    dataset = turned(orientation, size, drawn_as_shown=False)
    with pytest.raises(StedmError, match=f"images/a.jpg: is turned by its EXIF orientation {orientation}"):
        dataset.read_mask(0)
    problems = [line for line in examine(dataset.root).problems if "EXIF orientation" in line]
    assert len(problems) == 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_upright(tmp_path, orientation):
    from PIL import ImageOps

    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    stored.save(tmp_path / "a.png", exif=_exif(orientation))
    with Image.open(tmp_path / "a.png") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    found = read_image_file(tmp_path, "a.png")
    assert np.array_equal(found, expected)
    assert image_size(tmp_path, "a.png") == found.shape[1::-1]


def test_masks_of_images_that_are_not_turned_stay(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))
    mask = _layout(4, 6)
    assert mask_as_shown(tmp_path, "a.png", mask) is mask


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_of_several_images_is_refused(tmp_path, suffix):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(StedmError, match=f"a.{suffix}: holds 2 images"):
        read_image_file(tmp_path, f"a.{suffix}")


def test_the_levels_of_a_pyramid_are_one_image(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(array, photometric="rgb", metadata=None)
        writer.write(array[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    assert np.array_equal(read_image_file(tmp_path, "a.tif"), array)


def test_bmp_is_read(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.bmp")
    assert np.array_equal(read_image_file(tmp_path, "a.bmp"), array)
    assert image_size(tmp_path, "a.bmp") == (7, 5)


def test_large_images_are_read_or_refused_in_a_line_without_a_warning(tmp_path, monkeypatch):
    """Warnings are errors here: Pillow's of large images would be seen."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(module, "LARGEST_PX", 10_000)
    for side in (12, 20, 90):  # Pillow warns of the first, and refuses the others as an attack
        write_png(tmp_path / "a.png", np.zeros((side, side, 3), np.uint8))
        assert read_image_file(tmp_path, "a.png").shape == (side, side, 3)
    with pytest.raises(StedmError, match=r"a\.png: has more than 0 million pixels; save it as a tiled TIFF"):
        read_image_file(tmp_path, "a.png", largest_px=8000)


def test_masks_with_a_palette_are_read_as_indices(tmp_path):
    mask = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)
    write_png(tmp_path / "m.png", mask, palette=module.class_palette(), software="stedm test")
    assert np.array_equal(read_mask_file(tmp_path, "m.png"), mask)
    with Image.open(tmp_path / "m.png") as image:
        colours = np.array(image.convert("RGB"))
        assert image.info["Software"] == "stedm test"
    assert (colours.max(axis=2) > 80).all()  # nothing looks black
    assert colours[1, 2].tolist() == [255, 255, 255]


def test_no_two_classes_look_the_same_in_a_mask_that_stedm_writes(tmp_path):
    palette = class_palette()
    assert len({palette[3 * index : 3 * index + 3] for index in range(256)}) == 256
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_png(tmp_path / "mask.png", values, palette=palette)
    assert np.array_equal(read_mask_file(tmp_path, "mask.png"), values)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"


def test_the_head_of_a_file_is_read_again_only_where_it_has_changed(tmp_path, monkeypatch):
    opened, open_image = [], module.open_image
    monkeypatch.setattr(module, "open_image", lambda path, *formats: opened.append(path) or open_image(path, *formats))
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert [image_size(tmp_path, "a.png") for _ in range(3)] == 3 * [(8, 8)]
    assert len(opened) == 1
    write_png(tmp_path / "a.png", np.zeros((8, 16, 3), np.uint8))
    assert image_size(tmp_path, "a.png") == (16, 8)
    (tmp_path / "a.png").unlink()
    with pytest.raises(StedmError, match="missing"):
        image_size(tmp_path, "a.png")
