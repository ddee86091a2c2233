"""Tiles exported by QuPath: their names hold the slide and the place; a `*-tiles.json` also pairs and labels."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from stedm.errors import StedmError
from stedm.exchange.source import Source, SourceImage, files_below
from stedm.slides.class_mapping import QUPATH_IGNORE
from stedm.slides.polygon_files import read_json

# TileExporter writes `SLIDE [d=2,x=0,y=512,w=1024,h=1024].png`; scripts write it without brackets too.
_NAME = re.compile(r"(?P<slide>.+?)[ _]*[\[(](?P<place>[a-z]=-?[\d.]+(?:,[a-z]=-?[\d.]+)*)[\])]")


def tile_lists(root: Path) -> list[Path]:
    """Lists that QuPath writes with `exportJson(true)`."""
    return [path for path in files_below(root) if path.name.endswith("-tiles.json")]


def open_tile_lists(root: Path, lists: list[Path]) -> Source:
    """Images, masks and classes as the lists say.

    Raises:
        StedmError: a list is damaged, names a file that isn't there, or two give one number to two classes.
    """
    images, names, ignored = [], {}, None
    for path in lists:
        content = read_json(path)
        tiles = content.get("tiles") if isinstance(content, dict) else None
        if not isinstance(tiles, list):
            raise StedmError(f"{path}: is no list of tiles of QuPath; export them again with exportJson(true)")
        for entry in content.get("labels") or []:
            if not isinstance(entry, dict) or type(entry.get("label")) is not int:
                continue  # a class that isn't drawn
            name, value = str(entry.get("classification")), int(entry["label"])
            if name == QUPATH_IGNORE:
                ignored = value
            elif names.setdefault(value, name) != name:
                raise StedmError(
                    f"{path}: {value} is {name} here and {names[value]} in another list; export all slides with the "
                    "same addLabel lines"
                )
        images += [_tile(path, tile) for tile in tiles]
    names.setdefault(0, "background")
    kind = f"tiles of {len(lists)} slides exported by QuPath"
    return Source(root, kind, [with_place(image) for image in images], dict(sorted(names.items())), ignored)


def _tile(path: Path, tile: Any) -> SourceImage:
    files = {key: tile.get(key) if isinstance(tile, dict) else None for key in ("image", "labels")}
    if not isinstance(files["image"], str):
        raise StedmError(f"{path}: a tile without an image; export the tiles again")
    found = {key: path.parent / name.replace("\\", "/") for key, name in files.items() if name}
    for file in found.values():
        if not file.is_file():
            raise StedmError(f"{path}: names {file.name}, which is not there; keep the list with its tiles")
    return SourceImage(found["image"].stem, found["image"], found.get("labels"))


def with_place(image: SourceImage) -> SourceImage:
    """The image with the slide and the place that its name holds, where it is named as QuPath names tiles."""
    name = image.key.rsplit("/", 1)[-1]
    if (found := _NAME.fullmatch(name)) is None:
        return image
    place = dict(part.split("=") for part in found["place"].split(","))
    facts = {"slide_id": found["slide"].strip(), **{axis: place[axis] for axis in "xy" if axis in place}}
    return replace(image, facts=facts | ({"downsample": place["d"]} if "d" in place else {}) | image.facts)
