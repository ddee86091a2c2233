import json
import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from stedm.config import SegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.segmentation.model import SegmentationLoss, build_segmenter, load_segmenter, save_segmenter

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


def _logits_and_masks(n_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, n_classes, 8, 8, generator=generator)
    masks = torch.randint(0, n_classes, (2, 8, 8), generator=generator)
    return logits, masks


def test_loss_is_blind_to_ignored_pixels():
    logits, masks = _logits_and_masks()
    masks[0, :4] = 255
    loss = SegmentationLoss()
    changed = logits.clone()
    changed[0, :, :4] = 100 * torch.randn(3, 4, 8)
    assert loss(changed, masks) == pytest.approx(float(loss(logits, masks)), abs=1e-6)
    # What is left must be the loss of the other pixels alone, in both terms.
    rest = masks.reshape(-1) != 255
    flat = logits.permute(1, 0, 2, 3).reshape(3, -1)[:, rest][None, :, None]
    assert float(loss(logits, masks)) == pytest.approx(float(loss(flat, masks.reshape(-1)[rest][None, None])), abs=1e-6)


@pytest.mark.parametrize("ignore_index", [3, 255])
def test_ignored_pixels_get_no_gradient(ignore_index):
    logits, masks = _logits_and_masks()
    masks[1] = ignore_index
    logits.requires_grad_(True)
    SegmentationLoss(ignore_index=ignore_index)(logits, masks).backward()
    assert torch.all(logits.grad[1] == 0)
    assert torch.all(logits.grad[0].abs().sum(dim=0) > 0)


def test_loss_of_a_batch_without_annotated_pixels_is_zero():
    logits, masks = _logits_and_masks()
    logits.requires_grad_(True)
    value = SegmentationLoss()(logits, torch.full_like(masks, 255))
    value.backward()
    assert value.item() == 0.0
    assert torch.all(logits.grad == 0)


@pytest.mark.parametrize("dice_weight", [0.0, 1.0, 0.9])
def test_each_term_of_the_loss_leads_to_the_mask(dice_weight):
    logits, masks = _logits_and_masks()
    logits.requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    loss = SegmentationLoss(dice_weight)
    first = loss(logits, masks).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, masks).backward()
        optimizer.step()
    assert loss(logits, masks).item() < 0.2 * first
    assert torch.equal(logits.argmax(dim=1), masks)


def test_weights_of_the_loss_are_those_of_the_paper():
    logits, masks = _logits_and_masks()
    cross_entropy, dice = SegmentationLoss(0)(logits, masks), SegmentationLoss(1)(logits, masks)
    assert SegmentationConfig().dice_weight == 0.9
    assert float(SegmentationLoss()(logits, masks)) == pytest.approx(float(0.1 * cross_entropy + 0.9 * dice))


def test_building_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_segmenter(TINY, 2, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build_segmenter(TINY, 2, seed=5).state_dict(), build_segmenter(TINY, 2, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_default_network_has_no_idle_parameters():
    network = build_segmenter(SegmentationConfig(), 2)
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("architecture", ["unet", "fpn", "linknet", "segformer"])
def test_save_and_load_give_equal_logits(tmp_path, architecture):
    config = TINY.model_copy(update={"architecture": architecture})
    network = build_segmenter(config, 3, seed=1)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    network(images)  # moves the running statistics of the batch norms, which must be saved too
    network.eval()
    folder = save_segmenter(
        tmp_path / "m", network, config, DatasetInfo("x", ["a", "b", "c"], ignore_index=9), image_px=32
    )
    loaded, info = load_segmenter(folder)
    assert torch.equal(loaded(images), network(images))
    assert (info.classes, info.image_px, info.ignore_index) == (["a", "b", "c"], 32, 9)
    names = ["README.md", "config.json", "manifest.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_broken_model_folders_are_one_clear_line(tmp_path):
    with pytest.raises(StedmError, match="not a segmenter folder"):
        load_segmenter(tmp_path)
    folder = save_segmenter(tmp_path / "m", build_segmenter(TINY, 2), TINY, DatasetInfo("x", ["a", "b"]), image_px=32)
    values = json.loads((folder / "config.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(json.dumps({**values, "classes": ["a", "b", "c"]}))
    with pytest.raises(StedmError, match=r"model\.safetensors: not "):
        load_segmenter(folder)
    (folder / "config.json").write_text(json.dumps({**values, "encoder_depth": 99}))
    with pytest.raises(StedmError, match=r"config\.json"):
        load_segmenter(folder)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(StedmError, match=r"model\.safetensors: not ") as error:
        load_segmenter(folder)
    assert "\n" not in str(error.value)


def test_encoder_weights_come_from_a_local_timm_file(tmp_path):
    published = timm.create_model("test_resnet").state_dict()
    save_file(published, tmp_path / "timm.safetensors")
    network = build_segmenter(TINY.model_copy(update={"encoder_weights": tmp_path / "timm.safetensors"}), 2)
    loaded = network.encoder.model.state_dict()
    assert len(loaded) > 10
    assert all(torch.equal(value, published[key]) for key, value in loaded.items())


def test_encoder_weights_come_from_a_local_smp_file(tmp_path):
    config = TINY.model_copy(update={"encoder": "mobilenet_v2", "encoder_weights": tmp_path / "smp.safetensors"})
    published = smp.encoders.get_encoder("mobilenet_v2", depth=3, weights=None).state_dict()
    save_file(published, tmp_path / "smp.safetensors")
    loaded = build_segmenter(config, 2).encoder.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in loaded.items())


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "mobilenet_v2"])
@pytest.mark.parametrize("content", [None, b"no weights", "other"])
def test_unusable_encoder_weights_are_one_clear_line(tmp_path, encoder, content):
    path = tmp_path / "weights.safetensors"
    if content == "other":
        save_file({"other": torch.zeros(1)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(StedmError, match="weights") as error:
        build_segmenter(TINY.model_copy(update={"encoder": encoder, "encoder_weights": path}), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "nonsense"}, "nonsense"),
        ({"encoder": "nonsense"}, "nonsense"),
        ({"encoder": "tu-nonsense"}, "nonsense"),
        ({"encoder": "tu-hf-hub:timm/resnet18.a1_in1k"}, "nothing is downloaded"),
    ],
)
def test_unknown_networks_are_one_clear_line(change, message):
    with pytest.raises(StedmError, match=message) as error:
        build_segmenter(TINY.model_copy(update=change), 2)
    assert "\n" not in str(error.value)


def test_non_commercial_encoder_only_with_a_warning():
    config = TINY.model_copy(update={"encoder": "mit_b0", "encoder_depth": 5, "decoder_channels": [8] * 5})
    with pytest.warns(UserWarning, match="non-commercial"):
        network = build_segmenter(config, 2)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_segmenter(SegmentationConfig(), 2)


def test_decoder_needs_a_width_per_level():
    with pytest.raises(ValueError, match="give one per level"):
        SegmentationConfig(encoder_depth=5, decoder_channels=[8, 8, 8])


def test_a_mirroring_segmenter_follows_a_mirrored_image(tmp_path):
    info = DatasetInfo(name="tiny", classes=["a", "b"])
    plain = build_segmenter(TINY, 2, seed=3).eval()
    folder = save_segmenter(tmp_path / "model", plain, TINY, info, image_px=32, mirror=True)
    network, read = load_segmenter(folder)
    assert read.mirror
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for axes in ((2,), (3,), (2, 3)):
            turned = network(images.flip(axes)).softmax(dim=1).flip(axes)
            torch.testing.assert_close(turned, network(images).softmax(dim=1))
            assert not torch.allclose(plain(images.flip(axes)).flip(axes), plain(images), atol=1e-3)
    # Folders of before say nothing of mirrors, and predict as they did.
    values = json.loads((folder / "config.json").read_text())
    del values["mirror"]
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(json.dumps(values))
    with torch.no_grad():
        torch.testing.assert_close(load_segmenter(folder)[0](images), plain(images))
