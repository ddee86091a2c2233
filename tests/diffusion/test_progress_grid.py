"""Images painted during training: of the averaged weights, from training data, and without a trace in the training."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stedm.config import MachineConfig
from stedm.data.folder import DatasetFolder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.progress_grid import LAYOUTS, PATIENTS, steps_between
from stedm.diffusion.train import DiffusionSamples, train_diffusion
from stedm.io.images import class_palette, write_png
from stedm.seeds import seed_for

_PX, _CELL = 16, 18


def _train(config, cohort, folder, every, **options):
    machine = MachineConfig(precision="fp32", checkpoint_every_steps=2, grid_every_steps=every)
    train_diffusion(config, *cohort, folder, image_px=_PX, seed=3, machine=machine, **options)
    return load_file(folder / "model" / "denoiser" / "diffusion_pytorch_model.safetensors")


def _grid(folder, step) -> np.ndarray:
    return np.array(Image.open(folder / "progress" / f"step-{step:08d}.png"))


def _global_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_weights_are_those_of_a_training_without_and_the_images_those_of_its_model(diffusion_config, cohort, tmp_path):
    unlabeled = cohort[1]
    for name in unlabeled.table["mask_file_name"]:
        (unlabeled.root / name).write_bytes(b"not to be opened")
    config, weights, states = diffusion_config(), [], []
    for every in (0, 2):
        torch.manual_seed(0)
        weights.append(_train(config, cohort, tmp_path / str(every), every))
        states.append(_global_states())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert states[0] == states[1]
    assert not (tmp_path / "0" / "progress").exists()
    assert sorted(path.name for path in (tmp_path / "2" / "progress").iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
    ]

    samples = DiffusionSamples(config, *cohort, _PX, seed=3)
    layouts, styles = samples.some_layouts(LAYOUTS), samples.some_styles(PATIENTS)
    n, m = len(layouts), len(styles)
    cells = _grid(tmp_path / "2", 4).reshape(n + 1, _CELL, m + 1, _CELL, 3).swapaxes(1, 2)[:, :, :_PX, :_PX]
    assert np.array_equal(cells[0, 1:], np.stack([images[0] for images in styles]))
    assert np.array_equal(cells[1:, 0], np.frombuffer(class_palette(), np.uint8).reshape(256, 3)[layouts])
    # The model that is written has the averaged weights, with which the last grid was painted.
    model = StyleDiffusion.from_pretrained(tmp_path / "2" / "model")
    model.precision = "fp32"
    for row, layout in enumerate(layouts):
        noise = [seed_for(3, "progress", row)] * m
        painted = model.generate(np.repeat(layout[None], m, axis=0), styles, seed=noise, batch=4)
        assert np.abs(painted.astype(int) - cells[1 + row, 1:]).max() <= 1


def test_a_layout_is_as_varied_as_the_classes_that_are_known_in_it(diffusion_config, tiny_dataset):
    root = tiny_dataset(patients={"train": 1})
    half = np.zeros((32, 32), np.uint8)
    half[:16] = 255
    write_png(root / "masks" / "trainP0-0.png", half)
    samples = DiffusionSamples(diffusion_config(), DatasetFolder.open(root).split("train"), None, _PX, seed=3)
    (layout,) = samples.some_layouts(LAYOUTS)
    assert set(np.unique(layout)) == {0, 1}


def test_a_killed_training_paints_the_same_images(diffusion_config, cohort, tmp_path):
    def die(step, of, loss):
        if step == 3:
            raise KeyboardInterrupt

    _train(diffusion_config(), cohort, tmp_path / "whole", 1)
    with pytest.raises(KeyboardInterrupt):
        _train(diffusion_config(), cohort, tmp_path / "killed", 1, on_progress=die)
    _train(diffusion_config(), cohort, tmp_path / "killed", 1)
    for step in (1, 2, 3, 4):
        assert np.array_equal(_grid(tmp_path / "whole", step), _grid(tmp_path / "killed", step))


def test_layouts_and_styles_are_of_different_patients_annotated_ones_first(diffusion_config, cohort):
    annotated = cohort[0]
    styles = DiffusionSamples(diffusion_config(), *cohort, _PX, seed=0).some_styles(3)
    own = [annotated.read_image(row, _PX) for row in range(len(annotated))]
    assert len(styles) == 3
    assert [any(np.array_equal(images[0], image) for image in own) for images in styles] == [True, False, False]
    alone = DiffusionSamples(diffusion_config(), annotated, None, _PX, seed=0).some_styles(2)
    assert all(any(np.array_equal(images[0], image) for image in own) for images in alone)
    assert not np.array_equal(alone[0][0], alone[1][0])


def test_tensorboard_has_the_losses_and_the_images(diffusion_config, cohort, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    machine = MachineConfig(tracker="tensorboard", grid_every_steps=2, precision="fp32")
    train_diffusion(diffusion_config(), *cohort, tmp_path, image_px=_PX, machine=machine)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == [row["step"] for row in rows] == [1, 4]
    np.testing.assert_allclose([event.value for event in shown], [row["loss"] for row in rows], rtol=1e-5)
    assert [image.step for image in events.Images("progress")] == [2, 4]


@pytest.mark.parametrize(
    ("every", "steps", "between"), [(None, 4000, 1334), (None, 1000, 500), (None, 20, 500), (7, 4000, 7), (0, 4000, 0)]
)
def test_a_few_images_a_training_and_none_in_short_ones(every, steps, between):
    assert steps_between(every, steps) == between
