"""The segmenters of a run folder, for whoever names the run where one of its segmenters is meant."""

from pathlib import Path
from typing import Any

from stedm.errors import StedmError
from stedm.io.artefacts import read_json

_MOST_LISTED = 20


def no_segmenter(folder: Path) -> StedmError:
    """What is wrong with a folder that holds no segmenter; of a run it names those that there are."""
    found = sorted(path.parent for path in folder.glob("segmenters/*/seed-*/model/config.json"))
    if not found:
        where = "give the model/ folder of a segmenter, such as RUN/segmenters/real/seed-0/model"
        return StedmError(f"{folder}: not a segmenter folder (config.json is missing); {where}")
    means = _means(folder / "report" / "summary.json")
    lines = [f"{folder}: is a run, not a segmenter; name one of its {len(found)}:"]
    for path in found[:_MOST_LISTED]:
        mean = means.get(path.parent.parent.name)
        lines.append(f"  {path}" + (f"  (mean IoU of the arm {mean:.3f})" if mean is not None else ""))
    return StedmError("\n".join(lines + ["  ..."] * (len(found) > _MOST_LISTED)))


def _means(summary: Path) -> dict[str, float]:
    """Mean IoU by arm, as far as a report is there and readable."""
    try:
        arms = read_json(summary, dict[str, Any])["arms"]
        return {name: float(arm["iou_mean"]) for name, arm in arms.items() if arm["iou_mean"] is not None}
    except (StedmError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}
