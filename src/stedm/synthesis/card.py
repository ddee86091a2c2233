"""The card of a synthetic set (stedm.data.card)."""

from collections import Counter

import pandas as pd

from stedm.config import Sampling
from stedm.data.card import NOT_MEASURED, QUALITY, dataset_card, listed, section_to_fill
from stedm.data.folder import DatasetFolder
from stedm.data.provenance import source_of
from stedm.data.pseudonyms import Pseudonyms

MOST_NAMED = 40
"""Patients whose number of images is listed one by one."""


def synthetic_card(plan: pd.DataFrame, dataset: DatasetFolder, model_fingerprint: str, pseudonymised: bool) -> str:
    """README.md of a set of painted images: how it was made, from whose images, what it is for; patients by pseudonym.

    Args:
        plan: its rows, with ids as in `dataset`.
        pseudonymised: whether metadata.csv has pseudonyms too.
    """
    data = source_of(dataset)
    named = data["name"] or "images of unnamed data"
    sections = {
        "Use": (
            "```python\nimport datasets\n\n"
            'rows = datasets.load_dataset("imagefolder", data_dir="this folder", split="train")\n```\n'
            f"Masks are 8-bit PNG of class indices: {listed(dataset.info.classes)}; {dataset.info.ignore_index} = "
            "ignored. A mask is the layout that was asked for, not what somebody saw in the image. `metadata.csv` has "
            "a row an image: layout, style, seed and sampling."
        ),
        "How it was made": _how(plan, model_fingerprint),
        "From whose images": _whose(plan, dataset, pseudonymised),
        "Intended use": (
            "To train segmentation networks beside real images. Not for diagnosis, not as evidence, and not to measure "
            "a network by: what was painted never was in a patient. Every PNG says so in its text chunk `Description`."
        ),
        "Limits": (
            "Pixels at the borders of a layout may show another class than the mask says. Tissue that the model has "
            "not seen can't be in it. An image may resemble a training image closely."
        ),
        "Quality and copies": section_to_fill(QUALITY, NOT_MEASURED),
    }
    about = (
        f"{len(plan)} synthetic images with masks, painted by a style-extracting diffusion model of stedm (an "
        "independent implementation of [Öttl et al., ECCV 2024](https://arxiv.org/abs/2403.14429)): layouts of "
        f"annotated patients of {named} in the styles of others."
    )
    return dataset_card(f"{named} (synthetic)", about, sections, data, n_images=len(plan))


def _how(plan: pd.DataFrame, model_fingerprint: str) -> str:
    rows = [f"| model | {model_fingerprint} (column `model_fingerprint`) |"]
    for text, count in Counter(plan["sampling"]).items():
        sampling = Sampling.model_validate_json(text)
        guidance = f"guidance {sampling.guidance.style:g} on style, {sampling.guidance.layout:g} on layout"
        rows.append(f"| {count} images | {sampling.sampler}, {sampling.steps} steps, {guidance} |")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(plan["layout_kind"]).items()))
    rows.append(f"| layouts | {kinds} |")
    if begun := int((plan["start"] < 1).sum()):
        rows.append(f"| painted over a real image | {begun} |")
    return "\n".join(["| | |", "|---|---|", *rows])


def _whose(plan: pd.DataFrame, dataset: DatasetFolder, pseudonymised: bool) -> str:
    """Counts by pseudonym: they are those of a report made with --pseudonymise."""
    counts = plan["style_patient_id"].value_counts()
    names = dict(zip(counts.index, Pseudonyms(dataset).patients(counts.index), strict=True))
    shown = sorted((names[patient], int(count)) for patient, count in counts.items())
    listing = ", ".join(f"{name} {count}" for name, count in shown[:MOST_NAMED])
    more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
    split = dataset.table.drop_duplicates("patient_id").set_index("patient_id")["split"]
    annotated = int((split.reindex(counts.index) == "train").sum())
    whose = "whom nobody annotated" if not annotated else f"{annotated} of whom are annotated"
    ids = (
        "`metadata.csv` has the same pseudonyms."
        if pseudonymised
        else "**`metadata.csv` has ids of patients and names of images; `synthesize --pseudonymise` writes none.**"
    )
    return (
        f"Styles of {len(counts)} patients, {whose}; layouts of {plan['layout_patient_id'].nunique()} patients. "
        f"Images by whose style they have (pseudonyms as in a pseudonymised report): {listing}{more}.\n\n{ids}"
    )
