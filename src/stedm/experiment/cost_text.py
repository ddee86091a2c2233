"""What a configuration costs, as text."""

from stedm.columns import aligned
from stedm.config import RunConfig
from stedm.experiment.cost import (
    CARDS_GB,
    USABLE,
    Cost,
    classes_of,
    cost,
    painting_memory,
    smallest_accumulate,
    training_memory,
)
from stedm.experiment.resolve import first_stage_text

_PRECISIONS = ("fp32", "bf16")
_NUMBERS = range(1, 1 + max(len(_PRECISIONS), len(CARDS_GB)))
"""Columns of the tables behind the first one."""
_NOTES = (
    "total = the denoiser, all of it trained unless style.trainable is false; codec = the frozen first stage.\n"
    "FLOPs: matrix products, convolutions, attention; a multiply-add counts as two. Style images that dropout hides "
    "count as shown.\n"
    "activations: the most that images, first stage and network have at once besides; bf16 as on GPUs, where norms "
    "stay in float32.\n"
    f"fits: {USABLE:.0%} of a card counts as usable, the rest is for driver, workspaces and gaps. Counted on shapes, "
    "never measured on a GPU."
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
    tables = (parameters, _flops(config, counted), _memory(config, n_classes), _fits(config, n_classes))
    hint = [text] if (text := first_stage_text(config)) else []
    return "\n\n".join([aligned(head), *(aligned(rows, right=_NUMBERS, rule=True) for rows in tables), _NOTES, *hint])


def _flops(config: RunConfig, counted: Cost) -> list[list[str]]:
    diffusion, nfe = config.diffusion, config.synthesis.sampling.nfe
    part = f", in {counted.encoded:.0%} of the samples" if counted.encoded < 1 else ""
    training = counted.flops_per_step * diffusion.steps
    return [
        ["FLOPs", "10^9"],
        [f"first stage, one image{part}", f"{counted.flops_to_encode / 1e9:,.1f}"],
        ["training, one image", f"{counted.flops_per_sample / 1e9:,.1f}"],
        [f"training step, batch {diffusion.batch}", f"{counted.flops_per_step / 1e9:,.1f}"],
        [f"training, {diffusion.steps:,} steps", f"{training / 1e9:,.0f}"],
        [f"generated image, {nfe} network evaluations", f"{counted.flops_per_image / 1e9:,.1f}"],
        ["1,000 generated images", f"{1000 * counted.flops_per_image / 1e9:,.0f}"],
    ]


def _memory(config: RunConfig, n_classes: int) -> list[list[str]]:
    memory = {precision: training_memory(config, n_classes, precision) for precision in _PRECISIONS}
    painting = [painting_memory(config, n_classes, precision) for precision in _PRECISIONS]
    at_once = config.diffusion.batch // config.machine.accumulate
    how = ", activations computed again" if config.machine.activation_checkpointing else ""
    title = f"memory of training, GiB, {at_once} images at once{how}"
    rows = [[title, *_PRECISIONS]]
    for part in ("weights", "gradients", "moments", "average", "codec", "activations", "total"):
        name = {"moments": "AdamW moments", "average": "averaged weights"}.get(part, part)
        rows.append([name, *(f"{getattr(of, part) / 2**30:.3f}" for of in memory.values())])
    sizes = (f"{size / 2**30:.3f}" for size in painting)
    return [*rows, [f"painting, {config.synthesis.batch} images at once", *sizes]]


def _fits(config: RunConfig, n_classes: int) -> list[list[str]]:
    """With which `machine.accumulate` training fits a card."""
    precision = "fp32" if config.machine.precision == "fp32" else "bf16"
    rows = [[f"fits with machine.accumulate, {precision}", *(f"{card} GB" for card in CARDS_GB)]]
    for checkpointing, by_card in smallest_accumulate(config, n_classes, precision).items():
        name = f"activation_checkpointing: {str(checkpointing).lower()}"
        rows.append([name, *("-" if by_card[card] is None else str(by_card[card]) for card in CARDS_GB)])
    return rows
