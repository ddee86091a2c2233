"""What YAML and Python take for a value and nobody means: refused in one line that names the key."""

import pytest

from stedm.config import RunConfig, TilingConfig, parse_config
from stedm.config.base import checked, read_values
from stedm.data.check import check_dataset
from stedm.errors import StedmError

RUN = {"name": "x", "data": {"path": "d"}}


def run(**parts):
    return parse_config({**RUN, **parts}, "c.yaml")


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"diffusion": {"lr": True}}, "diffusion.lr: .*truth value"),
        ({"diffusion": {"lr": float("inf")}}, "diffusion.lr: .*finite"),
        ({"diffusion": {"lr": float("nan")}}, "diffusion.lr: "),
        ({"diffusion": {"steps": True}}, "diffusion.steps: .*truth value"),
        ({"segmentation": {"seeds": [0, True]}}, "segmentation.seeds: .*truth value"),
        ({"segmentation": {"seeds": [8, 8]}}, "segmentation.seeds: .*twice"),
        ({"segmentation": {"arms": ["real", "real"]}}, "segmentation.arms: .*twice"),
        ({"segmentation": {"arms": []}}, "segmentation.arms: .*empty"),
        ({"segmentation": {"seeds": []}}, "segmentation.seeds: .*empty"),
        ({"segmentation": {"stain": {"hue": True}}}, "segmentation.stain.hue: .*truth value"),
        ({"segmentation": {"stain": {"hed_sigma": float("inf")}}}, "segmentation.stain.hed_sigma: .*finite"),
        ({"machine": {"cache_mb": float("inf")}}, "machine.cache_mb: .*finite"),
        ({"data": {"path": "d", "annotated_patients": True}}, "annotated_patients: .*truth value"),
        ({"synthesis": {"category_fractions": {"a": {"b": [True, 1]}}}}, "category_fractions.*truth value"),
    ],
)
def test_values_that_are_no_numbers(parts, line):
    with pytest.raises(StedmError, match=line):
        run(**parts)


def test_truth_values_stay_where_they_are_meant():
    assert run(segmentation={"mirror": False}).segmentation.mirror is False
    with pytest.raises(StedmError, match=r"mpp: .*truth value"):
        checked(TilingConfig, {"mpp": True}, "tiling.yaml")


@pytest.mark.parametrize(
    ("parts", "meant"),
    [
        ({"diffusion": {"stepz": 3}}, "diffusion.stepz: .*; did you mean steps?"),
        ({"segmentaton": {}}, "did you mean segmentation?"),
        ({"diffusion": {"codec": {"kind": "autoencoder", "sorce": "a"}}}, "sorce: .*did you mean source?"),
    ],
)
def test_unknown_keys_say_what_may_be_meant(parts, meant):
    with pytest.raises(StedmError, match=meant):
        run(**parts)


@pytest.mark.parametrize("text", ["a: 010", "a: 08", "a: [1, 00]", "a: {b: -07}", "007: a"])
def test_leading_zeros(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(StedmError, match="leading zero"):
        read_values(path, None)


def test_other_zeros_and_powers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [0, 0.5, 10, '010', 1e-4, 1_0, 0x0a]\n")
    assert read_values(path, ["b=[0,1.50]"]) == {"a": [0, 0.5, 10, "010", 1e-4, 10, 10], "b": [0, 1.5]}
    with pytest.raises(StedmError, match="010 has a leading zero"):
        read_values(path, ["segmentation.seeds=[8,010]"])


def test_dataset_yaml_has_the_same_reader(tiny_dataset):
    root = tiny_dataset(images=1)
    good = "name: x\nclasses: [background, disc]\n"
    for text, line in (
        (good + "classes: [disc, background]\n", "classes"),
        (good + "ignore_index: 0255\n", "leading zero"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + _bomb(9), "YAML"),
        ("name: " + "[" * 5000, "not readable as YAML"),
    ):
        (root / "dataset.yaml").write_text(text)
        problems = [problem for problem in check_dataset(root) if "dataset.yaml" in problem]
        assert line in problems[0], problems
        assert "\n" not in problems[0]


def _bomb(levels):
    names = "abcdefghijklm"
    lines = [f"{names[i]}: &{names[i]} [{', '.join([f'*{names[i - 1]}'] * 10)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"name: *{names[levels - 1]}", "classes: [a, b]"]) + "\n"


@pytest.mark.parametrize(("separator", "name"), [(";", "a semicolon"), ("\t", "a tab")])
def test_tables_with_another_separator(tiny_dataset, separator, name):
    root = tiny_dataset(images=1)
    path = root / "metadata.csv"
    path.write_text(path.read_text().replace(",", separator))
    assert f"metadata.csv: the separator is {name}; save the table with commas" in check_dataset(root)[0]


def test_a_forgotten_slides_csv_is_named(tiny_dataset):
    root = tiny_dataset(images=1)
    (root / "slides.csv").write_text("slide_id,patient_id,split,image\n")
    assert any("remove slides.csv" in problem for problem in check_dataset(root))


def test_the_defaults_are_unchanged_by_it():
    assert RunConfig.model_validate(RUN).segmentation.seeds == [0, 1]
