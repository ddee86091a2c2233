"""The picture of what segmenters see has an image of each patient of a category, and says where there is none."""

import numpy as np
import pytest

import seen_by
from stedm.config import parse_config
from stedm.errors import StedmError
from stedm.experiment.experiment import Experiment
from stedm.progress import Reporter


@pytest.mark.usefixtures("plain_reports")
def test_a_column_for_each_patient_of_the_category(tiny_dataset, tiny_run, tmp_path):
    values = tiny_run({"path": tiny_dataset()}, arms=["real"], seeds=[0])
    experiment = Experiment(parse_config(values, "test"), tmp_path / "run", Reporter(quiet=True))
    experiment.run()
    table = experiment.context.held_out.table
    category = table["category"].iloc[0]
    patients = table.loc[table["category"] == category, "patient_id"].nunique()
    figure = seen_by.seen_figure(tmp_path / "run", category, ["real"])
    assert len(figure.axes) == 3 * patients
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes[patients : 2 * patients]]
    first = table[table["category"] == category].groupby("patient_id", sort=True).head(1)
    rows = [
        table.reset_index(drop=True).index[table["image_file_name"] == name][0] for name in first["image_file_name"]
    ]
    assert all(
        np.array_equal(mask, experiment.context.held_out.read_mask(row)) for mask, row in zip(shown, rows, strict=True)
    )
    with pytest.raises(StedmError, match="no image of category no-such"):
        seen_by.seen_figure(tmp_path / "run", "no-such", ["real"])
