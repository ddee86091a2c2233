"""MS COCO JSON: polygons and run lengths of each image, painted into one mask."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from stedm.errors import StedmError
from stedm.exchange.mask_files import MaskValues
from stedm.exchange.source import Source, SourceImage, files_below, normal, some, split_word
from stedm.slides.polygon_files import coco_categories, coco_list, is_coco, read_json

FACTS = ("patient_id", "slide_id", "split", "category", "x", "y", "mpp", "slide_mpp")
"""Keys of an image that are taken over; COCO allows any."""


def coco_library() -> Any:
    """pycocotools' masks; an extra, since few need it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise StedmError('COCO needs pycocotools: pip install "stedm[data]"') from error
    return mask


def coco_files(root: Path) -> list[Path]:
    """COCO files of a folder: JSON with images and annotations."""
    return [path for path in files_below(root) if path.suffix == ".json" and is_coco(read_json(path))]


def open_coco(root: Path, files: list[Path]) -> Source:
    """The images of COCO files, one file a split or one for all.

    Images without annotations count as not annotated unless the file says otherwise (key `annotated`): nobody knows
    whether there is nothing in them or nobody has looked.

    Raises:
        StedmError: an image is not there, files differ in their categories, or an annotation can't be read.
    """
    library, images, names, silent, notes = coco_library(), [], {}, 0, []
    by_name: dict[str, list[Path]] = {}
    for path in files_below(root):
        by_name.setdefault(normal(path.name), []).append(path)
    licence, background = "", "background"
    for file in files:
        content = read_json(file)
        if not is_coco(content):
            raise StedmError(f"{file}: no COCO file, which has images, annotations and categories; export it again")
        categories = coco_categories(file, content)
        if names and categories != names:
            raise StedmError(f"{file}: has other categories than {files[0].name}; give both files the same")
        names = categories
        split = next((s for part in file.stem.replace("-", "_").split("_") if (s := split_word(part))), None)
        drawn: dict[Any, list[dict]] = {}
        for annotation in coco_list(file, content, "annotations"):
            drawn.setdefault(annotation.get("image_id"), []).append(annotation)
        background = _told(content.get("info"), "background") or background
        licence = licence or _licence(content.get("licenses"))
        for image in coco_list(file, content, "images"):
            path = _image_file(file, root, str(image.get("file_name")), by_name)
            regions = drawn.get(image.get("id"), [])
            annotated = image.get("annotated", bool(regions))
            silent += not annotated
            facts = {key: str(image[key]) for key in FACTS if image.get(key) not in (None, "")}
            facts |= {} if "split" in facts or split is None else {"split": split}
            key = str(image["file_name"]).replace("\\", "/").rpartition(".")[0]
            images.append(SourceImage(key, path, None, facts, (file, image, regions) if annotated else None))
        if strangers := sorted(set(drawn) - {image.get("id") for image in content["images"]}, key=str):
            raise StedmError(
                f"{file}: annotations have the image_id {strangers[0]!r}, which is not in images; export it again"
            )
    numbers = {
        category: number
        for number, category in enumerate(sorted(names, key=lambda i: (isinstance(i, str), i)), start=1)
    }
    if 0 in names and names[0].casefold() == "background":
        numbers = {category: category for category in names}
    if silent:
        notes.append(f"images without annotations count as not annotated, {silent} of {len(images)}")
    labels = {0: background} | {number: names[category] for category, number in numbers.items()}
    ignored = next((n for n, name in labels.items() if name.casefold() == "ignore"), None)
    labels.pop(ignored, None)

    def draw(what: Any) -> MaskValues:
        return MaskValues(_painted(library, *what, numbers))

    return Source(root, "COCO", images, labels, ignored, notes, draw, licence)


def _told(info: Any, key: str) -> str:
    return str(info.get(key) or "") if isinstance(info, dict) else ""


def _licence(entries: Any) -> str:
    listed = entries if isinstance(entries, list) else []
    return "; ".join(str(entry["name"]) for entry in listed if isinstance(entry, dict) and entry.get("name"))


def _image_file(file: Path, root: Path, name: str, by_name: dict[str, list[Path]]) -> Path:
    """Where the image is that a file calls by its path, which may be one of another machine."""
    name = name.replace("\\", "/")
    for place in (file.parent / name, root / name, root / "images" / name):
        if place.is_file():
            return place
    found = by_name.get(normal(name.rsplit("/", 1)[-1]), [])
    if not found:
        raise StedmError(
            f"{file}: image {name} is not in {root}; put the images beside the file, or in its folder images"
        )
    shared = [_shared_folders(path.as_posix(), name) for path in found]
    best = [path for path, n in zip(found, shared, strict=True) if n == max(shared)]
    best = [path for path in best if path.name == name.rsplit("/", 1)[-1]] or best
    if best[1:]:
        places = some([str(path.relative_to(root)) for path in best])
        raise StedmError(f"{file}: image {name} may be {places}; write into file_name which, from {root} on")
    return best[0]


def _shared_folders(path: str, name: str) -> int:
    """How many parts two paths have in common at their ends."""
    pairs = zip(reversed(normal(path).split("/")), reversed(normal(name).split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _painted(library: Any, file: Path, image: dict, regions: list[dict], numbers: dict[Any, int]) -> np.ndarray:
    """Class number of each pixel; small regions lie on top of large ones."""
    sides = [image.get(side) for side in ("height", "width")]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise StedmError(f"{file}: image {image.get('file_name')} has no height and width; export the file again")
    painted, masks = np.zeros(sides, np.int64), []
    for number, region in enumerate(regions):
        where = f"{file}: image {image.get('file_name')}, annotation {region.get('id', number)}"
        if region.get("category_id") not in numbers:
            raise StedmError(
                f"{where}: category {region.get('category_id')!r} is not in categories; export the file again"
            )
        masks.append((_region(library, where, region.get("segmentation"), *sides), numbers[region["category_id"]]))
    for inside, value in sorted(masks, key=lambda found: -found[0].sum()):
        painted[inside] = value
    return painted


def _region(library: Any, where: str, segmentation: Any, height: int, width: int) -> np.ndarray:
    """bool (H, W) of polygons (all of one annotation together) or of run lengths, compressed or not."""
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], int | float):
        segmentation = [segmentation]  # one polygon without the list around it
    try:
        if isinstance(segmentation, dict):
            if list(segmentation.get("size") or []) != [height, width]:
                raise ValueError(f"it is for {segmentation.get('size')}, the image has {[height, width]}")
            return _of_runs(segmentation.get("counts"), height, width)
        if not segmentation:
            raise ValueError("it has a box alone, or nothing")
        if any(len(ring) < 6 or len(ring) % 2 for ring in segmentation):
            raise ValueError("a polygon needs x and y of three points")
        return library.decode(library.merge(library.frPyObjects(segmentation, height, width))).astype(bool)
    except Exception as error:  # a C library behind it: of wrong lists it raises anything
        reason = " ".join(str(error).split())
        raise StedmError(f"{where}: no polygon and no run lengths ({reason}); export the file again") from error


def _of_runs(counts: Any, height: int, width: int) -> np.ndarray:
    """bool (H, W) of run lengths down the columns, outside and inside in turn.

    pycocotools fills up what is missing and cuts off what is too much: garbage becomes a mask without a word.
    """
    runs = counts if isinstance(counts, list) else _unpacked(counts)
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its runs make {sum(runs)} pixels, the image has {height * width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _unpacked(text: str | bytes) -> list[int]:
    """Run lengths of COCO's strings: digits of five bits, lowest first, and from the fourth number on the difference to
    the one two before."""
    runs: list[int] = []
    digits = iter(text.encode("ascii") if isinstance(text, str) else text)
    for digit in digits:
        value, bits = (digit - 48) & 0x1F, 5
        while (digit - 48) & 0x20:
            digit = next(digits, 48)
            value |= ((digit - 48) & 0x1F) << bits
            bits += 5
        if (digit - 48) & 0x10:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
