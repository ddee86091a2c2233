"""The stage of a run that looks at its synthetic images: it says at once, and everywhere, that they are noise."""

import json

import pytest

from stedm.config import parse_config
from stedm.data.folder import DatasetFolder
from stedm.data.pseudonyms import Pseudonyms
from stedm.evaluation.quality_files import FILE, PICTURE
from stedm.evaluation.text import summary_text
from stedm.experiment.experiment import Experiment
from stedm.experiment.quality import for_report
from stedm.progress import Reporter


@pytest.fixture
def experiment(tiny_dataset, tiny_run, tmp_path):
    """Function: the run of a model of two training steps, which has learned nothing."""
    root = tiny_dataset(patients={"train": 3, "unlabeled": 3, "val": 3, "test": 2})

    def make(**segmentation) -> Experiment:
        segmentation = {"seeds": [0], "arms": ["real+stain", "real+synthetic"], "steps": 2} | segmentation
        values = tiny_run({"path": root}, **segmentation)
        values["rounds"] = {"number": 1, "labels": None}
        values["synthesis"] |= {"n_images": 12, "batch": 12}
        return Experiment(parse_config(values, "test"), tmp_path / "run", Reporter())

    return make


def test_a_model_that_paints_noise_is_called_so_at_once_and_in_the_report(experiment, tmp_path, capsys):
    run = tmp_path / "run"
    begun = experiment()
    begun.check()
    begun.last_round.synthetic()
    begun.quality()
    warning = "warning: The synthetic images ignore their layouts"
    assert warning in capsys.readouterr().err
    # Before any network is trained on them.
    assert not (run / "segmenters/real+synthetic").exists()
    written = (run / FILE).stat().st_mtime_ns, (run / PICTURE).stat().st_mtime_ns
    summary = experiment().run()
    assert summary["quality"]["layout"]["verdict"] == "ignored"
    assert summary["quality"]["segmenter"] == "real+stain/seed-0/model"
    assert json.loads((run / "report/summary.json").read_text())["quality"] == summary["quality"]
    assert warning in summary_text(summary)
    page = (run / "report/report.html").read_text()
    assert page.index("ignore their layouts") < page.index("<main>") < page.index('id="quality"')
    assert "closest pairs of synthetic and training images" in page
    # Remembered, until the set is another.
    assert ((run / FILE).stat().st_mtime_ns, (run / PICTURE).stat().st_mtime_ns) == written


@pytest.mark.usefixtures("plain_reports")
def test_a_run_without_synthetic_images_has_no_quality(experiment, tmp_path):
    summary = experiment(arms=["real"]).run()
    assert "quality" not in summary
    assert not (tmp_path / "run" / FILE).exists()


def test_without_an_arm_of_real_images_colours_alone_tell(experiment):
    begun = experiment(arms=["real+synthetic"])
    begun.last_round.synthetic()
    quality = begun.quality()
    assert quality["segmenter"] is None
    assert quality["layout"]["verdict"] == "ignored"


def test_what_a_report_shows_is_without_names_of_images_and_under_other_names_of_patients(tiny_dataset):
    dataset = DatasetFolder.open(tiny_dataset())
    patient = dataset.patients()[0]
    quality = {"closest": [{"image": "a"}], "layout": {"per_patient": {patient: 0.5}, "verdict": "weak"}, "n_images": 1}
    shown = for_report(quality, Pseudonyms(dataset).patients)
    assert shown == {"layout": {"per_patient": {"patient-1": 0.5}, "verdict": "weak"}, "n_images": 1}
