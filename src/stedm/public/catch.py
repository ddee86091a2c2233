"""CATCH, the canine cutaneous cancer histology of Wilm et al. 2022 (Scientific Data 9:588), as a table of slides.

The slides and `CATCH.json` are published by The Cancer Imaging Archive, `datasets.csv` (the split) in the repository
of the paper, DeepMicroscopy/CanineCutaneousTumors.

Verified, in that repository's own files: `datasets.csv` (`Slide;Dataset;Scanner`; 350 slides, 50 a type, named
`TYPE_CASE_SLIDE.svs`, each train, val or test; 282 cases of one to six slides, none of them in two splits); the code
that writes and reads the COCO file (13 category names, `segmentation` as one flat list of x, y in level-0 pixels, a
polygon before those that lie inside of it, no holes). An older version of the table has other slide names and slides
of one case in several splits: it is refused.

Not verified: `CATCH.json` and the slides themselves, which we have not downloaded. That a case is a patient is inferred
from the older names, which are numbered by case, year and block.
"""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stedm.errors import StedmError
from stedm.io.files import replacing, require_file, require_new, write_text
from stedm.io.tables import write_csv
from stedm.seeds import numpy_generator
from stedm.slides.polygon_files import Region, coco_categories, coco_regions_by_image, is_coco, read_json

# How file names and how the COCO categories call the seven tumour types.
CATCH_TUMOURS = {
    "Histiocytoma": "Histiocytoma",
    "MCT": "Mast Cell Tumor",
    "Melanoma": "Melanoma",
    "Plasmacytoma": "Plasmacytoma",
    "PNST": "PNST",
    "SCC": "SCC",
    "Trichoblastoma": "Trichoblastoma",
}
CATCH_TISSUES = ("Bone", "Cartilage", "Dermis", "Epidermis", "Subcutis", "Inflamm/Necrosis")
CATCH_CLASSES = ("other", "tumour")
_SLIDE_NAME = re.compile(rf"({'|'.join(CATCH_TUMOURS)})_(\d+)_(\d+)\.svs")
SLIDE_COLUMNS = ("slide_id", "patient_id", "split", "image", "annotation", "mpp", "category")


def make_catch(
    folder: str | Path, root: str | Path, *, annotated_patients: int | None = None, draw: int = 0
) -> pd.DataFrame:
    """Write `slides.csv`, `classes.yaml` and one GeoJSON a slide into a new folder `root`; slides stay where they are.

    A slide of the split that isn't in the folder is left out, so that a part of the collection can be used. `mpp` is
    left empty: the slides say it, and two scanners made them.

    Args:
        folder: somewhere inside it the slides (`*.svs`), `CATCH.json` (or the one COCO file that is there) and
            `datasets.csv` (or the one CSV with columns Slide and Dataset).
        annotated_patients: so many train patients of each tumour type count as annotated, the other train patients
            become `unlabeled` (the paper's k slides a type); None = all, and nobody is `unlabeled`. Nested: those for
            k are among those for k + 1.
        draw: which random choice of them.

    Returns:
        The table as written.

    Raises:
        StedmError: `root` holds files; a file is missing or not as described above; a slide has no split or no
            image in the COCO file; a patient is in two splits. The folder appears whole or not at all.
    """
    folder, root = Path(folder), Path(root)
    require_new(root, "CATCH")
    slides = _find_slides(folder)
    split_file, coco_file, coco = _find_split(folder), *_find_coco(folder)
    table = _catch_table(split_file, slides)
    regions = coco_regions_by_image(coco_file, coco)
    regions = {str(name).replace("\\", "/").rsplit("/", 1)[-1]: found for name, found in regions.items()}
    if missing := [path.name for path in table["image"] if path.name not in regions]:
        raise StedmError(f"{coco_file}: has no image {_some(missing)} of the slides in {folder}; is it the whole file?")
    table["split"] = _label_budget(table, annotated_patients, draw, split_file)
    table["annotation"] = [f"annotations/{slide}.geojson" for slide in table["slide_id"]]
    with replacing(root) as new:
        for path, name in zip(table["image"], table["annotation"], strict=True):
            _write_regions(new / name, regions[path.name])
        write_text(new / "classes.yaml", _mapping_yaml(set(coco_categories(coco_file, coco).values()), coco_file))
        table["image"] = [str(path.resolve()) for path in table["image"]]
        table = table[list(SLIDE_COLUMNS)]
        write_csv(new / "slides.csv", table)
    return table


# ---- the published files ------------------------------------------------------------------------------------------


def _find_slides(folder: Path) -> dict[str, Path]:
    slides: dict[str, Path] = {}
    for path in _visible(folder, "*.svs"):
        if path.name in slides:
            raise StedmError(f"{path}: there is another slide of this name, {slides[path.name]}; remove one")
        slides[path.name] = path
    if not slides:
        raise StedmError(f"{folder}: no slide (*.svs) in it; download the CATCH slides from The Cancer Imaging Archive")
    return slides


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Copies of macOS lay `._NAME` beside each file."""
    files = folder.rglob(pattern)
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _find_coco(folder: Path) -> tuple[Path, dict[str, Any]]:
    candidates = _visible(folder, "CATCH.json") or _visible(folder, "*.json")
    for path in candidates:
        content = read_json(path)
        if is_coco(content):
            return path, content
    raise StedmError(f"{folder}: no COCO file (CATCH.json, with images and annotations) in it; download it as well")


def _find_split(folder: Path) -> Path:
    candidates = _visible(folder, "datasets.csv") or _visible(folder, "*.csv")
    found = [path for path in candidates if {"Slide", "Dataset"} <= set(_read_rows(path)[0])]
    if len(found) != 1:
        problem = f"{len(found)} tables" if found else "no table"
        raise StedmError(
            f"{folder}: {problem} with columns Slide and Dataset in it; put the one datasets.csv of "
            "DeepMicroscopy/CanineCutaneousTumors there"
        )
    return found[0]


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Column names and rows of a CSV file separated by semicolons (as published) or commas."""
    try:
        require_file(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StedmError(f"{path}: not readable ({error}); download it again") from error
    lines = text.splitlines()
    reader = csv.DictReader(lines, delimiter=";" if lines and ";" in lines[0] else ",")
    return list(reader.fieldnames or []), list(reader)


@dataclass(frozen=True)
class _Name:
    category: str
    patient_id: str
    slide_id: str

    @classmethod
    def of(cls, name: str, source: Path) -> "_Name":
        match = _SLIDE_NAME.fullmatch(name)
        if match is None:
            raise StedmError(f"{source}: {name!r} is not TYPE_CASE_SLIDE.svs with a type of {', '.join(CATCH_TUMOURS)}")
        return cls(match[1], f"{match[1]}_{match[2]}", name.removesuffix(".svs"))


def _catch_table(split_file: Path, slides: dict[str, Path]) -> pd.DataFrame:
    """A row a slide that is in the table and in the folder; `image` is still a Path."""
    rows, split_of, patients = [], {}, {}
    for row in _read_rows(split_file)[1]:
        name, split = (row["Slide"] or "").strip(), (row["Dataset"] or "").strip()
        named = _Name.of(name, split_file)
        if split not in ("train", "val", "test"):
            raise StedmError(f"{split_file}: {name} has split {split!r}; it is train, val or test")
        if name in split_of:
            raise StedmError(f"{split_file}: {name} is there twice; keep one row")
        if patients.setdefault(named.patient_id, split) != split:
            raise StedmError(
                f"{split_file}: patient {named.patient_id} is in {patients[named.patient_id]} and {split}; keep one"
            )
        split_of[name] = split
        if name in slides:
            rows.append({**vars(named), "split": split, "image": slides[name], "mpp": ""})
    if strangers := sorted(set(slides) - set(split_of)):
        raise StedmError(f"{split_file}: has no row for {_some(strangers)}; add it or move the slide away")
    return pd.DataFrame(rows)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


# ---- what is written ----------------------------------------------------------------------------------------------


def _label_budget(table: pd.DataFrame, n_patients: int | None, draw: int, source: Path) -> pd.Series:
    """The split with all but `n_patients` train patients of each type `unlabeled`."""
    if n_patients is None:
        return table["split"]
    train, annotated = table[table["split"] == "train"], set()
    for category, rows in train.groupby("category"):
        patients = sorted(set(rows["patient_id"]))
        if not 1 <= n_patients <= len(patients):
            raise StedmError(
                f"{source}: {n_patients} annotated patients a type asked for, {category} has {len(patients)}; "
                "ask for fewer"
            )
        annotated |= set(numpy_generator(draw, "catch", category).permutation(patients)[:n_patients].tolist())
    return table["split"].mask((table["split"] == "train") & ~table["patient_id"].isin(annotated), "unlabeled")


def _write_regions(path: Path, regions: list[Region]) -> None:
    """The polygons of a slide as GeoJSON that QuPath opens, in the order of the COCO file."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings]},
            "properties": {"objectType": "annotation", "classification": {"name": region.name}},
        }
        for region in regions
        for rings in region.polygons
    ]
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")


def _mapping_yaml(names: set[str], source: Path) -> str:
    targets: Mapping[str, str] = dict.fromkeys(CATCH_TISSUES, "other") | dict.fromkeys(CATCH_TUMOURS.values(), "tumour")
    if strangers := sorted(names - set(targets)):
        raise StedmError(f"{source}: unknown categories {', '.join(strangers)}; is it the CATCH file?")
    text = (
        "# CATCH: tumour of any type against other tissue. For the 13 published classes give each its own name here\n"
        "# and in classes; `ignore` takes one out. Glass and tissue that nobody annotated count nowhere.\n"
    )
    values = {"classes": list(CATCH_CLASSES), "mapping": dict(targets), "unannotated": "ignore"}
    return text + yaml.safe_dump(values, sort_keys=False)
