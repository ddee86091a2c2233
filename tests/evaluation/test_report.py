import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stedm.config import DataConfig, DiffusionConfig, EvaluationConfig, RunConfig, to_yaml
from stedm.errors import StedmError
from stedm.evaluation import figures
from stedm.evaluation.cards import UNKNOWN_COLOUR, card
from stedm.evaluation.compare import compare_reports
from stedm.evaluation.counts import SEEN, UNSEEN, counts_table, read_counts, with_groups
from stedm.evaluation.figures import WRONG_COLOUR
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.next_steps import next_steps
from stedm.evaluation.report import (
    Overlay,
    PatientExamples,
    ReportPanels,
    StyleGrid,
    StyleStrip,
    worst_and_best,
    write_report,
)
from stedm.evaluation.sections import changed_keys
from stedm.evaluation.stats import summarise
from stedm.evaluation.text import summary_text
from stedm.evaluation.training_log import painted_meanwhile, training_curves
from stedm.evaluation.verdict import FIRST_LOOK, judge, short_training
from stedm.io.files import write_text
from stedm.io.images import write_png

CONFIG = EvaluationConfig()
BASE = np.linspace(0.2, 0.9, 14)
ODD_IDS = ["<script>alert(1)</script>", "a$b_{c", 'q"uote&', "患者", "tab\there", "x" * 60]


def make_counts(scores, ids=None, seeds=(0, 1), pixels=1000, categories=("0", "3")):
    """Counts that give patient i of each arm the IoU scores[arm][i]."""
    parts = []
    for arm, values in scores.items():
        names = ids or [f"p{i:02d}" for i in range(len(values))]
        kinds = [categories[i % len(categories)] for i in range(len(values))]
        cells = [[[0, 0, 0, pixels], [round(v * pixels), pixels - round(v * pixels), 0, 0]] for v in values]
        # false negatives instead of positives, so that the truth is the same whatever is predicted
        cells = [[background, [tp, 0, fp, tn]] for background, (tp, fp, _, tn) in cells]
        parts += [counts_table(arm, seed, names, kinds, cells, ["background", "gland"]) for seed in seeds]
    return pd.concat(parts, ignore_index=True)


def verdict_of(scores, **options):
    return judge(summarise(make_counts(scores, **options), CONFIG), CONFIG)


@pytest.fixture(scope="module")
def panels():
    rng = np.random.default_rng(0)
    image = lambda: rng.integers(256, size=(16, 16, 3), dtype=np.uint8)  # noqa: E731
    layout = np.zeros((16, 16), np.uint8)
    layout[4:, :8] = 1
    ignored = layout.copy()
    ignored[:, 15] = 255
    grid = StyleGrid([[image()], [image(), image()]], [layout], [[image()], [image()]], ODD_IDS[:2], "grid")
    example = PatientExamples(ODD_IDS[3], [image()], [layout], [image()], "3")
    overlays = [
        Overlay(ODD_IDS[0], image(), ignored, {"real": np.zeros_like(layout)}, {"real": float("nan")}, "Worst"),
        Overlay("p01", image(), layout, {"real": layout, "upper": layout}, {"real": 1.0, "upper": 1.0}, "Best"),
    ]
    strip = StyleStrip(layout, ([image()] * 2, [image()]), [image() for _ in range(5)], ODD_IDS[:2], "strip")
    return ReportPanels([grid], [example], overlays, [strip])


@pytest.fixture(scope="module")
def report(tmp_path_factory, panels):
    folder = tmp_path_factory.mktemp("run") / "report"
    ids = ODD_IDS + [f"p{i:02d}" for i in range(8)]
    scores = {"real": BASE, "real+synthetic": 0.5 * BASE + 0.5, "upper": 0.3 * BASE + 0.7}
    counts = make_counts(scores, ids=ids)
    summary = write_report(
        folder,
        counts,
        title="demo <b>run</b>",
        notes={"Model": "from scratch & more"},
        config_yaml="name: <demo>\n",
        provenance={"stedm": "0.1.0"},
        panels=panels,
        evaluation=CONFIG,
    )
    return folder, counts, summary


def test_report_folder_holds_its_files_and_they_agree(report):
    folder, counts, summary = report
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["counts.parquet", "manifest.json", "per_patient.csv", "report.html", "summary.json"]
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summarise(read_counts(folder / "counts.parquet"), CONFIG) == summary
    table = pd.read_csv(folder / "per_patient.csv", dtype={"category": str})
    pd.testing.assert_frame_equal(table, per_patient(counts), check_dtype=False)


def test_report_is_one_file_that_works_offline(report):
    html = (report[0] / "report.html").read_text()
    assert "http" not in html
    assert not re.search(r'(?:href|src)="(?!#|data:)', html)
    assert "prefers-color-scheme: dark" in html
    assert html.count('class="plot"') == 3  # arms, pair, gain
    assert html.count('class="card"') == 2
    assert html.count("data:image/png;base64,") >= 14


def test_report_holds_all_arms_and_patients_escaped(report):
    html = (report[0] / "report.html").read_text()
    assert "<script" not in html
    assert "<b>" not in html
    for text in ("&lt;script&gt;alert(1)&lt;/script&gt;", "a$b_{c", "q&#34;uote&amp;", "患者", "x" * 60, "p05"):
        assert text in html
    for text in ("real+synthetic", "upper", "from scratch &amp; more", "name: &lt;demo&gt;", "0.1.0"):
        assert text in html


def test_terminal_and_html_use_the_same_words(report):
    html, text = (report[0] / "report.html").read_text(), summary_text(report[2])
    for word in ("mean IoU", "SD", "worst decile", "seeds", "gain", "SD ratio"):
        assert f" {word}" in text, word
        assert f"<th>{word}" in html, word


def test_verdict_that_helped(report):
    verdict = judge(report[2], CONFIG)
    assert verdict.tone == "better"
    assert verdict.pair == ("real+synthetic", "real")
    expected = "Synthetic images raised mean IoU over 14 patients from 0.550 to 0.775 (+0.225, 95 % interval "
    assert verdict.headline.startswith(expected)
    assert "the spread between patients fell (SD ratio 0.50" in verdict.headline
    assert verdict.headline in (report[0] / "report.html").read_text()


def test_verdict_is_honest():
    worse = verdict_of({"real": BASE, "real+synthetic": BASE - 0.1})
    assert (worse.tone, worse.headline.split(":")[0]) == ("worse", "Synthetic images hurt")
    same = verdict_of({"real": BASE, "real+synthetic": BASE[::-1]})
    assert same.tone == "unclear"
    assert same.headline.startswith("No evidence that synthetic images changed mean IoU")
    alone = verdict_of({"real": BASE})
    assert "nothing to compare" in alone.headline


def test_a_loss_after_a_short_training_is_a_first_look_and_a_gain_is_a_gain():
    short = short_training(DiffusionConfig(steps=300, batch=8))
    assert short == "The diffusion model saw 2,400 images in training, 32,000 are recommended"
    assert short_training(DiffusionConfig(steps=1000)) is None
    lost, gained = (
        summarise(make_counts({"real": BASE, "real+synthetic": BASE + gain}), CONFIG) | {"short_training": short}
        for gain in (-0.1, 0.1)
    )
    assert (judge(lost, CONFIG).word, judge(lost, CONFIG).shade) == (FIRST_LOOK, "unclear")
    assert any(sentence.startswith(short) for sentence in judge(lost, CONFIG).sentences)
    assert next_steps(lost, "runs/look")[0].command == "stedm run DATASET -o runs/look-recommended"
    assert judge(gained, CONFIG).word == "It helped"
    assert short not in next_steps(gained, "runs/look")[0].text


def test_verdict_headline_is_not_picked_by_result():
    scores = {"real": BASE, "real+stain": BASE, "real+synthetic": BASE - 0.1, "real+stain+synthetic": BASE + 0.1}
    verdict = verdict_of(scores)
    assert verdict.tone == "worse"
    assert any("on top of stain augmentation raised" in sentence for sentence in verdict.sentences)


def test_verdict_also_tells_of_the_strongest_baseline():
    scores = {"real": BASE, "real+stain": BASE + 0.1, "real+synthetic": BASE + 0.05}
    told = verdict_of(scores).sentences
    assert any(s.startswith("real+synthetic against real+stain") and "is lower" in s for s in told)
    assert verdict_of(scores).word == "It helped, but real+stain without synthetic images is better"


def test_verdict_speaks_of_groups_and_of_those_who_lose():
    """A mean over all hides a large gain of some behind a small loss of the others."""
    gain = np.where(np.arange(14) % 2 == 0, 0.2, -0.02)
    counts = make_counts({"real": BASE, "real+synthetic": np.clip(BASE + gain, 0, 1)})
    verdict = judge(summarise(with_groups(counts, {"3"}), CONFIG), CONFIG)
    unseen, annotated = verdict.headline.split("; ")
    assert unseen.startswith("Synthetic images, mean IoU: 7 patients of unseen categories 0.523 → 0.7")
    assert annotated.startswith("7 patients of annotated categories 0.577 → 0.557, −0.020 (")
    assert (verdict.tone, verdict.shade) == ("better", "mixed")
    assert verdict.word == "It helped patients of unseen categories and hurt patients of annotated categories"
    assert verdict.sentences[0].startswith("Synthetic images raised mean IoU over 14 patients")
    assert any(s.startswith("Patients who lose most: p01 (−0.020), ") and s.count("p") == 5 for s in verdict.sentences)


@pytest.mark.parametrize(
    ("unseen", "annotated", "word", "shade"),
    [
        (
            0.2,
            -0.006,
            "It helped patients of unseen categories and slightly hurt patients of annotated categories",
            "better",
        ),
        (
            0.006,
            -0.006,
            "It slightly helped patients of unseen categories and slightly hurt patients of annotated",
            "mixed",
        ),
        (0.006, 0.006, "It slightly helped", "better"),
        (-0.2, -0.2, "It hurt", "worse"),
    ],
)
def test_a_difference_below_a_hundredth_is_called_slight(unseen, annotated, word, shade):
    gain = np.where(np.arange(14) % 2 == 0, unseen, annotated)
    counts = make_counts({"real": BASE, "real+synthetic": np.clip(BASE + gain, 0, 1)})
    verdict = judge(summarise(with_groups(counts, {"3"}), CONFIG), CONFIG)
    assert verdict.word.startswith(word)
    assert verdict.shade == shade


def test_caveats_for_few_patients_and_one_seed():
    few = verdict_of({"real": BASE[:7], "real+synthetic": BASE[:7] + np.r_[-0.01, -0.01, np.full(5, 0.1)]}, seeds=[0])
    assert any("Only 7 patients" in sentence for sentence in few.sentences)
    assert any("one seed" in sentence for sentence in few.sentences)
    assert few.tone == "better"
    assert any("does not confirm" in sentence for sentence in few.sentences)
    many = verdict_of({"real": BASE, "real+synthetic": BASE + 0.05})
    assert many.sentences == []
    one = verdict_of({"real": BASE, "real+synthetic": BASE + np.r_[0.5, np.full(13, 0.01)] * 0.2})
    assert any("without it the difference is +0.002" in sentence for sentence in one.sentences)


@pytest.mark.parametrize(("n", "tone"), [(2, "unclear"), (5, "unclear"), (6, "better")])
def test_patients_who_may_all_be_better_by_chance_are_no_evidence(n, tone):
    verdict = verdict_of({"real": BASE[:n], "real+synthetic": 0.5 * BASE[:n] + 0.5})
    assert verdict.tone == tone
    assert ("spread" in verdict.headline) == (tone == "better")
    assert any(f"Only {n} patients: by chance" in s for s in verdict.sentences) == (tone == "unclear")


@pytest.mark.parametrize("values", [[0.5], [float("nan")]], ids=["one patient", "no foreground"])
def test_a_report_of_one_patient_does_not_crash(tmp_path, values):
    counts = make_counts({"real": np.nan_to_num(values), "real+synthetic": [0.6]})
    if np.isnan(values[0]):
        counts[["tp", "fp", "fn"]] = 0
    summary = write_report(tmp_path, counts, title="one", evaluation=CONFIG)
    assert summary["comparisons"][0]["delta_ci"] == [None, None]
    assert "It helped" not in (tmp_path / "report.html").read_text()
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)


def test_nothing_scored_is_an_error(tmp_path):
    with pytest.raises(StedmError, match="nothing was scored"):
        write_report(tmp_path, make_counts({"real": BASE}).iloc[:0], title="empty")


def test_worst_and_best_patients_do_not_overlap():
    counts = make_counts({"real": BASE[:5]})
    assert worst_and_best(counts, "real", 2) == (["p00", "p01"], ["p04", "p03"])
    worst, best = worst_and_best(counts, "real", 10)
    assert sorted(worst + best) == ["p00", "p01", "p02", "p03", "p04"]


def test_figures_can_be_saved_as_png(tmp_path, panels):
    patients = per_patient(make_counts({"real": BASE, "upper": BASE}, categories=ODD_IDS))
    drawn = {
        "arms": figures.arms_figure(patients),
        "grid": figures.style_grid_figure(panels.style_grids[0]),
        "strip": figures.style_strip_figure(panels.style_strips[0]),
        "examples": figures.patient_examples_figure(panels.patient_examples),
    }
    for name, figure in drawn.items():
        figures.save_png(tmp_path / f"{name}.png", figure, dpi=50)
        with Image.open(tmp_path / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 1, name


def test_a_strip_shows_its_images_in_order_and_both_patients(panels):
    strip = panels.style_strips[0]
    figure = figures.style_strip_figure(strip)
    shown = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert all(any(np.array_equal(image, array) for array in shown) for image in strip.generated)
    assert [np.array_equal(a, b) for a, b in zip(shown[-5:], strip.generated, strict=True)] == [True] * 5
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert {"<script>alert(1)</script>", "a$b_{c", "layout", "synthetic"} <= set(texts)


def test_wrong_pixels_are_tinted_and_unknown_ones_are_not():
    truth = np.zeros((8, 8), np.uint8)
    truth[:, 6:] = 255
    prediction = np.zeros((8, 8), np.uint8)
    prediction[:, 5:] = 1
    drawn = card(Overlay("p", np.zeros((8, 8, 3), np.uint8), truth, {"real": prediction}, {"real": 0.5}))
    assert [(name, number) for name, number, _ in drawn.panels] == [("image", ""), ("truth", ""), ("real", "IoU 0.50")]
    tints = re.findall(r'<path d="([^"]+)" fill="(#\w+)"', drawn.panels[2][2])
    assert [(colour, sorted({float(x) for x in re.findall(r"[ML]([\d.]+)", path)})) for path, colour in tints] == [
        (WRONG_COLOUR, [5.0, 5.5, 6.0]),
        (UNKNOWN_COLOUR, [6.0, 6.5, 7.5, 8.0]),
    ]


def test_what_to_do_next_comes_with_commands(tmp_path):
    scores = {"real": BASE, "real+synthetic": BASE + 0.05, "upper": BASE + 0.1}
    summary = summarise(make_counts(scores, seeds=[3]), CONFIG) | {"contradicted": [f"u{i}" for i in range(7)]}
    summary["quality"] = {"warnings": ["The synthetic images ignore their layouts."]}
    use, longer, annotate, seeds = next_steps(summary, "runs/my run")
    assert longer.command.endswith("-o 'runs/my run'-longer --set diffusion.steps=N")
    assert use.command == "stedm segment 'runs/my run'/segmenters/real+synthetic/seed-3/model IMAGES -o MASKS"
    assert annotate.text.startswith("Annotate next: u0, u1, u2, u3, u4, ....")
    assert "--set 'segmentation.seeds=[3,4,5]'" in seeds.command
    few = next_steps(summarise(make_counts({name: values[:4] for name, values in scores.items()}), CONFIG), "run")
    assert [step.text for step in few if not step.command] == ["Have at least 6 patients to score: 4 can't be evidence"]
    write_report(tmp_path, make_counts(scores), title="t", evaluation=CONFIG, run="runs/one")
    html = (tmp_path / "report.html").read_text()
    assert "<code>stedm segment runs/one/segmenters/real+synthetic/seed-0/model IMAGES -o MASKS</code>" in html


def test_how_it_was_made_is_in_words(tmp_path):
    provenance = {
        "stedm": "0.1.0",
        "git": None,
        "packages": {"torch": "2.9", "numpy": "2.3"},
        "data": {"root": "/d/tissue", "fingerprint": "abc"},
        "seconds": {"teacher": 76.4, "train diffusion model": 11_200.0},
    }
    config = RunConfig(name="x", data=DataConfig(path=Path("/d/tissue")), seed=7)
    write_report(tmp_path, make_counts({"real": BASE}), title="t", provenance=provenance, config_yaml=to_yaml(config))
    html = (tmp_path / "report.html").read_text()
    for text in ("torch 2.9, numpy 2.3", "fingerprint: abc", "3 h 07 min", "all stages", ">seed<"):
        assert text in html, text
    assert "{&#39;" not in html
    assert changed_keys(to_yaml(config)) == [("seed", "7", "0")]


def test_training_is_read_round_by_round(tmp_path):
    for folder, n in ((tmp_path / "rounds" / "1", 30), (tmp_path, 20)):
        rows = [json.dumps({"images_seen": 8 * i, "loss": 1 / i, "seconds": i}) for i in range(1, n + 1)]
        write_text(folder / "metrics.jsonl", "\n".join([*rows, '{"images_seen": 9, "lo']))
        write_png(folder / "progress" / "step-00000010.png", np.zeros((4, 4, 3), np.uint8))
    curves = training_curves(tmp_path)
    assert [(curve.name, len(curve.loss), curve.seconds) for curve in curves] == [
        ("round 1", 30, 30),
        ("round 2", 20, 20),
    ]
    assert [name for name, _ in painted_meanwhile(tmp_path)] == ["round 1, after 10 steps", "round 2, after 10 steps"]
    assert training_curves(tmp_path / "nothing") == []


def test_compare_reports_joins_common_patients_and_prefixes_colliding_arms(tmp_path):
    first = make_counts({"real": BASE, "real+synthetic": BASE + 0.05})
    second = make_counts({"real+synthetic": BASE[:8] + 0.1, "upper": BASE[:8] + 0.1})
    # The usual place: RUN/report is known by the name of the run.
    write_report(tmp_path / "small" / "report", first, title="small", evaluation=CONFIG)
    write_report(tmp_path / "large" / "report", second, title="large", evaluation=CONFIG)
    out = tmp_path / "joined" / "report.html"
    # One named by its run, one by its page.
    named = [tmp_path / "small", tmp_path / "large" / "report" / "report.html"]
    summary = compare_reports(named, out, CONFIG)
    assert set(summary["arms"]) == {"real", "small/real+synthetic", "large/real+synthetic", "upper"}
    assert {entry["n_patients"] for entry in summary["arms"].values()} == {8}
    pairs = {(entry["a"], entry["b"]): entry for entry in summary["comparisons"]}
    assert pairs[("large/real+synthetic", "small/real+synthetic")]["delta_mean"] == pytest.approx(0.05)
    assert ("large/real+synthetic", "real") in pairs
    assert json.loads((out.parent / "summary.json").read_text()) == summary
    html = out.read_text()
    assert "8 common patients, 6 dropped" in html
    assert "http" not in html
    assert "other pixels" not in html


def test_compare_reports_of_unknown_arms_compares_with_the_first(tmp_path):
    for name, gain in (("m1", 0.0), ("m2", 0.1)):
        write_report(tmp_path / name, make_counts({name: BASE + gain}), title=name, evaluation=CONFIG)
    summary = compare_reports([tmp_path / "m1", tmp_path / "m2"], tmp_path / "out" / "report.html", CONFIG)
    assert [(entry["a"], entry["b"]) for entry in summary["comparisons"]] == [("m2", "m1")]


def test_compare_reports_warns_of_other_pixels_and_refuses_what_cannot_be_compared(tmp_path):
    write_report(tmp_path / "a", make_counts({"real": BASE}), title="a", evaluation=CONFIG)
    write_report(tmp_path / "b", make_counts({"real": BASE}, pixels=2000), title="b", evaluation=CONFIG)
    write_report(tmp_path / "c", make_counts({"real": BASE[:1]}, ids=["other"]), title="c", evaluation=CONFIG)
    out = tmp_path / "out" / "report.html"
    compare_reports([tmp_path / "a", tmp_path / "b"], out, CONFIG)
    assert "14 scored on other pixels" in out.read_text()
    with pytest.raises(StedmError, match="no patient in common"):
        compare_reports([tmp_path / "a", tmp_path / "c"], out, CONFIG)
    with pytest.raises(StedmError, match="at least two"):
        compare_reports([tmp_path / "a"], out, CONFIG)
    with pytest.raises(StedmError, match="would replace"):
        compare_reports([tmp_path / "a", tmp_path / "b"], tmp_path / "a" / "new.html", CONFIG)
    with pytest.raises(StedmError, match="nowhere: no such report folder"):
        compare_reports([tmp_path / "a", tmp_path / "nowhere"], out, CONFIG)


def test_report_of_several_classes_and_many_categories(tmp_path):
    rng = np.random.default_rng(0)
    cells = rng.integers(1, 50, size=(24, 4, 4))
    cells[:, 3, :3] = 0  # a class that is nowhere: not known, not zero
    ids, categories = [f"p{i}" for i in range(24)], [f"kind {i}" for i in range(24)]
    classes = ["background", "gland", "<i>nerve", "fat"]
    counts = pd.concat([counts_table(arm, 0, ids, categories, cells, classes) for arm in ("real", "real+synthetic")])
    summary = write_report(tmp_path, counts, title="many", evaluation=CONFIG)
    assert summary["arms"]["real"]["iou_pooled_per_class"]["fat"] is None
    assert summary["comparisons"][0]["delta_mean"] == 0
    html = (tmp_path / "report.html").read_text()
    assert "pooled, &lt;i&gt;nerve" in html
    assert "No evidence" in html


def test_category_as_unit_and_groups_of_categories(tmp_path):
    kinds = ["rose", "lily", "iris", "daisy"]
    gain = np.tile([0.0, 0.0, 0.1, 0.06], 3)
    base = np.tile([0.5, 0.6, 0.3, 0.4], 3)
    counts = make_counts({"real": base, "real+synthetic": base + gain}, categories=kinds)
    counts = with_groups(counts, {"rose", "lily"})
    evaluation = EvaluationConfig(unit="category")
    summary = write_report(tmp_path / "a" / "report", counts, title="flowers", evaluation=evaluation)
    assert summary["unit"] == "category"
    assert summary["arms"]["real"]["n_patients"] == 4
    groups = summary["groups"]
    assert groups[UNSEEN]["categories"] == ["daisy", "iris"]
    assert groups[UNSEEN]["arms"]["real"]["iou_mean"] == pytest.approx(0.35)
    assert groups[UNSEEN]["comparisons"][0]["delta_mean"] == pytest.approx(0.08)
    assert groups[UNSEEN]["comparisons"][0]["delta_ci"] == pytest.approx([0.06, 0.1])
    assert groups[SEEN]["comparisons"][0]["delta_mean"] == 0
    assert sorted(pd.read_csv(tmp_path / "a" / "report" / "per_patient.csv")["patient_id"].unique()) == sorted(kinds)
    # The counts stay those of patients: anyone can choose another unit.
    assert summarise(read_counts(tmp_path / "a" / "report" / "counts.parquet"), evaluation) == summary
    html = (tmp_path / "a" / "report" / "report.html").read_text()
    for text in ("Annotated and unseen categories", "over 4 categories", "SD between categories", "Every category"):
        assert text in html, text
    assert "<dt>Images</dt><dd>12</dd>" in html
    assert "patients" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    assert "unseen categories" in summary_text(summary)
    # Reports that agree on the unit are compared in it; groups that differ are left out.
    others = with_groups(counts.drop(columns="group"), {"iris"})
    write_report(tmp_path / "b" / "report", others, title="others", evaluation=evaluation)
    joined = compare_reports([tmp_path / "a" / "report", tmp_path / "b" / "report"], tmp_path / "c" / "report.html")
    assert (joined["unit"], "groups" in joined) == ("category", False)
