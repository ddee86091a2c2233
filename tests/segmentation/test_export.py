"""A segmenter in other programs: the same probabilities, at any size and batch, and a card that says how to use it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from stedm.cli import main
from stedm.config import SegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.errors import StedmError
from stedm.io.manifest import sha256_of
from stedm.io.ownership import is_marked
from stedm.segmentation import export
from stedm.segmentation.export import TOLERANCE, export_segmenter
from stedm.segmentation.model import Mirrored, build_own, build_segmenter, load_segmenter, save_segmenter
from stedm.segmentation.segmenter import Segmenter

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])
CLASSES = ["stroma", "tumour: invasive", "glass"]
DATA = {"name": "A cohort (64 px)", "licence": "CC BY 4.0", "citation": "Doe 2020"}
PX = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A segmenter's folder; it predicts from mirror images too, and its weights are no longer the initial ones."""
    network = build_segmenter(TINY, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    folder = tmp_path_factory.mktemp("segmenter") / "model"
    told = {"image_px": PX, "mpp": 0.5, "source_px": [PX, PX], "mirror": True, "provenance": {"data": DATA}}
    return save_segmenter(folder, network, TINY, DatasetInfo("x", CLASSES), **told)


@pytest.fixture(scope="module")
def images():
    """uint8 RGB at the network's own side, so that `Segmenter` sees them as they are."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(PX // 4, axis=1).repeat(PX // 4, axis=2)


def _as_floats(images):
    return images.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.fixture(scope="module")
def package(model, tmp_path_factory):
    """The folder in both formats: exporting a U-Net to ONNX takes seconds, so once."""
    folder = tmp_path_factory.mktemp("exported") / "gland"
    files = Segmenter.from_pretrained(model).export(folder)
    assert {path.name for path in files} >= {"README.md", "model.json", "model.onnx", "model.pt", "rdf.yaml"}
    return folder


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_what_is_exported_agrees_with_the_segmenter_at_any_size_and_batch(model, package, images, suffix):
    run, segmenter = export._FORMATS[suffix][1](package / f"model{suffix}"), Segmenter.from_pretrained(model)
    wanted = segmenter.probabilities(images)
    assert wanted.std() > 0.05, "a network that sees no difference agrees with anything"
    for part in (slice(0, 1), slice(0, 3)):
        found = run(_as_floats(images[part]))
        assert np.abs(found - wanted[part]).max() < TOLERANCE
        assert (found.argmax(axis=1) == segmenter.predict(images[part])).mean() > 0.999
    # Larger ones in one piece, oblong: `Segmenter` would see them in tiles, the network itself does not.
    oblong = np.concatenate([_as_floats(images)] * 2, axis=3)[:, :, :, :56]
    network, _ = load_segmenter(model)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(oblong) / 127.5 - 1).softmax(dim=1).numpy()
    assert np.abs(run(oblong) - wanted).max() < TOLERANCE
    card = json.loads((package / "model.json").read_text())[suffix[1:]]
    assert (card["classes"], card["mpp"], card["tile_px"]) == (CLASSES, 0.5, PX)
    assert card["input"]["sides_px"] == "multiples of 8"
    assert "x / 127.5 - 1" in card["input"]["normalisation"]
    assert card["provenance"]["data"] == DATA
    assert card["largest_difference"] < TOLERANCE


def test_the_verb_writes_a_file_and_its_card_and_replaces_its_own_alone(model, tmp_path, capsys):
    written = tmp_path / "gland.pt"
    for _ in range(2):  # over its own
        with pytest.raises(SystemExit) as stop:
            main(["export", str(model), "-o", str(written)])
        assert stop.value.code in (0, None)
        assert capsys.readouterr().out.split() == [str(written), f"{written}.json"]
    assert json.loads((tmp_path / "gland.pt.json").read_text())["classes"] == CLASSES
    segmenter = Segmenter.from_pretrained(model)
    (tmp_path / "b.onnx").write_bytes(b"mine")
    with pytest.raises(StedmError, match="stedm did not write it"):
        segmenter.export(tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == b"mine"
    with pytest.raises(StedmError, match=r"give FILE\.onnx or FILE\.pt"):
        segmenter.export(tmp_path / "a.tflite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    with pytest.raises(StedmError, match="give another folder"):
        segmenter.export(tmp_path / "other")


def test_the_files_carry_their_card_and_are_known_as_stedms_own(package):
    import onnx

    told = {each.key: each.value for each in onnx.load(package / "model.onnx").metadata_props}
    assert json.loads(told["stedm"])["classes"] == CLASSES
    extra = {"stedm export.json": ""}
    with export._torchscript():
        torch.jit.load(package / "model.pt", _extra_files=extra)
    assert json.loads(extra["stedm export.json"])["tile_px"] == PX
    assert all(is_marked(package / name, "stedm export") for name in ("model.onnx", "model.pt", "model.json"))


READ = """
import sys
from bioimageio.spec import load_description
found = load_description(sys.argv[1], perform_io_checks=True)
for detail in found.validation_summary.details:
    for error in detail.errors:
        print(error.loc, error.msg)
print(found.validation_summary.status, [axis.scale for axis in found.inputs[0].axes[2:]], str(found.license))
"""


def test_the_folder_is_one_that_bioimage_io_reads(package, tmp_path):
    environment = os.environ | {"BIOIMAGEIO_CACHE_PATH": str(tmp_path / "cache")}
    # In a process of its own: it leaves files open, which is an error here.
    command = [sys.executable, "-c", READ, str(package / "rdf.yaml")]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert shown.stdout.splitlines()[-1:] == ["valid-format [0.5, 0.5] CC-BY-4.0"], shown.stdout + shown.stderr[-2000:]
    said = yaml.safe_load((package / "rdf.yaml").read_text())
    assert said["outputs"][0]["axes"][1]["channel_names"] == CLASSES
    assert said["weights"]["onnx"]["sha256"] == sha256_of(package / "model.onnx")
    image, wanted = (np.load(package / f"test_{name}.npy") for name in ("image", "probabilities"))
    for suffix, (_, load) in export._FORMATS.items():
        assert np.abs(load(package / f"model{suffix}")(image) - wanted).max() < TOLERANCE


class _OfOneSize(nn.Module):
    """With a position for each pixel, as networks with position embeddings have it."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.mix, self.place = nn.Conv2d(3, n_classes, 1), nn.Parameter(torch.randn(1, n_classes, PX, PX))

    def forward(self, images):
        return self.mix(images) + self.place


class _Choosing(nn.Module):
    """Whose steps depend on what it sees: no trace of it is right."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.mix = nn.Conv2d(3, n_classes, 1)

    def forward(self, images):
        found = self.mix(images)
        return found if float(images.mean()) > 2 else 3 * found.flip(1)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_own_networks_are_exported_as_far_as_they_can_be(tmp_path, suffix):
    dataset = DatasetInfo("x", CLASSES)
    for number, (make, sides) in enumerate(((lambda n: nn.Conv2d(3, n, 1), "multiples of 1"), (_OfOneSize, str(PX)))):
        folder = save_segmenter(tmp_path / str(number), build_own(make, 3), None, dataset, image_px=PX)
        Segmenter.from_pretrained(folder, make).export(tmp_path / f"{number}{suffix}")
        card = json.loads((tmp_path / f"{number}{suffix}.json").read_text())
        assert card["input"]["sides_px"] == sides


def test_a_network_whose_steps_depend_on_the_image_is_refused(tmp_path, model):
    _, info = load_segmenter(model)
    with pytest.raises(StedmError, match=r"x\.onnx: .*can't be exported .*try FILE\.pt"):
        export_segmenter(_Choosing(3).eval(), info, tmp_path / "x.onnx")
    deep = Mirrored(nn.Sequential(_Shifted(), nn.Conv2d(3, 3, 1))).eval()
    with pytest.raises(StedmError, match=r"depends on its input; try FILE\.onnx"):
        export_segmenter(deep, info, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


class _Shifted(nn.Module):
    def forward(self, images):
        return images * round(float(images.std()) * 1000)


def test_without_its_packages_it_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(StedmError, match=r'ONNX needs onnxscript: pip install "stedm\[export\]", or give FILE\.pt'):
        Segmenter.from_pretrained(model).export(tmp_path / "a.onnx")
