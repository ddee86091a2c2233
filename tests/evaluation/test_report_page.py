"""The report as it is seen: in a browser at the widths of a screen and a telephone, light and dark, and on paper."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stedm.config import DataConfig, EvaluationConfig, RunConfig, to_yaml
from stedm.evaluation.counts import counts_table, with_groups
from stedm.evaluation.quality_text import warnings_of
from stedm.evaluation.report import Doubted, Overlay, PatientExamples, ReportPanels, StyleGrid, StyleStrip, write_report
from stedm.evaluation.training_log import TrainingCurve
from stedm.io.images import write_png

ARMS = ("real", "real+stain", "ssl", "real+synthetic", "real+stain+synthetic", "real+stain+synthetic+ssl", "upper")
LONG = ["x" * 60, "患者の名前がとても長い場合" * 3, "a_b-c.d/" * 8, "W" * 30, "patient 12, left breast, block 3 of 14"]
KINDS = ["ductal carcinoma in situ", "3", "0", "浸潤性乳管癌", "lobular"]
CLASSES = ["background", "tumour", "necrosis", "in_situ_carcinoma", "inflammation", "fat", "muscle"]
PRINTED_PX = 703
"""Width of the text on a sheet of A4 with the margins of the report."""

WRITTEN = ["h1", ".headline", ".word", ".soft", "th", "td", ".contents a", ".numbers dt", ".next code", "pre", ".axis"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with more of everything than is good for it: arms, classes, and names that are long."""
    rng = np.random.default_rng(0)
    names = [*LONG, *(f"p{i:02d}" for i in range(12))]
    kinds = [KINDS[i % len(KINDS)] for i in range(len(names))]
    parts = []
    for number, arm in enumerate(ARMS):
        cells = rng.integers(50, 100, (len(names), len(CLASSES), 4))
        cells[..., 0] += 40 * number
        parts += [counts_table(arm, seed, names, kinds, cells, CLASSES) for seed in (0, 1)]
    counts = with_groups(pd.concat(parts, ignore_index=True), {"3", "lobular"})
    folder = tmp_path_factory.mktemp("page")
    config = RunConfig(name="page", data=DataConfig(path="/data/a_long_path/" * 6))
    stages = {"teacher real+stain, segmenter 0": 76.0, "train diffusion model, round 1": 5400.0}
    provenance = {"stedm": "0.1.0", "packages": {"torch": "2.9"}, "data": {"root": "/d" * 60}, "seconds": stages}
    write_report(
        folder,
        counts,
        title="A cohort whose name is long enough for two lines: " + "breast_" * 12,
        notes={"Data": "phantom-her2, 64 px", "Annotated": "4 patients (48 images)"},
        config_yaml=to_yaml(config),
        provenance=provenance,
        panels=_panels(rng, names, kinds),
        evaluation=EvaluationConfig(),
        run="runs/page",
        quality=_quality(names),
        closest_pairs=_picture(folder / "closest.png"),
    )
    return folder / "report.html"


def _quality(names) -> dict:
    """As `stedm.evaluation.assessment` finds it, of a set that is bad in every way."""
    look = {"n_images": 512, "iou": 0.5, "ci": [0.486, 0.514], "per_class": dict.fromkeys(CLASSES[1:], 0.5)}
    look |= {"iou_of_other_layouts": 0.434, "contrast": 0.011, "contrast_of_other_layouts": 0.003}
    copies = {"copies": 12, "n": 1024, "rate": 12 / 1024, "ci": [0.006, 0.02]}
    space = {**copies, "held_out": {**copies, "copies": 0}, "auth_pct": 70.0, "held_out_auth_pct": None}
    quality = {
        "n_images": 20_000,
        "n_looked_at": {"synthetic": 1024, "annotated": 205, "unannotated": 1182, "held_out": 217},
        "layout": {
            "verdict": "ignored",
            "share": 0.1,
            "share_contrast": 0.01,
            "synthetic": look,
            "real": {"images": "held_out", **look},
            "per_patient": dict.fromkeys(names, 0.5),
        },
        "style": {"verdict": "ignored", "mrr": 0.133, "ci": [0.095, 0.18], "real": 0.995, "chance": 0.211},
        "stain_distance": {"value": 6.091, "ci": [5.978, 6.209], "real": 0.126, "next_patient": None},
        "kid": {"value": 121.083, "ci": [112.242, 129.924], "held_out": None, "space": "features"},
        "memorisation": {
            "verdict": "copies",
            "n_begun_at_real": 512,
            "n_known": 1387,
            "spaces": dict.fromkeys(("pixels", "texture", "features"), space),
        },
        "segmenter": "real+stain/seed-0/model",
    }
    return quality | {"warnings": warnings_of(quality)}


def _picture(path) -> Path:
    write_png(path, np.full((72, 10 * 36, 3), 90, np.uint8))
    return path


def _panels(rng, names, kinds) -> ReportPanels:
    image = lambda: rng.integers(256, size=(32, 32, 3), dtype=np.uint8)  # noqa: E731
    layout = np.zeros((32, 32), np.uint8)
    layout[8:20, 4:28] = 1
    layout[24:, :] = 255
    several = [image() for _ in range(6)]
    labels = [f"{name}\n{kind}" for name, kind in zip(names, kinds, strict=True)]
    grid = StyleGrid([several[:1]] * 4, [layout] * 2, [several[:2]] * 4, labels[:4], "grid")
    strip = StyleStrip(layout, (several[:3], several[:3]), several + several[:3], (names[0], names[1]), "strip")
    examples = [PatientExamples(names[3], several[:2], [layout], several[:1], kinds[3])]
    shown = dict.fromkeys(("real", "real+stain", "real+stain+synthetic", "upper"), np.roll(layout, 3, 1))
    overlays = [
        Overlay(n, image(), layout, shown, dict.fromkeys(shown, 0.5), k) for n, k in zip(names, kinds, strict=True)
    ]
    steps = list(range(0, 4000, 40))
    curves = [TrainingCurve(f"round {k}", steps, [1 / (1 + s / 900) for s in steps], 90.0) for k in (1, 2)]
    whom = [
        Doubted(name, kind, 0.1 * i, i < 3, several[:4])
        for i, (name, kind) in enumerate(zip(names[:8], kinds, strict=False))
    ]
    progress = [(f"round 1, after {n} steps", image()) for n in (100, 1000, 2000)]
    return ReportPanels([grid], examples, overlays, [strip], curves, progress, whom, names[:3])


@pytest.fixture
def opened(browser, page_file, page_checks):
    """Function: the report in a page of a width, for a colour scheme and a medium; its `checked(call)` asks
    `page_checks.js`."""
    pages = []

    def open_page(width: int, scheme: str = "light", medium: str = "screen"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.emulate_media(media=medium, color_scheme=scheme)
        page.goto(page_file.as_uri())
        page.checked = lambda call: page.evaluate(f"{page_checks}; {call}")
        return page

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize(
    ("width", "scheme", "medium"),
    [(1366, "light", "screen"), (1366, "dark", "screen"), (390, "light", "screen"), (PRINTED_PX, "dark", "print")],
    ids=["screen", "dark", "telephone", "paper"],
)
def test_nothing_overflows_overlaps_or_is_cut(opened, width, scheme, medium):
    page = opened(width, scheme, medium)
    assert page.checked("overflow()") <= 0
    assert page.checked("overlaps()") == []
    assert page.checked("cutTexts()") == []
    if width > 390:  # on a telephone wide tables move under the finger
        assert page.checked("cutTables()") == []
    assert page.checked(f"faint({WRITTEN})") == []


def test_dots_tell_their_patient_and_lead_to_its_images(opened):
    page = opened(1366)
    assert page.checked("deadLinks()") == []
    dot = page.locator(".plot a", has_text="p07 (0)").first
    assert re.search(r"^p07 \(0\)\nreal: IoU 0\.\d{3}$", dot.locator("title").text_content())
    dot.click()
    card = page.locator(".card:target")
    assert card.locator("h3").inner_text() == "p07 0"
    assert card.bounding_box()["y"] < 900
    assert card.locator("svg").count() == 6  # image, truth, four arms


def test_plots_take_the_width_of_the_page(opened):
    page = opened(1366)
    width = page.locator("main").bounding_box()["width"]
    assert page.locator(".named").bounding_box()["width"] > 0.9 * width
    assert page.locator(".facing").first.bounding_box()["width"] > 0.9 * width


def test_all_of_it_is_printed(opened):
    pypdf = pytest.importorskip("pypdf")
    printed = pypdf.PdfReader(io.BytesIO(opened(1366, medium="print").pdf(prefer_css_page_size=True)))
    texts = [page.extract_text() for page in printed.pages]
    text = " ".join(" ".join(texts).split())
    # A last column, what is folded up on a screen, and all of the end.
    for words in ("better / worse", "Every patient in numbers", "p11", "voters:", "counts.parquet"):
        assert words in text, words
    headings = ("Arms", "Comparisons", "By category", "How it was made", "Whom to annotate next")
    for sheet in texts:
        assert sheet.strip().splitlines()[-1].strip() not in headings
    assert len(texts) < 13
