"""nnU-Net's raw data sets: `imagesTr`, `labelsTr`, `imagesTs`, `dataset.json` (nnU-Net v1 and v2)."""

import re
from pathlib import Path
from typing import Any

from stedm.errors import StedmError
from stedm.exchange.source import IMAGE_SUFFIXES, Source, SourceImage, some
from stedm.io.files import visible_files
from stedm.slides.polygon_files import read_json

_SPLITS = {"Tr": "train", "Ts": "test", "Un": "unlabeled"}


def is_nnunet(root: Path) -> bool:
    """Whether a folder has what nnU-Net calls a raw data set."""
    return (root / "imagesTr").is_dir() and (root / "dataset.json").is_file()


def open_nnunet(root: Path) -> Source:
    """Read `dataset.json` and pair cases with their labels.

    `Tr` is split train, `Ts` is test where it has labels and unlabeled otherwise, `Un` is unlabeled.

    Raises:
        StedmError: labels are regions, a case has several channels or no image, or the images are no image files.
    """
    values = read_json(root / "dataset.json")
    labels, ignored = _labels(root / "dataset.json", values)
    images = []
    for end, split in _SPLITS.items():
        masks = {path.stem: path for path in _files(root / f"labels{end}")}
        cases = _cases(root / f"images{end}")
        if lost := sorted(set(masks) - set(cases)):
            raise StedmError(f"{root / f'labels{end}'}: no image for {some(lost)}; images are named CASE_0000.png")
        for case, path in cases.items():
            said = "unlabeled" if split == "test" and not masks else split
            images.append(SourceImage(case, path, masks.get(case), {"split": said}))
    if not images:
        raise StedmError(f"{root / 'imagesTr'}: no image in it; put images there that are named CASE_0000.png")
    said = {key: str(values.get(key) or "") for key in ("licence", "license", "reference")}
    return Source(
        root, "nnU-Net", images, labels, ignored, licence=said["licence"] or said["license"], citation=said["reference"]
    )


def _labels(path: Path, values: Any) -> tuple[dict[int, str], int | None]:
    """Name by value, and the value that is ignored; v1 writes value: name, v2 name: value."""
    found = values.get("labels") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not found:
        raise StedmError(f'{path}: has no labels; write them as {{"background": 0, ...}}')
    names, ignored = {}, None
    for key, value in found.items():
        if isinstance(value, list):
            raise StedmError(f"{path}: label {key} is a region of several values; give each value a name of its own")
        number, name = (key, value) if str(key).isdigit() and not str(value).isdigit() else (value, key)
        if not str(number).isdigit():
            raise StedmError(f"{path}: label {key} has no whole number; correct it")
        if str(name).casefold() == "ignore":
            ignored = int(number)
        else:
            names[int(number)] = str(name)
    return dict(sorted(names.items())), ignored


def _files(folder: Path) -> list[Path]:
    files = visible_files(folder, deep=False) if folder.is_dir() else []
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if files and not images:
        raise StedmError(
            f"{folder}: holds {files[0].name} and the like; PNG, TIFF or BMP images are taken, not volumes"
        )
    return images


def _cases(folder: Path) -> dict[str, Path]:
    cases = {}
    for path in _files(folder):
        case = re.fullmatch(r"(.+)_(\d{4})", path.stem)
        if case and case[2] != "0000":
            raise StedmError(f"{path}: a case with several channels; save them as one RGB image, {case[1]}_0000.png")
        cases[case[1] if case else path.stem] = path
    return cases
