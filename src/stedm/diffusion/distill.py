"""Training of a student that draws in 1 to 4 network calls what its teacher draws in two dozen.

The teacher, a trained flow model, draws a latent from noise with its guidance (24 network calls as configured by
default). Its way from time 1 to time 0 is cut into k pieces, for each number k of steps that the student is to draw in.
The student goes the same way in k steps; at the beginning of each, at time t and in the state y, it learns the mean
velocity to where the teacher is at its end:

    u(y, t, d) = (y - x_(t - d)) / d,        y_1 = x_1, the noise, and y_(t - d) = y_t - d u_student(y_t, t, d)

so that each step also takes back what the one before has missed. The parts are known ones: guidance distilled in, so
that a step is one call (Meng et al. 2023, On distillation of guided diffusion models); pieces of the time axis (Yan et
al. 2024, PeRFlow); the length of the step as a condition, so that one student serves every k (Frans et al. 2024, One
step diffusion via shortcut models); the mean velocity as prediction (Geng et al. 2025, Mean flows); training on the way
that sampling takes, from pure noise, instead of on noised images (Ke et al. 2025, FlowSteer, blame those for what
PeRFlow loses). Why this and not another: docs/fewstep.md.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from stedm.config import DiffusionConfig, Guidance, Sampling, StudentConfig
from stedm.data.folder import DatasetFolder
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.objective import TRAIN_TIMESTEPS
from stedm.diffusion.path import guided_path
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.student import STUDENT_SAMPLER, Student, step_times, student_states
from stedm.diffusion.train import DiffusionSamples
from stedm.errors import StedmError
from stedm.io.files import write_json
from stedm.seeds import seed_for, torch_generator
from stedm.style.recolour import recoloured, stain_factors
from stedm.training.trainer import Engine, Progress

Denoise = Callable[..., Tensor]


def train_student(
    config: DiffusionConfig,
    teacher: StyleDiffusion,
    annotated: DatasetFolder,
    unlabeled: DatasetFolder | None,
    folder: Path,
    *,
    guidance: Guidance,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> StyleDiffusion:
    """Train, go on training, or read, in `folder`; the student with its averaged weights is written to `folder/model`.

    Args:
        config: that of the teacher, with `student`.
        annotated: gives layouts and styles.
        unlabeled: gives styles, as often as in the teacher's training; its masks are never read.
        guidance: of the teacher; the student will hold it.
        seed: of samples and noise.

    Raises:
        StedmError: the teacher is no flow model or a student itself, or the folder is another student's.
    """
    refuse_teacher(teacher)
    student = Student(calls=config.student.calls, guidance=guidance, time_shift=config.student.time_shift)
    way = student.sampling.model_copy(
        update={"sampler": config.student.teacher_sampler, "steps": config.student.teacher_steps}
    )
    _claim(folder, config.student, teacher, way)
    if (folder / "model" / "model_index.json").is_file():
        return StyleDiffusion.from_pretrained(folder / "model")
    samples = DiffusionSamples(config, annotated, unlabeled, teacher.image_px, seed)
    learner = _Learner(student_of(teacher.denoiser, seed))
    if config.activation_checkpointing:
        learner.denoiser.checkpoint_activations()
    engine = Engine(
        learner,
        folder,
        config.student,
        ema_decay=config.student.ema_decay,
        seed=seed_for(seed, "student"),
        on_progress=on_progress,
    )
    teacher.to(engine.device)
    for batch in engine.batches(StudentSamples(samples, config.student, _latent_shape(teacher))):
        layout = batch["layout"].long()
        with engine.autocast(), torch.no_grad():
            style, states = teacher_states(teacher, batch, layout, way)
            learned = lessons(learner.denoiser.denoise, states, layout, style, student.calls, student.time_shift)
            state, velocity, time, length = map(torch.cat, zip(*learned, strict=True))
        n = sum(student.calls)
        # A context of its own: autocast keeps weights that it has cast, and above it casts them without a gradient.
        with engine.autocast():
            predicted = engine.network(state, time, layout.repeat(n, 1, 1), style.repeat(n, 1), length)
        engine.step(F.mse_loss(predicted.float(), velocity))
    with engine.averaged_weights() as network:
        model = StyleDiffusion(
            network.denoiser,
            teacher.codec,
            objective=teacher.objective,
            classes=teacher.classes,
            image_px=teacher.image_px,
            sampler=STUDENT_SAMPLER,
            style_sampling=teacher.style_sampling,
            student=student,
        )
        if engine.accelerator.is_main_process:
            model.save_pretrained(folder / "model", provenance={"teacher": teacher.fingerprint})
    engine.accelerator.wait_for_everyone()
    return StyleDiffusion.from_pretrained(folder / "model")


def refuse_teacher(teacher: StyleDiffusion) -> None:
    """StedmError for a model that can't be distilled here."""
    if teacher.student is not None:
        raise StedmError("teacher: this model is a student already; give the model that it was distilled from")
    if teacher.objective != "flow":
        raise StedmError(f"teacher: its objective is {teacher.objective}; students are distilled from flow models")


def student_of(teacher: StyleDenoiser, seed: int = 0) -> StyleDenoiser:
    """A denoiser with the teacher's weights that is told the length of its step: it begins as the unguided teacher.

    Style encoder, aggregation and null style stay the teacher's (frozen), so that one style bank serves both.

    seed: of the embedding of the length, which has no effect yet.
    """
    # Not from_config, which takes keys that the teacher has left at their default for settled.
    options = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    # Layers draw their initial weights from the global generator; fork it so that nobody else notices.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initial-weights"))
        student = StyleDenoiser(**{**options, "step_size": True})
    state = {name: tensor for name, tensor in student.state_dict().items() if name.startswith("step_embedding.")}
    student.load_state_dict({**teacher.state_dict(), **state})
    for part in (student.style_encoder, student.aggregate):
        if part is not None:
            part.requires_grad_(False)
    student.null_style.requires_grad_(False)
    return student


def teacher_states(
    teacher: StyleDiffusion, batch: dict[str, Tensor], layout: Tensor, way: Sampling
) -> tuple[Tensor, list[Tensor]]:
    """Style vectors `(b, style_dim)`, and the noise and the latent after each step of the teacher."""
    # Images are there to be recoloured together with their styles; here there is none.
    _, style_images = recoloured(batch["style"][:, 0], batch["style"], batch["stain_factors"])
    style = teacher.denoiser.encode_style(style_images, batch["present"])
    path = guided_path(teacher.denoiser, batch["noise"], layout, style, way, objective=teacher.objective)
    return style, [batch["noise"], *path]


def lessons(
    student: Denoise, states: Sequence[Tensor], layout: Tensor, style: Tensor, calls: Sequence[int], shift: float
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What a student learns from a way of the teacher: for each piece, of each number of pieces in `calls`

    its state at the beginning `(b, c, h, w)`, the mean velocity from there to where the teacher is at the end
    `(b, c, h, w)`, the time at the beginning and the length, `(b,)` each, in 0..1000.

    Args:
        student: its `denoise`, which is asked for its own state at the beginning of each piece but the first.
        states: the noise and the teacher's latent after each of n steps.
        calls: divisors of n.
        shift: of the steps of both.
    """
    noise, n = states[0], len(states) - 1
    for k in calls:
        times = step_times(k, shift).tolist()
        way = student_states(student, noise, layout, style, k, shift)
        # The student's last state begins nothing: it isn't asked for it.
        own = itertools.chain([noise], itertools.islice(way, k - 1))
        for i, (state, (start, end)) in enumerate(zip(own, pairwise(times), strict=True)):
            velocity = (state - states[(i + 1) * n // k]) / (start - end)
            time, length = (noise.new_full((len(noise),), TRAIN_TIMESTEPS * t) for t in (start, start - end))
            yield state, velocity, time, length


class StudentSamples(Dataset):
    """What the teacher is asked to draw, as synthesis will ask the student: the layout of an annotated image, the
    style of any patient. Sample i is a pure function of (seed, i).

    As `DiffusionSamples.request`, with `stain_factors` (3,) for the style images and `noise` of `latent_shape`.
    """

    def __init__(self, samples: DiffusionSamples, config: StudentConfig, latent_shape: tuple[int, int, int]):
        self.samples, self.config, self.latent_shape = samples, config, latent_shape

    def __len__(self) -> int:
        return self.config.steps * self.config.batch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch_generator(self.samples.seed, "student-draws", index)
        return {
            **self.samples.request(index),
            "stain_factors": stain_factors(1, self.samples.config.recolour, generator)[0],
            "noise": torch.randn(self.latent_shape, generator=generator),
        }


class _Learner(nn.Module):
    """A denoiser whose `forward` is `denoise`: data parallelism sees calls of the module alone."""

    def __init__(self, denoiser: StyleDenoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.denoiser.denoise(*arguments)

    def compile(self, *args, **kwargs) -> None:
        self.denoiser.compile(*args, **kwargs)


def _latent_shape(model: StyleDiffusion) -> tuple[int, int, int]:
    side = model.image_px // model.codec.factor
    return model.codec.latent_channels, side, side


def _claim(folder: Path, config: StudentConfig, teacher: StyleDiffusion, way: Sampling) -> None:
    """Note in the folder which student is trained in it; refuse another's."""
    values = config.model_dump(mode="json", exclude={"workers", "compile"})
    claim = {**values, "way": way.model_dump(mode="json"), "teacher": teacher.fingerprint}
    path = folder / "student.json"
    if not path.is_file():
        write_json(path, claim)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in sorted(there.keys() | claim.keys()) if there.get(key) != claim.get(key)]
    if differing:
        raise StedmError(
            f"{folder}: holds another student ({', '.join(differing)} differ, see student.json); remove the folder or "
            "ask for that one"
        )
