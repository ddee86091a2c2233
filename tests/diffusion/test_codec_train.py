"""Training of the first stage: it learns, resumes to the bit, and looks at no mask and no held-out patient."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from stedm.config import KLCodecConfig, RecolourConfig, RunConfig, TrainedCodecConfig, VQCodecConfig
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import to_signed
from stedm.diffusion.codec import AutoencoderCodec
from stedm.diffusion.codec_train import (
    CodecSamples,
    build_autoencoder,
    make_autoencoder,
    reconstruction_figures,
    split_held_out,
    train_codec,
)
from stedm.errors import StedmError
from stedm.experiment.experiment import Experiment
from stedm.progress import Reporter


def _codec(kind: str, **changes) -> TrainedCodecConfig:
    values = {
        "kind": kind,
        "channels": [8, 16],
        "norm_groups": 4,
        "latent_channels": 3,
        "steps": 4,
        "batch": 4,
        "warmup_steps": 0,
        "checkpoint_every_steps": 2,
        "precision": "fp32",
    }
    if kind == "vq":
        values["num_vq_embeddings"] = 32
    return {"kl": KLCodecConfig, "vq": VQCodecConfig}[kind](**{**values, **changes})


@pytest.fixture
def dataset(tiny_dataset):
    return DatasetFolder.open(tiny_dataset(image_px=16))


@pytest.fixture
def parts(dataset):
    return [dataset.split("train"), dataset.split("unlabeled")]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_it_learns_and_writes_a_diffusers_folder_with_statistics_and_figures(
    kind, precision, diffusion_config, dataset, parts, tmp_path
):
    figures = {}
    for steps in (1, 80):
        codec = _codec(kind, steps=steps, lr=4e-3, precision=precision, checkpoint_every_steps=100, ema_decay=0.9)
        config = diffusion_config(codec=codec, recolour=RecolourConfig(probability=0.0))
        folder = tmp_path / str(steps)
        trained = train_codec(config, parts, dataset.split("val"), folder, image_px=16)
        figures[steps] = json.loads((folder / "model" / "reconstruction.json").read_text())
    assert figures[80]["n_images"] == len(dataset.split("val"))
    # New patients have new colours, which a few codes tell less well than numbers do.
    assert figures[80]["psnr_db_mean"] > figures[1]["psnr_db_mean"] + (3 if kind == "kl" else 1.5)
    assert figures[80]["l1_mean"] < (0.6 if kind == "kl" else 0.8) * figures[1]["l1_mean"]
    assert {"psnr_db_sd", "ssim_mean", "ssim_sd", "l1_sd"} <= figures[80].keys()
    assert ("codes_used" in figures[80]) == (kind == "vq")
    theirs = {"kl": AutoencoderKL, "vq": VQModel}[kind].from_pretrained(folder / "model")
    assert theirs.config.latent_channels == 3
    with Image.open(folder / "model" / "reconstruction.png") as grid:
        assert grid.size == (6 * 16, 2 * 16)
    ours = AutoencoderCodec.from_pretrained(folder / "model")
    assert ours.is_measured
    assert torch.equal(ours.mean, trained.mean)
    images = CodecSamples(codec, parts, 16, 0).some_images(256)
    latents = ours.encode(to_signed(images))
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_every_parameter_moves_in_one_step(kind, diffusion_config, dataset, parts, tmp_path):
    codec = _codec(kind, steps=1, batch=8, ema_decay=0.0)
    config = diffusion_config(codec=codec)
    images = to_signed(CodecSamples(codec, parts, 16, 3).some_images(256))
    before = make_autoencoder(codec, images, 3).state_dict()
    train_codec(config, parts, dataset.split("val"), tmp_path, image_px=16, seed=3)
    after = _weights(tmp_path)
    assert [name for name, start in before.items() if torch.equal(start, after[name])] == []


def test_an_interrupted_training_ends_in_the_same_weights(diffusion_config, dataset, parts, tmp_path):
    config = diffusion_config(codec=_codec("kl", steps=6))

    def stop(done, total, loss):
        if done == 5:
            raise KeyboardInterrupt

    arguments = (config, parts, dataset.split("val"))
    with pytest.raises(KeyboardInterrupt):
        train_codec(*arguments, tmp_path / "a", image_px=16, on_progress=stop)
    assert not (tmp_path / "a" / "model").exists()
    train_codec(*arguments, tmp_path / "a", image_px=16)
    train_codec(*arguments, tmp_path / "b", image_px=16)
    resumed, whole = _weights(tmp_path / "a"), _weights(tmp_path / "b")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_saved_weights_are_the_averaged_ones(diffusion_config, dataset, parts, tmp_path):
    for decay, differs in ((0.99, True), (0.0, False)):
        folder = tmp_path / str(decay)
        config = diffusion_config(codec=_codec("kl", lr=1e-2, ema_decay=decay))
        train_codec(config, parts, dataset.split("val"), folder, image_px=16)
        raw = load_file(folder / "checkpoints" / "step-00000004" / "model.safetensors")
        name = "decoder.conv_out.weight"
        assert (not torch.allclose(raw[f"autoencoder.{name}"], _weights(folder)[name])) == differs


def test_a_new_vq_model_begins_with_codes_that_are_used(parts):
    codec = _codec("vq", num_vq_embeddings=64)
    images = to_signed(CodecSamples(codec, parts, 16, 0).some_images(256))

    def codes_used(model: VQModel) -> int:
        return len(model.quantize(model.encode(images).latents)[2][2].unique())

    assert codes_used(make_autoencoder(codec, images, 0)) > 32 > codes_used(build_autoencoder(codec))
    assert torch.equal(
        make_autoencoder(codec, images, 0).quantize.embedding.weight,
        make_autoencoder(codec, images, 0).quantize.embedding.weight,
    )


def test_samples_are_pure_functions_and_come_from_all_patients_alike(parts):
    first, second = (CodecSamples(_codec("kl", steps=100), parts, 16, seed=5) for _ in range(2))
    assert all(torch.equal(first[i], second[i]) for i in (7, 3))
    # Turned in all ways: 5 patients of 3 images, 8 symmetries.
    assert len({first[i].numpy().tobytes() for i in range(400)}) > 80
    with pytest.raises(StedmError, match="15 px"):
        CodecSamples(_codec("kl"), parts, 15, seed=5)


def test_images_to_measure_on_are_of_patients_that_are_not_learned(dataset, parts):
    learned, held_out = split_held_out(parts, dataset.split("val"))
    assert (learned, set(held_out.table["split"])) == (parts, {"val"})
    learned, held_out = split_held_out(parts, dataset.split("val").select([]))
    assert len(held_out) == 3
    assert not set(held_out.patients()) & {patient for part in learned for patient in part.patients()}
    assert {patient for part in learned for patient in part.patients()} | set(held_out.patients()) == {
        patient for part in parts for patient in part.patients()
    }
    one = parts[0].select(parts[0].table["patient_id"] == "trainP0")
    with pytest.raises(StedmError, match="one patient"):
        split_held_out([one], dataset.select([]))


def test_figures_of_known_errors():
    rng = np.random.default_rng(0)
    originals = rng.integers(60, 190, (2, 16, 16, 3)).astype(np.uint8)
    changed = originals.copy()
    changed[1] += 51
    figures = reconstruction_figures(originals, changed)
    # Errors of 0 (100 dB by convention) and of 0.2 (14 dB).
    assert figures["l1_mean"] == pytest.approx(0.1)
    assert figures["l1_sd"] == pytest.approx(0.2 / 2**0.5)
    assert figures["psnr_db_mean"] == pytest.approx((100 - 20 * np.log10(0.2)) / 2)
    assert 0.5 < figures["ssim_mean"] < 1.0
    assert np.isnan(reconstruction_figures(originals[:1], changed[:1])["ssim_sd"])


def test_initial_weights_are_taken_as_they_are_with_0_steps(diffusion_config, dataset, parts, ldm_state, tmp_path):
    """From a folder of diffusers, and from a checkpoint of latent-diffusion."""
    torch.manual_seed(0)
    start = build_autoencoder(_codec("kl"))
    start.save_pretrained(tmp_path / "start")
    codec = _codec("kl", steps=0, initial_weights=tmp_path / "start")
    train_codec(diffusion_config(codec=codec), parts, dataset.split("val"), tmp_path / "a", image_px=16)
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in _weights(tmp_path / "a").items())
    save_file(ldm_state, tmp_path / "vq.safetensors")
    published = {"channels": [32, 64, 64], "norm_groups": 32, "num_vq_embeddings": 20}
    codec = _codec("vq", steps=0, initial_weights=tmp_path / "vq.safetensors", **published)
    train_codec(diffusion_config(codec=codec), parts, dataset.split("val"), tmp_path / "b", image_px=16)
    assert json.loads((tmp_path / "b" / "model" / "latents.json").read_text())["std"] != [1.0, 1.0, 1.0]
    for wrong in ({"num_vq_embeddings": 21}, {"channels": [32, 64]}, {"norm_groups": 16}, {"kind": "kl"}):
        kind = wrong.get("kind", "vq")
        options = {**published, **wrong}
        options.pop("num_vq_embeddings" if kind == "kl" else "kind", None)
        codec = _codec(**{"kind": kind, **options}, steps=0, initial_weights=tmp_path / "vq.safetensors")
        with pytest.raises(StedmError, match=r"vq\.safetensors: (not the|has norm_groups)"):
            train_codec(diffusion_config(codec=codec), parts, dataset.split("val"), tmp_path / "c", image_px=16)


def test_configurations_that_cannot_be_are_refused():
    with pytest.raises(ValidationError, match="initial_weights"):
        _codec("kl", steps=0)
    with pytest.raises(ValidationError, match="norm_groups"):
        _codec("kl", channels=[6, 8])
    with pytest.raises(ValidationError, match="kl_weight"):
        _codec("vq", kl_weight=1.0)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_run_trains_its_codec_first_once_and_opens_no_mask_for_it(kind, diffusion_config, tiny_dataset, tmp_path):
    root = tiny_dataset(image_px=16)
    config = RunConfig(
        name="x", data={"path": root, "image_px": 16}, diffusion=diffusion_config(codec=_codec(kind), steps=2)
    )
    experiment = Experiment(config, tmp_path / "run", Reporter(quiet=True))
    experiment.check()
    kept = {path: path.read_bytes() for path in (root / "masks").iterdir()}
    for path in kept:
        path.write_bytes(b"not to be opened")
    folder = experiment.train_codec()
    for path, content in kept.items():
        path.write_bytes(content)
    assert folder == tmp_path / "run" / "codec" / "model"
    written = (folder / "config.json").stat().st_mtime_ns
    model = experiment.train_diffusion()
    assert (folder / "config.json").stat().st_mtime_ns == written, "it was trained again"
    assert isinstance(model.codec, AutoencoderCodec)
    own = _weights(tmp_path / "run" / "codec")
    assert all(torch.equal(value, own[name]) for name, value in model.codec.autoencoder.state_dict().items())
    # Straight to the diffusion model: the codec comes before it.
    other = Experiment(config, tmp_path / "other", Reporter(quiet=True))
    other.check()
    other.train_diffusion()
    assert all(torch.equal(value, own[name]) for name, value in _weights(tmp_path / "other" / "codec").items())


def test_a_first_stage_that_is_not_trained_is_refused_by_train_codec(diffusion_config, tiny_dataset, tmp_path):
    config = RunConfig(name="x", data={"path": tiny_dataset(image_px=16)}, diffusion=diffusion_config())
    with pytest.raises(StedmError, match="pixel: nothing to train"):
        Experiment(config, tmp_path / "run", Reporter(quiet=True)).train_codec()
