"""Forward and backward of the networks in the ways that they can be computed, in turns, as ratios to the default.

python benchmarks/training_step.py [--repeats 20] [--compile]        on an otherwise idle machine

What the trainer does is the ratio 1: on a CPU the segmenter in channels_last, the denoiser contiguous; on a GPU both
in channels_last. `--compile` takes minutes to compile on a CPU.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from speed.machine import describe
from speed.measure import Turns
from stedm.config import DiffusionConfig, SegmentationConfig
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.train import make_denoiser
from stedm.segmentation.model import build_segmenter
from stedm.training.precision import autocast

PX, CLASSES = 64, 2
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forward_and_backward(
    network: nn.Module, call: Callable[[nn.Module, slice], torch.Tensor], batch: int, parts: int = 1
) -> Callable[[], None]:
    network.train()

    def run() -> None:
        for first in range(0, batch, batch // parts):
            with autocast("auto", DEVICE):
                predicted = call(network, slice(first, first + batch // parts))
            (predicted.float().square().mean() / parts).backward()
        network.zero_grad(set_to_none=True)

    return run


def denoisers(compiled: bool) -> dict[str, Callable[[], None]]:
    """The default denoiser on random images."""
    config = DiffusionConfig()
    b, side = config.batch, PX // 2
    noisy, time = torch.randn(b, 12, side, side, device=DEVICE), torch.rand(b, device=DEVICE) * 1000
    layout = torch.randint(0, CLASSES, (b, PX, PX), device=DEVICE)
    style = torch.randn(b, config.style.n_images, 3, PX, PX, device=DEVICE)
    valid = torch.ones(style.shape[:2], dtype=torch.bool, device=DEVICE)

    def call(network: nn.Module, part: slice) -> torch.Tensor:
        return network(noisy[part], time[part], layout[part], style[part], valid[part])

    def new(memory_format: str = own_format("denoiser")) -> nn.Module:
        denoiser = make_denoiser(config, PixelCodec(2), CLASSES, seed=0, image_px=PX)
        return denoiser.to(DEVICE, memory_format=FORMATS[memory_format])

    checkpointed = new()
    checkpointed.checkpoint_activations()
    variants = {name: forward_and_backward(new(name), call, b) for name in FORMATS}
    variants["accumulate: 2"] = forward_and_backward(new(), call, b, parts=2)
    variants["activation_checkpointing"] = forward_and_backward(checkpointed, call, b)
    if compiled:
        faster = new()
        faster.compile()
        variants["compile"] = forward_and_backward(faster, call, b)
    return variants


def segmenters(_: bool) -> dict[str, Callable[[], None]]:
    config = SegmentationConfig()
    images = torch.randn(config.batch, 3, PX, PX, device=DEVICE)
    variants = {}
    for name, memory_format in FORMATS.items():
        network = build_segmenter(config, CLASSES, 0).to(DEVICE, memory_format=memory_format)
        given = images.contiguous(memory_format=memory_format)
        variants[name] = forward_and_backward(network, lambda net, part, x=given: net(x[part]), config.batch)
    return variants


def own_format(network: str) -> str:
    """The memory format that the trainer trains a network in."""
    return "channels_last" if DEVICE.type == "cuda" or network == "segmenter" else "contiguous"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    machine = describe(DEVICE, "auto")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for network, variants_of in (("denoiser", denoisers), ("segmenter", segmenters)):
        variants = variants_of(asked.compile)
        turns = Turns(variants, asked.repeats, DEVICE)
        for name in variants:
            ratio = turns.ratio(name, own_format(network))
            print(f"{network:16}{name:26}{1e3 * turns.median(name):8.1f} ms   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
