"""The style encoder sees how an image looks, hardly where things are."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from stedm.errors import StedmError
from stedm.style.encoder import ConvStyleEncoder, TimmStyleEncoder


def test_turned_images_keep_their_style_and_other_colours_change_it():
    torch.manual_seed(0)
    encoder = ConvStyleEncoder([8, 16], dim=32).eval()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    # A rearrangement of the same pieces against the same pieces in another colour.
    rearranged = torch.roll(image, shifts=(16, 16), dims=(2, 3))
    recoloured = (image * torch.tensor([1.0, 0.4, 0.7]).view(1, 3, 1, 1) - 0.3).clamp(-1, 1)
    with torch.no_grad():
        style, same, other = encoder(image), encoder(rearranged), encoder(recoloured)
    assert (style - same).norm() < 0.25 * (style - other).norm()


def test_any_image_size_gives_a_vector():
    encoder = ConvStyleEncoder([8, 16], dim=32)
    assert encoder(torch.zeros(2, 3, 48, 20)).shape == (2, 32)


def test_measuring_the_cohort_brings_out_what_differs_between_its_patients():
    """Images that are nearly alike on the absolute scale must not get nearly the same vector."""
    torch.manual_seed(0)
    tints = 0.6 + 0.04 * torch.randn(16, 3, 1, 1)
    cohort = (tints + 0.02 * torch.randn(16, 3, 16, 16)).clamp(-1, 1)
    encoder = ConvStyleEncoder([8], dim=16).eval()
    with torch.no_grad():
        before = encoder(cohort).std(dim=0).mean()
        encoder.measure(cohort)
        after = encoder(cohort).std(dim=0).mean()
    assert after > 3 * before
    assert "colour_mean" in encoder.state_dict(), "the measured values must be saved with the weights"


@pytest.mark.parametrize("pooling", ["statistics", "head"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit2"])
def test_any_timm_backbone_gives_vectors_at_any_image_size(name, pooling):
    encoder = TimmStyleEncoder(name, dim=12, pooling=pooling, image_px=32)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 12)
    assert encoder(torch.zeros(2, 3, 40, 24)).shape == (2, 12)


def test_statistics_of_a_backbone_hardly_see_where_things_are():
    torch.manual_seed(0)
    encoder = TimmStyleEncoder("test_resnet", dim=32).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    recoloured = (image * torch.tensor([1.0, 0.4, 0.7]).view(1, 3, 1, 1) - 0.3).clamp(-1, 1)
    with torch.no_grad():
        style, same, other = encoder(image), encoder(torch.roll(image, (32, 32), (2, 3))), encoder(recoloured)
    assert (style - same).norm() < 0.25 * (style - other).norm()


def test_published_weights_come_from_a_local_file_with_their_own_colours(tmp_path):
    published = timm.create_model("test_resnet", pretrained=False)
    torch.manual_seed(5)
    for weight in published.parameters():
        torch.nn.init.normal_(weight)
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    encoder = TimmStyleEncoder("test_resnet", dim=8, pooling="head")
    encoder.load_weights(tmp_path / "weights.safetensors")
    assert torch.equal(encoder.backbone.conv1[0].weight, published.conv1[0].weight)
    before = encoder.colour_mean.clone()
    encoder.measure(torch.rand(4, 3, 8, 8))
    assert torch.equal(encoder.colour_mean, before)
    expected = 2 * torch.tensor(timm.get_pretrained_cfg("test_resnet").mean) - 1
    torch.testing.assert_close(before.flatten(), expected)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StedmError, match=r"other.safetensors: not weights of this backbone"):
        TimmStyleEncoder("test_resnet", dim=8).load_weights(tmp_path / "other.safetensors")


def test_an_unknown_backbone_is_one_line():
    with pytest.raises(StedmError, match="timm has no backbone 'resnet999'"):
        TimmStyleEncoder("resnet999", dim=8)
