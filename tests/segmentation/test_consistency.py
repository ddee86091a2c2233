"""Consistency training: what the network learns from images whose masks nobody reads."""

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stedm.config import MachineConfig, RecolourConfig, SegmentationConfig, StainAugmentConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.segmentation import consistency
from stedm.segmentation.augment import augment_colours
from stedm.segmentation.consistency import (
    Consistency,
    StudentAndTeacher,
    confident_labels,
    consistency_loss,
    cutmix,
)
from stedm.segmentation.model import SegmentationLoss, build_segmenter
from stedm.segmentation.samples import MixedSamples, UnlabeledSamples
from stedm.segmentation.train import train_segmenter

PX = 32
TINY = SegmentationConfig(
    encoder="tu-test_resnet",
    encoder_depth=3,
    decoder_channels=[16, 8, 8],
    steps=6,
    batch=4,
)
UNSTAINED = TINY.model_copy(
    update={"stain": StainAugmentConfig(hed_sigma=0, brightness=0, contrast=0, saturation=0, hue=0)}
)
OFTEN = MachineConfig(checkpoint_every_steps=2)
# Networks of six steps are sure of nothing, and a weight that rises never does in so few.
SURE_AT_ONCE = {"CONFIDENCE": 0.5, "RAMP_UP": 0.0}


@pytest.fixture(autouse=True)
def _sure_at_once(monkeypatch):
    for name, value in SURE_AT_ONCE.items():
        monkeypatch.setattr(consistency, name, value)


@pytest.fixture
def cohort(tiny_dataset) -> tuple[DatasetFolder, DatasetFolder]:
    return _parts(tiny_dataset())


def _parts(root: Path) -> tuple[DatasetFolder, DatasetFolder]:
    dataset = DatasetFolder.open(root)
    return dataset.split("train"), dataset.split("unlabeled")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _train(cohort, folder: Path, arm: str = "ssl", **changes) -> dict[str, torch.Tensor]:
    real, unlabeled = cohort
    config = TINY.model_copy(update=changes)
    model = train_segmenter(
        config, real, folder, arm=arm, image_px=PX, synthetic=real, unlabeled=unlabeled, machine=OFTEN
    )
    return load_file(model / "model.safetensors")


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_consistency_loss_moves_the_network(cohort, tmp_path, monkeypatch):
    weights = []
    for weight in (0.0, 1.0):
        monkeypatch.setattr(consistency, "WEIGHT", weight)
        weights.append(_train(cohort, tmp_path / str(weight)))
    name = "segmentation_head.0.weight"
    assert not torch.equal(weights[0][name], weights[1][name])


def test_the_weight_rises_to_its_full_value(monkeypatch):
    monkeypatch.setattr(consistency, "WEIGHT", 2.0)
    monkeypatch.setattr(consistency, "RAMP_UP", 0.5)
    weight = Consistency(TINY.model_copy(update={"steps": 100}), RecolourConfig(), SegmentationLoss()).weight
    assert weight(0) < 0.02
    assert weight(0) < weight(20) < weight(40) < weight(50) == weight(99) == 2.0


def test_no_pixel_is_sure_enough_for_a_threshold_of_one(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(consistency, "CONFIDENCE", 1.0)
    never = _train(cohort, tmp_path / "a")
    monkeypatch.setattr(consistency, "WEIGHT", 0.0)
    assert _equal(never, _train(cohort, tmp_path / "b"))


def test_only_sure_pixels_get_a_label():
    probabilities = torch.tensor([[0.96, 0.6, 0.1], [0.04, 0.4, 0.9]]).view(1, 2, 1, 3)
    assert confident_labels(probabilities.log(), 0.95, 255).tolist() == [[[0, 255, 255]]]
    assert confident_labels(probabilities.log(), 0.5, 255).tolist() == [[[0, 0, 1]]]
    logits = torch.randn(1, 2, 1, 3, generator=_generator(), requires_grad=True)
    loss = consistency_loss(logits, torch.tensor([[[0, 255, 255]]]), 255)
    loss.backward()
    assert (logits.grad[..., 0] != 0).all()
    assert (logits.grad[..., 1:] == 0).all()
    # Divided by all pixels: few sure pixels weigh little.
    alone = consistency_loss(logits[..., :1], torch.tensor([[[0]]]), 255)
    assert float(loss.detach()) == pytest.approx(float(alone.detach()) / 3)
    assert consistency_loss(logits, torch.full((1, 1, 3), 255), 255) == 0


def test_masks_of_unlabeled_patients_are_not_read(cohort, tmp_path):
    real, unlabeled = cohort
    assert not unlabeled.allow_unlabeled_masks
    for name in unlabeled.table["mask_file_name"]:
        (unlabeled.root / name).unlink()
    _train((real, unlabeled), tmp_path / "run")


def test_the_annotated_stream_is_that_of_the_other_arms(cohort):
    real, unlabeled = cohort
    plain = MixedSamples(real, image_px=PX, seed=3)
    both = UnlabeledSamples(MixedSamples(real, image_px=PX, seed=3), unlabeled, PX)
    again = UnlabeledSamples(MixedSamples(real, image_px=PX, seed=3), unlabeled, PX)
    later = [again[i] for i in reversed(range(20))][::-1]
    for i in range(20):
        assert np.array_equal(both[i]["image"], plain[i]["image"])
        assert np.array_equal(both[i]["mask"], plain[i]["mask"])
        assert np.array_equal(both[i]["unlabeled"], later[i]["unlabeled"])
    assert len({both[i]["unlabeled"].tobytes() for i in range(60)}) == len(unlabeled)


def test_annotated_images_are_augmented_as_in_real_stain(cohort, monkeypatch, tmp_path):
    from stedm.segmentation import train

    seen: dict[str, list] = {}
    plain = train.augment_batch
    for arm in ("real", "real+stain", "ssl", "real+synthetic+ssl", "real+stain+synthetic+ssl"):
        monkeypatch.setattr(train, "augment_batch", lambda *a, arm=arm: seen.setdefault(arm, plain(*a)))
        _train(cohort, tmp_path / arm, arm, steps=1, synthetic_fraction=0.0)
    for arm, like in (
        ("ssl", "real+stain"),
        ("real+synthetic+ssl", "real"),
        ("real+stain+synthetic+ssl", "real+stain"),
    ):
        assert all(torch.equal(a, b) for a, b in zip(seen[arm], seen[like], strict=True))
    assert not torch.equal(seen["ssl"][0], seen["real"][0])


def test_the_teacher_is_the_average_of_the_student():
    learner = StudentAndTeacher(build_segmenter(TINY, 2), ema_decay=0.75)
    learner.train()
    assert learner.student.training
    assert not learner.teacher.training
    assert not any(parameter.requires_grad for parameter in learner.teacher.parameters())
    expected, values = None, [1.0, 2.0, 4.0, 8.0, 16.0]
    for step, value in enumerate(values):
        for tensor in (*learner.student.parameters(), *learner.student.buffers()):
            tensor.data.fill_(value)
        learner.update_teacher()
        decay = min(1 - 1 / (step + 1), 0.75)
        expected = value if expected is None else decay * expected + (1 - decay) * value
    names = dict(learner.teacher.module.state_dict())
    assert all(
        torch.allclose(tensor, torch.tensor(expected))
        for name, tensor in names.items()
        if not name.endswith("num_batches_tracked")
    )


def test_the_teacher_that_labels_is_the_mean_of_the_students_so_far(cohort, tmp_path, monkeypatch):
    students, strong_views = [], Consistency.strong_views

    def compared(self, trainer, teacher, unlabeled):
        learner = trainer.accelerator.unwrap_model(trainer.network)
        students.append([value.detach().clone() for value in learner.student.parameters()])
        # In so few steps the running average is the plain mean.
        for value, *of_students in zip(teacher.parameters(), *students, strict=True):
            torch.testing.assert_close(value, torch.stack(of_students).mean(dim=0))
        return strong_views(self, trainer, teacher, unlabeled)

    monkeypatch.setattr(Consistency, "strong_views", compared)
    _train(cohort, tmp_path / "run")
    assert len(students) == TINY.steps
    assert any(not torch.equal(a, b) for a, b in zip(students[0], students[-1], strict=True))


class _Red(torch.nn.Module):
    """A teacher that knows: class 1 is what is red, class 0 what is blue."""

    def forward(self, images):
        red = 10 * (images[:, 0] - images[:, 2])
        return torch.stack([-red, red], dim=1)


def _red_and_blue(n: int = 8) -> torch.Tensor:
    """uint8 (n, PX, PX, 3): each image red on one side of a line of its own, and blue on the other."""
    images = torch.zeros(n, PX, PX, 3, dtype=torch.uint8)
    images[..., 2] = 220
    for number, image in enumerate(images):
        image[:, : 8 + 2 * number] = torch.tensor([220, 0, 0], dtype=torch.uint8)
    return images


def _stub(learner: torch.nn.Module, seed: int) -> SimpleNamespace:
    """As much of a trainer as consistency asks for."""
    return SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda network: network),
        network=learner,
        generator=_generator(seed),
        autocast=contextlib.nullcontext,
        step_done=0,
        part=1,  # the teacher stays as it is
    )


def test_what_the_teacher_sees_is_the_truth_for_both_strong_views():
    views, targets = Consistency(UNSTAINED, RecolourConfig(probability=0), SegmentationLoss()).strong_views(
        _stub(None, 0), _Red(), _red_and_blue()
    )
    assert views.shape == (16, 3, PX, PX)
    # Between red and blue, where an image was zoomed, or blurred as a strong view, the colours are mixed.
    clear = (views[:, 0] - views[:, 2]).abs() > 1
    assert clear.float().mean() > 0.8
    assert torch.equal(targets[clear], (views[:, 0] > views[:, 2]).long()[clear])


def test_a_student_without_annotated_pixels_learns_what_its_teacher_sees():
    torch.manual_seed(0)
    learner = StudentAndTeacher(torch.nn.Conv2d(3, 2, 1))
    learner.teacher = _Red()
    consistency_of = Consistency(UNSTAINED, RecolourConfig(probability=0), SegmentationLoss())
    optimizer = torch.optim.Adam(learner.student.parameters(), lr=0.1)
    unlabeled = _red_and_blue()
    ignored = torch.zeros(2, 3, PX, PX), torch.full((2, PX, PX), 255, dtype=torch.uint8)
    for step in range(30):
        optimizer.zero_grad()
        consistency_of.loss(_stub(learner, step), *ignored, unlabeled).backward()
        optimizer.step()
    seen = learner.student(consistency._signed(unlabeled.permute(0, 3, 1, 2).float() / 255)).argmax(dim=1)
    assert torch.equal(seen, (unlabeled[..., 0] > 0).long())


def test_a_view_loses_the_channels_that_the_other_keeps():
    learner = StudentAndTeacher(build_segmenter(TINY, 2), ema_decay=0.9)
    first, second = learner.dropped_channels(40, 0.5, _generator())
    assert [level.shape[1] for level in first] == list(learner.student.encoder.out_channels[1:])
    whole = 0
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a + b, torch.full_like(a, 2.0))
        assert set(a.unique().tolist()) == {0.0, 1.0, 2.0}
        intact = (a == 1).flatten(1)
        assert torch.equal(intact.any(dim=1), intact.all(dim=1))
        whole = int(intact.all(dim=1).sum())
    assert 10 < whole < 30
    image = torch.randn(2, 3, PX, PX, generator=_generator())
    learner.eval()
    ones = [torch.ones(2, 1, 1, 1)] * len(first)
    assert torch.allclose(learner(image, ones), learner.student(image), atol=1e-5)
    assert not torch.allclose(learner(image, [a[:2] * 0 for a in first]), learner.student(image), atol=1e-3)


def test_cutmix_moves_images_and_labels_together():
    images = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 3, 16, 16)
    labels = torch.arange(40).view(40, 1, 1).expand(40, 16, 16)
    mixed, target = cutmix(images, labels, 1.0, _generator())
    assert torch.equal(mixed[:, 0].long(), target)
    pasted = target != labels
    assert torch.equal(target[pasted], labels.flip(0)[pasted])
    part = pasted.float().mean(dim=(1, 2))
    assert (part > 0).all()
    assert part.max() <= 0.5
    assert part.max() > 0.25
    rows, columns = pasted.any(dim=2), pasted.any(dim=1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])
    assert torch.equal(cutmix(images, labels, 0.0, _generator())[1], labels)
    some = (cutmix(images, labels, 0.5, _generator())[1] != labels).any(dim=(1, 2)).float().mean()
    assert 0.25 < some < 0.75


def test_a_network_that_shows_no_encoder_keeps_its_channels():
    learner = StudentAndTeacher(torch.nn.Conv2d(3, 2, 1), ema_decay=0.9)
    assert learner.dropped_channels(4, 0.5, _generator()) == ([], [])
    image = torch.randn(2, 3, 8, 8, generator=_generator())
    assert torch.equal(learner(image, []), learner.student(image))


def test_strong_views_are_augmented_more_strongly(cohort, monkeypatch, tmp_path):
    factors = []

    def note(*arguments, factor=1.0):
        factors.append(factor)
        return augment_colours(*arguments, factor=factor)

    monkeypatch.setattr(consistency, "augment_colours", note)
    _train(cohort, tmp_path / "run", steps=1)
    assert factors == [1.5, 1.5]


def _train_and_die(root: Path, folder: Path, dies_at: int) -> None:
    def die(step: int, steps: int, loss: float) -> None:
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    # Another process, in which nothing was set for the test.
    for name, value in SURE_AT_ONCE.items():
        setattr(consistency, name, value)
    real, unlabeled = _parts(root)
    train_segmenter(TINY, real, folder, arm="ssl", image_px=PX, unlabeled=unlabeled, machine=OFTEN, on_progress=die)


def test_killed_and_resumed_ends_in_the_same_weights_and_teacher(cohort, tmp_path):
    whole = _train(cohort, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(
        target=_train_and_die, args=(cohort[0].root, tmp_path / "killed", 5)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert _equal(_train(cohort, tmp_path / "killed"), whole)
    checkpoints = [
        load_file(tmp_path / name / "checkpoints" / "step-00000006" / "model.safetensors")
        for name in ("whole", "killed")
    ]
    teacher = {key for key in checkpoints[0] if key.startswith("teacher.")}
    assert len(teacher) > 10
    assert checkpoints[0]["teacher.n_averaged"] == TINY.steps
    assert _equal(*checkpoints)


def test_arms_that_lack_their_images_are_one_clear_line(cohort, tmp_path):
    real, unlabeled = cohort
    with pytest.raises(StedmError, match="needs images of unlabeled patients"):
        train_segmenter(TINY, real, tmp_path / "a", arm="ssl", image_px=PX)
    with pytest.raises(StedmError, match="no image of an unlabeled patient"):
        train_segmenter(TINY, real, tmp_path / "b", arm="ssl", image_px=PX, unlabeled=unlabeled.select([]))
    with pytest.raises(StedmError, match="needs a synthetic set"):
        train_segmenter(TINY, real, tmp_path / "c", arm="real+synthetic+ssl", image_px=PX, unlabeled=unlabeled)
    held_out = DatasetFolder.open(real.root).split("test")
    with pytest.raises(StedmError, match="not for training"):
        train_segmenter(TINY, real, tmp_path / "d", arm="ssl", image_px=PX, unlabeled=held_out)
