"""The same image, mask or slide in several splits or under several patients, whatever the files are called."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from stedm.data.occurrence import Findings, some
from stedm.errors import StedmError
from stedm.io.images import FileFacts, read_image_file, read_mask_file
from stedm.io.tables import alike

_TELLING_BYTES = 1024
"""Masks of simple shapes coincide by chance; not those that take more than this in a PNG file."""


def duplicate_findings(
    root: Path, table: pd.DataFrame, images: Mapping[str, FileFacts], masks: Mapping[str, FileFacts]
) -> Findings:
    """Same images and masks: refused between splits, a warning within one.

    Of `images` and `masks` (by file name) the pixels are compared, whatever the format; images of one colour are left
    out. Masks count where one file has several names or images, or where it is too intricate to be there by chance.
    """
    problems, warnings = [], []
    plain = {name for name, facts in images.items() if facts.is_plain}
    copies = _equal(images.keys() - plain, images, lambda name: read_image_file(root, name).tobytes())
    _judge(table, "image_file_name", "image", copies, problems, warnings)
    telling = {name for name, facts in masks.items() if _is_telling(root / name, facts)}
    mask_copies = [*_links(root, masks), *_equal(telling, masks, lambda name: read_mask_file(root, name).tobytes())]
    # Two rows with the same image and the same mask are one finding.
    copied = [set(group) for group in copies]
    images_of = defaultdict(set)
    for mask, image in zip(table["mask_file_name"], table["image_file_name"], strict=True):
        images_of[mask].add(image)
    mask_copies = [g for g in mask_copies if not any(set().union(*(images_of[n] for n in g)) <= c for c in copied)]
    _judge(table, "mask_file_name", "mask", mask_copies, problems, warnings)
    return problems, warnings


def slide_id_findings(table: pd.DataFrame) -> Findings:
    """A slide under several patients: refused between splits, a warning within one."""
    problems, warnings = [], []
    named = table[(table[["slide_id", "patient_id"]] != "").all(axis=1)]
    # A patient in several splits has a line already.
    scattered = set(named["patient_id"][named.groupby("patient_id")["split"].transform("nunique") > 1])
    for slide, rows in named.groupby("slide_id")[["patient_id", "split"]]:
        patients, splits = sorted(set(rows["patient_id"])), sorted(set(rows["split"]))
        if len({alike(patient) for patient in patients}) > 1:
            line = f"metadata: slide {slide} is of several patients ({some(patients)})"
            if len(splits) > 1 and not scattered & set(patients):
                problems.append(f"{line} in several splits ({', '.join(splits)}); give slides names of their own")
            elif len(splits) == 1:
                warnings.append(f"{line}; one patient, or two slides of one name?")
    return problems, warnings


def slide_findings(slides: pd.DataFrame) -> Findings:
    """The same for slides, by the bytes of their files; `slides` as `read_slides` gives them."""
    problems, warnings = [], []
    by_size = defaultdict(list)
    for path in slides["image"]:
        try:
            by_size[os.stat(path).st_size].append(path)
        except OSError:
            continue  # whoever opens it says so
    suspects = [path for paths in by_size.values() if len(paths) > 1 for path in paths]
    copies = [group for group in _groups(suspects, _file_digest) if len(group) > 1]
    _judge(slides, "image", "slide", copies, problems, warnings)
    return problems, warnings


def _judge(
    table: pd.DataFrame, column: str, kind: str, groups: Iterable[list[str]], problems: list[str], warnings: list[str]
) -> None:
    within = []
    places = defaultdict(set)
    for name, split, patient in zip(table[column], table["split"], table["patient_id"], strict=True):
        places[name].add((split, patient))
    for group in groups:
        found = set().union(*(places[name] for name in group))
        splits, patients = (sorted({place[number] for place in found}) for number in (0, 1))
        names = f"{some(group)} " + ("are the same" if len(group) > 1 else "is one")
        if len(splits) > 1:
            problems.append(f"{names} {kind}, in several splits ({', '.join(splits)}); keep it in one")
        elif len(patients) > 1:
            warnings.append(f"{names} {kind} under several patients ({some(patients)}); one patient?")
        elif kind == "image":
            within.append(" = ".join(group[:3]))
    if within:
        warnings.append(f"the same image more than once under one patient, {len(within)} times: {some(within)}")


def _is_telling(path: Path, facts: FileFacts) -> bool:
    try:
        return facts.counts is not None and (facts.counts > 0).sum() > 1 and path.stat().st_size >= _TELLING_BYTES
    except OSError:
        return False


def _links(root: Path, masks: Mapping[str, FileFacts]) -> list[list[str]]:
    """One mask file under each of its names, also where that is a single one: it may have several rows."""
    return _groups(sorted(masks), lambda name: os.path.realpath(root / name))


def _equal(names: Iterable[str], facts: Mapping[str, FileFacts], pixels: Callable[[str], bytes]) -> list[list[str]]:
    suspects = _groups(sorted(names), lambda name: (facts[name].size, facts[name].checksum))
    # A short checksum coincides once in many thousand images: looked at again.
    exact = [_groups(group, lambda name: hashlib.sha256(pixels(name)).digest()) for group in suspects if len(group) > 1]
    return [group for some_groups in exact for group in some_groups if len(group) > 1]


def _groups(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return list(groups.values())


def _file_digest(path: str) -> str:
    try:
        with open(os.path.realpath(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StedmError(f"{path}: not readable ({error}); replace the file") from error
