"""The ablation driver, end to end on a miniature phantom: resumable, shared models, tables with intervals."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import ablation
from stedm.errors import StedmError
from stedm.synthesis.plan import LIST_SEPARATOR, read_plan


def colour_encoder(images: np.ndarray) -> np.ndarray:
    values = images.astype(np.float64)
    return np.concatenate([values.mean(axis=(1, 2)), values.std(axis=(1, 2))], axis=1)


def _spec_file(folder: Path, **changes) -> Path:
    spec = {
        "name": "tiny",
        "seeds": [0, 1],
        "base": {
            "data": {
                "phantom": {
                    "image_px": 32,
                    "patients": {"train": 2, "unlabeled": 3, "val": 2, "test": 0},
                    "images_per_patient": 4,
                },
                "image_px": 32,
            },
            "diffusion": {
                "steps": 2,
                "batch": 2,
                "denoiser": {"channels": [16, 16], "norm_groups": 8},
                "style": {"dim": 16, "n_images": 2},
            },
            "rounds": {"number": 1, "labels": None},
            "synthesis": {"n_images": 6, "batch": 6, "style_images": 1, "sampling": {"steps": 2}},
            "segmentation": {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]},
        },
        "cohort": {"patients": 3, "style_images": 2, "reference_images": 2, "least_images": 4},
        "judge": {"steps": 2, "batch": 2},
        "phantom_patients": 12,
        "variants": {
            "base": {},
            "max": {"diffusion.style.aggregation": "max"},
            "two": {"from": "base", "synthesis.style_images": 2},
        },
        **changes,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder / "spec.yaml"


def _driven(folder: Path, **changes):
    spec = ablation.read_spec(_spec_file(folder, **changes))
    return ablation.Ablation(spec, folder / "runs", encoders=(colour_encoder, colour_encoder))


def test_runs_bounds_and_tables(tmp_path, capsys):
    driven = _driven(tmp_path)
    driven.run(shard=(1, 2), quiet=True)  # the second of: base 0, max 0, base 1, max 1
    made = {path.parent.relative_to(tmp_path / "runs").as_posix() for path in tmp_path.rglob("measures.json")}
    assert made == {"max/seed-0", "max/seed-1"}
    driven.run(quiet=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    assert sum(path.name == "measures.json" for path in before) == 6
    driven.run(quiet=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")} == before

    # "two" has the model of the base and other style images for the same layouts.
    runs = tmp_path / "runs"
    assert (runs / "two/seed-1/model").resolve() == (runs / "base/seed-1/model").resolve()
    base, two = (read_plan(runs / name / "seed-1" / "plan.parquet") for name in ("base", "two"))
    assert base["layout_image_file_name"].equals(two["layout_image_file_name"])
    assert base["seed"].equals(two["seed"])
    given = {name for names in two["style_image_file_names"] for name in names.split(LIST_SEPARATOR)}
    assert given == set(driven.pool.table["image_file_name"])
    assert not given & set(driven.reference.table["image_file_name"])

    target = tmp_path / "results" / "tiny"
    ablation.write_table(driven, target)
    for name in ("measures.png", "grid.png", "measures.parquet"):
        assert (target / name).stat().st_size > 100, name
    values, bounds = ablation.read_measures(target / "measures.parquet")
    pd.testing.assert_frame_equal(values, ablation.collect(driven))
    assert bounds == driven.bounds(ablation.Reporter(quiet=True))
    summary = ablation.summarise(values).set_index(["variant", "measure"])
    assert set(summary.loc["two"].index) >= set(ablation.MEASURES) - {"correlation_haematoxylin"}
    row = summary.loc[("max", "colour_distance")]
    assert row["low"] <= row["mean"] <= row["high"]
    assert row["delta_mean"] == pytest.approx(row["mean"] - summary.loc[("base", "colour_distance"), "mean"], abs=1e-2)
    text = (target / "table.md").read_text()
    assert text.count("\n| max | 2 |") == 2
    assert text.count("\n| base | 2 |") == 1
    shutil.rmtree(runs)
    ablation.main(["print", str(target)])
    assert capsys.readouterr().out.splitlines()[1:] == text.splitlines()[1:]


def test_bounds_are_of_real_images(tmp_path):
    driven = _driven(tmp_path)
    bounds = driven.bounds(ablation.Reporter(quiet=True))
    assert bounds["chance"]["retrieval_top1"] == pytest.approx(1 / 3)
    assert bounds["real"]["colour_distance"] < bounds["chance"]["colour_distance"]
    assert bounds["real"]["error_second_stain_od"] < bounds["chance"]["error_second_stain_od"]


def test_bad_specifications_are_refused_before_anything_runs(tmp_path):
    for variants, message in (
        ({"max": {"diffusion.style.aggregation": "max"}}, "needs one called base"),
        ({"base": {}, "x": {"diffusion.style.agregation": "max"}}, "variant x: diffusion.style.agregation"),
        ({"base": {}, "x": {"from": "y"}}, "from y: is not a variant"),
        ({"base": {}, "x": {"from": "base", "diffusion.steps": 3}}, r"only synthesis\.\* may differ"),
        ({"base": {}, "x": {"from": "base", "rounds.number": 2}}, r"only synthesis\.\* may differ"),
    ):
        with pytest.raises(StedmError, match=message):
            _driven(tmp_path, variants=variants)
    with pytest.raises(StedmError, match="--only nothing"):
        _driven(tmp_path).run(only=["nothing"])
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_another_base_is_refused(tmp_path):
    _driven(tmp_path)._claim()
    _driven(tmp_path, variants={"base": {}})._claim()
    with pytest.raises(StedmError, match="another judge"):
        _driven(tmp_path, judge={"steps": 3})._claim()


def test_the_difference_to_base_is_paired():
    generator = np.random.default_rng(0)
    rows = []
    for patient in range(12):
        level = generator.normal(0, 10)
        for seed in (0, 1, 2):
            rows.append(("base", seed, "kid", str(patient), level))
            rows.append(("better", seed, "kid", str(patient), level + 1 + generator.normal(0, 0.1)))
    values = pd.DataFrame(rows, columns=["variant", "seed", "measure", "patient_id", "value"])
    row = ablation.summarise(values).set_index("variant").loc["better"]
    assert row["low"] < 0 < row["high"]
    assert 0.8 < row["delta_low"] < 1 < row["delta_high"] < 1.2
