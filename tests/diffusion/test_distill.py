"""The student: what it learns is the teacher's guided way, it comes nearer to it, and it does nothing else."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stedm import StyleDiffusion
from stedm.config import Guidance, RecolourConfig, RunConfig, Sampling, StudentConfig, SynthesisConfig
from stedm.data.folder import DatasetFolder
from stedm.data.symmetry import N_SYMMETRIES, symmetry
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.distill import StudentSamples, lessons, student_of, teacher_states, train_student
from stedm.diffusion.path import guided_path
from stedm.diffusion.student import student_states, student_steps
from stedm.diffusion.train import DiffusionSamples, make_denoiser, train_diffusion
from stedm.errors import StedmError
from stedm.io.images import read_mask_file

GUIDANCE = Guidance(style=2.0)


def _small_student(**changes) -> StudentConfig:
    values = {"calls": [1, 2], "teacher_steps": 4, "steps": 4, "batch": 2, "warmup_steps": 0, "precision": "fp32"}
    return StudentConfig(**{**values, "checkpoint_every_steps": 2, **changes})


def _teacher(config, seed=1, objective="flow") -> StyleDiffusion:
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=seed)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective=objective, classes=["background", "disc"], image_px=16)
    model.precision = "fp32"
    return model


# ---- the target ---------------------------------------------------------------------------------------------------


class _LinearTeacher:
    """Velocity = rate * x, the rate told by the style: Euler steps multiply by 1 - rate / n, guided ones as well."""

    unknown, null_style = 2, torch.tensor([0.5])

    def denoise(self, noisy, timestep, layout, style):
        return style.view(-1, 1, 1, 1) * noisy


NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
LAYOUT, STYLE = torch.zeros(3, 4, 4, dtype=torch.long), torch.full((3, 1), 0.8)
# 0.5 + 2 (0.8 - 0.5): the guided rate.
RATE = 1.1


def _linear_states(steps=4):
    way = Sampling(guidance=GUIDANCE, sampler="euler", steps=steps, time_shift=1.0)
    return [NOISE, *guided_path(_LinearTeacher(), NOISE, LAYOUT, STYLE, way, objective="flow")]


def test_a_students_step_is_the_mean_velocity_of_the_guided_teachers_steps():
    def exact(noisy, time, layout, style, length):
        return noisy * (1.0 - (1.0 - RATE / 4) ** round(float(length[0]) / 250)) / (length.view(-1, 1, 1, 1) / 1000)

    learned = list(lessons(exact, _linear_states(), LAYOUT, STYLE, [1, 2, 4], 1.0))
    assert len(learned) == 7
    assert [(round(float(time[0])), round(float(length[0]))) for _, _, time, length in learned] == [
        (1000, 1000),
        (1000, 500),
        (500, 500),
        (1000, 250),
        (750, 250),
        (500, 250),
        (250, 250),
    ]
    for state, velocity, time, length in learned:
        # An exact student is on the teacher's way: closed forms.
        expected = NOISE * (1.0 - RATE / 4) ** (4 - 4 * float(time[0]) / 1000)
        torch.testing.assert_close(state, expected)
        torch.testing.assert_close(velocity, exact(state, time, LAYOUT, STYLE, length))
    for calls in (1, 2, 4):
        *_, drawn = student_states(exact, NOISE, LAYOUT, STYLE, calls, 1.0)
        torch.testing.assert_close(drawn, NOISE * (1.0 - RATE / 4) ** 4)


def test_a_later_step_makes_up_for_what_an_earlier_one_missed():
    """A student that never moves is told, half-way, to go from where it is to the teacher's end."""
    states = _linear_states()
    _, (state, velocity, _, _) = lessons(lambda noisy, *_: torch.zeros_like(noisy), states, LAYOUT, STYLE, [2], 1.0)
    torch.testing.assert_close(state, NOISE)
    torch.testing.assert_close(state - 0.5 * velocity, states[-1])


def test_steps_are_shifted_as_the_teachers_are():
    """Time is told by the velocity: x = t from noise 1, whatever the spacing of the teacher's steps."""

    class Clock(_LinearTeacher):
        def denoise(self, noisy, timestep, layout, style):
            return torch.ones_like(noisy)

    way = Sampling(guidance=Guidance(style=1.0), sampler="euler", steps=4, time_shift=3.0)
    ones = torch.ones_like(NOISE)
    states = [ones, *guided_path(Clock(), ones, LAYOUT, STYLE, way, objective="flow")]
    learned = lessons(lambda noisy, *_: torch.ones_like(noisy), states, LAYOUT, STYLE, [2, 4], 3.0)
    for state, velocity, time, _ in learned:
        torch.testing.assert_close(state.mean(), time[0] / 1000, atol=2e-3, rtol=0)
        torch.testing.assert_close(velocity, ones, atol=1e-2, rtol=0)


def test_the_teachers_way_is_what_the_teacher_draws(diffusion_config):
    """With guidance, from the same noise, layout and style: the last state decodes to the image it generates."""
    teacher = _teacher(diffusion_config())
    generator = torch.Generator().manual_seed(0)
    style = torch.randint(0, 256, (1, 2, 3, 16, 16), generator=generator, dtype=torch.uint8)
    layouts = np.ones((1, 16, 16), np.uint8)
    noise = torch.randn((1, 12, 8, 8), generator=torch.Generator().manual_seed(5))
    batch = {"style": style, "present": torch.ones(1, 2, dtype=torch.bool), "noise": noise}
    batch["stain_factors"] = torch.ones(1, 3)
    way = Sampling(guidance=GUIDANCE, steps=3)
    with torch.no_grad():
        _, states = teacher_states(teacher, batch, torch.from_numpy(layouts).long(), way)
        drawn = teacher.codec.decode(states[-1])
    images = [image.permute(1, 2, 0).numpy() for image in style[0]]
    expected = teacher.generate(layouts, images, guidance=GUIDANCE, steps=3, seed=[5])
    assert len(states) == 4
    difference = ((drawn + 1) * 127.5).permute(0, 2, 3, 1).numpy() - expected.astype(float)
    assert np.abs(difference).max() <= 1.0


# ---- the student --------------------------------------------------------------------------------------------------


def test_a_student_begins_as_its_unguided_teacher(diffusion_config):
    teacher = _teacher(diffusion_config()).denoiser
    student = student_of(teacher).eval()
    noisy, layout = torch.randn(2, 12, 8, 8), torch.ones(2, 16, 16, dtype=torch.long)
    style, time = torch.randn(2, 16), torch.tensor([900.0, 300.0])
    with torch.no_grad():
        expected = teacher.denoise(noisy, time, layout, style)
        for length in (250.0, 1000.0):
            told = student.denoise(noisy, time, layout, style, torch.full((2,), length))
            torch.testing.assert_close(told, expected)
        student.step_embedding.linear_2.bias.fill_(0.1)
        assert not torch.allclose(student.denoise(noisy, time, layout, style, torch.full((2,), 250.0)), expected)


def test_everything_moves_but_the_style_encoder(diffusion_config, cohort, tmp_path):
    """Style vectors stay those of the teacher: its bank goes on to hold."""
    config = diffusion_config(student=_small_student(steps=1, ema_decay=0.0, weight_decay=0.0))
    teacher = _teacher(config)
    before = {name: value.clone() for name, value in student_of(teacher.denoiser).named_parameters()}
    student = train_student(config, teacher, *cohort, tmp_path, guidance=GUIDANCE)
    frozen = ("style_encoder.", "aggregate.", "null_style")
    # The layer behind one that begins at zero gets its first gradient in the second step.
    late = ("step_embedding.linear_1.",)
    for name, value in student.denoiser.named_parameters():
        if not name.startswith(late):
            assert torch.equal(value, before[name]) == name.startswith(frozen), name
    images = [[cohort[1].read_image(row, 16) for row in range(2)]]
    torch.testing.assert_close(student.style_vectors(images), teacher.style_vectors(images))


def test_distillation_brings_the_student_nearer_to_the_teachers_endpoint(diffusion_config, cohort, tmp_path):
    """Clearly nearer than the teacher itself comes in as many network calls, guided or not."""
    guidance, common = Guidance(style=4.0), {"recolour": RecolourConfig(probability=0), "checkpoint_every_steps": 30}
    student_config = _small_student(steps=30, lr=3e-3, warmup_steps=5, checkpoint_every_steps=30)
    config = diffusion_config(**common, steps=30, batch=8, lr=5e-3, student=student_config)
    teacher = train_diffusion(config, *cohort, tmp_path / "teacher", image_px=16)
    student = train_student(config, teacher, *cohort, tmp_path / "student", guidance=guidance)
    noise = torch.randn((16, 12, 8, 8), generator=torch.Generator().manual_seed(99))
    layout = torch.from_numpy(np.stack([cohort[0].read_mask(row, 16) for row in [0, 1, 2, 3] * 4])).long()
    style = teacher.style_vectors([[cohort[1].read_image(row % len(cohort[1]), 16)] for row in range(16)])

    def error(drawn):
        return float((drawn - end).square().mean())

    def by_teacher(**way):
        *_, drawn = guided_path(teacher.denoiser, noise, layout, style, Sampling(**way), objective="flow")
        return drawn

    with torch.no_grad():
        end = by_teacher(guidance=guidance, steps=4)
        plain = [error(by_teacher(guidance=Guidance(style=1.0), steps=calls)) for calls in (1, 2)]
        guided = error(by_teacher(guidance=guidance, steps=1))
        way = student.student.sampling
        ours = [
            error(student_steps(student.denoiser, noise, layout, style, way.model_copy(update={"steps": calls})))
            for calls in (1, 2)
        ]
    assert ours[0] < 0.5 * plain[0], (ours, plain)
    assert ours[1] < 0.6 * min(plain[1], guided), (ours, plain, guided)


def test_requests_pair_layouts_of_annotated_images_with_styles_of_all(diffusion_config, tiny_dataset):
    root = tiny_dataset(image_px=16)
    for mask in (root / "masks").glob("unlabeled*"):
        mask.write_bytes(b"not to be opened")
    dataset = DatasetFolder.open(root)
    config = diffusion_config(layout_dropout=0.25, student=_small_student(steps=20))
    parts = dataset.split("train"), dataset.split("unlabeled")
    samples = StudentSamples(DiffusionSamples(config, *parts, 16, 3), config.student, (12, 8, 8))
    masks = [read_mask_file(root, name) for name in parts[0].table["mask_file_name"]]
    known = {symmetry(mask, turn).tobytes() for mask in masks for turn in range(N_SYMMETRIES)}
    shown = [samples[i] for i in range(len(samples))]
    unknown = [bool((sample["layout"] == 2).all()) for sample in shown]
    assert 0 < sum(unknown) < 20
    assert all(sample["layout"].numpy().tobytes() in known or lost for sample, lost in zip(shown, unknown, strict=True))
    assert all(bool(sample["present"].any()) for sample in shown)
    images = [part.read_image(row, 16) for part in parts for row in range(len(part))]
    turned = [{symmetry(image, turn).tobytes() for turn in range(N_SYMMETRIES)} for image in images]
    of = [
        next(i for i, t in enumerate(turned) if np.moveaxis(s["style"][0].numpy(), 0, -1).tobytes() in t) for s in shown
    ]
    assert min(of) < len(parts[0]) <= max(of), "styles are of one part alone"
    again = StudentSamples(DiffusionSamples(config, *parts, 16, 3), config.student, (12, 8, 8))
    assert all(torch.equal(value, shown[7][key]) for key, value in again[7].items())


def test_interrupted_distillation_ends_in_the_weights_of_an_uninterrupted_one(diffusion_config, cohort, tmp_path):
    config = diffusion_config(student=_small_student(steps=5))
    teacher = _teacher(config)

    def stop(done, total, loss):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(config, teacher, *cohort, tmp_path / "a", guidance=GUIDANCE, on_progress=stop)
    assert not (tmp_path / "a" / "model").exists()
    seen = []
    for name in "ab":
        train_student(
            config, teacher, *cohort, tmp_path / name, guidance=GUIDANCE, on_progress=lambda *now: seen.append(now[0])
        )
    assert seen == [3, 4, 5, 1, 2, 3, 4, 5]
    a, b = (load_file(tmp_path / name / "model/denoiser/diffusion_pytorch_model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in b)
    train_student(config, teacher, *cohort, tmp_path / "a", guidance=GUIDANCE, on_progress=stop)


# ---- the model folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def student(diffusion_config, cohort, tmp_path):
    config = diffusion_config(student=_small_student(steps=1))
    return train_student(config, _teacher(config), *cohort, tmp_path / "student", guidance=GUIDANCE)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_a_student_is_an_ordinary_model_folder(student, image, tmp_path):
    layouts = np.ones((2, 16, 16), np.uint8)
    loaded = StyleDiffusion.from_pretrained(tmp_path / "student" / "model")
    assert loaded.student == student.student
    assert loaded.samplers == ("student",)
    assert loaded.fingerprint == student.fingerprint
    drawn = loaded.generate(layouts, [image], seed=1)
    assert np.array_equal(drawn, student.generate(layouts, [image], seed=1, steps=2, guidance=2.0, sampler="student"))
    assert np.array_equal(drawn, loaded.generate(layouts, [image], seed=1, time_shift=4.0))
    assert not np.array_equal(drawn, loaded.generate(layouts, [image], seed=1, steps=1))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_is_one_call(student, image, steps, monkeypatch):
    seen, denoise = [], StyleDenoiser.denoise
    monkeypatch.setattr(
        StyleDenoiser, "denoise", lambda self, noisy, *rest: seen.append(len(noisy)) or denoise(self, noisy, *rest)
    )
    student.generate(np.ones((3, 16, 16), np.uint8), [image], steps=steps)
    assert sum(seen) == 3 * steps
    assert SynthesisConfig(sampler="student", steps=steps, layout_guidance=2.0).network_calls == steps


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 3}, "steps 3: this student was distilled for 1 or 2 steps"),
        ({"guidance": 1.5}, "guidance style 1.5: this student holds style 2 in its weights"),
        ({"guidance": Guidance(style=2.0, layout=3.0)}, "guidance style 2, layout 3: this student holds style 2"),
        ({"sampler": "dpm++"}, r"sampler dpm\+\+: this model is a student"),
    ],
)
def test_what_a_student_was_not_distilled_for_is_refused(student, image, asked, message):
    with pytest.raises(StedmError, match=message):
        student.generate(np.ones((16, 16), np.uint8), [image], **asked)


def test_models_and_folders_that_do_not_go_together_are_refused(student, image, diffusion_config, cohort, tmp_path):
    config = diffusion_config(student=_small_student(steps=1))
    teacher = _teacher(config)
    with pytest.raises(StedmError, match="stedm train student"):
        teacher.generate(np.ones((16, 16), np.uint8), [image], sampler="student")
    with pytest.raises(StedmError, match="is a student already"):
        train_student(config, student, *cohort, tmp_path / "x", guidance=GUIDANCE)
    with pytest.raises(StedmError, match="its objective is eps"):
        train_student(config, _teacher(config, objective="eps"), *cohort, tmp_path / "x", guidance=GUIDANCE)
    for other, guidance in ((_teacher(config, seed=2), GUIDANCE), (teacher, Guidance(style=1.5))):
        with pytest.raises(StedmError, match="holds another student"):
            train_student(config, other, *cohort, tmp_path / "student", guidance=guidance)


def test_impossible_configurations_are_refused():
    with pytest.raises(ValidationError, match="8 teacher_steps can't be cut into 5 equal pieces"):
        StudentConfig(calls=[1, 5])
    with pytest.raises(ValidationError, match="once, in rising order"):
        StudentConfig(calls=[4, 1])
    common = {"name": "x", "data": {"path": "."}, "synthesis": {"sampler": "student", "steps": 4}}
    RunConfig(**common)
    with pytest.raises(ValidationError, match=r"not one of diffusion.student.calls"):
        RunConfig(**{**common, "synthesis": {"sampler": "student"}})
    with pytest.raises(ValidationError, match=r"needs diffusion\.objective flow, not v"):
        RunConfig(**common, diffusion={"objective": "v"})
