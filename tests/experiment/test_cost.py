"""The cost of a configuration is what its real networks have, need and do; nothing of it is built to know that."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from stedm.cli import main
from stedm.config import AutoencoderCodecConfig, RunConfig, StyleConfig
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.experiment.cost import classes_of, cost, flops_of

KINDS = {
    "set-vit": {"style": {"dim": 16, "aggregation": "set-vit", "n_images": 2}},
    "linear": {"style": {"dim": 16, "aggregation": "linear", "n_images": 2}},
    "attention": {"style": {"dim": 16, "aggregation": "attention"}},
    "none": {"style": {"dim": 16, "aggregation": "none"}},
    "cross": {"style": {"dim": 16, "injection": "cross"}},
    "own-block": {"style": {"dim": 16, "injection": "own-block"}},
    "timm": {"style": {"dim": 16, "encoder": "resnet10t"}},
    "swin": {"style": {"dim": 16, "encoder": "swinv2_cr_tiny_ns_224", "pooling": "head"}},
    "frozen": {"style": {"dim": 16, "trainable": False}},
    "vq-f4": {"codec": {"kind": "vq-f4", "weights": "nowhere.ckpt"}},
}


def run_config(diffusion, **parts) -> RunConfig:
    return RunConfig(name="cost", data={"phantom": {}, "image_px": 32}, diffusion=diffusion, **parts)


def test_flops_of_one_convolution_by_hand():
    convolution, image = torch.nn.Conv2d(3, 5, kernel_size=3, padding=1), torch.zeros(2, 3, 8, 8)
    by_hand = 2 * (3 * 3 * 3) * 5 * (2 * 8 * 8)
    assert flops_of(lambda: convolution(image)) == by_hand
    # Backward: once for the weights, and not for the image, of which no gradient is asked.
    assert flops_of(lambda: convolution(image).sum().backward()) == 2 * by_hand


def test_parameters_are_those_of_the_real_network(diffusion_config):
    config = diffusion_config()
    real = make_denoiser(config, PixelCodec(2), n_classes=3, seed=0, image_px=32)
    counted = cost(run_config(config), n_classes=3).parameters

    def number(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert counted["total"] == number(real)
    assert counted["U-Net"] == number(real.unet)
    assert counted["style encoder"] == number(real.style_encoder)
    assert counted["layout embedding"] == number(real.layout_embedding)
    assert sum(counted.values()) == 2 * counted["total"] + counted["codec"]


def test_weights_gradients_moments_and_average_are_exact(diffusion_config):
    """Against the bytes that the training loop's optimizer and average really hold, with a part frozen."""
    config = diffusion_config(style=StyleConfig(dim=16, trainable=False))
    real = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0, image_px=32)
    optimizer, average = torch.optim.AdamW(real.parameters()), EMAModel(real.parameters())
    trained = [parameter for parameter in real.parameters() if parameter.requires_grad]
    sum(parameter.sum() for parameter in trained).backward()
    optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    for memory in cost(run_config(config), n_classes=2).memory.values():
        assert memory.weights == _bytes(real.parameters())
        assert memory.gradients == _bytes(parameter.grad for parameter in trained)
        assert memory.moments == _bytes(moments)
        assert memory.average == _bytes(average.shadow_params)
        parts = (memory.weights, memory.gradients, memory.moments, memory.average, memory.codec, memory.activations)
        assert memory.total == sum(parts)


def test_activations_are_what_a_real_forward_pass_saves(diffusion_config):
    """At a batch that was not run on fake tensors, with nearly nothing between: the real pass keeps some indices."""
    config = diffusion_config(batch=5, style=StyleConfig(dim=16, n_images=3))
    real = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0, image_px=32)
    weights, saved = {parameter.data_ptr() for parameter in real.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    for precision in ("fp32", "bf16"):
        saved.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            predicted = real(
                torch.zeros(5, 12, 16, 16),
                torch.zeros(5),
                torch.zeros(5, 32, 32, dtype=torch.long),
                torch.zeros(5, 3, 3, 32, 32),
                torch.ones(5, 3, dtype=torch.bool),
            )
            loss = torch.nn.functional.mse_loss(predicted.float(), torch.zeros(5, 12, 16, 16))
        counted = cost(run_config(config), n_classes=2).memory[precision, 5].activations
        assert counted == pytest.approx(sum(size for size, _ in saved.values()), rel=0.03), precision
        assert loss.requires_grad


def test_flops_follow_batch_and_network_calls(diffusion_config):
    one, many = (cost(run_config(diffusion_config(batch=batch)), 2) for batch in (1, 6))
    assert many.flops_per_step == 6 * many.flops_per_sample == 6 * one.flops_per_step
    guided, plain = (
        cost(run_config(diffusion_config(), synthesis={"sampling": {"steps": 10, "guidance": {"style": guidance}}}), 2)
        for guidance in (1.5, 1.0)
    )
    assert guided.flops_per_image - plain.flops_per_image == 10 * plain.flops_per_call


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_part_can_be_counted(kind, diffusion_config):
    config = diffusion_config().model_copy()
    config = type(config).model_validate({**config.model_dump(), **KINDS[kind]})
    counted = cost(run_config(config, synthesis={"style_images": 6}), n_classes=2)
    assert counted.flops_per_sample > 2 * counted.flops_per_call > 0
    assert (counted.parameters["codec"] > 0) == (config.codec.kind != "pixel")


def test_published_weights_are_not_needed(diffusion_config, tmp_path):
    style = StyleConfig(dim=16, encoder="resnet10t", weights=tmp_path / "not-there.safetensors")
    assert cost(run_config(diffusion_config(style=style)), 2).parameters["style encoder"] > 4e6
    codec = AutoencoderCodecConfig(source=str(tmp_path / "no-autoencoder"))
    with pytest.raises(StedmError, match="no-autoencoder"):
        cost(run_config(diffusion_config(codec=codec)), 2)


def test_classes_are_those_of_the_data_where_they_are_known(tiny_dataset, tmp_path):
    assert classes_of(run_config({}))[0] == 2
    four = RunConfig(name="x", data={"phantom": {"stain": "he"}})
    assert classes_of(four) == (4, "phantom he")
    assert classes_of(RunConfig(name="x", data={"path": tiny_dataset()})) == (2, "tiny")
    number, known_by = classes_of(RunConfig(name="x", data={"path": tmp_path / "gone"}))
    assert number == 2
    assert "assumed" in known_by


def test_the_command_prints_the_tables_without_any_data(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "name: printed\ndata: {path: gone, image_px: 16}\n"
        "diffusion: {batch: 3, denoiser: {channels: [16, 16], norm_groups: 8}, style: {dim: 8}}\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["config", "show", str(tmp_path / "c.yaml"), "--cost", "--set", "synthesis.sampling.steps=4"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    rows = ("U-Net", "style encoder", "aggregation", "layout embedding", "codec", "total", "weights", "AdamW moments")
    for row in (*rows, "assumed", "training step, batch 3", "8 network evaluations", "bf16, batch 3", "activations"):
        assert row in shown, row
    assert "diffusion:" not in shown


def _bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)
