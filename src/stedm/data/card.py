"""README.md of what is handed on: a card with the front matter of the Hugging Face hub.

Data, licence and citation are those of the data set; where it says nothing, the card says so and what to fill in where.
A card belongs to who hands on the folder and may be edited: it has no part in the folder's manifest, and later stages
write into the sections that are marked for them alone.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stedm.errors import StedmError
from stedm.io.files import write_text

README = "README.md"
LARGEST_CARD_BYTES = 1 << 20
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "pddl", "odc-by", "odbl", "unlicense"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cdla-permissive-2.0", "gpl-3.0", "agpl-3.0"),
)
"""Those among the hub's identifiers that data come under."""
UNKNOWN = "unknown"
"""The hub's identifier for a licence of which nothing is said."""
QUALITY, SCORES = "quality", "scores"
"""Sections that `stedm run` fills: of models and synthetic sets, and of segmenters."""
NOT_MEASURED = (
    "Not measured yet. `stedm run` writes it here when it has looked at the synthetic images; `stedm quality SYNTHETIC "
    "--against DATASET` measures any set. Look for copies before you give the model away: a diffusion model may have "
    "learned training images by heart."
)
TAGS = ("histopathology", "medical-imaging", "style-extracting-diffusion-model")
SOFTWARE = """@inproceedings{oettl2024style,
  title = {Style-Extracting Diffusion Models for Semi-Supervised Histopathology Segmentation},
  author = {{\\"O}ttl, Mathias and others},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2024},
  note = {arXiv:2403.14429}
}"""


def licence_keys(licence: str) -> dict[str, str]:
    """What front matter says of a licence in a data set's own words: an identifier of the hub, or `other` by name."""
    words = re.sub(r"[\s_]+", "-", licence.strip().lower())
    if not words:
        return {"license": UNKNOWN}
    for candidate in (words, re.sub(r"^(?:creative-commons|cc)-", "cc-", words.replace("cc-0", "cc0"))):
        if candidate in _LICENCES:
            return {"license": candidate}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", words).strip("-")[:80] or UNKNOWN}


def model_card(
    title: str, about: str, sections: Mapping[str, str], data: Mapping[str, Any], *, pipeline_tag: str, tags: list[str]
) -> str:
    """The card of a model; `data` is what `stedm.data.provenance.source_of` says."""
    from huggingface_hub import ModelCardData

    head = ModelCardData(
        **licence_keys(data["licence"]),
        library_name="stedm",
        pipeline_tag=pipeline_tag,
        tags=[*TAGS, *tags],
        datasets=[slug(data["name"])],
    )
    return _card(head, title, about, sections, data)


def dataset_card(title: str, about: str, sections: Mapping[str, str], data: Mapping[str, Any], *, n_images: int) -> str:
    """The card of a dataset folder of synthetic images."""
    from huggingface_hub import DatasetCardData

    head = DatasetCardData(
        **licence_keys(data["licence"]),
        pretty_name=title,
        task_categories=["image-segmentation"],
        annotations_creators=["machine-generated"],
        size_categories=[_size(n_images)],
        source_datasets=[f"extended|other-{slug(data['name'])}"],
        tags=[*TAGS, "synthetic", "stedm"],
    )
    return _card(head, title, about, sections, data)


def _card(head: Any, title: str, about: str, sections: Mapping[str, str], data: Mapping[str, Any]) -> str:
    parts = [f"# {title}", about, *(f"## {name}\n{text}" for name, text in sections.items()), _rights(data)]
    return f"---\n{head.to_yaml()}\n---\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def _rights(data: Mapping[str, Any]) -> str:
    """Whose data it is, under which terms, and what to cite."""
    to_do = "Fill it in here{also}, and in dataset.yaml of the data set (`{key}:`), so that what is made next says it."
    licence = data["licence"] or (
        "**The data set says nothing about its licence.** "
        + to_do.format(also=" and in `license:` at the top of this file", key="license")
    )
    citation = data["citation"] or ("**The data set names nothing to cite.** " + to_do.format(also="", key="citation"))
    return (
        f"## Data, licence, citation\nLearned from: {data['name'] or 'a data set without a name'}.\n\n"
        f"Licence, that of the data: {licence}\n\nWhether it holds for what was learned from the data is for you to "
        f"judge.\n\nTo cite, of the data: {citation}\n\nOf the method and the software (stedm, an independent "
        f"implementation):\n```bibtex\n{SOFTWARE}\n```"
    )


def slug(name: str) -> str:
    """A data set's name as an identifier; one of the hub (`owner/name`) as it is."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unnamed"


def _size(n: int) -> str:
    for most, text in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if n < most:
            return text
    return "1M<n<10M"


# ---- what cards of models say alike ---------------------------------------------------------------------------------


def source_in(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Name, licence and citation of the data in what `stedm.data.provenance.of_model` gives; "" = nothing is said."""
    return {"name": "", "licence": "", "citation": ""} | dict(provenance.get("data", {}))


def seen_table(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Counts of images and patients, and settings of the training, as a table."""
    images, training = provenance.get("images", {}), provenance.get("training", {})
    if not images and not training:
        return "Not noted: the model was written without it."
    rows = [f"| {role} | {count['images']} images of {count['patients']} patients |" for role, count in images.items()]
    rows += [f"| {name} | {value} |" for name, value in {**settings, **training}.items()]
    software = {"stedm": provenance.get("stedm"), "torch": provenance.get("packages", {}).get("torch")}
    rows += [f"| {name} | {value} |" for name, value in software.items() if value]
    return "\n".join(["| | |", "|---|---|", *rows])


def listed(names: Sequence[str]) -> str:
    """Classes with their indices, in a line."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(names))


# ---- sections that later stages fill --------------------------------------------------------------------------------


def section_to_fill(name: str, text: str) -> str:
    """Text that `fill_section` may replace."""
    return f"{_begin(name)}\n{text}\n{_end(name)}"


def fill_section(folder: Path, name: str, text: str) -> bool:
    """Write `text` into the section of a folder's card, and nothing else; whether it was there to be written.

    A card without the section, or none, was left so by somebody.
    """
    card = read_card(folder)
    pattern = re.compile(f"{re.escape(_begin(name))}.*?{re.escape(_end(name))}", re.DOTALL)
    if card is None or not pattern.search(card):
        return False
    filled = pattern.sub(lambda _: section_to_fill(name, text), card, count=1)
    if filled != card:  # a complete run may lie in a read-only folder
        write_text(folder / README, filled)
    return True


def read_card(folder: Path) -> str | None:
    """The card of a folder; None = it has none.

    Raises:
        StedmError: it can't be read.
    """
    path = folder / README
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST_CARD_BYTES:
            raise StedmError(f"{path}: larger than a card should be; shorten or remove it")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StedmError(f"{path}: not readable ({error}); correct or remove it") from error


def _begin(name: str) -> str:
    return f"<!-- {name}: written by stedm -->"


def _end(name: str) -> str:
    return f"<!-- end of {name} -->"
