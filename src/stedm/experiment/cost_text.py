"""What a configuration costs, as text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stedm.columns import aligned
from stedm.config import RunConfig
from stedm.experiment.resolve import classes_of, first_stage_text
from stedm.progress import duration

if TYPE_CHECKING:
    from stedm.experiment.cost import Cost, RunOnShapes

_PRECISIONS = ("fp32", "bf16")
_BUSY = 0.7
"""A share of the processor below which times are told to be those of a busy machine."""


def cost_tables(config: RunConfig) -> Iterator[str]:
    """The cost of a configuration: tables in fixed-width columns, each as soon as it is known."""
    n_classes, known_by = classes_of(config)
    diffusion, synthesis = config.diffusion, config.synthesis
    yield aligned(
        [
            ["configuration", config.name],
            ["images", f"{config.data.side} px"],
            ["classes", f"{n_classes} ({known_by})"],
            ["style images", f"{diffusion.style.n_images} in training, {synthesis.style_images} at generation"],
        ]
    )
    from stedm.experiment.cost import on_shapes  # and with it torch and diffusers, which take longest

    with on_shapes(config, n_classes) as run:
        counted = run.cost()
    channels, height, width = counted.latent
    title = f"parameters, for latents {channels} x {height} x {width}"
    yield _table([[title, "number"], *([name, f"{n:,}"] for name, n in counted.parameters.items())])
    yield _table(_flops(config, counted))
    yield _time(config, n_classes, counted)
    with on_shapes(config, n_classes) as run:
        tables = [_table(rows) for rows in (_memory(config, run), _fits(config, run))]
    yield from tables
    yield _notes()
    if hint := first_stage_text(config):
        yield hint


def _table(rows: list[list[str]]) -> str:
    return aligned(rows, right=range(1, len(rows[0])), rule=True)


def _notes() -> str:
    from stedm.experiment.cost import USABLE

    return (
        "total = the denoiser, all of it trained unless style.trainable is false; codec = the frozen first stage.\n"
        "FLOPs: matrix products, convolutions, attention; a multiply-add counts as two. Style images that dropout "
        "hides count as shown.\n"
        "activations: the most that images, first stage and network have at once besides; bf16 as on GPUs, where norms "
        "stay in float32.\n"
        f"fits: {USABLE:.0%} of a card counts as usable, the rest is for driver, workspaces and gaps. Counted on "
        "shapes, never measured on a GPU."
    )


def _time(config: RunConfig, n_classes: int, counted: "Cost") -> str:
    from stedm.experiment.timing import MOST_FLOPS, measured

    times = measured(config, n_classes, counted.flops_per_sample)
    if times is None:
        most = MOST_FLOPS["cpu"] / 1e9
        return f"time: not measured, for an image of a step has more than {most:.0f} x 10^9 FLOPs, too many for a CPU"
    diffusion, segmentation, synthesis = config.diffusion, config.segmentation, config.synthesis
    rows = [
        [f"time on this machine ({times.device})", "about"],
        [f"diffusion model, {diffusion.steps:,} steps of {diffusion.batch}", duration(times.diffusion)],
        [f"{synthesis.n_images:,} generated images", duration(times.painting)],
        [f"a segmenter, {segmentation.steps:,} steps of {segmentation.batch}", duration(times.segmenter)],
        ["a whole run", "no data there" if times.run is None else duration(times.run)],
    ]
    lines = ["each network was run for a moment, and the rest is multiplied; a whole run roughly"]
    if times.share is not None and times.share < _BUSY:
        had = f"this one had a processor for {times.share:.0%} of the time"
        lines.append(f"other programs were busy meanwhile: {had}, and on an idle machine takes about that part of it")
    return "\n".join([_table(rows), *lines])


def _flops(config: RunConfig, counted: "Cost") -> list[list[str]]:
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


def _memory(config: RunConfig, run: "RunOnShapes") -> list[list[str]]:
    memory = {precision: run.training_memory(precision) for precision in _PRECISIONS}
    painting = [run.painting_memory(precision) for precision in _PRECISIONS]
    at_once = config.diffusion.batch // config.machine.accumulate
    how = ", activations computed again" if config.machine.activation_checkpointing else ""
    title = f"memory of training, GiB, {at_once} images at once{how}"
    rows = [[title, *_PRECISIONS]]
    for part in ("weights", "gradients", "moments", "average", "codec", "activations", "total"):
        name = {"moments": "AdamW moments", "average": "averaged weights"}.get(part, part)
        rows.append([name, *(f"{getattr(of, part) / 2**30:.3f}" for of in memory.values())])
    sizes = (f"{size / 2**30:.3f}" for size in painting)
    return [*rows, [f"painting, {config.synthesis.batch} images at once", *sizes]]


def _fits(config: RunConfig, run: "RunOnShapes") -> list[list[str]]:
    """With which `machine.accumulate` training fits a card."""
    from stedm.experiment.cost import CARDS_GB

    precision = "fp32" if config.machine.precision == "fp32" else "bf16"
    rows = [[f"fits with machine.accumulate, {precision}", *(f"{card} GB" for card in CARDS_GB)]]
    for checkpointing, by_card in run.smallest_accumulate(precision).items():
        name = f"activation_checkpointing: {str(checkpointing).lower()}"
        rows.append([name, *("-" if by_card[card] is None else str(by_card[card]) for card in CARDS_GB)])
    return rows
