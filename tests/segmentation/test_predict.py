import numpy as np
import pytest
import torch
from PIL import Image

from stedm.config import MachineConfig, SegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.segmentation.model import Mirrored, build_segmenter, save_segmenter
from stedm.segmentation.predict import predict_masks, segment_folder
from stedm.training.device import place

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


@pytest.fixture(scope="module")
def network():
    return build_segmenter(TINY, 3, seed=0)


@pytest.fixture
def model(tmp_path, network):
    return save_segmenter(tmp_path / "model", network, TINY, DatasetInfo("x", ["a", "b", "c"]), image_px=32)


def _images(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40), (7, 50), (1, 1)])
def test_any_size_gives_masks_of_that_size(network, height, width):
    masks = predict_masks(network, _images(3, height, width))
    assert masks.shape == (3, height, width)
    assert masks.dtype == np.uint8
    assert masks.max() < 3


def test_masks_are_the_most_probable_classes_whatever_the_batch(network):
    images = _images(5, 32, 32)
    network.train()
    masks = predict_masks(network, images, batch=2)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    assert len(np.unique(masks)) > 1
    assert (masks == logits.argmax(dim=1).numpy()).mean() > 0.999
    assert np.array_equal(masks, predict_masks(network, images, batch=5))


@pytest.mark.parametrize("mirror", [False, True])
def test_what_overflows_is_an_error_and_no_background(mirror):
    """Weights may be finite and what they make of an image not: the most probable of NaN would be the first class."""
    network = build_segmenter(TINY, 3, seed=0).eval()
    with torch.no_grad():
        network.segmentation_head[0].weight.fill_(1e38)
    with pytest.raises(StedmError, match="the segmentation network answered with NaN or infinity"):
        predict_masks(Mirrored(network) if mirror else network, _images(1, 32, 32))


def test_no_images_give_no_masks(network):
    assert predict_masks(network, _images(0, 32, 32)).shape == (0, 32, 32)


def test_a_folder_of_images_becomes_a_folder_of_masks(tmp_path, model, network):
    source = tmp_path / "images"
    (source / "sub").mkdir(parents=True)
    small, large = _images(1, 32, 32)[0], _images(1, 50, 70)[0]
    Image.fromarray(small).save(source / "small.png")
    Image.fromarray(large).save(source / "sub" / "large.tif")
    (source / "notes.txt").write_text("no image")
    written = segment_folder(model, source, tmp_path / "masks")
    assert [path.relative_to(tmp_path / "masks").as_posix() for path in written] == ["small.png", "sub/large.png"]
    masks = []
    for path in written:
        with Image.open(path) as mask:
            masks.append(mask.copy())
    assert [mask.mode for mask in masks] == ["P", "P"]
    colour, n_pixels = masks[0].getpalette()[3:6], np.array(masks[0])
    assert (np.array(masks[0].convert("RGB"))[n_pixels == 1] == colour).all()
    assert len({tuple(masks[0].getpalette()[3 * index : 3 * index + 3]) for index in (0, 1, 2)}) == 3
    assert [mask.size for mask in masks] == [(32, 32), (70, 50)]
    placed = place(build_segmenter(TINY, 3, seed=0), MachineConfig())
    assert np.array_equal(np.array(masks[0]), predict_masks(placed, small[None])[0])


def test_hidden_files_are_no_images(tmp_path, model):
    source = tmp_path / ".cohort" / "images"  # a hidden folder above is the user's own choice
    (source / ".ipynb_checkpoints").mkdir(parents=True)
    (source / "sub").mkdir()
    for name in ("a.png", "sub/b.bmp", ".ipynb_checkpoints/a-checkpoint.png"):
        Image.fromarray(_images(1, 32, 32)[0]).save(source / name)
    for name in ("._a.png", "sub/._b.bmp", "Thumbs.db", ".DS_Store"):
        (source / name).write_bytes(b"\x00\x05\x16\x07")
    written = segment_folder(model, source, tmp_path / "masks")
    assert [path.relative_to(tmp_path / "masks").as_posix() for path in written] == ["a.png", "sub/b.png"]


def test_a_single_image_file(tmp_path, model):
    Image.fromarray(_images(1, 32, 32)[0]).save(tmp_path / "one.png")
    assert segment_folder(model, tmp_path / "one.png", tmp_path / "out") == [tmp_path / "out" / "one.png"]
    for output, said in ((tmp_path / "mask.png", "written into a folder"), (tmp_path / "one.png" / "a", "in a file")):
        with pytest.raises(StedmError, match=f"{output}: .*{said}"):
            segment_folder(model, tmp_path / "one.png", output)


def test_unreadable_input_is_one_clear_line(tmp_path, model):
    source = tmp_path / "images"
    with pytest.raises(StedmError, match="no such image or folder"):
        segment_folder(model, source, tmp_path / "masks")
    source.mkdir()
    with pytest.raises(StedmError, match="no images in it"):
        segment_folder(model, source, tmp_path / "masks")
    (source / "x.png").write_bytes(b"not an image")
    with pytest.raises(StedmError, match=r"x\.png") as error:
        segment_folder(model, source, tmp_path / "masks")
    assert "\n" not in str(error.value)
    Image.fromarray(_images(1, 8, 8)[0]).save(source / "x.jpg")
    with pytest.raises(StedmError, match="the same mask"):
        segment_folder(model, source, tmp_path / "masks")
    with pytest.raises(StedmError, match="not a segmenter folder"):
        segment_folder(tmp_path / "nothing", source, tmp_path / "masks")
