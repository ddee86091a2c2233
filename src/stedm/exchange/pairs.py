"""A folder of images, with masks in a folder of their own or beside the images under another name."""

import re
from collections import Counter, defaultdict
from pathlib import Path

from stedm.errors import StedmError
from stedm.exchange.source import (
    IMAGE_SUFFIXES,
    Source,
    SourceImage,
    files_below,
    image_files,
    normal,
    some,
    split_in_name,
)
from stedm.io.images import UNREADABLE, open_image

_MASK = (
    r"masks?|labels?|labell?ed|labelled[-_ ]?masks?|anno|annos|annotations?|gt|ground[-_ ]?truths?|seg|segs|"
    r"segmentations?|segmaps?|labelmaps?|manual\d?"
)
_IMAGE = r"images?|imgs?|pictures?|tiles?|patches"
_FOLDER = r"(?:(?P<rest>.+?)[-_ .])?(?:{words})(?:[-_ .](?P<more>.+))?"
_STEM = r"(?P<rest>.+?)[-_ .]+(?:{words})|(?:{words})[-_ .]+(?P<more>.+)"


def open_folder(root: Path, masks: str | None) -> Source:
    """Pair the images of a folder with their masks.

    Args:
        masks: a folder of masks, or what the names of masks end with; None = found by words such as mask, label, anno.

    Raises:
        StedmError: an image has two masks or two images have one name, or what `masks` names isn't there.
    """
    files = image_files(root)
    if (root / "project.qpproj").is_file():  # thumbnails of a QuPath project lie in its folder data
        files = [path for path in files if path.relative_to(root).parts[0] != "data"] or files
    if masks is not None:
        pairs, how = _as_told(root, files, masks)
    else:
        pairs, how = _by_words(root, files)
    if lost := [str(mask.name) for image, mask in pairs.values() if image is None and mask is not None]:
        if not any(image for image, _ in pairs.values()):
            raise StedmError(f"{root}: holds masks alone ({some(lost)}); give the folder that has the images too")
        notes = [f"masks without an image, left out: {some(lost)}"]
    else:
        notes = []
    images = [
        SourceImage(key, image, mask, {"split": split} if (split := split_in_name(key)) else {})
        for key, (image, mask) in sorted(pairs.items(), key=lambda item: _natural(item[0]))
        if image is not None
    ]
    return Source(root, how, images, notes=notes)


_Pairs = dict[str, tuple[Path | None, Path | None]]


def _natural(key: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def _paired(root: Path, images: dict[Path, str], masks: dict[Path, str]) -> _Pairs:
    """By key; a key that two files have is refused."""
    found: dict[str, list[list[Path]]] = defaultdict(lambda: [[], []])
    for kind, files in enumerate((images, masks)):
        for path, key in files.items():
            found[normal(key)][kind].append(path)
    for key, kinds in found.items():
        for kind, paths in zip(("images", "masks"), kinds, strict=True):
            if len(paths) > 1:
                names = some([str(path.relative_to(root) if path.is_relative_to(root) else path) for path in paths])
                raise StedmError(f"{root}: {names} are {kind} of one name, {key}; keep one, or say --masks")
    spelled = {normal(key): key for key in [*masks.values(), *images.values()]}
    return {spelled[key]: (next(iter(image), None), next(iter(mask), None)) for key, (image, mask) in found.items()}


def _by_words(root: Path, files: list[Path]) -> tuple[_Pairs, str]:
    """By folders such as images and masks, and names such as a.png and a_mask.png."""
    images, masks, beside = {}, {}, set()
    for path in files:
        *folders, _ = path.relative_to(root).parts
        kept, is_mask = [], False
        for folder in folders:
            role = re.fullmatch(_FOLDER.format(words=_MASK), folder, re.IGNORECASE)
            is_mask |= role is not None
            role = role or re.fullmatch(_FOLDER.format(words=_IMAGE), folder, re.IGNORECASE)
            kept += [folder] if role is None else [part for part in (role["rest"], role["more"]) if part]
        stem = path.stem
        role = re.fullmatch(_STEM.format(words=_MASK), stem, re.IGNORECASE)
        if role is not None:
            beside |= {stem.removeprefix(role["rest"] or "")} if not is_mask else set()
            is_mask = True
        else:
            role = re.fullmatch(_STEM.format(words=_IMAGE), stem, re.IGNORECASE)
        stem = stem if role is None else role["rest"] or role["more"]
        (masks if is_mask else images)[path] = "/".join([*kept, stem])
    how = (
        f"images with masks beside them ({', '.join(sorted(beside)[:3])})" if beside else "images and a folder of masks"
    )
    if not masks:
        how, twice = "images", Counter(images.values())
        masks = {path: key for path, key in images.items() if twice[key] > 1 and _is_label_image(path)}
        images = {path: key for path, key in images.items() if path not in masks}
        how = "images with masks beside them (of the same name)" if masks else how
    return _paired(root, images, masks), how


def _is_label_image(path: Path) -> bool:
    """A file of one channel that isn't JPEG: beside a JPEG of the same name it is its mask."""
    try:
        with open_image(path) as image:
            return image.format != "JPEG" and (image.mode in ("1", "L", "P") or image.mode.startswith("I"))
    except UNREADABLE:
        return False


def _as_told(root: Path, files: list[Path], masks: str) -> tuple[_Pairs, str]:
    """`--masks`: a folder, anywhere or inside the source, or what mask names end with."""
    folder = next((path for path in (Path(masks), root / masks) if path.is_dir()), None)
    if folder is not None:
        inside = [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        here = {path.resolve() for path in inside}
        images = {p: _relative(p, root) for p in files if p.resolve() not in here}
        of_mask = {path: _relative(path, folder) for path in inside}
        if not set(map(normal, images.values())) & set(map(normal, of_mask.values())):
            # Folders differ, or masks have a word in their names.
            images = {path: _bare(path, _IMAGE) for path in images}
            of_mask = {path: _bare(path, _MASK) for path in of_mask}
        if not inside:
            raise StedmError(f"{folder}: no PNG, TIFF, BMP or JPEG file in it; give the folder of the masks")
        pairs, how = _paired(root, images, of_mask), f"images, masks in {folder}"
    else:
        of_mask = {p: _relative(p, root).removesuffix(masks) for p in files if p.stem.endswith(masks)}
        images = {p: _relative(p, root) for p in files if p not in of_mask}
        if not of_mask:
            raise StedmError(
                f"{root}: no folder {masks} is there, and no name of an image ends with it; correct --masks"
            )
        pairs, how = _paired(root, images, of_mask), f"images with masks beside them ({masks})"
    if not any(image and mask for image, mask in pairs.values()):
        first = [[p.name for p in list(group)[:1]] for group in (images, of_mask)]
        raise StedmError(
            f"{root}: no mask has the name of an image, such as {first[0]} and {first[1]}; name them alike"
        )
    return pairs, how


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix() if path.is_relative_to(root) else path.stem


def _bare(path: Path, words: str) -> str:
    role = re.fullmatch(_STEM.format(words=words), path.stem, re.IGNORECASE)
    return path.stem if role is None else role["rest"] or role["more"]
