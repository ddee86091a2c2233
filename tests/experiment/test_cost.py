"""The cost of a configuration is what its real networks have, need and do; nothing of it is built to know that."""

import re

import pytest
import torch
from diffusers.training_utils import EMAModel

from speed.measure import peak_bytes
from stedm.cli import main
from stedm.config import AutoencoderCodecConfig, MachineConfig, RunConfig, StyleConfig, VQF4CodecConfig
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.experiment import cost as counting
from stedm.experiment import timing
from stedm.experiment.cost import cost, flops_of, smallest_accumulate, training_memory
from stedm.experiment.cost_text import cost_tables
from stedm.experiment.resolve import classes_of
from stedm.progress import Stage

KINDS = {
    "set-vit": {"style": {"dim": 16, "aggregation": "set-vit", "n_images": 2}},
    "linear": {"style": {"dim": 16, "aggregation": "linear", "n_images": 2}},
    "attention": {"style": {"dim": 16, "aggregation": "attention"}},
    "none": {"style": {"dim": 16, "aggregation": "none"}},
    "cross": {"style": {"dim": 16, "injection": "cross"}},
    "timm": {"style": {"dim": 16, "encoder": "resnet10t"}},
    "frozen": {"style": {"dim": 16, "trainable": False}},
}
"""Own-block, Swin and VQ-f4 are those of the paper's presets (tests/configs/test_paper_presets.py)."""


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
    for memory in (training_memory(run_config(config), 2, precision) for precision in ("fp32", "bf16")):
        assert memory.weights == _bytes(real.parameters())
        assert memory.gradients == _bytes(parameter.grad for parameter in trained)
        assert memory.moments == _bytes(moments)
        assert memory.average == _bytes(average.shadow_params)
        parts = (memory.weights, memory.gradients, memory.moments, memory.average, memory.codec, memory.activations)
        assert memory.total == sum(parts)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_the_peak_of_a_real_step(checkpointing, diffusion_config):
    """Against what torch's own record of its allocator says of a step on the CPU, and what autograd saves in it."""
    config = diffusion_config(batch=5, style=StyleConfig(dim=16, n_images=3))
    real = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0, image_px=32)
    machine = {"activation_checkpointing": checkpointing}
    counted = training_memory(run_config(config, machine=machine), 2, "fp32").activations
    if checkpointing:
        real.checkpoint_activations()
    # With the gradients of a first step there, those of the second are added to them.
    _step(real).backward()
    assert counted == pytest.approx(peak_bytes(lambda: _step(real).backward(), torch.device("cpu")), rel=0.1)
    saved = _saved_bytes(real)
    without = training_memory(run_config(config), 2, "fp32").activations
    assert saved < counted <= without
    assert (counted < 0.9 * without) == checkpointing
    if not checkpointing:
        assert counted < 1.5 * saved


def _step(network: torch.nn.Module) -> torch.Tensor:
    """Loss of a forward pass of five images of 32 px with three style images each."""
    predicted = network(
        torch.zeros(5, 12, 16, 16),
        torch.zeros(5),
        torch.zeros(5, 32, 32, dtype=torch.long),
        torch.zeros(5, 3, 3, 32, 32),
        torch.ones(5, 3, dtype=torch.bool),
    )
    return torch.nn.functional.mse_loss(predicted.float(), torch.zeros(5, 12, 16, 16))


def _saved_bytes(network: torch.nn.Module) -> int:
    """Bytes of the storages that autograd saves in a forward pass, but for the weights."""
    weights, saved = {parameter.data_ptr() for parameter in network.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _step(network)
    return sum(size for size, _ in saved.values())


def test_bfloat16_halves_what_is_no_norm(diffusion_config):
    config = run_config(diffusion_config(batch=8))
    fp32, bf16 = (training_memory(config, 2, precision).activations for precision in ("fp32", "bf16"))
    assert 0.5 * fp32 < bf16 < fp32


def test_a_batch_is_divided_until_it_fits(diffusion_config, monkeypatch):
    config = run_config(diffusion_config(batch=8))
    totals = {
        n: training_memory(config.model_copy(update={"machine": MachineConfig(accumulate=n)}), 2, "fp32").total
        for n in (1, 2, 8)
    }
    # Cards on which all eight images fit at once, four but not eight, one but not four, and none.
    cards = [totals[1] * 1.01, totals[2] * 1.03, totals[8] * 1.01, totals[8] * 0.99]
    sizes = [bytes_ / 2**30 / counting.USABLE for bytes_ in cards]
    monkeypatch.setattr(counting, "CARDS_GB", sizes)
    found = smallest_accumulate(config, 2, "fp32")
    assert [found[False][size] for size in sizes[:2]] == [1, 2]
    assert found[False][sizes[2]] == 8
    assert found[False][sizes[3]] is None
    assert all((found[True][size] or 99) <= (found[False][size] or 99) for size in sizes)


@pytest.mark.parametrize(("cached", "recoloured", "part"), [(False, 0.5, 1), (True, 0.5, 0.5), (True, 0, 0)])
def test_cached_latents_are_not_encoded(cached, recoloured, part, diffusion_config):
    codec = VQF4CodecConfig(weights="nowhere.ckpt")
    parts = {"machine": {"cache_latents": cached}, "recolour": {"probability": recoloured}}
    counted = cost(run_config(diffusion_config(codec=codec), **parts), 2)
    network = counted.flops_per_sample - round(part * counted.flops_to_encode)
    assert counted.encoded == part
    assert 2 * counted.flops_per_call < network < counted.flops_to_encode


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


def test_the_command_prints_the_tables_without_any_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    (tmp_path / "c.yaml").write_text(
        "name: printed\ndata: {path: gone, image_px: 16}\n"
        "diffusion: {batch: 3, denoiser: {channels: [16, 16], norm_groups: 8}, style: {dim: 8}}\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["config", "show", str(tmp_path / "c.yaml"), "--cost", "--set", "synthesis.sampling.steps=4"])
    assert stop.value.code == 0
    shown, said = capsys.readouterr()
    assert "minutes on a busy machine" in said
    rows = ("U-Net", "style encoder", "aggregation", "layout embedding", "codec", "total", "weights", "AdamW moments")
    for row in (*rows, "assumed", "training step, batch 3", "8 network evaluations", "3 images at once", "activations"):
        assert row in shown, row
    assert re.search(r"a segmenter, 1,200 steps of 16 +\d+ (s|min|h .*)\na whole run +no data there\n", shown)
    assert "diffusion:" not in shown
    assert re.search(
        r"fits with machine.accumulate, bf16 +16 GB +24 GB +40 GB +80 GB\n[- ]+\n.*false +1 +1 +1 +1\n", shown
    )


def test_what_is_known_is_shown_before_anything_is_counted(monkeypatch):
    monkeypatch.setattr(counting, "on_shapes", None)
    tables = cost_tables(run_config({}))
    assert "images         32 px" in next(tables)
    with pytest.raises(TypeError):
        next(tables)


def test_times_are_those_of_steps_that_ran_here(tiny_dataset, diffusion_config, monkeypatch):
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(timing, "time", _Clock())
    small = {"data": {"path": tiny_dataset(), "image_px": 32}, "synthesis": {"n_images": 30}}
    config = RunConfig(name="x", diffusion=diffusion_config(batch=4, steps=50), **small)
    times = timing.measured(config, 2, flops_per_sample=10**6)
    # Each look at the clock is a second after the one before: a step of one image takes one, of a segmenter two do.
    assert times.diffusion == 50 * 4
    assert times.painting == 30 * config.synthesis.sampling.nfe
    assert times.segmenter == config.segmentation.steps * config.segmentation.batch / 2
    segmenters = len(config.segmentation.arms) * len(config.segmentation.seeds)
    assert times.run > times.diffusion + times.painting + segmenters * times.segmenter
    assert times.share == 0.5
    assert timing.measured(config, 2, flops_per_sample=10**12) is None


class _Clock:
    """In which a processor is free half of the time."""

    now = used = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now

    def process_time(self) -> float:
        self.used += 0.5
        return self.used


def test_a_run_knows_the_pace_of_its_segmenters_before_they_run():
    config = run_config({})
    paces = timing.paces_ahead(config, 2, [Stage("segmenter real, seed 0", "segmenter", 1.0)])
    assert paces["segmenter"] == paces["label"] > 0
    assert timing.paces_ahead(config, 2, [Stage("score and report", "score", 1.0)]) == {}


def _bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)
