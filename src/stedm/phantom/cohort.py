"""A phantom cohort as a dataset folder."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from stedm.config import PhantomConfig
from stedm.data.folder import DatasetInfo, write_metadata, write_png
from stedm.errors import StedmError
from stedm.io.files import replacing, require_new, write_json
from stedm.io.images import class_palette
from stedm.phantom.patients import CATEGORIES, CLASSES, Patient, draw_layout, draw_patient
from stedm.phantom.render import render_patient_image
from stedm.seeds import numpy_generator


def make_phantom(config: PhantomConfig, root: str | Path) -> None:
    """Write a cohort as a dataset folder, with `patients.json` (the true parameters of every patient) beside it.

    The folder appears whole or not at all. Images of split `unlabeled` have masks too, as in a real dataset whose
    annotations are held back; only the fully supervised upper bound may read them. Each patient is a pure function of
    (seed, split, number in the split), each image of that and its own number. `StedmError` if `root` holds files.
    """
    root = Path(root)
    require_new(root, "the phantom")
    rows, truth = [], []
    with replacing(root) as folder:
        for split, n_patients in config.patients.items():
            for number, category in enumerate(patient_categories(config, split)):
                name = f"{_LETTER_OF[split]}{number:0{max(2, len(str(n_patients - 1)))}d}"
                patient = draw_patient(config, category, numpy_generator(config.seed, "phantom", split, number))
                truth.append({"patient_id": name, "split": split, **asdict(patient)})
                rows += _write_images(config, patient, split, number, name, folder)
        if not rows:
            raise StedmError("phantom: no patients; give data.phantom.patients at least one in a split")
        info = DatasetInfo(
            name=f"phantom-{config.stain}",
            classes=CLASSES[config.stain],
            licence="CC0-1.0",
            citation="Procedural images made by stedm; no patient data.",
        )
        write_metadata(folder, info, pd.DataFrame(rows))
        write_json(folder / "patients.json", {"config": config.model_dump(mode="json"), "patients": truth})


# Letters, not names: Hugging Face's ImageFolder takes words like "train" in file names for its own splits.
_LETTER_OF = {"train": "A", "unlabeled": "U", "val": "V", "test": "T"}


def patient_categories(config: PhantomConfig, split: str) -> list[str]:
    """Category of each patient of a split: balanced, or as `train_categories` says."""
    names, n_patients = CATEGORIES[config.stain], config.patients.get(split, 0)
    if split != "train" or config.train_categories is None:
        return [names[number % len(names)] for number in range(n_patients)]
    unknown = set(config.train_categories) - set(names)
    if unknown or len(config.train_categories) != n_patients:
        raise StedmError(
            f"phantom: train_categories must be {n_patients} of {', '.join(names)} (one per train patient), "
            f"not {config.train_categories}"
        )
    return list(config.train_categories)


def _write_images(
    config: PhantomConfig, patient: Patient, split: str, number: int, name: str, folder: Path
) -> list[dict[str, str | int | float]]:
    rows: list[dict[str, str | int | float]] = []
    for image in range(config.images_per_patient):
        layout = draw_layout(
            patient,
            config.image_px,
            config.mpp,
            numpy_generator(config.seed, "phantom", split, number, image, "layout"),
        )
        rendered = render_patient_image(
            patient, layout, config.mpp, numpy_generator(config.seed, "phantom", split, number, image, "render")
        )
        file_name = f"{name}_{image:03d}.png"
        write_png(folder / "images" / file_name, rendered)
        write_png(folder / "masks" / file_name, layout, palette=class_palette())
        rows.append(
            {
                "image_file_name": f"images/{file_name}",
                "mask_file_name": f"masks/{file_name}",
                "patient_id": name,
                "slide_id": f"{name}-slide",
                "split": split,
                "category": patient.category,
                "x": image * config.image_px,
                "y": 0,
                "mpp": config.mpp,
            }
        )
    return rows
