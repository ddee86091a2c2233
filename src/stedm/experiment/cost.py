"""What a configuration costs: parameters, FLOPs, training memory; counted on shapes alone, without weights or data.

The networks of the configuration run once on torch's fake tensors, which have shapes and no content. So even the
configurations of the paper are counted in seconds and without their memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from stedm.config import DiffusionConfig, RunConfig
from stedm.data.folder import read_info
from stedm.diffusion.codec import Codec, codec_shapes
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.objective import Objective
from stedm.diffusion.train import make_denoiser
from stedm.phantom.patients import CLASSES

_PARTS = {
    "unet": "U-Net",
    "style_encoder": "style encoder",
    "aggregate": "aggregation",
    "layout_embedding": "layout embedding",
}
_ASSUMED_CLASSES = 2
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Formulas for attention on CPUs, for which torch 2.14 counts nothing and torch 2.15 counts this."""
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training process; workspaces of libraries and the first stage's passing tensors come on top.

    `weights`, `gradients`, `moments` (AdamW's two) and `average` (of the weights) are float32 in every precision and
    exact. `activations` is what autograd keeps for the backward pass of a whole batch: the storages of its saved
    tensors, each counted once, weights left out (their bfloat16 copies are counted).
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

    FLOPs are those of matrix products, convolutions and attention, forward and backward, a multiply-add as two.
    """

    parameters: dict[str, int]
    """By part; `total` is the denoiser without the codec, `codec` stands beside it."""
    latent: tuple[int, int, int]
    """Channels, height and width of a latent."""
    flops_per_sample: int
    """One image of a training batch: first stage, style images, forward and backward pass."""
    flops_per_step: int
    flops_per_call: int
    """One call of the network for one image while sampling."""
    flops_per_image: int
    """One generated image: style images, all network evaluations, decoding."""
    memory: dict[tuple[str, int], TrainingMemory]
    """Of training in one process, by precision (fp32, bf16) and batch (1 and the configuration's, or what
    `accumulate` leaves of it at once)."""


def cost(config: RunConfig, n_classes: int) -> Cost:
    """Count a configuration for layouts of `n_classes` classes.

    Every sample counts with all its style images: style dropout and padding are not taken off. Nothing is read but
    the folder of a codec of kind `autoencoder`.

    Raises:
        StedmError: that folder is missing.
    """
    diffusion, synthesis = config.diffusion, config.synthesis
    codec, denoiser = _on_meta(diffusion, n_classes, config.data.side)
    with FakeTensorMode(allow_non_fake_inputs=True):
        run = _Run(diffusion, codec.to_empty(device="cpu"), denoiser.to_empty(device="cpu"), config.data.side)
        per_sample = flops_of(lambda: run.training_loss(1).backward())
        at_once = diffusion.batch // config.machine.accumulate
        memory = _memory(run, at_once, fp32=_saved_bytes_of(run, bf16=False), bf16=_saved_bytes_of(run, bf16=True))
        once = flops_of(lambda: run.style(1, synthesis.style_images)) + flops_of(lambda: run.decode(1))
        call = flops_of(lambda: run.denoise(1, torch.empty(1, diffusion.style.dim)))
    return Cost(
        parameters=_parameters(denoiser) | {"codec": _count(codec)},
        latent=run.latent,
        flops_per_sample=per_sample,
        flops_per_step=per_sample * diffusion.batch,
        flops_per_call=call,
        flops_per_image=once + call * synthesis.sampling.nfe,
        memory=memory,
    )


def cost_text(config: RunConfig) -> str:
    """The cost of a configuration as tables in fixed-width columns."""
    n_classes, known_by = classes_of(config)
    counted, diffusion, synthesis = cost(config, n_classes), config.diffusion, config.synthesis
    channels, side, _ = counted.latent
    head = [
        ["configuration", config.name],
        ["images", f"{config.data.side} px, latents {channels} x {side} x {side}"],
        ["classes", f"{n_classes} ({known_by})"],
        ["style images", f"{diffusion.style.n_images} in training, {synthesis.style_images} at generation"],
    ]
    parameters = [["parameters", "number"], *([name, f"{n:,}"] for name, n in counted.parameters.items())]
    flops = [
        ["FLOPs", "10^9"],
        ["training, one image", f"{counted.flops_per_sample / 1e9:,.1f}"],
        [f"training step, batch {diffusion.batch}", f"{counted.flops_per_step / 1e9:,.1f}"],
        [
            f"generated image, {synthesis.sampling.nfe} network evaluations",
            f"{counted.flops_per_image / 1e9:,.1f}",
        ],
    ]
    memory = [["memory of training, GiB", *(f"{precision}, batch {batch}" for precision, batch in counted.memory)]]
    for part in ("weights", "gradients", "moments", "average", "codec", "activations", "total"):
        title = {"moments": "AdamW moments", "average": "averaged weights"}.get(part, part)
        memory.append([title, *(f"{getattr(of, part) / 2**30:.3f}" for of in counted.memory.values())])
    notes = (
        "total = the denoiser, all of it trained unless style.trainable is false; codec = the frozen first stage.\n"
        "FLOPs: matrix products, convolutions, attention; a multiply-add counts as two.\n"
        "activations: what autograd keeps for the backward pass; library workspaces and the first stage's passing "
        "tensors come on top."
    )
    return "\n\n".join([_aligned(head), *(_aligned(rows, title=True) for rows in (parameters, flops, memory)), notes])


def _aligned(rows: list[list[str]], title: bool = False) -> str:
    """Fixed-width columns: names to the left, the numbers of a table with a title line to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) if title else c for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    if title:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def classes_of(config: RunConfig) -> tuple[int, str]:
    """Number of classes of a configuration's data, and how it is known; two where the data aren't there."""
    data = config.data
    if data.phantom is not None:
        return len(CLASSES[data.phantom.stain]), f"phantom {data.phantom.stain}"
    if data.path is not None and (data.path / "dataset.yaml").is_file():
        info = read_info(data.path)
        return len(info.classes), info.name
    return _ASSUMED_CLASSES, "assumed: data.path has no dataset.yaml"


class _Run:
    """The networks on fake tensors, run as training and generation run them on `batch` images."""

    def __init__(self, config: DiffusionConfig, codec: Codec, denoiser: StyleDenoiser, image_px: int):
        # Training mode for generation too: the fused layers of inference are invisible to the FLOP counter.
        self.config, self.codec, self.denoiser, self.image_px = config, codec, denoiser.train(), image_px
        self.latent = (codec.latent_channels, image_px // codec.factor, image_px // codec.factor)

    def training_loss(self, batch: int) -> Tensor:
        """One step of `train_diffusion`, but for the noise."""
        with torch.no_grad():
            latent = self.codec.encode(self._images(batch))
        predicted = self.denoise(batch, self.style(batch, self.config.style.n_images))
        objective = Objective(self.config.objective, self.config.loss)
        return objective(predicted.float(), latent)

    def style(self, batch: int, n: int) -> Tensor:
        """Style vectors `(batch, style_dim)` of n images each, or of the most that the aggregation takes."""
        n = n if self.denoiser.aggregate.any_number else min(n, self.denoiser.aggregate.n_images)
        encoder, images = self.denoiser.style_encoder, self._images(batch * n)
        values = images if encoder is None else encoder(images).float()
        valid = torch.ones(batch, n, dtype=torch.bool)
        return self.denoiser.aggregate(values.unflatten(0, (batch, n)), valid).float()

    def denoise(self, batch: int, style: Tensor) -> Tensor:
        layout = torch.zeros(batch, self.image_px, self.image_px, dtype=torch.long)
        return self.denoiser.denoise(torch.empty(batch, *self.latent), torch.empty(batch), layout, style)

    def decode(self, batch: int) -> Tensor:
        return self.codec.decode(torch.empty(batch, *self.latent))

    def _images(self, n: int) -> Tensor:
        return torch.empty(n, 3, self.image_px, self.image_px)


def _on_meta(config: DiffusionConfig, n_classes: int, image_px: int) -> tuple[Codec, StyleDenoiser]:
    """Codec and denoiser without memory for their weights."""
    # Published weights have the shapes of those that they replace.
    config = config.model_copy(update={"style": config.style.model_copy(update={"weights": None})})
    codec = codec_shapes(config.codec)
    with torch.device("meta"):
        return codec, make_denoiser(config, codec, n_classes, seed=0, image_px=image_px)


def _memory(run: _Run, at_once: int, **saved_bytes_of: Callable[[int], int]) -> dict[tuple[str, int], TrainingMemory]:
    """By precision and batch (1, and the images of a step at once), from functions of a batch's activations."""
    every, trained = (_FLOAT_BYTES * _count(run.denoiser, only) for only in (False, True))
    codec = _FLOAT_BYTES * _count(run.codec)
    return {
        (precision, batch): TrainingMemory(every, trained, 2 * trained, every, codec, saved_bytes(batch))
        for batch in dict.fromkeys((1, at_once))
        for precision, saved_bytes in saved_bytes_of.items()
    }


def _saved_bytes_of(run: _Run, bf16: bool) -> Callable[[int], int]:
    """Bytes that autograd saves, as a function of the batch: linear, but for the bfloat16 copies of the weights."""
    one, two = (_saved_bytes(run, batch, bf16) for batch in (1, 2))
    return lambda batch: one + (batch - 1) * (two - one)


def _saved_bytes(run: _Run, batch: int, bf16: bool) -> int:
    """Bytes of what autograd saves in a forward pass: storages, each once, parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in run.denoiser.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The storage itself is held, lest its address be given to another one.
            saved[storage._cdata] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        run.training_loss(batch)
    return sum(storage.nbytes() for storage in saved.values())


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
