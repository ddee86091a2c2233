"""What the README says is true: its Python runs, its commands and links exist."""

import re
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_python_on_the_first_screen_runs(tmp_path, monkeypatch):
    from stedm import StyleDiffusion
    from stedm.config import DenoiserConfig, DiffusionConfig
    from stedm.diffusion.codec import PixelCodec
    from stedm.diffusion.train import make_denoiser

    config = DiffusionConfig(denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8))
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["stroma", "tumour"], image_px=16)
    model.save_pretrained(tmp_path / "runs" / "demo" / "model")
    monkeypatch.chdir(tmp_path)
    names = {
        "layouts": np.zeros((2, 16, 16), np.uint8),
        "tiles_of_one_patient": [np.full((16, 16, 3), 128, np.uint8)],
    }
    (code,) = _blocks("python")
    exec(code, names)
    assert names["images"].shape == (2, 16, 16, 3)
    assert names["images"].dtype == np.uint8


def test_the_python_of_the_styles_page_runs(tiny_dataset, tmp_path, monkeypatch):
    from stedm import StyleDiffusion
    from stedm.config import DenoiserConfig, DiffusionConfig
    from stedm.diffusion.codec import PixelCodec
    from stedm.diffusion.train import make_denoiser

    config = DiffusionConfig(denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8))
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)
    model.save_pretrained(tmp_path / "runs" / "demo" / "model")
    tiny_dataset(name="runs/demo/data", image_px=16)
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "styles.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names = {"layout": np.zeros((16, 16), np.uint8)}
    exec(code, names)
    assert names["strip"].shape == (7, 16, 16, 3)
    assert len(names["similar"]) == 5
    assert names["first"] != names["second"]


def test_every_verb_and_make_target_exists():
    from typer.main import get_command

    from stedm.cli import app

    group = get_command(app)
    verbs = set(re.findall(r"`?stedm ([a-z]+)(?: ([a-z]+)\b)?", "\n".join(re.findall(r"`+[^`]+`+", README))))
    assert len(verbs) > 8
    for verb, second in verbs:
        assert verb in group.commands, f"stedm {verb}"
        if hasattr(group.commands[verb], "commands"):
            assert second in group.commands[verb].commands, f"stedm {verb} {second}"
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^make ([a-z]+)", README, flags=re.M)) <= targets


def test_the_short_configuration_is_enough(tmp_path):
    from stedm.config import load_config

    (code,) = _blocks("yaml")
    (tmp_path / "c.yaml").write_text(code)
    assert load_config(tmp_path / "c.yaml").data.path == tmp_path / "DATASET"


PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("results/**/*.md")]


@pytest.mark.parametrize("page", sorted(path.relative_to(REPOSITORY) for path in PAGES), ids=str)
def test_links_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (REPOSITORY / page.parent / target).exists(), target
