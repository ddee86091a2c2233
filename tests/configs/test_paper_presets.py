"""The paper's presets: settings, size at 512 px on shapes, and a real training step of the same networks."""

import gc
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from timm.layers import DropPath

import stedm.diffusion.train as training
from stedm.config import RunConfig, load_config
from stedm.data.folder import DatasetFolder
from stedm.diffusion import codec
from stedm.diffusion.ldm_checkpoint import VQ_F4
from stedm.diffusion.objective import BETAS
from stedm.diffusion.train import make_denoiser, train_diffusion
from stedm.experiment.cost import USABLE, cost, training_memory
from stedm.segmentation.model import build_segmenter
from stedm.training import trainer

PAPER = Path(__file__).parents[2] / "configs" / "paper"
NAMES = ["flowers102", "her2", "catch"]
NETWORKS = ["flowers102", "her2"]
"""With networks of their own: CATCH has those of HER2."""
STYLE_IMAGES = {"flowers102": 1, "her2": 10, "catch": 10}


def preset(name: str, *overrides: str) -> RunConfig:
    return load_config(PAPER / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_those_of_the_paper(name):
    config = load_config(PAPER / f"{name}.yaml")
    diffusion, synthesis, segmentation = config.diffusion, config.synthesis, config.segmentation
    assert config.data.image_px == 512
    assert diffusion.codec.kind == "vq-f4", "the published first stage is taken as it is"
    assert (diffusion.codec.weights.name, diffusion.codec.weights.is_absolute()) == ("model.ckpt", True)
    assert (diffusion.objective, diffusion.loss) == ("eps", "l1")
    assert (BETAS["beta_schedule"], BETAS["beta_start"], BETAS["beta_end"]) == ("scaled_linear", 0.0015, 0.0205)
    assert diffusion.style.sampling == {"flowers102": "augmented"}.get(name, "multi-patch")
    assert diffusion.style.n_images == synthesis.style_images == STYLE_IMAGES[name]
    assert (diffusion.style.dim, diffusion.style.dropout, diffusion.style.injection) == (512, 0.25, "own-block")
    ours = (diffusion.unlabeled_fraction, diffusion.layout_dropout, config.recolour.probability)
    assert ours == (0, 0, 0), "ours, not in the paper"
    sampling = synthesis.sampling
    assert (sampling.sampler, sampling.steps, sampling.guidance.style) == ("ddim", 128, 1.5)
    assert (segmentation.dice_weight, segmentation.synthetic_fraction, segmentation.mirror) == (0.9, 0.8, False)


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_the_paper(name):
    """Against the sizes measured on the released code: 234.64, 27.98 and 55.3 million parameters, 872 GFLOP a call."""
    counted = cost(preset(name), n_classes=2)
    assert counted.latent == (3, 128, 128)
    assert counted.parameters["U-Net"] == pytest.approx(234.64e6, rel=0.03)
    assert counted.parameters["style encoder"] == pytest.approx(27.98e6, rel=0.01)
    assert counted.parameters["codec"] == pytest.approx(55.3e6, rel=0.01)
    page = (PAPER.parents[1] / "results" / "paper_presets" / "README.md").read_text(encoding="utf-8")
    for figure in (counted.parameters["U-Net"], counted.parameters["total"], round(counted.flops_per_sample / 1e9, 1)):
        assert f"{figure:,}" in page, "the page isn't what the command prints"
    assert counted.flops_per_call == pytest.approx(872e9, rel=0.01)


def test_training_fits_the_card_that_the_preset_names():
    config = preset("her2")
    assert (config.machine.accumulate, config.machine.activation_checkpointing) == (8, True)
    assert training_memory(config, 2, config.machine.precision).total < USABLE * 24 * 2**30


def test_the_segmenter_is_built_with_a_word_about_its_licence():
    with pytest.warns(UserWarning, match="non-commercial"):
        network = build_segmenter(preset("her2").segmentation, n_classes=2)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(27.5e6, rel=0.03)


class _OneStepDone(Exception):  # noqa: N818
    pass


def test_catch_is_trained_as_her2_is():
    same = ("diffusion", "rounds", "synthesis", "segmentation", "recolour", "machine")
    her2, catch = (preset(name).model_dump() for name in ("her2", "catch"))
    assert [her2[part] for part in same] == [catch[part] for part in same]


def test_each_network_takes_one_training_step(tiny_dataset, tmp_path, monkeypatch):
    """`train_diffusion` itself with networks of full size, stopped after its first step and before it writes gigabytes.

    Images of 64 px: at 512 px a step takes 12 GB and a minute, and `cost` above runs it on shapes. One test, so that
    no two steps are taken at once. The learning rate is not the paper's, at which steps of weights near 1 are lost in
    rounding.
    """
    dataset = DatasetFolder.open(tiny_dataset(image_px=64, patients={"train": 2, "unlabeled": 1}, images=2))
    monkeypatch.setattr(training, "_IMAGES_TO_MEASURE", 2)
    changes = ["diffusion.batch=1", "diffusion.style.dropout=0", "diffusion.lr=0.001", "machine.precision=auto"]
    # Of a batch of one image; to compute activations again is tested elsewhere.
    changes += ["data.image_px=64", "machine.accumulate=1", "machine.activation_checkpointing=false"]
    monkeypatch.setattr(trainer, "WEIGHT_DECAY", 0.0)
    for name in NETWORKS:
        config = preset(name, *changes)
        # The null style was not shown: there was one sample and no dropout.
        assert _unmoved_by_one_step(config, dataset, tmp_path / name) == ["null_style"], name
        # The exception that stopped the training holds its networks in a circle of references.
        gc.collect()


def _unmoved_by_one_step(config: RunConfig, dataset: DatasetFolder, run: Path) -> list[str]:
    """Names of the parameters that are the same after one step."""
    started: dict[str, torch.Tensor] = {}
    denoiser = None

    def watched(*arguments):
        nonlocal denoiser
        denoiser = make_denoiser(*arguments)
        _open_every_block(denoiser.style_encoder)
        started.update((name, parameter.detach().clone()) for name, parameter in denoiser.named_parameters())
        return denoiser

    def stop(step: int, of: int, loss: float) -> None:
        assert (step, of) == (1, 3900)
        assert 0 < loss < 10
        raise _OneStepDone

    splits = dataset.split("train"), dataset.split("unlabeled")
    # A context of its own: monkeypatch would hold the networks of all presets until the end of the test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_denoiser", watched)
        patch.setattr(codec, "load_ldm_vq", _new_vq_f4)
        with pytest.raises(_OneStepDone):
            train_diffusion(config.diffusion, *splits, run, machine=config.machine, image_px=64, on_progress=stop)
    return [name for name, parameter in denoiser.named_parameters() if torch.equal(parameter, started[name])]


def _open_every_block(swin: torch.nn.Module) -> None:
    """Blocks of a new Swin V2 add nothing, since their last norms are 0, and some are dropped in each step: what is
    inside them can't move in the first one."""
    for name, parameter in swin.named_parameters():
        if name.endswith(("norm1.weight", "norm2.weight")):
            torch.nn.init.ones_(parameter)
    for part in swin.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0


def _new_vq_f4(path: Path) -> VQModel:
    """An untrained one in the place of the published one, which is not at hand."""
    assert path.name == "model.ckpt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQModel(**VQ_F4)
