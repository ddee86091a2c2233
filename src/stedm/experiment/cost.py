"""What a configuration costs: parameters, FLOPs, memory; counted on shapes alone, without weights or data.

The networks of the configuration run once on torch's fake tensors, which have shapes and no content. So even the
configurations of the paper are counted in seconds and without their memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from stedm.config import DiffusionConfig, RunConfig
from stedm.diffusion.codec import Codec, PixelCodec, codec_shapes
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.objective import Objective
from stedm.diffusion.train import make_denoiser
from stedm.experiment.live_bytes import LiveBytes

_PARTS = {
    "unet": "U-Net",
    "style_encoder": "style encoder",
    "aggregate": "aggregation",
    "layout_embedding": "layout embedding",
}
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Formulas for attention on CPUs, for which torch 2.14 counts nothing and torch 2.15 counts this."""
_FLOAT_BYTES = 4
CARDS_GB = (16, 24, 40, 80)
USABLE = 0.85
"""Part of a card's memory that tensors may take; driver, workspaces of libraries and gaps have the rest. Assumed."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training process; workspaces of libraries come on top.

    `weights`, `gradients`, `moments` (AdamW's two) and `average` (of the weights) are float32 in every precision and
    exact. `activations` is the most that all other tensors of a step have at once: images, first stage, what autograd
    keeps for the backward pass, and what passes; in bf16 as on a GPU, where norms and softmax stay in float32.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    codec: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average + self.codec + self.activations


@dataclass(frozen=True)
class Cost:
    """Cost of a configuration.

    FLOPs are those of matrix products, convolutions and attention, forward and backward, a multiply-add as two; blocks
    that `activation_checkpointing` computes again count twice.
    """

    parameters: dict[str, int]
    """By part; `total` is the denoiser without the codec, `codec` stands beside it."""
    latent: tuple[int, int, int]
    """Channels, height and width of a latent."""
    flops_to_encode: int
    """The first stage, for one image."""
    encoded: float
    """Part of the samples that are encoded: less than 1 where the latents of the others are cached."""
    flops_per_sample: int
    """One image of a training batch: first stage (as far as `encoded`), style images, forward and backward pass."""
    flops_per_step: int
    flops_per_call: int
    """One call of the network for one image while sampling."""
    flops_per_image: int
    """One generated image: style images, all network evaluations, decoding."""


def cost(config: RunConfig, n_classes: int) -> Cost:
    """`RunOnShapes.cost` of a configuration for layouts of `n_classes` classes."""
    with on_shapes(config, n_classes) as run:
        return run.cost()


def training_memory(config: RunConfig, n_classes: int, precision: str) -> TrainingMemory:
    """`RunOnShapes.training_memory` of a configuration."""
    with on_shapes(config, n_classes) as run:
        return run.training_memory(precision)


def smallest_accumulate(config: RunConfig, n_classes: int, precision: str) -> dict[bool, dict[int, int | None]]:
    """`RunOnShapes.smallest_accumulate` of a configuration."""
    with on_shapes(config, n_classes) as run:
        return run.smallest_accumulate(precision)


@contextlib.contextmanager
def on_shapes(config: RunConfig, n_classes: int) -> Iterator["RunOnShapes"]:
    """The networks of a configuration, which can be run while the context lasts.

    Raises:
        StedmError: config.json of a codec of kind `autoencoder` is missing; nothing else is read.
    """
    codec, denoiser = _on_meta(config.diffusion, n_classes, config.data.side)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield RunOnShapes(config, codec.to_empty(device="cpu"), denoiser.to_empty(device="cpu"))


class RunOnShapes:
    """The networks, on fake tensors where nothing else is said, run as training and generation run them."""

    def __init__(self, config: RunConfig, codec: Codec, denoiser: StyleDenoiser):
        # Training mode for generation too: the fused layers of inference are invisible to the FLOP counter.
        self.run_config, self.config, self.codec, self.denoiser = config, config.diffusion, codec, denoiser.train()
        self.image_px = config.data.side
        self.latent = (codec.latent_channels, self.image_px // codec.factor, self.image_px // codec.factor)
        self._checkpoints = False
        self._memory: dict[tuple[bool, int, str], TrainingMemory] = {}

    def cost(self) -> Cost:
        """Parameters and FLOPs.

        Every sample counts with all its style images: style dropout and padding are not taken off.
        """
        diffusion, synthesis = self.config, self.run_config.synthesis
        self.checkpoint_activations(self.run_config.machine.activation_checkpointing)
        to_encode = flops_of(lambda: self.encode(1))
        trained = flops_of(lambda: self.denoising_loss(1).backward())
        once = flops_of(lambda: self.style(1, synthesis.style_images)) + flops_of(lambda: self.decode(1))
        call = flops_of(lambda: self.denoise(1, torch.empty(1, diffusion.style.dim)))
        per_sample = trained + round(to_encode * self.encoded)
        return Cost(
            parameters=_parameters(self.denoiser) | {"codec": _count(self.codec)},
            latent=self.latent,
            flops_to_encode=to_encode,
            encoded=self.encoded,
            flops_per_sample=per_sample,
            flops_per_step=per_sample * diffusion.batch,
            flops_per_call=call,
            flops_per_image=once + call * synthesis.sampling.nfe,
        )

    @property
    def encoded(self) -> float:
        """Part of the training samples that the first stage encodes, once the others are cached."""
        keeps = self.run_config.machine.cache_latents and not isinstance(self.codec, PixelCodec)
        return self.run_config.recolour.probability if keeps else 1.0

    def training_memory(self, precision: str) -> TrainingMemory:
        """Of training in one process, in fp32 or bf16, with the images of a batch that `accumulate` leaves at once."""
        self.checkpoint_activations(self.run_config.machine.activation_checkpointing)
        return self._memory_of(self.config.batch // self.run_config.machine.accumulate, precision)

    def smallest_accumulate(self, precision: str) -> dict[bool, dict[int, int | None]]:
        """The smallest `machine.accumulate` with which training fits a card, without and with activation checkpointing,
        by gigabytes of the card; None = not even one image at once fits.

        Between one image and the whole batch memory is taken to grow linearly. It grows as the largest of several
        linear functions does, which is nowhere more than that.
        """
        batch = self.config.batch
        divisors = [n for n in range(1, batch + 1) if batch % n == 0]
        found: dict[bool, dict[int, int | None]] = {}
        for checkpointing in (False, True):
            if checkpointing and set(found[False].values()) == {1}:
                return found | {True: found[False]}  # it only ever takes less
            self.checkpoint_activations(checkpointing)
            every = self._memory_of(batch, precision).total
            if every <= USABLE * min(CARDS_GB) * 2**30:
                found[checkpointing] = dict.fromkeys(CARDS_GB, 1)
                continue
            one = self._memory_of(1, precision).total
            each = (every - one) / max(1, batch - 1)
            found[checkpointing] = {
                card: next((n for n in divisors if one + (batch // n - 1) * each <= USABLE * card * 2**30), None)
                for card in CARDS_GB
            }
        return found

    def checkpoint_activations(self, is_on: bool) -> None:
        if is_on != self._checkpoints:
            self.denoiser.checkpoint_activations(is_on)
            self._checkpoints = is_on

    def encode(self, batch: int) -> Tensor:
        with torch.no_grad():
            return self.codec.encode(self._images(batch))

    def denoising_loss(self, batch: int, latent: Tensor | None = None) -> Tensor:
        """The forward pass of a step of `train_diffusion`, but for the noise."""
        target = torch.rand(batch, *self.latent) if latent is None else latent
        predicted = self.denoise(batch, self.style(batch, self.config.style.n_images))
        return Objective(self.config.objective, self.config.loss)(predicted.float(), target)

    def style(self, batch: int, n: int) -> Tensor:
        """Style vectors `(batch, style_dim)` of n images each, or of the most that the aggregation takes."""
        n = n if self.denoiser.aggregate.any_number else min(n, self.denoiser.aggregate.n_images)
        encoder, images = self.denoiser.style_encoder, self._images(batch * n)
        values = images if encoder is None else encoder(images).float()
        valid = torch.ones(batch, n, dtype=torch.bool)
        return self.denoiser.aggregate(values.unflatten(0, (batch, n)), valid).float()

    def denoise(self, batch: int, style: Tensor) -> Tensor:
        layout = torch.zeros(batch, self.image_px, self.image_px, dtype=torch.long)
        return self.denoiser.denoise(torch.rand(batch, *self.latent), torch.rand(batch), layout, style)

    def decode(self, batch: int) -> Tensor:
        with torch.no_grad():
            return self.codec.decode(torch.empty(batch, *self.latent))

    def _images(self, n: int) -> Tensor:
        return torch.rand(n, 3, self.image_px, self.image_px)

    def _memory_of(self, batch: int, precision: str) -> TrainingMemory:
        """Of a step with `batch` images at once."""
        key = (self._checkpoints, batch, precision)
        if key not in self._memory:
            self._memory[key] = self._counted(batch, precision)
        return self._memory[key]

    def _counted(self, batch: int, precision: str) -> TrainingMemory:
        every, trained = (_FLOAT_BYTES * _count(self.denoiser, only) for only in (False, True))
        codec = _FLOAT_BYTES * _count(self.codec)
        return TrainingMemory(every, trained, 2 * trained, every, codec, self._passing(batch, precision))

    def _passing(self, batch: int, precision: str) -> int:
        """The most bytes of tensors that are alive at once in a step, without weights and their gradients."""
        live = self._live()
        parameters = [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad]
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda parameter: live.forget(parameter.grad))
            for parameter in parameters
        ]
        with live, _float32_on_gpus(self.denoiser, self.codec):
            with _autocast(precision):
                loss = self.denoising_loss(batch, self.encode(batch))
            loss.backward()
        for hook in hooks:
            hook.remove()
        self.denoiser.zero_grad(set_to_none=True)
        return live.peak

    def painting_memory(self, precision: str) -> int:
        """The most bytes that painting `synthesis.batch` images at once takes, weights and all."""
        synthesis = self.run_config.synthesis
        guidance, batch = synthesis.sampling.guidance, synthesis.batch
        # What guidance compares is computed in one pass.
        together = batch * (1 + (guidance.style != 1.0) + (guidance.layout != 1.0))
        live = self._live()
        with torch.no_grad(), _autocast(precision), live, _float32_on_gpus(self.denoiser, self.codec):
            self.style(batch, synthesis.style_images)
            self.denoise(together, torch.empty(together, self.config.style.dim))
            self.decode(batch)
        return _FLOAT_BYTES * (_count(self.denoiser) + _count(self.codec)) + live.peak

    def _live(self) -> LiveBytes:
        networks = (self.denoiser, *([self.codec] if isinstance(self.codec, nn.Module) else []))
        return LiveBytes(tensor for part in networks for tensor in (*part.parameters(), *part.buffers()))


@contextlib.contextmanager
def _float32_on_gpus(*networks: object) -> Iterator[None]:
    """Give norms and softmax float32: autocast does so on GPUs, though not on CPUs, and memory is counted for GPUs."""
    modules = (module for network in networks if isinstance(network, nn.Module) for module in network.modules())
    hooks = [
        module.register_forward_pre_hook(lambda _, values: tuple(value.float() for value in values))
        for module in modules
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.Softmax)
    ]
    yield
    for hook in hooks:
        hook.remove()


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _on_meta(config: DiffusionConfig, n_classes: int, image_px: int) -> tuple[Codec, StyleDenoiser]:
    """Codec and denoiser without memory for their weights."""
    # Published weights have the shapes of those that they replace.
    config = config.model_copy(update={"style": config.style.model_copy(update={"weights": None})})
    codec = codec_shapes(config.codec)
    with torch.device("meta"):
        return codec, make_denoiser(config, codec, n_classes, seed=0, image_px=image_px)


def flops_of(action: Callable[[], object]) -> int:
    """FLOPs of matrix products, convolutions and attention in a call, a multiply-add as two."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        action()
    return counter.get_total_flops()


def _parameters(denoiser: StyleDenoiser) -> dict[str, int]:
    """By part; what brings the style into the U-Net is counted together."""
    parts = {title: _count(getattr(denoiser, name)) for name, title in _PARTS.items()}
    total = _count(denoiser)
    return parts | {"style to U-Net": total - sum(parts.values()), "total": total}


def _count(module: nn.Module | None, trained_only: bool = False) -> int:
    if module is None:
        return 0
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)
