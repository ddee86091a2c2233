"""The machine that a run is computed on: how, not what."""

from typing import Annotated, Literal

from pydantic import Field

from stedm.config.base import Device, Part, Positive, Precision


class MachineConfig(Part):
    """How a run is computed. A run folder may be gone on with on another machine, with other values here."""

    device: Device = "auto"
    """`cpu`, `cuda`, `cuda:N`, `mps`, or `auto`: a GPU where there is one. Each process of `--workers N` or of
    `torchrun` takes the next of several GPUs."""
    precision: Precision = "auto"
    """`bf16`, `fp16`, `fp32`, or `auto`: bf16 where the machine is fast at it, fp16 on GPUs that don't have it."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that read samples ahead; null = none on a CPU, which the network needs, a few beside a GPU. Samples
    are the same with any number."""
    compile: bool = False
    """Compile the networks (torch.compile, which needs a C++ compiler): a slow start, then faster steps."""
    accumulate: Positive = 1
    """Parts that a batch is divided into, whose gradients are added up: the memory of `batch / accumulate` images."""
    activation_checkpointing: bool = False
    """Compute the activations of the U-Net's blocks (and of a timm style encoder) again in the backward pass instead
    of keeping them: less memory, slower steps, equal gradients."""
    cache_mb: Annotated[float, Field(ge=0)] | None = None
    """Memory for decoded images in megabytes, a process; images beyond it are read each time they are needed, with
    equal results. null = half of the machine's memory; 0 = none is kept."""
    cache_latents: bool = False
    """Encode each training image once (in each of its 8 symmetries) instead of in every step, into RUN/latents. Where
    the codec is an autoencoder; elsewhere there is nothing to keep. What is recoloured is encoded in every step."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Who shows losses and images of each training besides metrics.jsonl; its package is installed by hand."""
    grid_every_steps: Annotated[int, Field(ge=0)] | None = None
    """How often the diffusion model paints the same few layouts in the styles of the same few patients, to look at, in
    RUN/progress. null = three times in a training, at least 500 steps apart; 0 = never."""
    checkpoint_every_steps: Positive = 250
    """A killed run loses these steps at most."""
