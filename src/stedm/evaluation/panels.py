"""The images of a report: style x layout grid, synthetic examples per patient, worst and best patients."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stedm.config import MachineConfig, SynthesisConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.evaluation.figures import Overlay, PatientExamples, StyleGrid, StyleStrip
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.report import ReportPanels, worst_and_best
from stedm.seeds import numpy_generator
from stedm.segmentation.model import load_segmenter
from stedm.segmentation.predict import predict_masks
from stedm.synthesis.style_bank import StyleBank

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion

GRID_STYLES, GRID_LAYOUTS, EXAMPLE_PATIENTS, EXAMPLE_IMAGES, OVERLAY_PATIENTS = 6, 6, 8, 4, 3
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
) -> ReportPanels:
    """Panels of a run; those of the diffusion model are left out where there is none. `machine`: what segmenters run
    on."""
    return ReportPanels(
        style_grids=[style_grid(model, annotated, unlabeled, synthesis)] if model is not None else [],
        patient_examples=patient_examples(synthetic, unlabeled) if synthetic is not None else [],
        overlays=overlays(segmenters, held_out, counts, machine or MachineConfig()),
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
                style_images=[unlabeled.image(int(row)) for row in real_rows[patient][:EXAMPLE_IMAGES]],
                layouts=[synthetic.read_mask(int(row)) for row in chosen],
                synthetic=[synthetic.read_image(int(row)) for row in chosen],
                category=str(unlabeled.dataset.table["category"].iloc[real_rows[patient][0]]),
            )
        )
    return examples


def overlays(
    segmenters: dict[str, Path], held_out: ImageCache, counts: pd.DataFrame, machine: MachineConfig
) -> list[Overlay]:
    """One image of the worst and best patients of the fullest arm with synthetic images, every arm's prediction."""
    scores = per_patient(counts)
    ours = [arm for arm in segmenters if "synthetic" in arm]
    judged = (ours or list(segmenters))[-1]
    worst, best = worst_and_best(counts, judged, OVERLAY_PATIENTS)
    rows = rows_by_patient(held_out.dataset.table)
    networks = {arm: load_segmenter(folder, machine=machine)[0] for arm, folder in segmenters.items()}
    found = []
    for group, patients in ((f"Worst patients of {judged}", worst), (f"Best patients of {judged}", best)):
        for patient in patients:
            # The patient's image with the most even mix of classes shows most.
            row = max((int(r) for r in rows[patient]), key=lambda r: held_out.mask(r).astype(float).std())
            image = held_out.image(row)
            of_patient = scores[scores["patient_id"] == patient]
            found.append(
                Overlay(
                    patient_id=patient,
                    image=image,
                    truth=held_out.mask(row),
                    predictions={arm: predict_masks(network, image[None])[0] for arm, network in networks.items()},
                    iou=dict(zip(of_patient["arm"], of_patient["iou"], strict=True)),
                    group=group,
                )
            )
    return found


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
    """Up to n annotated images spread over the range of foreground fractions."""
    fractions = np.array([(cache.mask(row) > 0).mean() for row in range(len(cache))])
    order = np.argsort(fractions, kind="stable")
    return [int(order[i]) for i in np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int)]
