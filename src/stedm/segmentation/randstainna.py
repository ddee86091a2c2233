"""RandStainNA (Shen et al., MICCAI 2022, arXiv 2206.12694): each image takes on the colours of a virtual template.

Stain normalisation towards a template that is drawn anew each time, from the statistics of a cohort: neither the one
look of normalisation nor the looks, which no laboratory makes, of unbounded jitter.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stedm.colour.lab import lab_from_rgb, rgb_from_lab
from stedm.data.folder import DatasetFolder

_IMAGES_TO_MEASURE = 256


@dataclass(frozen=True)
class Cohort:
    """Mean and SD over images of six figures of an image: mean of L*, a*, b*, then SD of L*, a*, b*. Both (6,)."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def measure(cls, *datasets: DatasetFolder, image_px: int) -> "Cohort":
        """From some images of dataset folders, spread evenly over their rows; no mask is read."""
        figures = []
        for dataset in datasets:
            rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _IMAGES_TO_MEASURE)).astype(int))
            images = np.stack([dataset.read_image(int(row), image_px) for row in rows])
            figures.append(_figures(lab_from_rgb(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)))
        together = torch.cat(figures)
        return cls(together.mean(dim=0), together.std(dim=0, correction=0))


def normalise_to_templates(images: Tensor, draws: Tensor, cohort: Cohort, spread: float = 1.0) -> Tensor:
    """Images (n, 3, H, W) in [0, 1] with the L*a*b* means and SDs of n virtual templates (Reinhard et al. 2001).

    A template is `cohort.mean + spread * cohort.sd * draws`; draws (n, 6) are standard normal.
    """
    device = images.device
    template = (cohort.mean + spread * cohort.sd * draws).to(device)
    # A negative SD would turn dark into bright.
    template[:, 3:] = template[:, 3:].clamp_min(0.1)
    lab = lab_from_rgb(images)
    now = _figures(lab)
    scale = template[:, 3:] / now[:, 3:].clamp_min(0.1)
    changed = (lab - now[:, :3, None, None]) * scale[:, :, None, None] + template[:, :3, None, None]
    return rgb_from_lab(changed)


def _figures(lab: Tensor) -> Tensor:
    return torch.cat([lab.mean(dim=(2, 3)), lab.std(dim=(2, 3), correction=0)], dim=1)
