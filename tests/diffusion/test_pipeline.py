"""StyleDiffusion: what it draws depends on layout, style and seed as promised; saved = loaded."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stedm import StyleDiffusion
from stedm.config import Sampling
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.guidance import Guidance, guided_prediction
from stedm.diffusion.pipeline import _image_seed
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError

LAYOUTS = np.zeros((3, 16, 16), np.uint8)
LAYOUTS[1, 4:12, 4:12] = 1
LAYOUTS[2] = 255


@pytest.fixture
def model(diffusion_config):
    denoiser = make_denoiser(diffusion_config(), PixelCodec(2), n_classes=2, seed=1)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)
    model.precision = "fp32"
    return model


@pytest.fixture
def style():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(3)]


def test_saved_and_loaded_models_draw_equal_images(model, style, tmp_path):
    before = model.generate(LAYOUTS, style, steps=3, seed=4)
    model.save_pretrained(tmp_path / "model")
    loaded = StyleDiffusion.from_pretrained(tmp_path / "model")
    loaded.precision = "fp32"
    assert np.array_equal(loaded.generate(LAYOUTS, style, steps=3, seed=4), before)
    assert loaded.fingerprint == model.fingerprint
    assert before.shape == (3, 16, 16, 3)
    assert before.dtype == np.uint8


def test_the_folder_is_diffusers_format_without_pickles(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    files = sorted(path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.*"))
    assert files == [
        "README.md",
        "codec/config.json",
        "codec/diffusion_pytorch_model.safetensors",
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
        "manifest.json",
        "model_index.json",
    ]
    with safe_open(tmp_path / "model" / files[4], framework="pt") as weights:
        assert any(name.startswith("style_encoder") for name in weights.keys())  # noqa: SIM118
    assert json.loads((tmp_path / "model" / "model_index.json").read_text())["objective"] == "flow"


def test_a_image_depends_on_its_own_seed_alone(model, style):
    together = model.generate(LAYOUTS, style, steps=3, seed=[7, 8, 9])
    alone = model.generate(LAYOUTS[1], style, steps=3, seed=[8])
    # Other batch sizes may round differently in the last bit.
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(together[0], model.generate(LAYOUTS[0], style, steps=3, seed=[1])[0])


def test_style_images_of_any_number_and_size_in_any_order(model, style):
    other_size = [np.full((20, 31, 3), 90, np.uint8)]
    vectors = model.style_vectors([style, style[::-1], style + other_size, other_size])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])
    torch.testing.assert_close(vectors[3:], model.style_vectors([other_size]))


@pytest.mark.parametrize(
    "changes", [{"aggregation": "set-vit"}, {"aggregation": "linear"}, {"encoder": "test_resnet"}], ids=str
)
def test_every_kind_of_style_network_draws_from_images_of_unequal_sizes(diffusion_config, style, tmp_path, changes):
    config = diffusion_config()
    config = config.model_copy(update={"style": config.style.model_copy(update={"n_images": 3, **changes})})
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=1, image_px=16)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)
    unequal = [style[0], style[1][:8, :12], style[2]]
    drawn = model.generate(LAYOUTS, unequal, steps=2)
    model.save_pretrained(tmp_path / "model")
    assert np.array_equal(StyleDiffusion.from_pretrained(tmp_path / "model").generate(LAYOUTS, unequal, steps=2), drawn)
    if not denoiser.aggregate.any_number:
        with pytest.raises(StedmError, match="4 style images, but this model's aggregation takes 3"):
            model.generate(LAYOUTS, style + style[:1], steps=2)


@pytest.mark.parametrize(
    ("guidance", "calls_a_image"),
    [
        (1.0, [1] * 5),
        (1.5, [2] * 5),
        (Guidance(style=1.0), [1] * 5),
        (Guidance(style=1.0, layout=2.0), [2] * 5),
        (Guidance(style=1.5, layout=2.0), [3] * 5),
    ],
)
def test_network_calls_are_as_many_as_promised(model, style, guidance, calls_a_image, monkeypatch):
    seen = []
    denoise = type(model.denoiser).denoise
    monkeypatch.setattr(
        type(model.denoiser),
        "denoise",
        lambda self, noisy, *rest: seen.append(len(noisy)) or denoise(self, noisy, *rest),
    )
    model.generate(LAYOUTS, style, steps=5, guidance=guidance)
    # The released reference took 143 steps when asked for 128, with two passes each.
    assert seen == [len(LAYOUTS) * calls for calls in calls_a_image]
    if isinstance(guidance, Guidance):
        assert Sampling(guidance=guidance, steps=5).nfe == sum(calls_a_image)


def test_one_object_says_how_to_draw_and_shortcuts_override_it(model, style):
    sampling = Sampling(guidance=Guidance(style=3.0), sampler="euler", steps=3, time_shift=2.0)
    drawn = model.generate(LAYOUTS, style, sampling=sampling)
    assert not np.array_equal(drawn, model.generate(LAYOUTS, style, steps=3, guidance=3.0)), "its sampler and shift"
    for shortcut in ({"guidance": 1.0}, {"steps": 2}):
        changes = {key: Guidance(style=value) if key == "guidance" else value for key, value in shortcut.items()}
        expected = model.generate(LAYOUTS, style, sampling=sampling.model_copy(update=changes))
        assert np.array_equal(model.generate(LAYOUTS, style, sampling=sampling, **shortcut), expected)
        assert not np.array_equal(expected, drawn)


def test_images_are_painted_anew_in_any_batches(model, style):
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    together, single = (
        model.generate(LAYOUTS, style, steps=2, start_images=images, start=0.5, batch=batch) for batch in (32, 1)
    )
    assert np.abs(together.astype(int) - single).max() <= 1


def test_style_vectors_draw_what_the_images_they_come_from_draw(model, style):
    vectors = model.style_vectors([style, style[:1], style[1:]])
    drawn = model.generate(LAYOUTS, style_vectors=vectors, steps=3, seed=4)
    assert np.array_equal(drawn, model.generate(LAYOUTS, [style, style[:1], style[1:]], steps=3, seed=4))
    one = model.generate(LAYOUTS, style_vectors=vectors[1].numpy(), steps=3, seed=4)
    assert np.array_equal(one, model.generate(LAYOUTS, style[:1], steps=3, seed=4))
    # Also where the batches are smaller than the call.
    single = model.generate(LAYOUTS, style_vectors=vectors, steps=3, seed=4, batch=1)
    assert np.abs(single.astype(int) - drawn).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either style images or style_vectors"),
        ({"style": [np.zeros((8, 8, 3), np.uint8)], "style_vectors": np.zeros(16)}, "either"),
        ({"style_vectors": np.zeros((2, 16))}, r"\(16,\) or \(3, 16\) expected"),
        ({"style_vectors": np.full(16, np.nan)}, "not finite"),
        ({"style_vectors": np.zeros(16), "guidance": -1.0}, "guidance: style"),
    ],
)
def test_bad_style_vectors_and_guidance_are_refused(model, options, message):
    with pytest.raises(StedmError, match=message):
        model.generate(LAYOUTS, **options)


def test_guidance_moves_the_prediction_away_from_the_null_style(model, style):
    noisy, layout = torch.randn(2, 12, 8, 8), torch.zeros(2, 16, 16, dtype=torch.long)
    vectors = model.style_vectors([style, style[:1]])
    timestep = torch.tensor(500.0)
    with torch.no_grad():
        plain, none, strong = (
            guided_prediction(model.denoiser, noisy, timestep, layout, vectors, Guidance(style=g))
            for g in (1.0, 0.0, 3.0)
        )
        null = model.denoiser.denoise(noisy, timestep.expand(2), layout, model.denoiser.null_style.expand(2, -1))
    torch.testing.assert_close(none, null)
    torch.testing.assert_close(strong, null + 3.0 * (plain - null), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        (np.zeros((2, 15, 16), np.uint8), "multiples of 4 px"),
        (np.zeros((2, 16, 16), np.float32), "integer class indices"),
        (np.zeros((1, 2, 16, 16), np.uint8), "integer class indices"),
    ],
)
def test_bad_layouts_are_refused(model, style, layouts, message):
    with pytest.raises(StedmError, match=message):
        model.generate(layouts, style)


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ([], "at least one"),
        ([np.zeros((8, 8), np.uint8)], "uint8 RGB"),
        ([[np.zeros((8, 8, 3), np.uint8)]], "lists of style images for 3"),
    ],
)
def test_bad_styles_are_refused(model, style, message):
    with pytest.raises(StedmError, match=message):
        model.generate(LAYOUTS, style)


def test_folders_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(StedmError, match=r"model_index\.json is missing"):
        StyleDiffusion.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(StedmError, match="not a StyleDiffusion model"):
        StyleDiffusion.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(StedmError, match="not valid JSON"):
        StyleDiffusion.from_pretrained(tmp_path)


def test_images_are_painted_anew_from_some_noise(model, style):
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    generate = partial(model.generate, LAYOUTS, style, steps=3, seed=4)
    changes = [
        np.abs(generate(start_images=images, start=start).astype(int) - images).mean() for start in (0.02, 0.5, 0.99)
    ]
    assert changes == sorted(changes)
    assert changes[0] < 5 < changes[2]
    together = generate(start_images=images, start=0.5)
    alone = model.generate(LAYOUTS[1], style, steps=3, seed=[_image_seed(4, 1)], start_images=images[1:2], start=0.5)
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.5}, "needs start_images"),
        ({"start_images": np.zeros((3, 16, 16, 3), np.uint8)}, "a start between 0 and 1"),
        ({"start_images": np.zeros((2, 16, 16, 3), np.uint8), "start": 0.5}, r"\(3, 16, 16, 3\) expected"),
        ({"start_images": np.zeros((3, 16, 16, 3)), "start": 0.5}, "float64"),
    ],
    ids=str,
)
def test_unusable_start_images_are_refused(model, style, options, message):
    with pytest.raises(StedmError, match=message):
        model.generate(LAYOUTS, style, steps=1, **options)


def test_a_folder_without_a_part_asks_no_hub_and_unpickles_nothing(model, tmp_path, monkeypatch):
    import shutil
    import socket

    from huggingface_hub import constants

    monkeypatch.setattr(socket.socket, "connect", lambda *arguments: pytest.fail("the network was asked"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    # A relative path to a part reads like OWNER/NAME of the hub, and a repository of that name is in the cache.
    commit = "0123456789abcdef0123456789abcdef01234567"
    for part in ("denoiser", "codec"):
        snapshot = tmp_path / "cache" / f"models--model--{part}" / "snapshots" / commit
        (snapshot.parents[1] / "refs").mkdir(parents=True)
        (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
        shutil.copytree(tmp_path / "model" / part, snapshot)
    monkeypatch.chdir(tmp_path)
    StyleDiffusion.from_pretrained("model")
    for part in ("denoiser", "codec"):
        folder = tmp_path / "model" / part
        torch.save({}, folder / "diffusion_pytorch_model.bin")
        (folder / "diffusion_pytorch_model.safetensors").rename(tmp_path / "kept")
        with pytest.raises(StedmError, match=rf"{part}: no weights here"):
            StyleDiffusion.from_pretrained("model")
        folder.rename(tmp_path / "gone")
        with pytest.raises(StedmError, match=part):
            StyleDiffusion.from_pretrained("model")
        (tmp_path / "gone").rename(folder)
        (tmp_path / "kept").rename(folder / "diffusion_pytorch_model.safetensors")


def _rewrite_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model_index.json", {"objective": "x"}),
        ("model_index.json", {"image_px": 2**40}),
        ("model_index.json", {"image_px": "16"}),
        ("model_index.json", {"classes": ["background"]}),
        ("model_index.json", {"classes": "ab"}),
        ("model_index.json", {"surprise": 1}),
        ("denoiser/config.json", {"n_classes": 3}),
        ("denoiser/config.json", {"latent_channels": 2**40}),
        ("denoiser/config.json", {"layout_factor": 4}),
        ("denoiser/config.json", {"denoiser": {"channels": [2**30]}}),
        ("denoiser/config.json", {"denoiser": {"blocks_per_level": 10**6}}),
        ("denoiser/config.json", {"denoiser": 3}),
        ("denoiser/config.json", {"style": {"dim": 17}}),
        ("denoiser/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("codec/config.json", {"space_to_depth": 0}),
        ("codec/config.json", {"mean": ["a", 0, 0]}),
        ("codec/config.json", {"_class_name": "UNet2DModel"}),
    ],
)
def test_a_model_whose_settings_are_not_its_own_is_one_line(model, tmp_path, name, values):
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / name
    _rewrite_json(path, **values)
    for _ in range(2):  # with its manifest, and without as models of other people
        with pytest.raises(StedmError, match=str(tmp_path / "model")) as error:
            StyleDiffusion.from_pretrained(tmp_path / "model")
        assert "\n" not in str(error.value)
        (tmp_path / "model" / "manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("part", ["denoiser", "codec"])
def test_weights_that_are_not_finite_or_not_all_there_are_one_line(model, tmp_path, part):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    path = tmp_path / "model" / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, path, {"format": "pt"})
    with pytest.raises(StedmError, match="not finite"):
        StyleDiffusion.from_pretrained(tmp_path / "model")
    save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(StedmError, match="missing keys"):
        StyleDiffusion.from_pretrained(tmp_path / "model")
    save_file({**weights, "surprise": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(StedmError, match="unexpected keys"):
        StyleDiffusion.from_pretrained(tmp_path / "model")


def test_nothing_that_is_not_finite_is_saved(model, tmp_path):
    with torch.no_grad():
        model.denoiser.null_style[0] = float("inf")
    with pytest.raises(StedmError, match="null_style holds values that are not finite"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_overflows_is_an_error_and_no_black_image(model, style, monkeypatch):
    """Weights may be finite and what they make of an image not: NaN would be rounded to 0."""
    with torch.no_grad():
        model.denoiser.unet.conv_out.weight.mul_(1e38)
    with pytest.raises(StedmError, match="the diffusion model answered with NaN or infinity"):
        model.generate(LAYOUTS, style, steps=2)
    with torch.no_grad():
        model.denoiser.unet.conv_out.weight.div_(1e38)
    monkeypatch.setattr(PixelCodec, "decode", lambda self, latents: torch.full((3, 3, 16, 16), torch.nan))
    with pytest.raises(StedmError, match="first stage of the diffusion model answered with NaN"):
        model.generate(LAYOUTS, style, steps=2)
