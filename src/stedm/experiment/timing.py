"""How long a configuration takes on this machine: its networks run for a few seconds, and the rest is multiplied."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stedm.config import RunConfig
from stedm.diffusion.codec import codec_shapes
from stedm.diffusion.train import make_denoiser
from stedm.experiment.agenda import Paces, agenda, by_segmenters
from stedm.experiment.cost import RunOnShapes
from stedm.progress import Reporter, Stage
from stedm.seeds import torch_generator
from stedm.segmentation.model import SegmentationLoss, build_segmenter
from stedm.segmentation.train import augment_batch
from stedm.training.device import choose_device, move
from stedm.training.precision import autocast

_SECONDS, _AHEAD_SECONDS = 1.0, 0.2
"""That a measurement takes, about; of one image at least. At the beginning of a run nobody has asked for it."""
_MOST_WAITED = 10
"""Times as long on a busy machine."""
MOST_FLOPS = {"cpu": 3e11}
"""Of one image of a training batch: more takes minutes on such a device, and isn't tried. Others take all."""


@dataclass(frozen=True)
class Times:
    """Seconds, from what was measured on `device`: training of the first diffusion model, painting
    `synthesis.n_images`, a segmenter without consistency, and all stages of a run (None: its data aren't there).

    `share`: of how many processors this process had the use meanwhile; None on other devices.
    """

    device: torch.device
    share: float | None
    diffusion: float
    painting: float
    segmenter: float
    run: float | None


def measured(config: RunConfig, n_classes: int, flops_per_sample: int) -> Times | None:
    """Run each network now, in the precision of the configuration; None where one image takes too long for that.

    Reading images, augmentation and the optimizer are left out: a few parts in a hundred.
    """
    device = choose_device(config.machine.device)
    if flops_per_sample > MOST_FLOPS.get(device.type, float("inf")):
        return None
    clocks = _Clocks()
    found = (*_diffusion(config, n_classes, device), _segmenter(config, n_classes, device, _SECONDS))
    share = clocks.share(device)
    image, evaluation, segmented = (seconds / (share or 1) for seconds in found)
    paces = Paces(image, evaluation, segmented)
    diffusion, segmentation, synthesis = config.diffusion, config.segmentation, config.synthesis
    return Times(
        device,
        share,
        image * diffusion.steps * diffusion.batch,
        evaluation * synthesis.sampling.nfe * synthesis.n_images,
        segmented * segmentation.steps * segmentation.batch,
        _whole_run(config, paces),
    )


def paces_ahead(config: RunConfig, n_classes: int, stages: Sequence[Stage]) -> dict[str, float]:
    """Seconds of a unit of work in the kinds of stages that segmenters do, for a run that begins: their own work is
    known much later, and how they compare with a diffusion model depends on the sizes of both."""
    if not any(stage.kind == "segmenter" for stage in stages):
        return {}
    device, clocks = choose_device(config.machine.device), _Clocks()
    seconds = _segmenter(config, n_classes, device, _AHEAD_SECONDS)
    return by_segmenters(seconds / (clocks.share(device) or 1))


def _diffusion(config: RunConfig, n_classes: int, device: torch.device) -> tuple[float, float]:
    """Seconds of an image in a training step, and of one evaluation of the network while painting."""
    codec = codec_shapes(config.diffusion.codec).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*codec.parameters(), *codec.buffers()):
            tensor.fill_(0.01)  # what lay in the memory may be numbers that processors are slow at
    # Published weights take as long as those that they replace.
    style = config.diffusion.style.model_copy(update={"weights": None})
    diffusion = config.diffusion.model_copy(update={"style": style})
    denoiser = move(make_denoiser(diffusion, codec, n_classes, seed=0, image_px=config.data.side), device)
    run = RunOnShapes(config, codec, denoiser)
    run.checkpoint_activations(config.machine.activation_checkpointing)

    def train(images: int) -> None:
        with torch.device(device), autocast(config.machine.precision, device):
            if encoded := round(images * run.encoded):  # the others' latents are cached
                run.encode(encoded)
            loss = run.denoising_loss(images)
        loss.backward()

    @torch.no_grad()
    def paint(images: int) -> None:
        with torch.device(device), autocast(config.machine.precision, device):
            run.denoise(images, torch.zeros(images, diffusion.style.dim))

    batch = diffusion.batch // config.machine.accumulate
    return _seconds_each(train, batch, device, _SECONDS), _seconds_each(paint, config.synthesis.batch, device, _SECONDS)


def _segmenter(config: RunConfig, n_classes: int, device: torch.device, about: float) -> float:
    """Seconds of an image in a training step of a segmenter with stain augmentation."""
    segmentation, px = config.segmentation, config.data.side
    without = segmentation.model_copy(update={"encoder_weights": None})
    network = move(build_segmenter(without, n_classes), device).train()
    loss_of = SegmentationLoss(segmentation.dice_weight)

    def train(images: int) -> None:
        seen = torch.full((images, px, px, 3), 200, dtype=torch.uint8, device=device)
        masks = torch.zeros(images, px, px, dtype=torch.uint8, device=device)
        generator = torch_generator(0, "timing")
        floats, masks = augment_batch(seen, masks, generator, segmentation, config.recolour, "real+stain")
        with autocast(config.machine.precision, device):
            logits = network(floats)
        loss_of(logits.float(), masks).backward()

    return _seconds_each(train, segmentation.batch // config.machine.accumulate, device, about, least=2)


def _seconds_each(step: Callable[[int], None], most: int, device: torch.device, about: float, least: int = 1) -> float:
    """Seconds an image takes in a step with `most` images, or with as many as about fit the time for it; on a CPU those
    in which this process had it, which say the same in any company."""

    def seconds(images: int) -> tuple[float, float]:
        began = _Clocks()
        step(images)
        torch.zeros((), device=device).item()  # a GPU is waited for
        used, waited = began.since()
        return (used if device.type == "cpu" else waited) / images, waited / images

    with torch.random.fork_rng():
        seconds(least)  # libraries look around in their first call
        first, waited = seconds(least)
        n = int(min(about / first, _MOST_WAITED * about / waited)) if first > 0 else most
        return seconds(max(least, min(most, n)))[0]


class _Clocks:
    def __init__(self) -> None:
        self._waited, self._used = time.perf_counter(), time.process_time()

    def since(self) -> tuple[float, float]:
        """Seconds that this process had processors, of all of them together, and seconds that have gone by."""
        return time.process_time() - self._used, time.perf_counter() - self._waited

    def share(self, device: torch.device) -> float | None:
        """Processors that this process had, on the mean; None where they aren't what it computes on."""
        used, waited = self.since()
        return max(used / waited, 0.01) if device.type == "cpu" else None


def _whole_run(config: RunConfig, paces: Paces) -> float | None:
    """Seconds of all stages from the beginning; None where the data aren't there yet."""
    from stedm.experiment.experiment import Experiment  # which asks here for `paces_ahead`

    if config.data.path is None or not config.data.path.is_dir():
        return None
    with tempfile.TemporaryDirectory() as folder:
        return sum(map(paces.seconds, agenda(Experiment(config, folder, Reporter(quiet=True)))))
