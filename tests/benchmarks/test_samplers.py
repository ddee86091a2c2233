"""The comparison of samplers, end to end with a miniature model: one plan for all, resumable, and its verdict."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import samplers
from stedm import StyleDiffusion
from stedm.config import DenoiserConfig, DiffusionConfig, StyleConfig
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.synthesis.plan import LIST_SEPARATOR


def colour_encoder(images: np.ndarray) -> np.ndarray:
    values = images.astype(np.float64)
    return np.concatenate([values.mean(axis=(1, 2)), values.std(axis=(1, 2))], axis=1)


@pytest.fixture
def spec_file(tmp_path, tiny_dataset):
    """Function: a specification file with changes; model and data beside it."""
    tiny_dataset(images=4, image_px=16)
    config = DiffusionConfig(
        denoiser=DenoiserConfig(channels=[8, 8], norm_groups=4, layout_channels=4),
        style=StyleConfig(dim=8, n_images=2),
    )
    denoiser = make_denoiser(config, PixelCodec(2), n_classes=2, seed=1, image_px=16)
    model = StyleDiffusion(denoiser, PixelCodec(2), objective="flow", classes=["background", "disc"], image_px=16)
    model.save_pretrained(tmp_path / "model")

    def write(**changes) -> Path:
        spec = {
            "name": "tiny",
            "model": "model",
            "data": {"path": "tiny"},
            "synthesis": {"n_images": 6, "batch": 6, "style_images": 1, "match_category": False},
            "samplers": {"dpm++": [2], "euler": [2]},
            "guidance": {"full": {"style": 1.5}, "layout": {"style": 1.5, "layout": 2.0}},
            "reference": {"sampler": "dpm++", "steps": 6, "guidance": "full"},
            "seeds": [0, 1],
            "cohort": {"patients": 3, "style_images": 2, "reference_images": 2, "least_images": 4},
            "judge": {
                "steps": 2,
                "batch": 2,
                "encoder": "tu-test_resnet",
                "encoder_depth": 3,
                "decoder_channels": [16, 8, 8],
            },
            **changes,
        }
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
        return tmp_path / "spec.yaml"

    return write


def _driven(path: Path) -> samplers.Comparison:
    encoders = (colour_encoder, colour_encoder)
    return samplers.Comparison(samplers.read_spec(path), path.parent / "runs", encoders=encoders)


def test_one_plan_for_all_measured_once_and_a_verdict(spec_file, tmp_path):
    driven, runs = _driven(spec_file()), tmp_path / "runs"
    driven.run(shard=(1, 2), quiet=True)
    assert len(list(runs.rglob("measures.json"))) == 5
    driven.run(quiet=True)
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")}
    # 2 samplers with 2 guidances, and the reference, which is none of them; 2 seeds.
    assert sum(path.name == "measures.json" for path in before) == 2 * (2 * 2 + 1)
    driven.run(quiet=True)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")} == before

    found = {
        (values["sampler"], values["guidance"], values["steps"]): values["network_calls"]
        for values in (json.loads(path.read_text()) for path in runs.rglob("measures.json"))
    }
    assert found["dpm++", "layout", 2] == 6
    assert found["euler", "full", 2] == 4
    assert found["dpm++", "full", 6] == 12

    # The same layouts, styles and noise in every cell of a seed, and never a reference image as style.
    tables = [pd.read_csv(path) for path in sorted(runs.rglob("metadata.csv"))]
    assert len(tables) == 5, "images are kept of the first seed alone"
    for column in ("layout_of", "style_image_file_names", "seed"):
        assert all(table[column].equals(tables[0][column]) for table in tables)
    assert len({table["sampling"].iloc[0] for table in tables}) == 5
    given = {name for names in tables[0]["style_image_file_names"] for name in str(names).split(LIST_SEPARATOR)}
    assert given <= set(driven.jury.pool.table["image_file_name"])
    assert not given & set(driven.jury.reference.table["image_file_name"])

    target = tmp_path / "results" / "tiny"
    samplers.write_table(driven, target)
    summary = samplers.summarise(samplers.collect(driven), driven.spec.reference)
    judged = samplers.verdict(summary, driven.spec.reference)
    assert judged["reference"]["network_calls"] == 12
    assert judged["cheapest"]["network_calls"] <= 12
    assert judged["seeds"] == 2
    text = (target / "table.md").read_text()
    assert text.count("\n| dpm++ | full |") == 2
    assert "| 12 | 2 |" in text
    assert (target / "quality.png").stat().st_size > 1000
    assert len(summary) == 5
    assert len(pd.read_csv(target / "values.csv")) == 10


def test_samplers_and_seeds_may_be_added_but_nothing_else_changed(spec_file):
    _driven(spec_file(samplers={"dpm++": [1]}, seeds=[0])).run(quiet=True)
    driven = _driven(spec_file(samplers={"dpm++": [1, 2]}, seeds=[0]))
    driven.run(quiet=True)
    assert len(samplers.collect(driven)) == 2 * 2 + 1
    with pytest.raises(StedmError, match="another cohort"):
        _driven(spec_file(cohort={"patients": 2, "reference_images": 2, "least_images": 4})).run(quiet=True)
    with pytest.raises(StedmError, match="measured with 1 seeds"):
        samplers.write_table(driven, driven.folder / "out")


def _values(**settings) -> pd.DataFrame:
    """Rows of five seeds: settings are {name: (steps, calls, shift of KID, shift of IoU)}."""
    rows = []
    for sampler, (steps, calls, kid, iou) in settings.items():
        for seed in range(5):
            rows.append(
                {
                    "sampler": sampler,
                    "guidance": "full",
                    "steps": steps,
                    "time_shift": 1.0,
                    "network_calls": calls,
                    "seed": seed,
                    "seconds_per_image": 1.0,
                    "kid": 1.0 + 0.1 * seed + kid,
                    "retrieval_mrr": 0.5 + 0.01 * seed,
                    "colour_distance": 0.3 + 0.01 * seed,
                    "layout_iou": 0.8 + 0.01 * seed + iou,
                }
            )
    return pd.DataFrame(rows)


REFERENCE = samplers.Setting(sampler="dpm++", guidance="full", steps=250)


def test_the_verdict_is_the_cheapest_that_is_nowhere_worse_than_the_interval():
    values = _values(
        **{
            "dpm++": (250, 500, 0.0, 0.0),
            "euler": (6, 12, 0.5, 0.0),  # KID worse
            "ddim": (6, 22, 0.0, -0.05),  # layout worse
            "unipc": (12, 24, -0.5, 0.01),  # KID better
            "other": (12, 24, 0.05, 0.0),  # inside, but KID is higher than unipc's
        }
    )
    summary = samplers.summarise(values, REFERENCE)
    rows = summary.set_index("sampler")
    assert rows["holds"].to_dict() == {
        "dpm++": True,
        "euler": False,
        "ddim": False,
        "unipc": True,
        "other": True,
    }
    assert not rows.loc["unipc", "kid_inside"]
    assert rows.loc["unipc", "kid_holds"]
    assert rows.loc["other", "kid_inside"]
    # The interval over seeds by hand: mean 1.2, SD 0.1581, t 2.776.
    assert rows.loc["dpm++", "kid_low"] == pytest.approx(1.2 - 2.776 * 0.15811 / 5**0.5, abs=1e-3)
    # Paired: the same shift in every seed has no spread.
    assert rows.loc["euler", "kid_delta_low"] == pytest.approx(0.5)
    assert rows.loc["euler", "kid_delta_high"] == pytest.approx(0.5)
    judged = samplers.verdict(summary, REFERENCE)
    cheapest = {"sampler": "unipc", "guidance": "full", "steps": 12, "time_shift": 1.0, "network_calls": 24}
    assert judged["cheapest"] == cheapest
    assert judged["times_cheaper"] == pytest.approx(500 / 24)


def test_a_setting_with_fewer_seeds_does_not_hold_yet():
    values = _values(**{"dpm++": (250, 500, 0.0, 0.0), "unipc": (6, 12, 0.0, 0.0)})
    values = values[(values["sampler"] == "dpm++") | (values["seed"] < 3)]
    assert samplers.summarise(values, REFERENCE).set_index("sampler")["holds"].to_dict() == {
        "dpm++": True,
        "unipc": False,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samplers": {"dpm": [4]}}, "spec.yaml: .*samplers"),
        ({"reference": {"sampler": "dpm++", "steps": 9, "guidance": "none"}}, "none is not one of full, layout"),
        ({"synthesis": {"n_image": 3}}, "n_image"),
        ({"data": {}}, "data"),
        ({"model": None}, "spec.yaml"),
    ],
)
def test_bad_specifications_are_refused(spec_file, changes, message):
    with pytest.raises(StedmError, match=message):
        samplers.read_spec(spec_file(**changes))


def test_a_sampler_that_does_not_fit_the_model_is_refused_before_anything_is_drawn(spec_file, tmp_path):
    with pytest.raises(StedmError, match="ddim doesn't draw from"):
        _driven(spec_file(samplers={"ddim": [4]})).run(quiet=True)
    assert not (tmp_path / "runs").exists()
