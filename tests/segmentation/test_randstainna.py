import pytest
import torch

from stedm.colour.lab import lab_from_rgb
from stedm.config import SegmentationConfig, StainAugmentConfig
from stedm.data.folder import DatasetFolder
from stedm.segmentation.augment import augment_stain
from stedm.segmentation.randstainna import Cohort, normalise_to_templates
from stedm.segmentation.train import train_segmenter

COHORT = Cohort(mean=torch.tensor([60.0, 20.0, -10.0, 8.0, 5.0, 4.0]), sd=torch.tensor([5.0, 4.0, 4.0, 1.0, 1.0, 1.0]))
ONLY_TEMPLATE = StainAugmentConfig(
    kind="randstainna", brightness=0, contrast=0, saturation=0, hue=0, blur_sigma_px=0, probability=1.0
)


def _images(n: int = 6, px: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.3 + 0.4 * torch.rand(n, 3, px, px, generator=generator)


def _figures(images: torch.Tensor) -> torch.Tensor:
    lab = lab_from_rgb(images)
    return torch.cat([lab.mean(dim=(2, 3)), lab.std(dim=(2, 3), correction=0)], dim=1)


def test_images_take_on_the_colours_of_their_templates():
    draws = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    for spread in (0.0, 1.0):
        changed = normalise_to_templates(_images(), draws, COHORT, spread)
        assert torch.allclose(_figures(changed), COHORT.mean + spread * COHORT.sd * draws, atol=0.3)


def test_what_is_brighter_stays_brighter():
    images = _images()
    changed = normalise_to_templates(images, torch.full((6, 6), -20.0), COHORT)
    before, after = (lab_from_rgb(p)[:, 0].flatten(1).argmax(dim=1) for p in (images, changed))
    assert changed.isfinite().all()
    # Templates of no contrast at all: nothing turns over.
    assert torch.equal(before, after) or lab_from_rgb(changed)[:, 0].std() < 1


def test_cohort_is_measured_over_images_of_all_folders(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    parts = dataset.split("train"), dataset.split("unlabeled")
    cohort = Cohort.measure(*parts, image_px=32)
    images = [part.read_image(row, 32) for part in parts for row in range(len(part))]
    figures = _figures(torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) / 255 for p in images]))
    assert torch.allclose(cohort.mean, figures.mean(dim=0), atol=1e-3)
    assert torch.allclose(cohort.sd, figures.std(dim=0, correction=0), atol=1e-3)


@pytest.mark.parametrize("kind", ["randstainna", "both"])
def test_each_kind_changes_colours_as_it_says(kind):
    def augmented(**changes) -> torch.Tensor:
        config = ONLY_TEMPLATE.model_copy(update={"kind": kind, **changes})
        return augment_stain(_images(), torch.Generator().manual_seed(2), config, COHORT)

    far = (_figures(augmented()) - _figures(_images())).abs()[:, :3].max()
    assert far > 5
    jittered = augmented(hed_sigma=0.5)
    assert torch.equal(jittered, augmented()) == (kind == "randstainna")
    assert (augmented(probability=0.0) - _images()).abs().max() < 0.6 / 255
    one_look = augmented(template_sd=0.0, hed_sigma=0.0, hed_bias=0.0)
    assert torch.allclose(_figures(one_look), COHORT.mean.expand(6, 6), atol=0.3)


def test_arms_train_with_templates_of_their_cohort(tiny_dataset, tmp_path):
    dataset = DatasetFolder.open(tiny_dataset())
    config = SegmentationConfig(
        encoder="tu-test_resnet",
        encoder_depth=3,
        decoder_channels=[16, 8, 8],
        steps=2,
        batch=4,
        checkpoint_every_steps=2,
        stain=ONLY_TEMPLATE,
    )

    def weights(arm: str, unlabeled: DatasetFolder | None) -> bytes:
        folder = tmp_path / f"{arm}-{unlabeled is None}"
        model = train_segmenter(config, arm, dataset.split("train"), None, folder, 0, 32, unlabeled=unlabeled)
        return (model / "model.safetensors").read_bytes()

    # Colours of unannotated patients change the templates; `real` has none.
    assert weights("real+stain", None) != weights("real+stain", dataset.split("unlabeled"))
    assert weights("real", None) == weights("real", dataset.split("unlabeled"))
    weights("ssl", dataset.split("unlabeled"))
