"""Models to and from the Hugging Face hub: on request alone, private unless said otherwise, with their card."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import stedm
from stedm.config import SegmentationConfig
from stedm.data.folder import DatasetInfo
from stedm.diffusion.codec import PixelCodec
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.train import make_denoiser
from stedm.errors import StedmError
from stedm.segmentation.model import build_segmenter, save_segmenter

TINY = SegmentationConfig(encoder="tu-test_resnet", encoder_depth=3, decoder_channels=[8, 8, 8])


class Hub:
    """In place of the hub: what was asked of it, and folders for its repositories."""

    def __init__(self, root: Path):
        self.root, self.asked, self.public = root, [], set()

    def api(self, **options):
        self.asked.append(("login", options["token"]))
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.asked.append(("create", repo_id, private))
        if not private:
            self.public.add(repo_id)
        return SimpleNamespace(repo_id=repo_id)

    def model_info(self, repo_id):
        return SimpleNamespace(private=repo_id not in self.public)

    def upload_folder(self, *, repo_id, folder_path, commit_message, create_pr, allow_patterns):
        self.asked.append(("upload", repo_id, commit_message, create_pr))
        for path in Path(folder_path).rglob("*"):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and any(Path(name).match(pattern) for pattern in allow_patterns):
                (self.root / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.root / repo_id / name)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, *, local_files_only, revision, token, **_):
        self.asked.append(("download", repo_id, local_files_only, revision, token))
        if local_files_only or not (self.root / repo_id).is_dir():
            raise LocalEntryNotFoundError(f"no {repo_id} here\nand more")
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", made.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


@pytest.fixture
def model(diffusion_config):
    denoiser = make_denoiser(diffusion_config(), PixelCodec(), 2, seed=0, image_px=16)
    provenance = {"data": {"name": "d", "licence": "", "citation": ""}}
    how = {"objective": "flow", "classes": ["a", "b"], "image_px": 16, "provenance": provenance}
    return StyleDiffusion(denoiser, PixelCodec(), **how)


def test_a_model_goes_to_the_hub_and_comes_back(hub, model, tmp_path):
    address = model.push_to_hub("me/discs", token="t", commit_message="first")
    assert address == "https://hub/me/discs/commit/1"
    assert hub.asked == [("login", "t"), ("create", "me/discs", True), ("upload", "me/discs", "first", False)]
    assert "Style-extracting diffusion model of d" in (hub.root / "me/discs/README.md").read_text()
    back = stedm.StyleDiffusion.from_pretrained("me/discs", local_files_only=False, revision="v1", token="t")
    assert hub.asked[-1] == ("download", "me/discs", False, "v1", "t")
    assert (back.fingerprint, back.provenance) == (model.fingerprint, model.provenance)
    # Whatever was edited there stays with the model.
    (hub.root / "me/discs/README.md").write_text("edited\n")
    stedm.StyleDiffusion.from_pretrained("me/discs", local_files_only=False).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy/README.md").read_text() == "edited\n"


def test_nothing_asks_the_network_unless_it_is_told_to(hub, model, tmp_path):
    model.push_to_hub("me/discs")
    with pytest.raises(StedmError, match=r"me/discs: no model here .* give local_files_only=False, which downloads it"):
        stedm.StyleDiffusion.from_pretrained("me/discs")
    assert hub.asked[-1][:3] == ("download", "me/discs", True)
    hub.asked.clear()
    model.save_pretrained(tmp_path / "model")
    stedm.StyleDiffusion.from_pretrained(tmp_path / "model", local_files_only=False)
    with pytest.raises(StedmError, match="no model here"):
        stedm.StyleDiffusion.from_pretrained(tmp_path / "nothing", local_files_only=False)
    assert hub.asked == []
    with pytest.raises(
        StedmError, match=r"me/gone: can't be downloaded \(no me/gone here and more\); look at its name"
    ):
        stedm.StyleDiffusion.from_pretrained("me/gone", local_files_only=False)


def test_what_comes_from_the_hub_is_checked_as_any_folder(hub, model):
    model.push_to_hub("me/discs")
    index = hub.root / "me/discs/model_index.json"
    index.write_text(index.read_text().replace("flow", "eps"))
    with pytest.raises(StedmError, match=r"model_index\.json: damaged or changed"):
        stedm.StyleDiffusion.from_pretrained("me/discs", local_files_only=False)


def test_nothing_becomes_public_by_mistake(hub, model):
    with pytest.raises(StedmError, match=r"me/discs: the card states no licence; write it into `license:`"):
        model.push_to_hub("me/discs", private=False)
    hub.public.add("me/open")
    with pytest.raises(StedmError, match=r"me/open: is public on the hub; give private=False if that is meant"):
        model.push_to_hub("me/open")
    assert not hub.root.exists()
    model.provenance["data"]["licence"] = "CC0-1.0"
    model.push_to_hub("me/open", private=False)
    assert (hub.root / "me/open/model_index.json").is_file()


def test_a_segmenter_goes_the_same_way(hub, tmp_path):
    folder = save_segmenter(tmp_path / "s", build_segmenter(TINY, 2), TINY, DatasetInfo("x", ["a", "b"]), image_px=16)
    segmenter = stedm.Segmenter.from_pretrained(folder)
    segmenter.push_to_hub("me/segmenter")
    back = stedm.Segmenter.from_pretrained("me/segmenter", local_files_only=False)
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    assert np.array_equal(back.probabilities(image), segmenter.probabilities(image))
    with pytest.raises(StedmError, match="me/other: not a segmenter folder"):
        stedm.Segmenter.from_pretrained("me/other")
