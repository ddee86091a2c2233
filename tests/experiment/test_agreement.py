"""Agreement of two votes on unannotated images, by patient."""

import numpy as np
import pandas as pd
import pytest

from stedm.data.folder import DatasetFolder, DatasetInfo, write_metadata
from stedm.errors import StedmError
from stedm.experiment.agreement import agreement, contradicted, read_agreement, write_agreement
from stedm.io.images import write_png


@pytest.fixture
def labels(tmp_path):
    """Factory: a folder of labels, `masks` by image name; an image's patient is its first letter."""

    def make(name: str, masks: dict[str, list[list[int]]]) -> DatasetFolder:
        root = tmp_path / name
        for image, mask in masks.items():
            write_png(root / f"images/{image}.png", np.zeros((2, 4, 3), np.uint8))
            write_png(root / f"masks/{image}.png", np.array(mask, np.uint8))
        table = pd.DataFrame({"image_file_name": [f"images/{image}.png" for image in masks]}).assign(
            mask_file_name=[f"masks/{image}.png" for image in masks],
            patient_id=[image[0] for image in masks],
            split="train",
            category=["NA" if image[0] == "c" else "" for image in masks],
        )
        write_metadata(root, DatasetInfo("labels", ["stroma", "tumour", "fat"]), table)
        return DatasetFolder.open(root)

    return make


NOTHING, ALL, UNKNOWN = [[0] * 4] * 2, [[1] * 4] * 2, [[255] * 4] * 2


def test_agreement_is_over_sure_pixels_of_all_images_of_a_patient(labels, tmp_path):
    sure = labels("sure", {"a1": ALL, "a2": [[1, 1, 255, 255], [0, 0, 2, 2]], "b1": NOTHING, "c1": UNKNOWN, "d1": ALL})
    seen = labels("seen", {"a1": ALL, "a2": [[0, 0, 1, 1], [0, 0, 2, 0]], "b1": NOTHING, "c1": ALL, "d1": NOTHING})
    table = agreement(sure, seen)
    assert table["patient_id"].tolist() == ["a", "b", "c", "d"]
    a = table.set_index("patient_id").loc["a"]
    # Tumour: 8 of the 10 sure pixels that either sees; fat: 1 of 2.
    assert (a["iou_tumour"], a["iou_fat"], a["agreement"]) == (0.8, 0.5, 0.65)
    assert table["sure_fraction"].tolist() == [14 / 16, 1, 0, 1]
    # Without foreground, or without a sure pixel, nobody contradicts anybody.
    assert table["agreement"].isna().tolist() == [False, True, True, False]
    assert contradicted(table, 0.8) == ["a", "d"]
    assert contradicted(table, 0.6) == ["d"]
    write_agreement(table, tmp_path / "agreement.csv")
    again = read_agreement(tmp_path / "agreement.csv", table["patient_id"])
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    lines = (tmp_path / "agreement.csv").read_text().splitlines(keepends=True)
    (tmp_path / "agreement.csv").write_text("".join(lines[:-1]))
    with pytest.raises(StedmError, match=r"agreement\.csv: damaged"):
        read_agreement(tmp_path / "agreement.csv", table["patient_id"])
    (tmp_path / "agreement.csv.sha256").unlink()
    with pytest.raises(StedmError, match="other patients"):
        read_agreement(tmp_path / "agreement.csv", table["patient_id"])
