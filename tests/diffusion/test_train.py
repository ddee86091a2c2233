"""Training: everything learns, nothing depends on interruptions, unlabeled masks stay closed."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stedm.config import MachineConfig, RecolourConfig, RoundsConfig, RunConfig, StyleConfig, to_yaml
from stedm.data.folder import DatasetFolder, write_png
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.objective import Objective
from stedm.diffusion.train import DiffusionSamples, DrawnSamples, make_denoiser, train_diffusion
from stedm.errors import StedmError
from stedm.style import encoder
from stedm.training import trainer
from stedm.training.trainer import Trainer


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "denoiser" / "diffusion_pytorch_model.safetensors")


def test_every_trainable_parameter_moves_in_one_step(diffusion_config, cohort, tmp_path, monkeypatch):
    """The released reference left style encoder and aggregation out of its optimizer; here nothing may be left out."""
    monkeypatch.setattr(trainer, "WEIGHT_DECAY", 0.0)
    config = diffusion_config(steps=1, batch=8, ema_decay=0.0, style=StyleConfig(dim=16, dropout=0.5))
    before = make_denoiser(config, PixelCodec(2), n_classes=2, seed=3)
    after = train_diffusion(config, *cohort, tmp_path, image_px=16, seed=3).denoiser
    moved = dict(after.named_parameters())
    names = [name for name, parameter in before.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("style_encoder") for name in names)
    stayed = [name for name, start in before.named_parameters() if torch.equal(start, moved[name])]
    assert stayed == []


def test_golden_loss_trace(diffusion_config, machine, cohort, tmp_path, monkeypatch):
    """A fixed seed gives the stored losses: a change of the science shows here and must be deliberate."""
    monkeypatch.setattr(trainer, "WARMUP_STEPS", 0)
    monkeypatch.setattr(encoder, "WIDTHS", [8, 12])
    train_diffusion(diffusion_config(steps=20, lr=5e-3), *cohort, tmp_path, image_px=16, seed=0, machine=machine)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 10, 20]
    np.testing.assert_allclose([row["loss"] for row in rows], GOLDEN, rtol=2e-3)


GOLDEN = [1.9599, 1.8031, 1.5729]


@pytest.mark.parametrize("objective", ["eps", "v", "flow"])
def test_every_objective_learns(diffusion_config, cohort, tmp_path, objective):
    config = diffusion_config(objective=objective, steps=60, batch=8, lr=3e-3)
    train_diffusion(config, *cohort, tmp_path, image_px=16)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-2:]) < 0.75 * losses[0]


def test_a_sample_is_a_pure_function_of_its_index(diffusion_config, cohort):
    first, second = (DiffusionSamples(diffusion_config(), *cohort, 16, seed=5) for _ in range(2))
    second[7]
    for key, value in first[3].items():
        assert torch.equal(value, second[3][key])
    assert not torch.equal(first[3]["image"], first[4]["image"])


def test_patients_are_drawn_alike_however_many_images_they_have(diffusion_config, tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset(name="uneven", image_px=16))
    train = dataset.split("train")
    first = train.table["patient_id"].iloc[0]
    rows = np.flatnonzero((train.table["patient_id"] != first) | ~train.table["patient_id"].duplicated())
    uneven = train.select(rows.tolist())  # one image of the first patient, all of the others
    samples = DiffusionSamples(diffusion_config(unlabeled_fraction=0, steps=100), uneven, None, 16, 0)
    drawn = uneven.table["patient_id"].iloc[[int(samples[i]["row"]) for i in range(300)]]
    assert (drawn == first).mean() == pytest.approx(1 / uneven.table["patient_id"].nunique(), abs=0.1)
    assert (drawn == first).mean() > 1 / len(uneven) + 0.1


def test_what_training_draws_for_a_sample_is_a_pure_function_of_its_index(diffusion_config, cohort):
    samples = DiffusionSamples(diffusion_config(), *cohort, 16, seed=5)
    objective = Objective("flow", "l2")
    first, second = (DrawnSamples(samples, RecolourConfig(), objective, PixelCodec(2), 16) for _ in range(2))
    second[7]
    for key, value in first[3].items():
        assert torch.equal(value, second[3][key])
    assert first[3]["noise"].shape == (12, 8, 8)
    for key in ("noise", "codec_noise", "time", "stain_factors"):
        assert len({str(first[i][key]) for i in range(8)}) > 3


def test_workers_read_the_same_samples(diffusion_config, cohort, tmp_path):
    for workers in (0, 2):
        machine = MachineConfig(workers=workers)
        train_diffusion(diffusion_config(), *cohort, tmp_path / str(workers), image_px=16, machine=machine)
    alone, together = _weights(tmp_path / "0"), _weights(tmp_path / "2")
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_unannotated_images_train_with_unknown_layout_and_their_masks_are_never_opened(diffusion_config, cohort):
    annotated, unlabeled = cohort
    for row in range(len(unlabeled)):
        (unlabeled.root / unlabeled.table["mask_file_name"][row]).write_bytes(b"not to be opened")
    samples = DiffusionSamples(diffusion_config(unlabeled_fraction=1.0), annotated, unlabeled, 16, seed=0)
    assert all((samples[i]["layout"] == 2).all() for i in range(20))
    config = diffusion_config(unlabeled_fraction=0.0, layout_dropout=0.0)
    samples = DiffusionSamples(config, annotated, unlabeled, 16, seed=0)
    assert not any((samples[i]["layout"] == 2).any() for i in range(20))


def test_pseudo_labels_are_the_layouts_of_unannotated_images_and_turn_with_them(diffusion_config, cohort, tiny_dataset):
    annotated, unlabeled = cohort
    twin = DatasetFolder.open(tiny_dataset(name="twin", image_px=16, patients={"train": 3}))
    # The same images under split train; their layouts here: bright pixels are class 1, the upper half is unsure.
    for row in range(len(unlabeled)):
        layout = (unlabeled.read_image(row)[..., 0] > 127).astype(np.uint8)
        layout[:8] = 255
        write_png(twin.root / twin.table["mask_file_name"][row], layout)
    config = diffusion_config(unlabeled_fraction=1.0, layout_dropout=0.0)
    samples = DiffusionSamples(config, annotated, unlabeled, 16, 0, twin)
    for sample in (samples[i] for i in range(10)):
        known = sample["layout"] != 2
        assert known.sum() == 16 * 8
        assert torch.equal(sample["layout"][known], (sample["image"][0] > 127).long()[known])
    hidden = DiffusionSamples(config.model_copy(update={"layout_dropout": 1.0}), annotated, unlabeled, 16, 0, twin)
    assert (hidden[0]["layout"] == 2).all()
    with pytest.raises(StedmError, match="layouts for"):
        DiffusionSamples(config, annotated, unlabeled, 16, 0, twin.select([0]))


def test_pixels_under_the_ignore_index_are_unknown(diffusion_config, cohort):
    annotated, _ = cohort
    for row in range(len(annotated)):
        write_png(annotated.root / annotated.table["mask_file_name"][row], np.full((16, 16), 255, np.uint8))
    samples = DiffusionSamples(diffusion_config(unlabeled_fraction=0.0), annotated, None, 16, seed=0)
    assert (samples[0]["layout"] == 2).all()


def test_no_annotated_image_is_refused(diffusion_config, cohort, tmp_path):
    annotated, unlabeled = cohort
    with pytest.raises(StedmError, match="no annotated image"):
        train_diffusion(diffusion_config(), annotated.select([]), unlabeled, tmp_path, image_px=16)


def _die_after_step_21() -> None:
    update = Trainer.update

    def update_or_die(trainer: Trainer) -> None:
        update(trainer)
        if trainer.step_done == 21:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.update = update_or_die


def test_killed_training_ends_in_the_weights_of_an_uninterrupted_one(diffusion_config, tiny_dataset, tmp_path, command):
    """A real process, killed with SIGKILL between two checkpoints."""
    config = RunConfig(
        name="kill",
        data={"path": tiny_dataset(image_px=16), "image_px": 16},
        machine=MachineConfig(checkpoint_every_steps=8),
        diffusion=diffusion_config(steps=30),
        rounds=RoundsConfig(number=1, labels=None),
    )
    (tmp_path / "c.yaml").write_text(to_yaml(config))

    verb, killed = ["train", "diffusion", tmp_path / "c.yaml", "-o"], tmp_path / "killed"
    assert command(*verb, killed, before=_die_after_step_21) == -signal.SIGKILL
    assert sorted(path.name for path in killed.glob("checkpoints/*")) == ["step-00000008", "step-00000016"]
    for output in (killed, tmp_path / "whole"):
        assert command(*verb, output) == 0
    resumed, whole = _weights(killed), _weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "resuming logged a step twice"


def test_the_saved_model_has_the_averaged_weights(diffusion_config, cohort, tmp_path):
    """The released reference kept averaged weights and never used them."""
    for decay, differs in ((0.99, True), (0.0, False)):
        folder = tmp_path / str(decay)
        train_diffusion(diffusion_config(steps=4, lr=1e-2, ema_decay=decay), *cohort, folder, image_px=16)
        raw = load_file(folder / "checkpoints" / "step-00000004" / "model.safetensors")
        saved = _weights(folder)
        name = "style_to_time.weight"
        assert (not torch.allclose(raw[name], saved[name])) == differs


def test_an_autoencoder_as_first_stage(diffusion_config, cohort, tmp_path, elsewhere):
    from diffusers import AutoencoderKL

    from stedm import StyleDiffusion
    from stedm.config import AutoencoderCodecConfig

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3, **blocks).save_pretrained(
        tmp_path / "vae"
    )
    config = diffusion_config(codec=AutoencoderCodecConfig(source=str(tmp_path / "vae")))
    with elsewhere():
        machine = MachineConfig(device="cuda:7")
        train_diffusion(config, *cohort, tmp_path / "run", image_px=16, machine=machine)
    model = StyleDiffusion.from_pretrained(tmp_path / "run" / "model")
    style = [cohort[1].read_image(0)]
    assert model.generate(np.zeros((2, 16, 16), np.uint8), style, steps=2).shape == (2, 16, 16, 3)
    assert model.codec.latent_channels == 3
