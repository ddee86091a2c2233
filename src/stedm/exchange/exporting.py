"""`stedm data export`: a dataset folder as nnU-Net, COCO or an image folder with splits, to be read by others.

Each has a `patients.csv` with what these formats have no place for (patients, slides, categories, positions): `stedm
data import` finds it. Masks of unlabeled patients stay closed, as everywhere.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from skimage.measure import label as connected

from stedm.data.folder import DatasetFolder, write_png
from stedm.errors import StedmError
from stedm.exchange.coco import FACTS, coco_library
from stedm.exchange.importing import Tick
from stedm.exchange.pieces import safe_names
from stedm.io.files import replacing, require_new, write_json, write_text
from stedm.io.tables import SPLITS, write_csv

PEOPLE, CLASSES = "patients.csv", "classes.txt"
_NOT_TOLD = ("image_file_name", "mask_file_name", "image")
"""Columns that would be taken for the names of the files that are written."""


@dataclass(frozen=True)
class _Row:
    """A row of the dataset under the name that it has outside."""

    number: int
    name: str
    split: str
    has_mask: bool
    facts: dict[str, Any]


def export_dataset(dataset: str | Path, output: str | Path, to: str, on_progress: Tick = lambda *_: None) -> int:
    """Write a dataset folder in the format `nnunet`, `coco` or `imagefolder`; returns the number of images.

    Raises:
        StedmError: `to` is none of these, `output` holds files, or an image or mask can't be read.
    """
    dataset, output = DatasetFolder.open(dataset), Path(output)
    if to not in _WRITERS:
        raise StedmError(f"--to {to}: is none of {', '.join(_WRITERS)}")
    require_new(output, "the export")
    rows = _rows(dataset)
    with replacing(output) as folder:
        folder.mkdir()
        _WRITERS[to](dataset, rows, folder, on_progress)
        table = pd.DataFrame([{"image": row.name, **row.facts} for row in rows])
        write_csv(folder / PEOPLE, table)
    return len(rows)


def _rows(dataset: DatasetFolder) -> list[_Row]:
    keys = [
        name.removeprefix("images/").rpartition(".")[0].replace("/", "_") for name in dataset.table["image_file_name"]
    ]
    if len(set(keys)) < len(keys):
        keys = [f"{key}_{number}" for number, key in enumerate(keys)]
    names, columns = safe_names(keys), [column for column in dataset.table if column not in _NOT_TOLD]
    return [
        _Row(
            number,
            names[key],
            dataset.table.at[number, "split"],
            bool(has_mask),
            dataset.table.loc[number, columns].dropna().to_dict(),
        )
        for number, (key, has_mask) in enumerate(zip(keys, dataset.has_mask, strict=True))
    ]


def _image(dataset: DatasetFolder, row: _Row, path: Path) -> None:
    write_png(path, dataset.read_image(row.number))


def _nnunet(dataset: DatasetFolder, rows: list[_Row], folder: Path, on_progress: Tick) -> None:
    """Train and val are `Tr` (which is which: splits_final.json), test is `Ts`, unlabeled `Un`, which nnU-Net skips."""
    info, ignored = dataset.info, len(dataset.info.classes)  # nnU-Net's ignored label is the one behind the classes
    labels = {name: index for index, name in enumerate(info.classes)}
    for number, row in enumerate(rows, start=1):
        end = {"test": "Ts", "unlabeled": "Un"}.get(row.split, "Tr")
        _image(dataset, row, folder / f"images{end}" / f"{row.name}_0000.png")
        if row.has_mask:
            mask = dataset.read_mask(row.number)
            labels |= {"ignore": ignored} if (mask == info.ignore_index).any() else {}
            # Without a palette: most readers would turn that into colours.
            write_png(
                folder / f"labels{end}" / f"{row.name}.png",
                np.where(mask == info.ignore_index, ignored, mask).astype(np.uint8),
            )
        on_progress(number, len(rows))
    cases = {split: [row.name for row in rows if row.split == split and row.has_mask] for split in ("train", "val")}
    write_json(folder / "splits_final.json", [cases])
    values = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": sum(map(len, cases.values())),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": info.name,
        "licence": info.licence,
        "reference": info.citation,
    }
    write_json(folder / "dataset.json", values)


def _coco(dataset: DatasetFolder, rows: list[_Row], folder: Path, on_progress: Tick) -> None:
    """A JSON file a split; each connected region of a class but the background is an annotation, of run lengths."""
    library, info = coco_library(), dataset.info
    ids = {info.ignore_index: "ignore"} | {index: name for index, name in enumerate(info.classes) if index}
    written: dict[str, dict[str, list]] = {}
    for number, row in enumerate(rows, start=1):
        _image(dataset, row, folder / "images" / f"{row.name}.png")
        part = written.setdefault(row.split, {"images": [], "annotations": []})
        width, height = dataset.image_size(row.number)
        told = {key: value for key, value in row.facts.items() if key in FACTS and value != ""}
        image = {"id": number, "file_name": f"{row.name}.png", "width": width, "height": height}
        part["images"].append(image | {"annotated": row.has_mask} | json.loads(json.dumps(told, default=float)))
        if row.has_mask:
            for index, inside in _regions(dataset.read_mask(row.number)):
                found = library.encode(np.asfortranarray(inside, np.uint8))
                box, area = library.toBbox(found).tolist(), int(library.area(found))
                found["counts"] = found["counts"].decode()
                part["annotations"].append(
                    {
                        "image_id": number,
                        "category_id": index,
                        "segmentation": found,
                        "bbox": box,
                        "area": area,
                        "iscrowd": 0,
                    }
                )
        on_progress(number, len(rows))
    categories = [{"id": index, "name": name} for index, name in sorted(ids.items())]
    licences = [{"id": 1, "name": info.licence}] if info.licence else []
    numbered = 0
    for split, part in written.items():
        for annotation in part["annotations"]:
            annotation["id"] = numbered = numbered + 1
        values = {
            "info": {"description": info.name, "background": info.classes[0]},
            "licenses": licences,
            **part,
            "categories": categories,
        }
        write_text(folder / "annotations" / f"{split}.json", json.dumps(values) + "\n")


def _regions(mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each connected region of a class that isn't the background, as (index, bool (H, W))."""
    numbers = connected(mask, background=0, connectivity=2)
    first = {
        int(number): int(where) for number, where in zip(*np.unique(numbers, return_index=True), strict=True) if number
    }
    return [(int(mask.flat[where]), numbers == number) for number, where in first.items()]


def _imagefolder(dataset: DatasetFolder, rows: list[_Row], folder: Path, on_progress: Tick) -> None:
    """A folder a split, each an ImageFolder with a table; README.md tells `datasets` of the splits."""
    table = []
    for number, row in enumerate(rows, start=1):
        names = {"image_file_name": f"images/{row.name}.png", "mask_file_name": None}
        _image(dataset, row, folder / row.split / names["image_file_name"])
        if row.has_mask:
            names["mask_file_name"] = f"masks/{row.name}.png"
            write_png(folder / row.split / names["mask_file_name"], dataset.read_mask(row.number))
        table.append(names | row.facts)
        on_progress(number, len(rows))
    tables = _typed(pd.DataFrame(table)).groupby("split")
    for split, part in tables:
        part.to_parquet(folder / str(split) / "metadata.parquet", index=False)
    write_text(folder / CLASSES, "\n".join(dataset.info.classes) + "\n")
    splits = [{"split": split, "path": f"{split}/**"} for split in SPLITS if split in tables.groups]
    card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": splits}]}, sort_keys=False)
    classes = ", ".join(f"{index} {name}" for index, name in enumerate(dataset.info.classes))
    told = f"Classes, by the value of the masks: {classes}; "
    licence = f"\n\nLicence: {dataset.info.licence or 'not told'}. {dataset.info.citation}"
    write_text(
        folder / "README.md",
        f"---\n{card}---\n# {dataset.info.name}\n{told}{dataset.info.ignore_index} is ignored.{licence}\n",
    )


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Text as text also where a split has none: `datasets` wants the same columns in all of them, and CSV can't say."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    return table.astype(dict.fromkeys(texts, "string"))


_WRITERS: dict[str, Callable[[DatasetFolder, list[_Row], Path, Tick], None]] = {
    "nnunet": _nnunet,
    "coco": _coco,
    "imagefolder": _imagefolder,
}
