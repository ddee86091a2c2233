"""Cards of what a run makes: whose data, under which terms, what it is worth; and no name of a patient."""

import json
import re

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from stedm.config import parse_config
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.experiment.experiment import Experiment
from stedm.io.manifest import verify_folder
from stedm.progress import Reporter
from stedm.segmentation.model import load_segmenter

LICENCE, CITATION = "CC BY 4.0", "Doe et al., A cohort of discs, 2020"


@pytest.fixture
def experiment(tiny_dataset, tiny_run, tmp_path):
    root = tiny_dataset(patients={"train": 2, "unlabeled": 3, "val": 1, "test": 2})
    about = yaml.safe_load((root / "dataset.yaml").read_text()) | {"license": LICENCE, "citation": CITATION}
    (root / "dataset.yaml").write_text(yaml.safe_dump(about))
    config = parse_config(tiny_run({"path": str(root)}, seeds=[0], arms=["real", "real+synthetic"]), "test")
    return lambda: Experiment(config, tmp_path / "run", Reporter(quiet=True))


@pytest.mark.usefixtures("plain_reports")
def test_cards_inherit_the_terms_of_the_data_and_tell_what_was_measured(experiment, tmp_path):
    summary, run = experiment().run(), tmp_path / "run"
    data = experiment().context.dataset
    names = {*data.patients(), *data.table["image_file_name"], str(data.root), str(tmp_path)}
    cards = {
        run / "model": ModelCard,
        run / "segmenters/real/seed-0/model": ModelCard,
        run / "synthetic": DatasetCard,
    }
    for folder, kind in cards.items():
        card = kind.load(folder / "README.md")
        assert (card.data.license, "stedm" in card.content) == ("cc-by-4.0", True)
        assert LICENCE in card.text
        assert CITATION in card.text
        assert not [name for name in names if name in card.content], folder
    model, segmenter, synthetic = ((folder / "README.md").read_text() for folder in cards)
    assert ModelCard(model).data.datasets == ["tiny"]
    assert "| annotated | 6 images of 2 patients |" in model
    assert "styles of 5 patients, from 15 images" in model
    assert "6 synthetic images with masks" in synthetic
    assert "patient-5 2, patient-6 2, patient-7 2" in synthetic
    for text in (model, synthetic):
        assert "Not measured yet" not in text
        copies = summary["quality"]["memorisation"]["spaces"]["pixels"]["copies"]
        assert re.search(rf"^pixels +{copies} of 6 ", text, flags=re.M)
    assert f"| {summary['arms']['real']['iou_mean']:.3f} |" in segmenter
    for index in (json.loads((run / "model/model_index.json").read_text()), load_segmenter(list(cards)[1])[1].__dict__):
        told = index["provenance"]
        assert told["data"]["licence"] == LICENCE
        assert told["images"]["annotated"] == {"patients": 2, "images": 6}
        assert not [name for name in names if name in json.dumps(told)]
    assert check_dataset(run / "synthetic") == []


def test_a_card_may_be_edited_and_goes_where_the_model_goes(experiment, tmp_path):
    model, folder = experiment().last_round.model(), tmp_path / "run/model"
    text = (folder / "README.md").read_text()
    assert "Not measured yet" in text
    (folder / "README.md").write_text(text.replace("# Style", "# Our style"))
    verify_folder(folder)
    experiment().last_round.synthetic()
    experiment().quality()
    edited = (folder / "README.md").read_text()
    assert "# Our style" in edited
    assert "Not measured yet" not in edited
    again = StyleDiffusion.from_pretrained(folder)
    again.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy/README.md").read_text() == edited
    assert StyleDiffusion.from_pretrained(tmp_path / "copy").provenance == model.provenance != {}
    # A card that somebody wrote anew is left alone.
    (folder / "README.md").write_text("mine\n")
    experiment().quality()
    assert (folder / "README.md").read_text() == "mine\n"


def test_a_pseudonymised_set_says_so(experiment, tmp_path):
    from stedm.synthesis.generate import synthesize

    last = experiment().last_round
    for name, hidden in (("open", False), ("closed", True)):
        synthesize(last.model(), last.plan(), tmp_path / name, pseudonymise=hidden)
        card = (tmp_path / name / "README.md").read_text()
        assert ("has ids of patients" in card) is not hidden
        ids = set(DatasetFolder.open(tmp_path / name).table["patient_id"])
        assert (ids == {"patient-5", "patient-6", "patient-7"}) is hidden
