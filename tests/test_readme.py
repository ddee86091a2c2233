"""What the README says is true: its Python runs, its commands and links exist."""

import re
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.fixture
def model():
    """An untrained model of 16 px."""
    from stedm import StyleDiffusion
    from stedm.config import DenoiserConfig, DiffusionConfig
    from stedm.diffusion.codec import PixelCodec
    from stedm.diffusion.train import make_denoiser

    config = DiffusionConfig(denoiser=DenoiserConfig(channels=[16, 16], norm_groups=8))
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=0)
    return StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)


def test_the_python_on_the_first_screen_runs(tmp_path, monkeypatch, model):
    def trained(dataset: str, output: str) -> dict:
        model.save_pretrained(Path(output) / "model")
        return {"arms": {}}

    monkeypatch.setattr("stedm.experiment.api.run", trained)
    monkeypatch.chdir(tmp_path)
    names = {
        "layouts": np.zeros((2, 16, 16), np.uint8),
        "tiles_of_one_patient": [np.full((24, 16, 3), 128, np.uint8), np.zeros((16, 16, 3), np.uint8)],
    }
    (code,) = _blocks("python")
    exec(code, names)
    assert names["summary"] == {"arms": {}}
    assert names["images"].shape == (2, 16, 16, 3)
    assert names["images"].dtype == np.uint8


def test_the_python_of_the_styles_page_runs(tiny_dataset, tmp_path, monkeypatch, model):
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


def test_the_python_of_the_python_page_runs(tiny_dataset, tmp_path, monkeypatch):
    tiny_dataset(name="DATASET")
    monkeypatch.chdir(tmp_path)
    summary = {"arms": {"real+stain+synthetic": {"iou_mean": 0.5}}}
    monkeypatch.setattr("stedm.experiment.api.run", lambda *_, **__: summary)
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    for number, small in {"steps": 2, "n_images": 4, "image_px": 32}.items():
        page = re.sub(rf"\b{number}=\d+", f"{number}={small}", page)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(code, names)
    assert names["problems"] == []
    assert names["masks"].shape == (6, 32, 32)
    assert names["images"].shape == (1, 32, 32, 3)
    assert names["sampling"].nfe == 3 * 2
    assert names["own"].predict(names["images"]).shape == (1, 32, 32)
    assert names["model"].codec is names["parts"]["codec"]


PAGES = sorted(
    path.relative_to(REPOSITORY)
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("results/**/*.md")]
)
RECORDS = ("results", "CHANGELOG.md", "docs/removed.md")
"""What was true when it was written."""
TODAY = [page for page in PAGES if not str(page).startswith(RECORDS)]


def _code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```.*?```|`[^`]+`", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.S))


@pytest.mark.parametrize("page", TODAY, ids=str)
def test_every_verb_flag_and_make_target_exists(page):
    from typer.main import get_command

    from stedm.cli import app

    group, code = get_command(app), _code_of(page)
    # A command is what stands at the beginning of a line or of a code span, after a variable perhaps.
    for line in re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*stedm (.+?)(?:`|#|$)", code, flags=re.M):
        verb, *rest = line.split()
        assert verb in group.commands or verb in ("--help", "--install-completion"), f"stedm {line}"
        command = group.commands.get(verb, group)
        if rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, f"stedm {line}"
            command = command.commands[rest[0]]
        known = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "--version"}
        assert {word.strip("[]") for word in rest if re.match(r"\[?--?[a-z]", word)} <= known, f"stedm {line}"
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", code, flags=re.M)) <= targets


def test_the_pages_name_all_verbs():
    from typer.main import get_command

    from stedm.cli import app

    shown = "\n".join(map(_code_of, TODAY))
    assert [verb for verb in get_command(app).commands if f"stedm {verb}" not in shown] == []


def test_the_short_configuration_is_enough(tmp_path):
    from stedm.config import load_config

    (code,) = _blocks("yaml")
    (tmp_path / "c.yaml").write_text(code)
    assert load_config(tmp_path / "c.yaml").data.path == tmp_path / "DATASET"


def test_keys_on_the_pages_exist():
    import configuration_page

    known = {path for path, _ in configuration_page.sections()} | set(configuration_page.all_keys())
    top = "|".join(sorted(part for part in known if part and "." not in part))
    code = re.sub(r"```python.*?```", "", "\n".join(map(_code_of, TODAY)), flags=re.S)
    named = set(re.findall(rf"(?<![\w./])(?:{top})(?:\.[a-z_]+)+\b(?![/(])", code))
    assert len(named) > 20
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if "://" in target:
            continue
        there = REPOSITORY / page.parent / target if target else REPOSITORY / page
        assert there.exists(), target
        if heading:
            assert heading in _anchors(there), f"{target}#{heading}"


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
