"""Flowers-102 from small archives of the same layout: nothing here touches the network."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from stedm.cli import main
from stedm.data.check import check_dataset
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.public import flowers102 as public
from stedm.public.flowers102 import FLOWERS102_ANNOTATED, FLOWERS102_CATEGORIES, FLOWERS102_MD5, fetch, make_flowers102

# Images 1 and 2 are of a category that the paper annotates, the others of one it doesn't.
LABELS = [5, 5, 1, 1, 1]
SPLITS = {"trnid": [3, 1], "valid": [2], "tstid": [4, 5]}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr("requests.get", refuse)


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=95, subsampling=0)
    return file.getvalue()


def photograph(number: int) -> np.ndarray:
    """40 x 30 pixels: green with a red flower in the left half; its number in the brightness."""
    image = np.full((30, 40, 3), (20, 100 + 20 * number, 20), np.uint8)
    image[:, :20] = (200, 20, 20)
    return image


def segmentation(number: int) -> np.ndarray:
    image = photograph(number)
    image[:, 20:] = (0, 0, 254)
    return image


def write_tar(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)


def images_of(kind) -> dict[str, bytes]:
    name = "jpg/image_{:05d}.jpg" if kind is photograph else "segmim/segmim_{:05d}.jpg"
    return {name.format(number): jpeg(kind(number)) for number in range(1, len(LABELS) + 1)}


def checksums(folder: Path) -> dict[str, str]:
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in FLOWERS102_MD5}


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    write_tar(folder / "102flowers.tgz", images_of(photograph))
    write_tar(folder / "102segmentations.tgz", images_of(segmentation))
    savemat(folder / "imagelabels.mat", {"labels": np.array([LABELS])})
    savemat(folder / "setid.mat", {key: np.array([values]) for key, values in SPLITS.items()})
    return folder


def convert(archives: Path, root: Path) -> None:
    make_flowers102(root, archives=archives, image_px=32, checksums=checksums(archives))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library
def test_hugging_face_reads_the_folder(archives, tmp_path, hugging_face):
    convert(archives, tmp_path / "flowers")
    assert set(hugging_face(tmp_path / "flowers")["split"]) == {"train", "unlabeled", "val", "test"}


def test_archives_become_a_dataset_folder(archives, tmp_path):
    convert(archives, tmp_path / "flowers")
    assert check_dataset(tmp_path / "flowers") == []
    dataset = DatasetFolder.open(tmp_path / "flowers")
    table = dataset.table.set_index("patient_id")
    assert table["split"].to_dict() == {
        "image_00001": "train",
        "image_00002": "val",
        "image_00003": "unlabeled",
        "image_00004": "test",
        "image_00005": "test",
    }
    assert table["category"].tolist() == ["english marigold"] * 2 + ["pink primrose"] * 3
    assert table["mask_file_name"].all()
    for row in (0, 1, 3, 4):
        mask, image = dataset.read_mask(row), dataset.read_image(row)
        assert mask.shape == (32, 32)
        assert (mask == np.repeat([[1] * 16 + [0] * 16], 32, axis=0)).mean() > 0.97
        assert abs(int(image[16, 28, 1]) - (100 + 20 * (row + 1))) < 8
    with pytest.raises(StedmError, match="unlabeled image"):
        dataset.read_mask(2)


def test_the_split_of_the_paper():
    assert len(FLOWERS102_ANNOTATED) == 48
    assert set(range(1, 103)) >= FLOWERS102_ANNOTATED
    assert len(set(FLOWERS102_CATEGORIES)) == 102


def test_checksums_and_names_are_those_of_torchvision():
    from torchvision.datasets import Flowers102

    if not hasattr(Flowers102, "_file_dict"):
        pytest.skip("this torchvision keeps its checksums elsewhere")
    theirs = dict(Flowers102._file_dict.values())
    assert theirs == {name: FLOWERS102_MD5[name] for name in theirs}
    assert len(theirs) == 3
    if hasattr(Flowers102, "classes"):
        assert [name.rstrip("?") for name in Flowers102.classes] == list(FLOWERS102_CATEGORIES)


def test_a_file_with_another_checksum_is_refused_and_kept(archives, tmp_path):
    known = checksums(archives)
    content = (archives / "setid.mat").read_bytes()
    with pytest.raises(StedmError, match=r"setid\.mat: is damaged or another version"):
        make_flowers102(tmp_path / "flowers", archives=archives, checksums=known | {"setid.mat": "0" * 32})
    assert (archives / "setid.mat").read_bytes() == content
    assert not (tmp_path / "flowers").exists()


def test_a_missing_file_that_cannot_be_downloaded(archives, tmp_path):
    known = checksums(archives)
    (archives / "imagelabels.mat").unlink()
    with pytest.raises(StedmError, match=r"imagelabels\.mat: download failed \(no network in tests\)"):
        make_flowers102(tmp_path / "flowers", archives=archives, checksums=known)
    assert sorted(path.name for path in archives.iterdir()) == ["102flowers.tgz", "102segmentations.tgz", "setid.mat"]


def test_a_download_with_another_checksum_is_not_kept(tmp_path, monkeypatch):
    def download(url, output_file, pooch):
        Path(output_file).write_bytes(b"something else")

    monkeypatch.setattr("pooch.core.choose_downloader", lambda *arguments, **options: download)
    with pytest.raises(StedmError, match="download failed"):
        fetch("https://example.org/a.tgz", "0" * 32, tmp_path, "x")
    assert not (tmp_path / "a.tgz").exists()
    path = fetch("https://example.org/a.tgz", hashlib.md5(b"something else").hexdigest(), tmp_path, "x")
    assert path.read_bytes() == b"something else"


def cut(archives: Path, name: str) -> None:
    content = (archives / name).read_bytes()
    (archives / name).write_bytes(content[: len(content) // 2])


def replace_images(archives: Path, **changes) -> None:
    write_tar(archives / "102flowers.tgz", images_of(photograph) | changes.pop("files", {}), **changes)


DAMAGES = {
    "cut off": (lambda archives: cut(archives, "102segmentations.tgz"), "102segmentations.tgz: not a readable tar.gz"),
    "not an archive": (lambda archives: (archives / "102flowers.tgz").write_bytes(b"<html>"), "not a readable tar.gz"),
    "cut labels": (lambda archives: cut(archives, "imagelabels.mat"), "imagelabels.mat: not a MATLAB file"),
    "other variables": (lambda archives: savemat(archives / "setid.mat", {"x": [1]}), "setid.mat: not a MATLAB file"),
    "unknown category": (
        lambda archives: savemat(archives / "imagelabels.mat", {"labels": np.array([[103, 1, 1, 1, 1]])}),
        "not category numbers",
    ),
    "an image in two splits": (
        lambda archives: savemat(archives / "setid.mat", {"trnid": [1, 2, 3], "valid": [3], "tstid": [4, 5]}),
        "each of the 5 images",
    ),
    "damaged image": (
        lambda archives: replace_images(archives, files={"jpg/image_00004.jpg": b"JFIF"}),
        "image_00004.jpg can't be converted",
    ),
    "too many images": (
        lambda archives: replace_images(archives, files={"jpg/image_00006.jpg": jpeg(photograph(6))}),
        "image_00006.jpg is there twice or in no split",
    ),
    "missing image": (
        lambda archives: write_tar(archives / "102flowers.tgz", {"jpg/image_00002.jpg": jpeg(photograph(2))}),
        "4 images are missing, first number 1",
    ),
    "path traversal": (
        lambda archives: replace_images(archives, files={"../jpg/image_00001.jpg": b"x"}),
        "leads out of the archive",
    ),
    "absolute path": (
        lambda archives: replace_images(archives, files={"/etc/passwd": b"x"}),
        "leads out of the archive",
    ),
    "link": (
        lambda archives: replace_images(archives, links={"jpg/image_00009.jpg": "/etc/passwd"}),
        "is a link or leads out",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_hostile_archives_leave_nothing_behind(archives, tmp_path, damage):
    change, message = DAMAGES[damage]
    change(archives)
    with pytest.raises(StedmError, match=message) as error:
        convert(archives, tmp_path / "out" / "flowers")
    assert len(str(error.value).splitlines()) == 1
    assert list((tmp_path / "out").glob("**/*")) == [] or not (tmp_path / "out").exists()


def test_an_interrupted_conversion_leaves_nothing_and_can_be_repeated(archives, tmp_path, monkeypatch):
    def interrupted(path, image, image_px):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(public, "_write_mask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(archives, tmp_path / "out" / "flowers")
    assert list((tmp_path / "out").iterdir()) == []
    convert(archives, tmp_path / "out" / "flowers")
    assert len(DatasetFolder.open(tmp_path / "out" / "flowers")) == 5
    with pytest.raises(StedmError, match="not empty"):
        convert(archives, tmp_path / "out" / "flowers")


def test_the_verb(archives, tmp_path, monkeypatch, capsys):
    for name, md5 in checksums(archives).items():
        monkeypatch.setitem(FLOWERS102_MD5, name, md5)
    with pytest.raises(SystemExit) as stop:
        main(["data", "flowers102", "--archives", str(archives), str(tmp_path / "flowers")])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.strip() == str(tmp_path / "flowers")
    assert DatasetFolder.open(tmp_path / "flowers").read_image(0).shape == (512, 512, 3)
