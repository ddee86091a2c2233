"""The driver that holds agreement against the truth."""

import shutil

import pandas as pd
import pytest

import agreement
from stedm.config import parse_config
from stedm.evaluation.metrics import per_patient
from stedm.experiment.experiment import Experiment
from stedm.progress import Reporter


def test_agreement_and_scores_of_held_out_patients(tiny_dataset, tmp_path, tiny_run, capsys):
    root, run = tiny_dataset(), tmp_path / "run"
    values = tiny_run({"path": root}, arms=["real+stain", "real+stain+synthetic"], seeds=[0])
    values["rounds"] |= {"number": 2, "fine_tune": None}
    made = Experiment(parse_config(values, "test"), run, Reporter(quiet=True))
    made.run()
    agreement.main([str(run), str(root), "--split", "test", "-o", str(tmp_path / "out/table.csv")])
    table = pd.read_csv(tmp_path / "out/table.csv", dtype={"patient_id": str}).set_index("patient_id")
    patients = made.context.dataset.split("test").patients()
    assert sorted(table.index) == patients
    scores = per_patient(made.counts()).set_index(["arm", "patient_id"])["iou"]
    for arm in agreement.ARMS:
        assert table[arm].to_dict() == pytest.approx(scores[arm].to_dict(), abs=1e-4, nan_ok=True)
    assert capsys.readouterr().out.startswith(f"{len(patients)} patients, agreement below 0.8 about ")
    shutil.rmtree(run / "predictors")
    with pytest.raises(SystemExit, match="no voters of two rounds"):
        agreement.main([str(run), str(root), "-o", str(tmp_path / "none.csv")])
