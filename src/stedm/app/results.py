"""The Run tab: scores patient by patient, what two arms saw, what was painted, whom to look at next."""

from typing import Any

import numpy as np
import pandas as pd

from stedm.app.opened import Opened
from stedm.app.painting import Painting
from stedm.errors import StedmError
from stedm.evaluation.verdict import judge
from stedm.experiment.agreement import contradicted, read_agreement
from stedm.io.artefacts import Column, read_csv_table, read_json
from stedm.io.manifest import verify
from stedm.segmentation.predict import predict_masks

MOST_IMAGES = 12
"""Of a patient, in the page."""
_AGAIN = "run `stedm run` again"
_PATIENTS = {
    "patient_id": Column("text"),
    "category": Column("text"),
    "arm": Column("text"),
    "iou": Column("float", low=0.0, high=1.0, may_be_nan=True),
}


def overview(opened: Opened, painting: Painting) -> dict[str, Any]:
    """What the tab shows before a patient is chosen.

    Raises:
        StedmError: no run, no report yet, or one that is damaged.
    """
    if opened.config is None:
        raise StedmError(f"{opened.folder}: is no run; open the folder that `stedm run` has written to see results")
    report = opened.folder / "report"
    if not (report / "report.html").is_file():
        raise StedmError(f"{opened.folder}: has no report yet; {_AGAIN}")
    for name in ("summary.json", "per_patient.csv"):
        verify(report, name)
    summary = read_json(report / "summary.json", dict[str, Any], hint=_AGAIN)
    scores = read_csv_table(report / "per_patient.csv", _PATIENTS, hint=_AGAIN)
    told = judge(summary, opened.config.evaluation)
    arms = list(summary["arms"])
    return {
        "headline": told.headline,
        "tone": told.shade,
        "sentences": told.sentences,
        "pair": list(told.pair or (arms[-1], arms[0])),
        "arms": [{"name": arm, "iou": summary["arms"][arm]["iou_mean"]} for arm in arms],
        "patients": _patients(opened, painting, scores),
        "contradicted": _contradicted(opened, painting),
        "quality": _quality(summary.get("quality") or {}),
        "unit": opened.config.evaluation.unit,
    }


def _patients(opened: Opened, painting: Painting, scores: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a scored patient: id, category, its number in the set (None = its images aren't there), IoU by arm."""
    known = painting.patients("held_out") if "held_out" in opened.sets else []
    number_of = {patient: number for number, (patient, _) in enumerate(known)}
    return [
        {
            "id": patient,
            "category": rows["category"].iloc[0],
            "number": number_of.get(patient),
            "iou": {row.arm: None if np.isnan(row.iou) else row.iou for row in rows.itertuples()},
        }
        for patient, rows in scores.groupby("patient_id")
    ]


def _contradicted(opened: Opened, painting: Painting) -> list[dict[str, Any]] | None:
    """Unannotated patients, those first about whom two votes agree least; None = the run didn't compare any."""
    path = opened.folder / "agreement.csv"
    if not path.is_file() or "unlabeled" not in opened.sets or opened.config is None:
        return None
    number_of = {patient: number for number, (patient, _) in enumerate(painting.patients("unlabeled"))}
    table = read_agreement(path, list(number_of)).sort_values("agreement")
    doubted = set(contradicted(table, opened.config.rounds.agreement or 0.0))
    return [
        {
            "id": row.patient_id,
            "category": row.category,
            "number": number_of[row.patient_id],
            "agreement": None if np.isnan(row.agreement) else row.agreement,
            "doubted": row.patient_id in doubted,
        }
        for row in table.itertuples()
    ]


def _quality(found: dict[str, Any]) -> dict[str, Any]:
    """Of what `stedm quality` measured the warnings, and rows [measure, synthetic, real, chance]; those it has."""
    layout, style, stains, kid, copies = (
        found.get(name) or {} for name in ("layout", "style", "stain_distance", "kid", "memorisation")
    )
    made, real = layout.get("synthetic") or {}, layout.get("real") or {}
    rows = [
        ["layout IoU, by the segmenter", made.get("iou"), real.get("iou"), made.get("iou_of_other_layouts")],
        ["own patient found, mean reciprocal rank", style.get("mrr"), style.get("real"), style.get("chance")],
        ["stain distance, 0 = alike", stains.get("value"), stains.get("real"), stains.get("next_patient")],
        ["KID, 0 = alike", kid.get("value"), kid.get("held_out"), None],
    ]
    for name, space in (copies.get("spaces") or {}).items():
        rows.append([f"part that copies training images, {name}", space.get("rate"), None, None])
    return {"warnings": found.get("warnings") or [], "rows": [row for row in rows if row[1] is not None]}


def patient(opened: Opened, painting: Painting, name: str, number: int) -> dict[str, Any]:
    """One patient of `held_out` or `unlabeled`: its rows, and the rows painted in its style."""
    patients = painting.patients(_seen_set(name))
    if not 0 <= number < len(patients):
        raise StedmError(f"no such patient: {number} of {len(patients)}")
    patient_id, rows = patients[number]
    table, painted = opened.images(name).dataset.table, []
    if opened.synthetic is not None and name == "unlabeled":
        painted = np.flatnonzero(opened.synthetic.table["patient_id"] == patient_id).tolist()
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_IMAGES)).round().astype(int)]
    return {
        "id": patient_id,
        "category": str(table["category"].iloc[rows[0]]),
        "rows": chosen.tolist(),
        "n_images": len(rows),
        "has_truth": [bool(opened.images(name).dataset.has_mask.iloc[row]) for row in chosen],
        "painted": painted[:MOST_IMAGES],
        "n_painted": len(painted),
    }


def predicted(opened: Opened, name: str, row: int, arm: str) -> np.ndarray:
    """What the segmenter of an arm sees in an image of the data, uint8 (H, W), as in the report."""
    cache, segmenter = opened.images(_seen_set(name)), opened.segmenter(arm)
    if not 0 <= row < len(cache):
        raise StedmError(f"no such image: {row} of {len(cache)}")
    if segmenter.classes != list(cache.dataset.info.classes):
        raise StedmError(f"arm {arm}: its classes are not those of {cache.dataset.root}")
    return opened.once(
        f"predicted {name} {row} {arm}", lambda: predict_masks(segmenter.network, cache.image(row)[None])[0]
    )


def truth(opened: Opened, name: str, row: int) -> np.ndarray:
    """The mask of an image; those of unlabeled patients can't be read."""
    cache = opened.images(name)
    if not 0 <= row < len(cache) or not cache.dataset.has_mask.iloc[row]:
        raise StedmError("there is no mask to show of this image")
    return cache.mask(row)


def _seen_set(name: str) -> Any:
    if name not in ("held_out", "unlabeled", "annotated"):
        raise StedmError(f"no such images: {name[:40]}")
    return name
