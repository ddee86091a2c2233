"""Every fenced block of README and docs is run, here or by a named test, or says why not.

A comment above the block says which: `<!-- run -->`, `<!-- run by tests/NAME.py -->` or `<!-- not run: why -->`. YAML
must be YAML; blocks marked as `text` hold no commands. What is run here is run as it stands, page after page, in one
folder that has what the pages speak of (IMAGES, MODEL, slide.svs ...), but for settings of learning: TINY.
"""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from stedm.cli import main
from stedm.config import PhantomConfig
from stedm.io.files import write_json

REPOSITORY = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md"))]
MARK = re.compile(r"<!-- (?:(?P<run>run)|run by (?P<test>\S+)|not run: (?P<why>[^>]{10,})) -->$")
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:stedm|python|pip|make|torchrun|ray|bash|hf) ", flags=re.M)
TINY = {
    "diffusion": {"steps": 2, "batch": 4, "style.dim": 16, "denoiser.channels": "[16,16]", "denoiser.norm_groups": 8},
    "rounds": {"number": 1, "voters": 1, "labels": "null"},
    "synthesis": {"n_images": 4, "batch": 4, "sampling.steps": 2},
    "segmentation": {
        **{"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": "[16,8,8]", "steps": 2, "batch": 4},
        **{"mirror": "false", "seeds": "[0]", "arms": "[real,real+stain+synthetic]"},
    },
    "machine": {"grid_every_steps": 0},
}
LEARNS = ("run", "train", "plan")
SMALL = {"-n 10000": "-n 6"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the line above it."""

    page: str
    language: str
    text: str
    above: str

    @property
    def mark(self) -> re.Match | None:
        return MARK.fullmatch(self.above)


def blocks_of(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.finditer(r"(?:^|\n)(?P<above>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)\n```", text, flags=re.S)
    blocks = [Block(page, each["language"], each["text"], each["above"]) for each in found]
    assert len(blocks) == len(re.findall(r"^```", text, flags=re.M)) // 2
    return blocks


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page):
        if block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "text":
            assert not COMMAND.search(block.text), f"{page}: commands without a mark\n{block.text}"
        else:
            assert block.mark, f"{page}: above this block stands none of the three marks\n{block.text}"
            assert (REPOSITORY / (block.mark["test"] or ".")).exists(), f"{page}: no test {block.mark['test']}"


def commands_in(text: str) -> list[list[str]]:
    """Its commands, word by word; what is in brackets is run too."""
    lines = re.sub(r" *\\\n *", " ", text).splitlines()
    for given, small in SMALL.items():
        lines = [line.replace(given, small) for line in lines]
    # Brackets of what may be left out stand about a word; those of a list about a value.
    lines = [re.sub(r"(?<= )\[(-[^\]]*)\]", r"\1", line) for line in lines]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_command(words: list[str]) -> None:
    assert words[0] == "stedm", f"only stedm can be run here: {words}"
    _, verb, *rest = words
    if verb in LEARNS:
        tiny = [f"{part}.{key}={value}" for part, values in TINY.items() for key, value in values.items()]
        here = rest.index("-o") if "-o" in rest else len(rest)
        rest = [*rest[:here], *(word for pair in tiny for word in ("--set", pair)), *rest[here:]]
    with pytest.raises(SystemExit) as end:
        main([verb, *rest])
    assert end.value.code in (0, None), " ".join(words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What README's commands begin with: images, their table, a slide. They make DATASET and RUN."""
    pytest.importorskip("openslide")
    from stedm.phantom.cohort import make_phantom
    from stedm.phantom.slides import make_phantom_slides

    monkeypatch.chdir(tmp_path)
    patients = {"train": 2, "unlabeled": 3, "val": 2, "test": 2}
    make_phantom(PhantomConfig(image_px=32, patients=patients, images_per_patient=3), "phantom")
    shutil.copytree("phantom/images", "IMAGES/images")
    shutil.copytree("phantom/masks", "IMAGES/masks")
    table = pd.read_csv("phantom/metadata.csv")
    table["image"] = table["image_file_name"].str.removeprefix("images/")
    table[["image", "patient_id", "split", "category", "mpp"]].to_csv("TABLE.csv", index=False)
    make_phantom_slides(PhantomConfig(image_px=128, patients={"train": 1}), "slides", (1024, 1024), unit_px=256)
    for name in ("SLIDE.svs", "slide.svs", "a.svs"):
        shutil.copy("slides/slides/A00.svs", name)
    return tmp_path


def add_what_other_pages_speak_of():
    # Without annotations, for which a configuration would have to name the classes.
    table = Path("slides/slides.csv").read_text().replace("annotations/A00.png", "")
    Path("slides.csv").write_text(table.replace("slides/A00.svs", "slide.svs"))
    name = yaml.safe_load(Path("RUN/config.yaml").read_text())["name"]
    Path("CONFIG.yaml").write_text(yaml.safe_dump({"name": name, "data": {"path": "DATASET"}}))
    shutil.copytree("RUN", "runs/demo")
    shutil.copytree("DATASET", "runs/demo/data")
    shutil.copytree("RUN/segmenters/real/seed-0/model", "MODEL")
    for name in ("LAYOUT.png", "mask.png"):
        shutil.copy("phantom/masks/A00_000.png", name)
    for name in ("STYLE-1.png", "STYLE-2.png", "a.png", "b.png"):
        shutil.copy("phantom/images/U00_000.png", name)
    ring = [[x, y] for x, y in ((40960, 8192), (41960, 8192), (41960, 9192), (40960, 9192), (40960, 8192))]
    feature = {"classification": {"name": "Tumor"}}, {"type": "Polygon", "coordinates": [ring]}
    write_json(Path("slide_7.geojson"), {"type": "Feature", "properties": feature[0], "geometry": feature[1]})
    Path("classes.yaml").write_text("{Tumor: tumour}")


def test_blocks_run_page_after_page(folder):
    ran = 0
    for page in PAGES:
        names = {"bands": [np.eye(8, dtype=np.uint8)] * 2, "classes": ["background", "tumour"]}
        for block in blocks_of(page):
            if block.language in ("yaml", "text") or not block.mark["run"]:
                continue
            if block.language == "python":
                exec(compile(block.text, page, "exec"), names)
            else:
                for words in commands_in(block.text):
                    run_command(words)
            ran += 1
        if page == "README.md":
            add_what_other_pages_speak_of()
    assert ran >= 12


def test_a_block_without_a_mark_or_with_a_wrong_command_is_found(tmp_path, monkeypatch):
    assert not Block("page", "", "stedm check DATASET", "Some words:").mark
    assert not Block("page", "", "stedm check DATASET", "<!-- not run: no -->").mark
    assert commands_in("stedm a \\\n  --b  # c\n\n# d\nstedm e [-o F] --set k=[1]") == [
        ["stedm", "a", "--b"],
        ["stedm", "e", "-o", "F", "--set", "k=[1]"],
    ]
    with pytest.raises(AssertionError):
        run_command(["stedm", "segment", "RUN"])
