"""What the Run tab is told of a run's measures of quality, whichever of them it has."""

from stedm.app.results import _quality


def test_quality_is_a_table_of_what_was_measured():
    assert _quality({}) == {"warnings": [], "rows": []}
    found = {
        "layout": {"synthetic": {"iou": 0.5, "iou_of_other_layouts": 0.2}, "real": {"iou": 0.8}},
        "style": None,
        "stain_distance": {"value": 0.3, "real": 0.1, "next_patient": 0.9},
        "kid": {},
        "memorisation": {"spaces": {"pixels": {"rate": 0.02}}},
        "warnings": ["images ignore their layouts"],
    }
    assert _quality(found) == {
        "warnings": ["images ignore their layouts"],
        "rows": [
            ["layout IoU, by the segmenter", 0.5, 0.8, 0.2],
            ["stain distance, 0 = alike", 0.3, 0.1, 0.9],
            ["part that copies training images, pixels", 0.02, None, None],
        ],
    }
