"""The images of a report: style x layout grid, synthetic examples per patient, patients one by one."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stedm.config import MachineConfig, SynthesisConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.evaluation.counts import pool_units
from stedm.evaluation.figures import Overlay, PatientExamples, StyleGrid, StyleStrip
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.report import Doubted, ReportPanels, worst_and_best
from stedm.evaluation.training_log import painted_meanwhile, training_curves
from stedm.evaluation.verdict import LIKE_FOR_LIKE
from stedm.seeds import numpy_generator
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks
from stedm.synthesis.style_bank import StyleBank

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion

GRID_STYLES, GRID_LAYOUTS, EXAMPLE_PATIENTS, EXAMPLE_IMAGES = 6, 6, 8, 4
SHOWN_PATIENTS, SHOWN_ARMS, DOUBTED_PATIENTS = 48, 4, 10
STRIP_IMAGES, STRIP_ENDS = 9, 3
GRID_SEED = 0


def report_panels(
    *,
    annotated: ImageCache,
    unlabeled: ImageCache,
    held_out: ImageCache,
    model: "StyleDiffusion | None",
    synthetic: DatasetFolder | None,
    segmenters: dict[str, Path],
    counts: pd.DataFrame,
    synthesis: SynthesisConfig,
    bank: StyleBank | None = None,
    machine: MachineConfig | None = None,
    unit: str = "patient",
    run: Path | None = None,
    agreement: pd.DataFrame | None = None,
    contradicted: Collection[str] = (),
) -> ReportPanels:
    """Panels of a run; those of the diffusion model are left out where there is none.

    machine: what segmenters run on. run: the run folder, for its diffusion model's training. agreement, contradicted:
    of the unannotated patients, where the run has it (see stedm.experiment.agreement).
    """
    return ReportPanels(
        style_grids=[style_grid(model, annotated, unlabeled, synthesis)] if model is not None else [],
        patient_examples=patient_examples(synthetic, unlabeled) if synthetic is not None else [],
        overlays=overlays(segmenters, held_out, counts, unit, machine or MachineConfig()),
        curves=training_curves(run) if run is not None else [],
        progress=painted_meanwhile(run) if run is not None else [],
        whom=doubted(agreement, contradicted, unlabeled) if agreement is not None else [],
        contradicted=list(contradicted),
        style_strips=(
            [style_strip(model, bank, annotated, unlabeled, synthesis)]
            if model is not None and bank is not None and len(bank.patients) > 1
            else []
        ),
    )


def style_grid(
    model: "StyleDiffusion", annotated: ImageCache, unlabeled: ImageCache, synthesis: SynthesisConfig
) -> StyleGrid:
    """The same layouts in the styles of several unannotated patients; one noise per layout, so that rows compare."""
    seen = set(annotated.dataset.table["category"])
    patients = _spread_over_categories(unlabeled.dataset, GRID_STYLES, seen)
    rows = rows_by_patient(unlabeled.dataset.table)
    layout_rows = _different_rows(annotated, GRID_LAYOUTS)
    layouts = np.stack([annotated.mask(row) for row in layout_rows])
    styles = [[unlabeled.image(int(row)) for row in rows[patient][: synthesis.style_images]] for patient in patients]
    generated = model.generate(
        np.concatenate([layouts] * len(patients)),
        [style for style in styles for _ in layouts],
        sampling=synthesis.sampling,
        seed=[GRID_SEED + column for _ in patients for column in range(len(layouts))],
    )
    by_row = generated.reshape(len(patients), len(layouts), *generated.shape[1:])
    table = unlabeled.dataset.table
    return StyleGrid(
        style_images=[style[:3] for style in styles],
        layouts=list(layouts),
        generated=[list(row) for row in by_row],
        row_labels=[f"{patient}\n{table['category'].iloc[rows[patient][0]]}".strip() for patient in patients],
        caption="Each row: the style of one patient nobody annotated. Each column: one layout of an annotated patient.",
    )


def style_strip(
    model: "StyleDiffusion",
    bank: StyleBank,
    annotated: ImageCache,
    unlabeled: ImageCache,
    synthesis: SynthesisConfig,
) -> StyleStrip:
    """One layout in styles between those of the two unannotated patients that are farthest apart in the bank."""
    first, last = bank.farthest_pair()
    rows = rows_by_patient(unlabeled.dataset.table)
    layout_rows = _different_rows(annotated, 3)
    layout = annotated.mask(layout_rows[len(layout_rows) // 2])
    generated = model.generate(
        np.stack([layout] * STRIP_IMAGES),
        style_vectors=bank.interpolate(first, last, STRIP_IMAGES),
        sampling=synthesis.sampling,
        seed=[GRID_SEED] * STRIP_IMAGES,
    )
    return StyleStrip(
        layout=layout,
        ends=tuple([unlabeled.image(int(row)) for row in rows[patient][:STRIP_ENDS]] for patient in (first, last)),
        generated=list(generated),
        end_labels=(first, last),
        caption="From one to the other of the two patients nobody annotated whose styles lie farthest apart.",
    )


def patient_examples(synthetic: DatasetFolder, unlabeled: ImageCache) -> list[PatientExamples]:
    """Real images of unannotated patients beside what was made in their style."""
    real_rows, synthetic_rows = rows_by_patient(unlabeled.dataset.table), rows_by_patient(synthetic.table)
    examples = []
    # With many patients (an image each) not every one has synthetic images.
    painted = unlabeled.dataset.select(unlabeled.dataset.table["patient_id"].isin(list(synthetic_rows)))
    for patient in _spread_over_categories(painted, EXAMPLE_PATIENTS):
        chosen = synthetic_rows[patient][:EXAMPLE_IMAGES]
        examples.append(
            PatientExamples(
                patient_id=patient,
                style_images=_first_images(unlabeled, real_rows[patient]),
                layouts=[synthetic.read_mask(int(row)) for row in chosen],
                synthetic=[synthetic.read_image(int(row)) for row in chosen],
                category=str(unlabeled.dataset.table["category"].iloc[real_rows[patient][0]]),
            )
        )
    return examples


def overlays(
    segmenters: dict[str, Path], held_out: ImageCache, counts: pd.DataFrame, unit: str, machine: MachineConfig
) -> list[Overlay]:
    """One image of every scored patient (or category, the unit), and what the networks of a few arms predict in it;
    lowest IoU of the fullest arm with synthetic images first. Of many the worst and the best.
    """
    scores, table = per_patient(pool_units(counts, unit)), held_out.dataset.table
    ours = [arm for arm in segmenters if "synthetic" in arm]
    judged = (ours or list(segmenters))[-1]
    worst, best = worst_and_best(pool_units(counts, unit), judged, SHOWN_PATIENTS // 2)
    chosen = [*worst, *best[::-1]]
    rows = table.groupby("patient_id" if unit == "patient" else "category").indices
    shown = [max(map(int, rows[name]), key=lambda row: _mix(held_out, row)) for name in chosen]
    images = [held_out.image(row) for row in shown]
    arms = _shown_arms(segmenters, judged, scores)
    predictions = {arm: _predictions(segmenters[arm], images, machine) for arm in arms}
    found = []
    for number, (name, row) in enumerate(zip(chosen, shown, strict=True)):
        of_it = scores[scores["patient_id"] == name]
        found.append(
            Overlay(
                patient_id=name,
                image=images[number],
                truth=held_out.mask(row),
                predictions={arm: masks[number] for arm, masks in predictions.items()},
                iou=dict(zip(of_it["arm"], of_it["iou"], strict=True)),
                category=str(table["category"].iloc[row]) if unit == "patient" else "",
            )
        )
    return found


def _mix(cache: ImageCache, row: int) -> float:
    """How evenly classes are mixed in the part of an image that counts, times that part: most of it shows most."""
    known = _known(cache, row)
    return float(known.astype(float).std()) * known.size / cache.image_px**2 if known.size else 0.0


def _known(cache: ImageCache, row: int) -> np.ndarray:
    """The class indices (n,) of the pixels of an image that are not ignored."""
    mask = cache.mask(row)
    return mask[mask != cache.dataset.info.ignore_index]


def _shown_arms(arms: Iterable[str], judged: str, scores: pd.DataFrame) -> list[str]:
    """All of a few; of many the judged one, the one like it without synthetic images, the bound and the next best."""
    means = scores.groupby("arm")["iou"].mean().to_dict()
    first = [judged, next((b for a, b in LIKE_FOR_LIKE if a == judged), "real"), "upper"]
    others = sorted(arms, key=lambda arm: -means.get(arm, 0.0))
    return [arm for arm in dict.fromkeys([*first, *others]) if arm in means and arm in set(arms)][:SHOWN_ARMS]


def _predictions(segmenter: Path, images: Sequence[np.ndarray], machine: MachineConfig) -> list[np.ndarray]:
    network, _ = load_segmenter(segmenter, machine=machine)
    return list(predict_masks(network, np.stack(images))) if images else []


def doubted(agreement: pd.DataFrame, contradicted: Collection[str], unlabeled: ImageCache) -> list[Doubted]:
    """The unannotated patients about whom segmenters agree least, with a few of their images.

    agreement: patient_id, category, agreement. Those whose agreement isn't known are left out.
    """
    rows = rows_by_patient(unlabeled.dataset.table)
    least = agreement.dropna(subset="agreement").sort_values(["agreement", "patient_id"]).head(DOUBTED_PATIENTS)
    return [
        Doubted(name, str(category), float(value), name in contradicted, _first_images(unlabeled, rows[name]))
        for name, category, value in zip(least["patient_id"], least["category"], least["agreement"], strict=True)
    ]


def _first_images(cache: ImageCache, rows: np.ndarray) -> list[np.ndarray]:
    return [cache.image(int(row)) for row in rows[:EXAMPLE_IMAGES]]


def _spread_over_categories(dataset: DatasetFolder, n: int, seen: set[str] | None = None) -> list[str]:
    """Up to n patients, in turn one of each category, those not in `seen` first; a fixed choice."""
    categories = dataset.table.groupby("patient_id")["category"].first()
    queues = [
        numpy_generator(GRID_SEED, "panel", category).permutation(sorted(group.index)).tolist()
        for category, group in sorted(categories.groupby(categories), key=lambda item: item[0] in (seen or ()))
    ]
    turns = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)][:n]


def _different_rows(cache: ImageCache, n: int) -> list[int]:
    """Up to n annotated images spread over the range of foreground fractions; one of which nothing is known only where
    there are no others."""
    known = [_known(cache, row) for row in range(len(cache))]
    rows = [row for row, classes in enumerate(known) if classes.size] or list(range(len(cache)))
    rows.sort(key=lambda row: (known[row] > 0).sum())
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(n, len(rows))).round().astype(int)]
