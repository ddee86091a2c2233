"""Public datasets, downloaded with checksums and converted to dataset folders.

Archives are read member by member and never unpacked to disk, so that no name in them can reach outside the folder.
"""

import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stedm.data.folder import DatasetInfo, write_metadata
from stedm.errors import StedmError
from stedm.io.files import replacing, require_new
from stedm.io.images import class_palette, leaves_folder, write_png

FLOWERS102_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
# As in torchvision.datasets.Flowers102, but for 102segmentations.tgz, which torchvision doesn't use: that one is from a
# public subclass of it, whose downloader refuses any other file. We have not downloaded the archive ourselves.
FLOWERS102_MD5 = {
    "102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
    "102segmentations.tgz": "51375996b6c4f367a4b9f4492d7ecef5",
    "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
    "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
}
# Category numbers (1 to 102, as in imagelabels.mat) that the paper's experiment annotates; the other 54 are unseen.
# Which ones they are is a setting of the authors' released code.
_ANNOTATED = """
5 6 7 8 11 12 15 16 20 21 23 24 26 27 31 35 38 42 43 44 46 47 48 49
50 51 53 54 56 58 59 60 61 63 64 65 69 70 71 74 75 81 89 90 99 100 101 102
"""
FLOWERS102_ANNOTATED = frozenset(map(int, _ANNOTATED.split()))
_NAMES = """
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris,
globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower,
fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke,
sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya,
cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia,
bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula,
sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata,
japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus, bearded iris,
windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus,
toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen,
watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia,
bromelia, blanket flower, trumpet creeper, blackberry lily
"""
FLOWERS102_CATEGORIES = tuple(name.strip() for name in _NAMES.replace("\n", " ").split(","))
FLOWERS102_INFO = DatasetInfo(
    name="flowers102",
    classes=["background", "flower"],
    licence="none stated; research use only, do not redistribute",
    citation="Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, ICVGIP 2008",
)
_SPLIT_OF_KEY = {"trnid": "train", "valid": "val", "tstid": "test"}
_DAMAGED_ARCHIVE = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError)


def make_flowers102(
    root: str | Path,
    *,
    archives: str | Path | None = None,
    image_px: int = 512,
    checksums: Mapping[str, str] = FLOWERS102_MD5,
) -> None:
    """Download Oxford Flowers-102 where it is missing and write it as a dataset folder.

    Images are brought to squares of `image_px` (paper: 512, aspect ratio not kept). Each is a patient of its own.
    Splits as in setid.mat: val 1,020 and test 6,149 images; the 1,020 of its training part are `train` where their
    category is in `FLOWERS102_ANNOTATED` and `unlabeled` (with masks that only the arm `upper` reads) elsewhere. The
    folder appears whole or not at all.

    Args:
        archives: folder of the four files; what is missing is downloaded into it. None = pooch's cache folder.
        checksums: MD5 of each file.

    Raises:
        StedmError: `root` holds files; a file can't be downloaded, is damaged or is not the one that is known.
    """
    root = Path(root)
    require_new(root, "Flowers-102")
    paths = {name: fetch(FLOWERS102_URL + name, md5, archives, "flowers102") for name, md5 in checksums.items()}
    table = _flowers102_table(paths["imagelabels.mat"], paths["setid.mat"])
    with replacing(root) as folder:
        _convert(
            paths["102flowers.tgz"],
            r"(?:\./)?jpg/image_(\d{5})\.jpg",
            table["image_file_name"],
            folder,
            partial(_write_image, image_px=image_px),
        )
        _convert(
            paths["102segmentations.tgz"],
            r"(?:\./)?segmim/segmim_(\d{5})\.jpg",
            table["mask_file_name"],
            folder,
            partial(_write_mask, image_px=image_px),
        )
        write_metadata(folder, FLOWERS102_INFO, table)


def fetch(url: str, md5: str, folder: str | Path | None, dataset: str) -> Path:
    """The file of a URL in `folder` (None = pooch's cache), downloaded if it isn't there; its checksum is verified."""
    try:
        import pooch
    except ImportError as error:
        raise StedmError('downloads need pooch: pip install "stedm[data]"') from error
    folder = Path(folder) if folder is not None else Path(pooch.os_cache("stedm")) / dataset
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file() and pooch.file_hash(str(path), alg="md5") != md5:
        # Pooch would silently replace a file that may be somebody's own.
        raise StedmError(f"{path}: is damaged or another version (its MD5 is not {md5}); remove it to download it anew")
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=folder))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        raise StedmError(
            f"{url}: download failed ({' '.join(str(error).split())}); try again, or put the file into {folder}"
        ) from error


def _flowers102_table(labels_file: Path, splits_file: Path) -> pd.DataFrame:
    """Metadata of all images; number i of the archives is row i - 1."""
    categories = _read_mat(labels_file, ["labels"])["labels"]
    splits = _read_mat(splits_file, list(_SPLIT_OF_KEY))
    if not set(categories.tolist()) <= set(range(1, len(FLOWERS102_CATEGORIES) + 1)):
        raise StedmError(
            f"{labels_file}: not category numbers from 1 to {len(FLOWERS102_CATEGORIES)}; download it again"
        )
    numbers = np.concatenate(list(splits.values()))
    if sorted(numbers.tolist()) != list(range(1, len(categories) + 1)):
        raise StedmError(
            f"{splits_file}: must name each of the {len(categories)} images of {labels_file.name} once; "
            "download both again"
        )
    split_of = {number: _SPLIT_OF_KEY[key] for key, values in splits.items() for number in values.tolist()}
    rows = []
    for number, category in enumerate(categories.tolist(), start=1):
        split, name = split_of[number], f"image_{number:05d}"
        hidden = split == "train" and category not in FLOWERS102_ANNOTATED
        rows.append(
            {
                "image_file_name": f"images/{name}.jpg",
                "mask_file_name": f"masks/{name}.png",
                "patient_id": name,
                "split": "unlabeled" if hidden else split,
                "category": FLOWERS102_CATEGORIES[category - 1],
            }
        )
    return pd.DataFrame(rows)


def _read_mat(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Rows of whole numbers of a MATLAB file, which holds plain arrays and runs no code."""
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=keys)
        return {key: np.asarray(found[key]).ravel().astype(np.int64) for key in keys}
    except Exception as error:  # scipy lets through whatever a damaged file leads to
        raise StedmError(f"{path}: not a MATLAB file with {', '.join(keys)} ({error}); download it again") from error


def _convert(archive: Path, pattern: str, names: pd.Series, folder: Path, write) -> None:
    """Write image i of an archive to `folder / names[i - 1]`, each exactly once."""
    left = dict(enumerate(names, start=1))
    for member, data in _members(archive):
        match = re.fullmatch(pattern, member)
        if match is None:
            continue
        name = left.pop(int(match[1]), None)
        if name is None:
            raise StedmError(f"{archive}: {member} is there twice or in no split; download the archive again")
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                write(folder / name, image.convert("RGB"))
        except (SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
            raise StedmError(f"{archive}: {member} can't be converted ({error}); download the archive again") from error
    if left:
        raise StedmError(f"{archive}: {len(left)} images are missing, first number {min(left)}; download it again")


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a tar.gz; refuses links and names that lead out of a folder."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if leaves_folder(member.name) or not (member.isfile() or member.isdir()):
                    raise StedmError(f"{archive}: {member.name} is a link or leads out of the archive; don't trust it")
                if member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
    except _DAMAGED_ARCHIVE as error:
        raise StedmError(f"{archive}: not a readable tar.gz archive ({error}); download it again") from error


def _write_image(path: Path, image: Image.Image, image_px: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The originals are JPEG as well; PNG would take four times the space for the same pixels.
    image.resize((image_px, image_px), Image.Resampling.LANCZOS).save(path, quality=95, subsampling=0)


def _write_mask(path: Path, image: Image.Image, image_px: int) -> None:
    """Background is blue, (0, 0, 254), give or take what JPEG does to it; the limits are the released code's."""
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    flower = ~((red <= 10) & (green <= 10) & (blue >= 220))
    mask = Image.fromarray(flower.astype(np.uint8))
    write_png(path, np.array(mask.resize((image_px, image_px), Image.Resampling.NEAREST)), palette=class_palette())
