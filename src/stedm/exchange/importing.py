"""From what people have to a dataset folder: what is understood (`understand`), and how it is written (`write`)."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.data.folder import DatasetInfo, write_metadata, write_png
from stedm.errors import DiskError, StedmError
from stedm.exchange.class_names import IGNORE_INDEX, ClassNames
from stedm.exchange.coco import coco_files, open_coco
from stedm.exchange.mask_values import Labels, Look, decide, listed
from stedm.exchange.nnunet import is_nnunet, open_nnunet
from stedm.exchange.pairs import open_folder
from stedm.exchange.people import People, decoded, find_people
from stedm.exchange.pieces import Pieces, safe_names
from stedm.exchange.qupath import open_tile_lists, tile_lists, with_place
from stedm.exchange.source import Source, SourceImage, some
from stedm.exchange.split import PROPOSE, parse_split, propose_split
from stedm.io.files import replacing
from stedm.io.images import LARGEST_WHOLE_PX, class_palette, image_mpp, image_size, mask_as_shown
from stedm.io.tables import alike

Tick = Callable[[int, int], None]
_COARSE_MPP = 10.0


@dataclass(frozen=True)
class Understood:
    """What was understood of a source, before anything is written.

    `rows`: a row an image of the source, with the columns of a dataset's table but for file names; `sizes`: (width,
    height) by key; `sources`: where a column is from, in words; `fractions`: part of the pixels by class name.
    """

    source: Source
    labels: Labels
    rows: pd.DataFrame
    sizes: dict[str, tuple[int, int]]
    sources: dict[str, str]
    fractions: dict[str, float]
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def open_source(root: Path, masks: str | None = None) -> Source:
    """What lies in a folder (or a COCO file): nnU-Net, COCO, tiles of QuPath, or images and masks.

    Raises:
        StedmError: nothing that can be taken is there.
    """
    root = Path(root)
    if root.is_file() and root.suffix == ".json":
        return open_coco(root.parent, [root])
    if not root.is_dir():
        raise StedmError(f"{root}: no such folder; give the folder of the images, or a COCO file")
    if (root / "dataset.yaml").is_file() and (root / "metadata.csv").is_file():
        raise StedmError(f"{root}: is a dataset of stedm already; `stedm check {root}`")
    if masks is None and is_nnunet(root):
        return open_nnunet(root)
    if masks is None and (lists := tile_lists(root)):
        return open_tile_lists(root, lists)
    if masks is None and (files := coco_files(root)):
        return open_coco(root, files)
    source = open_folder(root, masks)
    return replace(source, images=[with_place(image) for image in source.images])


def understand(
    source: Source,
    *,
    classes: str | None = None,
    patients: str | None = None,
    split: str | None = None,
    seed: int = 0,
    mpp: float | None = None,
    on_progress: Tick = lambda *_: None,
) -> Understood:
    """Look at every mask and every image's head; decide classes, patients and splits.

    Args: see `stedm.exchange.api.import_dataset`.

    Raises:
        StedmError: what can't be understood, in one line.
    """
    names, numbers = _names(source, classes), parse_split(split)
    labels, fractions = _labels(source, names, on_progress)
    people = find_people(source.root, source.images, patients)
    rows = pd.DataFrame([{"key": i.key} | _facts(i, people) | {"annotated": i.is_annotated} for i in source.images])
    for column in ("patient_id", "slide_id", "split", "category"):
        rows[column] = (rows[column] if column in rows else pd.Series("", rows.index)).fillna("").astype(str)
    named = "the names of files" if source.labels is None else source.kind
    sources = {column: named for column in rows if (rows[column] != "").any()} | people.sources
    notes = [*source.notes, *labels.notes, *people.notes]
    notes += _fill_patients(rows, sources)
    notes += _decide_split(rows, sources, split, numbers, seed)
    with naming(source.root):
        sizes = {i.key: image_size(i.path.parent, i.path.name, LARGEST_WHOLE_PX) for i in source.images}
    notes += _fill_mpp(rows, source, sources, mpp)
    return Understood(source, labels, rows, sizes, sources, fractions, notes, people.unused)


def _names(source: Source, classes: str | None) -> ClassNames | None:
    """What `--classes` says, or a classes.txt beside the images."""
    path = source.root / "classes.txt"
    if classes is None and source.labels is None and path.is_file():
        lines = decoded(path).splitlines()
        return ClassNames([line.strip() for line in lines if line.strip()], [])
    return None if classes is None else ClassNames.parse(classes)


@contextlib.contextmanager
def naming(root: Path) -> Iterator[None]:
    """Errors of image files name them within their folder: say which folder."""
    try:
        yield
    except DiskError:
        raise
    except StedmError as error:
        raise error if str(error).startswith((str(root), "--")) else StedmError(f"{root}: {error}") from error


# ---- what is understood -----------------------------------------------------------------------------------------


def _labels(source: Source, names: ClassNames | None, on_progress: Tick) -> tuple[Labels, dict[str, float]]:
    annotated = [image for image in source.images if image.is_annotated]
    if not annotated:
        raise StedmError(
            f"{source.root}: {len(source.images)} images and no mask found; name their folder or ending with --masks"
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = []
        for look in pool.map(lambda image: Look.at(source.read_mask(image)), annotated):
            looks.append(look)
            on_progress(len(looks), len(annotated))
    labels = decide(looks, names, str(source.root)) if source.labels is None else _said(source, looks, names)
    pixels = dict.fromkeys([*range(len(labels.classes)), IGNORE_INDEX], 0)
    for look in looks:
        for index, count in labels.pixels(look).items():
            pixels[index] += count
    total = sum(pixels.values())
    return labels, {
        **{name: pixels[index] / total for index, name in enumerate(labels.classes)},
        "ignored": pixels[IGNORE_INDEX] / total,
    }


def _said(source: Source, looks: Sequence[Look], names: ClassNames | None) -> Labels:
    """By what the source says of its values."""
    if names is not None and (names.has_values or names.ranges):
        return decide(looks, names, str(source.root))
    classes = list(source.labels.values())
    if names is not None and len(names.names) != len(classes):
        raise StedmError(f"--classes: {source.root} has {len(classes)} classes, {', '.join(classes)}; name as many")
    table = {value: index for index, value in enumerate(source.labels)}
    if source.ignored is not None:
        table[source.ignored] = IGNORE_INDEX
    if strangers := sorted({int(value) for look in looks for value in look.values} - set(table)):
        raise StedmError(
            f"{source.root}: masks hold {listed(strangers)}, which has no class there; add it, or give --classes "
            "with values"
        )
    return Labels(classes if names is None else names.names, f"as {source.kind} says", table)


def _facts(image: SourceImage, people: People) -> dict[str, str]:
    """What the table says goes before what the source says."""
    return {key: value for key, value in image.facts.items() if key != "downsample"} | people.facts.get(image.key, {})


def _fill_patients(rows: pd.DataFrame, sources: dict[str, str]) -> list[str]:
    if (rows["patient_id"] != "").all():
        return []
    if (rows["patient_id"] != "").any():
        raise StedmError(
            f"no patient is known of {some(rows['key'][rows['patient_id'] == ''].tolist())}; add them to the table"
        )
    if (rows["slide_id"] != "").all():
        rows["patient_id"], sources["patient_id"] = rows["slide_id"], "slides"
        return [
            "nobody says which slides are of one patient: each slide counts as one; if some are, give --patients TABLE"
        ]
    rows["patient_id"], sources["patient_id"] = rows["key"], "images"
    return [
        "nobody says which images are of one patient: each image counts as one; if some are, give --patients TABLE, "
        "or scores will be too good"
    ]


def _decide_split(rows: pd.DataFrame, sources: dict[str, str], split: str | None, numbers: Any, seed: int) -> list[str]:
    """Fill in the split; returns why it isn't the one that the source says."""
    said = rows["split"] != ""
    notes = []
    if split is None and said.any() and not said.all():
        why = f"it has none for {some(rows['key'][~said].tolist())}"
        notes.append(f"the split by {sources['split']} is not taken: {why}; one by patient is proposed")
    if split is None and said.all():
        splits = rows.groupby(rows["patient_id"].map(alike))["split"].nunique()
        torn = rows["patient_id"][rows["patient_id"].map(alike).isin(splits.index[splits > 1])].unique().tolist()
        bare = (rows["split"] != "unlabeled") & ~rows["annotated"]
        usable = (rows["annotated"] & (rows["split"] == "train")).any()
        if not torn and usable and not bare.any():
            return _doubts(rows)
        why = (
            f"{len(torn)} patients are in several of its splits ({some(torn)})"
            if torn
            else f"images without a mask are in its split {rows['split'][bare].iloc[0]}"
            if usable
            else "no image with a mask is in its split train"
        )
        notes.append(f"the split by {sources['split']} is not taken: {why}; one by patient is proposed")
    categories = rows.groupby("patient_id")["category"].agg(lambda values: values.mode().iloc[0])
    annotated = rows.groupby("patient_id")["annotated"].any()
    patients = {str(name): (str(categories[name]), bool(annotated[name])) for name in categories.index}
    split_of = propose_split(patients, numbers, seed)
    rows["split"], sources["split"] = rows["patient_id"].map(split_of), f"proposed by patient, seed {seed}"
    bare = (rows["split"] != "unlabeled") & ~rows["annotated"]
    if bare.any():
        notes.append(
            f"images without a mask of patients who have others are left out: {some(rows['key'][bare].tolist())}"
        )
        rows.drop(index=rows.index[bare], inplace=True)
        rows.reset_index(drop=True, inplace=True)
    return notes + _doubts(rows)


def _doubts(rows: pd.DataFrame) -> list[str]:
    held_back = rows[(rows["split"] == "unlabeled") & rows["annotated"]]["patient_id"].nunique()
    notes = []
    if held_back:
        notes.append(f"masks of {held_back} unlabeled patients are held back: only the upper bound reads them")
    if not (rows["split"] == "unlabeled").any():
        notes.append(
            f"no unlabeled patients: there are no styles to learn from, and `stedm run` needs "
            f"them; --split {PROPOSE} holds some back"
        )
    return notes


def _fill_mpp(rows: pd.DataFrame, source: Source, sources: dict[str, str], mpp: float | None) -> list[str]:
    path_of = {image.key: image.path for image in source.images}
    facts = {image.key: image.facts for image in source.images}
    if mpp is not None:
        rows["mpp"], sources["mpp"] = mpp, "--mpp"
    elif "mpp" not in rows:
        found = [image_mpp(path_of[key].parent, path_of[key].name) for key in rows["key"]]
        if all(value is not None for value in found):
            rows["mpp"], sources["mpp"] = found, "the image files"
    if "mpp" in rows:
        rows["mpp"] = pd.to_numeric(rows["mpp"], errors="coerce")
        if not (rows["mpp"] > 0).all():
            wrong = some(rows["key"][~(rows["mpp"] > 0)].tolist())
            raise StedmError(f"{sources['mpp']}: mpp of {wrong} is no number above 0; correct it, or give --mpp")
        steps = [float(facts[key].get("downsample", 1)) for key in rows["key"]]
        if "slide_mpp" not in rows and any(step != 1 for step in steps):
            rows["slide_mpp"] = rows["mpp"] / steps
        if (coarsest := rows["mpp"].max()) >= _COARSE_MPP:
            return [f"{coarsest:g} microns per pixel, by {sources['mpp']}: a magnification? 40x has 0.25 microns"]
    return []


# ---- what is written --------------------------------------------------------------------------------------------


def write(
    found: Understood,
    output: Path,
    pieces: Pieces,
    only: Sequence[str] | None = None,
    on_progress: Tick = lambda *_: None,
) -> int:
    """Write the dataset folder; `only`: the keys of the images to write. It appears whole or not at all.

    Returns how many tiles were left out because nothing is annotated in them.
    """
    rows = found.rows if only is None else found.rows[found.rows["key"].isin(only)]
    pieces.check(rows)
    image_of, name_of = {image.key: image for image in found.source.images}, safe_names(found.rows["key"])
    with replacing(output) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder.mkdir()

        def one(row: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
            return _write_image(found, image_of[row["key"]], row, name_of[row["key"]], folder, pieces)

        table: list[dict[str, Any]] = []
        left_out = 0
        with naming(found.source.root):
            for number, (written, blank) in enumerate(pool.map(one, rows.to_dict("records")), start=1):
                table += written
                left_out += blank
                on_progress(number, len(rows))
        info = DatasetInfo(
            found.source.root.resolve().name or output.name,
            found.labels.classes,
            IGNORE_INDEX,
            found.source.licence,
            found.source.citation,
        )
        write_metadata(folder, info, pd.DataFrame(table))
    return left_out


def _write_image(
    found: Understood, image: SourceImage, row: dict[str, Any], name: str, folder: Path, pieces: Pieces
) -> tuple[list[dict[str, Any]], int]:
    """Write an image, or its tiles, with masks; returns their rows, and how many tiles were left out.

    Of images that are annotated in part these are the tiles without a pixel that counts: training would draw them and
    learn nothing. Those of `unlabeled` patients show the style.
    """
    facts = {key: value for key, value in row.items() if key not in ("key", "annotated") and not _is_empty(value)}
    mask = _mask(found, image) if image.is_annotated else None
    in_part = mask is not None and row["split"] != "unlabeled" and (mask != IGNORE_INDEX).any()
    rows, left_out = [], 0
    for piece in pieces.of(image.path, found.sizes[image.key], mask, facts.get("mpp")):
        if in_part and (piece.mask == IGNORE_INDEX).all():
            left_out += 1
            continue
        stem = name + piece.name
        if piece.image is None:
            file = f"images/{stem}{image.path.suffix.lower()}"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image.path, folder / file)
        else:
            write_png(folder / (file := f"images/{stem}.png"), piece.image)
        mask_file = ""
        if piece.mask is not None:
            write_png(folder / (mask_file := f"masks/{stem}.png"), piece.mask, palette=class_palette(IGNORE_INDEX))
        slide = {"slide_id": facts.get("slide_id") or image.key} if piece.facts else {}
        rows.append({"image_file_name": file, "mask_file_name": mask_file, **facts, **piece.facts, **slide})
    return rows, left_out


def _is_empty(value: Any) -> bool:
    return value == "" or value != value


def _mask(found: Understood, image: SourceImage) -> Any:
    try:
        mask = found.labels.indices(found.source.read_mask(image))
    except StedmError as error:
        where = image.mask or image.path
        raise error if str(error).startswith(str(where)) else StedmError(f"{where}: {error}") from error
    mask = mask_as_shown(image.path.parent, image.path.name, mask)
    if mask.shape[::-1] != found.sizes[image.key]:
        (width, height), (rows, columns) = found.sizes[image.key], mask.shape
        raise StedmError(
            f"{image.mask or image.key}: is {columns} x {rows} px, its image {image.path.name} {width} x {height} "
            "px; make them the same size"
        )
    return mask
