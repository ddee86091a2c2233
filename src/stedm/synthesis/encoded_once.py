"""Style images that are read and encoded once, however often a plan shows them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from stedm.training.precision import autocast

if TYPE_CHECKING:
    from stedm.diffusion.pipeline import StyleDiffusion

_MOST_MB = 512


class EncodedOnce:
    """What a model's encoder makes of images, by name, on the model's device.

    Where that would be more than 512 MB, the images that were asked for first are kept; the others are encoded in each
    batch.
    """

    def __init__(self, model: "StyleDiffusion"):
        self.model = model
        self._most = int(_MOST_MB * 1e6) // (4 * model.denoiser.style_dim)
        self._asked: set[str] = set()
        self._kept: dict[str, torch.Tensor] = {}

    @staticmethod
    def suits(model: "StyleDiffusion") -> bool:
        """Whether a model's style images are the same each time, and it is worth to keep what is made of them.

        On a CPU it isn't: there the encoder takes a percent or two, a vector differs in its last bits by the company
        that its image was encoded in, and a set that was killed has to go on to the bit.
        """
        is_static = model.style_sampling != "augmented" and model.denoiser.style_encoder is not None
        return is_static and model.device.type != "cpu"

    def unread(self, names: Iterable[str]) -> list[str]:
        """Those of the images that will be missed by `vectors`; to be called in the order of its calls."""
        new = [name for name in names if name not in self._asked]
        self._asked.update(new[: max(0, self._most - len(self._asked))])
        return new

    @torch.inference_mode()
    def vectors(self, styles: Sequence[Sequence[str]], images: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Style vectors `(n, style_dim)` of sets of images; those that weren't encoded before are in `images`."""
        names = list(dict.fromkeys(name for group in styles for name in group))
        new = [name for name in names if name not in self._kept]
        with autocast(self.model.precision, self.model.device):
            encoded = dict(zip(new, self.model.encode_images([images[name] for name in new]), strict=True))
            place = {name: i for i, name in enumerate(names)}
            members = [[place[name] for name in group] for group in styles]
            self._kept |= {name: vector for name, vector in encoded.items() if name in self._asked}
            every = torch.stack([self._kept[name] if name in self._kept else encoded[name] for name in names])
            return self.model.aggregate_encoded(every, members)
