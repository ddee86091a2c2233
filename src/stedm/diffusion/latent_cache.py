"""Latents of the training images, encoded once instead of in every step; those of recoloured ones in every step.

RUN/latents/moments.npy   float16 (images, 8 symmetries, C, h, w), memory-mapped; C as in `AutoencoderCodec.moments`
RUN/latents/sums.npy      uint32 (images, 8): CRC-32 of each, 0 = not encoded yet
RUN/latents/index.json    fingerprint of the autoencoder, side of the images, file names in order of the rows

An autoencoder doesn't commute with turning the image, so each of the 8 symmetries is encoded by itself, when it is
first drawn. The file is sparse until then. For a distribution mean and standard deviation are kept, so that training
still draws from it.
"""

import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stedm.data.symmetry import N_SYMMETRIES
from stedm.diffusion.codec import AutoencoderCodec
from stedm.io.artefacts import read_json
from stedm.io.files import replacing, require_file, write_json, writing


class LatentCache:
    """Give the latents of training images, from disk where they have been encoded before.

    A cache of another autoencoder, other images or another size at `folder` is thrown away.

    Args:
        folder: of the cache.
        codec: encodes what is missing, on its own device.
        names: file names of the images, by row.
        image_px: side of the images.
    """

    def __init__(self, folder: Path, codec: AutoencoderCodec, names: list[str], image_px: int):
        self.codec = codec
        index = {"autoencoder": codec.fingerprint, "image_px": image_px, "images": names}
        if not _holds(folder, index):
            _make(folder, index, codec, image_px)
        self._moments, self._sums = _open(folder)

    def __call__(
        self,
        images: Tensor,
        row: Tensor,
        symmetry_index: Tensor,
        noise: Tensor | None = None,
        *,
        unchanged: Tensor | None = None,
    ) -> Tensor:
        """Latents as `codec.encode(images, noise)` gives them, of images `(b, 3, H, W)` in [-1, 1], which are the rows
        `row (b,)` of the data under the symmetries `symmetry_index (b,)`. Rounded to float16 the first time too, so
        that a resumed run sees equal numbers.

        Args:
            unchanged: `(b,)`, False where the colours of an image were changed: it is encoded and not kept. None = all
                are as in the data.
        """
        rows, indices = row.cpu().numpy(), symmetry_index.cpu().numpy()
        moments, sums = self._moments[rows, indices], self._sums[rows, indices]
        is_kept = np.ones(len(rows), bool) if unchanged is None else unchanged.cpu().numpy()
        # One that is damaged, or whose process was killed before all of it was on the disk, is encoded again.
        found = zip(is_kept, moments, sums, strict=True)
        is_there = [kept and sum_ and _sum_of(latent) == sum_ for kept, latent, sum_ in found]
        missing = np.flatnonzero(~np.array(is_there, bool))
        if len(missing):
            encoded = self.codec.moments(images[torch.from_numpy(missing).to(images.device)])
            moments[missing] = encoded.cpu().numpy().astype(np.float16)
            new = missing[is_kept[missing]]
            places = rows[new] * N_SYMMETRIES + indices[new]
            _put(self._moments, places, moments[new])
            _put(self._sums, places, np.array([_sum_of(latent) for latent in moments[new]], np.uint32))
        return self.codec.sample(torch.from_numpy(moments).to(images.device), noise)


def _put(array: np.memmap, places: np.ndarray, values: np.ndarray) -> None:
    """Write to the file behind an array of (images, symmetries, ...), seen as (images x symmetries, ...).

    Not through the mapped memory: on a full disk that kills the process without a word.
    """
    path = Path(array.filename)
    with writing(path), path.open("r+b") as file:
        for place, value in zip(places, values, strict=True):
            file.seek(array.offset + int(place) * value.nbytes)
            file.write(value.tobytes())


def _sum_of(latent: np.ndarray) -> int:
    """CRC-32, never 0."""
    return zlib.crc32(np.ascontiguousarray(latent).tobytes()) or 1


def _open(folder: Path) -> tuple[np.memmap, np.memmap]:
    return np.load(folder / "moments.npy", mmap_mode="r"), np.load(folder / "sums.npy", mmap_mode="r")


def _holds(folder: Path, index: dict) -> bool:
    """Whether a cache of these images is there, whole; one that is damaged is made anew."""
    try:
        found = read_json(folder / "index.json", dict)
        shape = found.pop("shape", None)
        for name in ("moments.npy", "sums.npy"):
            require_file(folder / name)
        moments, sums = _open(folder)
    except Exception:  # NumPy reads a damaged header as Python, with whatever error that has
        return False
    is_whole = [list(moments.shape), list(sums.shape), moments.dtype, sums.dtype]
    return found == index and isinstance(shape, list) and is_whole == [shape, shape[:2], np.float16, np.uint32]


def _make(folder: Path, index: dict, codec: AutoencoderCodec, image_px: int) -> None:
    """An empty cache."""
    shutil.rmtree(folder, ignore_errors=True)
    # A small image tells the number of channels.
    small = torch.zeros(1, 3, *(2 * (min(image_px, 8 * codec.factor),)), device=codec.mean.device)
    side = image_px // codec.factor
    shape = (len(index["images"]), N_SYMMETRIES, codec.moments(small).shape[1], side, side)
    with replacing(folder) as temporary:
        temporary.mkdir()
        np.lib.format.open_memmap(temporary / "moments.npy", "w+", np.float16, shape).flush()
        np.save(temporary / "sums.npy", np.zeros(shape[:2], np.uint32))
        write_json(temporary / "index.json", {**index, "shape": list(shape)})
