"""A student: a denoiser that takes few, long steps and needs no guidance (stedm.diffusion.distill trains it)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch

from stedm.config import Guidance, Sampling
from stedm.config.base import Part, Positive
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.objective import TRAIN_TIMESTEPS, shifted
from stedm.errors import StedmError

STUDENT_SAMPLER = "student"
"""Name of the sampler that students are drawn with, and nothing else."""


class Student(Part):
    """What a student repeats of its teacher."""

    calls: list[Positive]
    """Numbers of steps, of one network call each, that it draws in; rising."""
    guidance: Guidance
    """The teacher's guidance, which it holds in its weights."""
    time_shift: float
    """Of the teacher's steps, and so of its own."""

    @property
    def sampling(self) -> Sampling:
        """How it is drawn with unless asked otherwise: in the most steps that it knows."""
        return Sampling(
            guidance=self.guidance, sampler=STUDENT_SAMPLER, steps=self.calls[-1], time_shift=self.time_shift
        )

    def check(self, asked: Sampling) -> None:
        """Refuse what it wasn't distilled for."""
        if asked.sampler != STUDENT_SAMPLER:
            raise StedmError(f"sampler {asked.sampler}: this model is a student, which has its own; use student")
        if asked.steps not in self.calls:
            raise StedmError(f"steps {asked.steps}: this student was distilled for {_or(self.calls)} steps")
        if asked.guidance != self.guidance:
            ours, theirs = _short(self.guidance), _short(asked.guidance)
            raise StedmError(
                f"guidance {theirs}: this student holds {ours} in its weights; leave it out, or distil another"
            )


def step_times(steps: int, shift: float) -> torch.Tensor:
    """Times `(steps + 1,)` at which steps begin, and the end: from 1 (noise) to 0, as the flow samplers take them."""
    return shifted(torch.linspace(1.0, 0.0, steps + 1), shift)


def student_states(
    student: Callable[..., torch.Tensor],
    noise: torch.Tensor,
    layout: torch.Tensor,
    style: torch.Tensor,
    steps: int,
    shift: float,
) -> Iterator[torch.Tensor]:
    """Yield the latent `(b, c, h, w)` after each of a student's steps: each goes along the mean velocity over it.

    Args:
        student: its `denoise`; the other arguments as `guided_path` has them.
    """
    latents, times = noise, step_times(steps, shift).tolist()
    for start, end in pairwise(times):
        time, length = (noise.new_full((len(noise),), TRAIN_TIMESTEPS * t) for t in (start, start - end))
        latents = latents - (start - end) * student(latents, time, layout, style, length).float()
        yield latents


def student_steps(
    student: StyleDenoiser, noise: torch.Tensor, layout: torch.Tensor, style: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """The latent `(b, c, h, w)` that a student draws from noise in `sampling.steps` network calls."""
    *_, latents = student_states(student.denoise, noise, layout, style, sampling.steps, sampling.time_shift)
    return latents


def _or(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _short(value: Guidance) -> str:
    """Such as `style 1.5` or `style 1.5, layout 2`: the weights, and what else is not left at its default."""
    default = Guidance()
    shown = {key: part for key, part in value if key == "style" or part != getattr(default, key)}
    return ", ".join(f"{key} {part:g}" if isinstance(part, float) else f"{key} {part}" for key, part in shown.items())
