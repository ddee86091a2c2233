"""Measures of synthetic images against real ones, by networks that had no part in training the diffusion model.

- style fidelity: does a synthetic image retrieve its own patient among the patients (`own_patient_retrieval`), how
  far are its stains from the patient's (`colour_distance`);
- layout faithfulness: what an independent segmenter finds, against the layout that was asked for (`layout_iou`);
- likeness to the real images as a set: kernel inception distance (`kernel_distance`).

A measure is only readable between its bounds. Real images measured in the place of synthetic ones give the ceiling
(or floor, for distances); chance and shuffled layouts give the other end.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from skimage.color import hed_from_rgb, rgb2lab

from stedm.config import EvaluationConfig
from stedm.data.folder import DatasetFolder
from stedm.errors import StedmError
from stedm.evaluation.counts import count, counts_table
from stedm.evaluation.metrics import per_patient
from stedm.evaluation.stats import bootstrap_interval
from stedm.seeds import seed_for

ImageEncoder = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB (n, H, W, 3) to features, float (n, d)."""
Segment = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB (n, H, W, 3) to class indices, uint8 (n, H, W)."""
ColourSpace = Literal["hed", "lab"]
"""`hed`: amounts of haematoxylin, eosin and DAB in natural optical density. `lab`: CIE L*a*b*, for unstained things."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size and the patient each belongs to (of synthetic images: whose style it was)."""

    images: np.ndarray
    """uint8 RGB (n, H, W, 3)."""
    patients: np.ndarray
    """Patient ids, (n,) of text."""
    masks: np.ndarray | None = None
    """uint8 (n, H, W) of class indices: of synthetic images the layout that was asked for."""

    def __post_init__(self) -> None:
        if len(self.images) == 0 or len(self.images) != len(self.patients):
            raise StedmError(f"quality: {len(self.images)} images of {len(self.patients)} patients; give one each")

    @classmethod
    def read(cls, dataset: DatasetFolder, image_px: int, *, with_masks: bool = False) -> "ImageSet":
        """All images of a dataset folder (or of the chosen rows of one) at `image_px`."""
        rows = range(len(dataset))
        if len(dataset) == 0:
            raise StedmError(f"{dataset.root}: no image to measure; give a set that has some")
        return cls(
            np.stack([dataset.read_image(row, image_px) for row in rows]),
            dataset.table["patient_id"].to_numpy(dtype=str),
            np.stack([dataset.read_mask(row, image_px) for row in rows]) if with_masks else None,
        )


@dataclass(frozen=True)
class Measure:
    """A number, its 95 % interval over patients (None where it has no value per patient), and the patients' values."""

    value: float
    ci: list[float | None] = field(default_factory=lambda: [None, None])
    per_patient: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def over_patients(values: pd.Series) -> Measure:
    """Mean of one value per patient (index: patient_id), with a percentile bootstrap over patients."""
    known = values.dropna().sort_index()
    if known.empty:
        return Measure(float("nan"))
    interval = bootstrap_interval(lambda x: x.mean(axis=-1), known.to_numpy(dtype=float), config=EvaluationConfig())
    return Measure(float(known.mean()), interval, {str(key): float(value) for key, value in known.items()})


def measure_appearance(
    synthetic: ImageSet,
    reference: ImageSet,
    *,
    style_encoder: ImageEncoder,
    content_encoder: ImageEncoder,
    colours: ColourSpace = "hed",
    seed: int = 0,
) -> dict[str, Measure]:
    """Style fidelity and likeness of synthetic images to the real images of the same patients.

    `reference` must hold images of every style patient that were not given to the model as style images; patients
    of it that no synthetic image is of still count as wrong answers of the retrieval. With other real images of
    the same patients as `synthetic`, the results are what perfect images would reach.

    Returns retrieval_top1, retrieval_mrr, colour_distance, kid.
    """
    top1, mrr = own_patient_retrieval(
        style_encoder(synthetic.images), synthetic.patients, style_encoder(reference.images), reference.patients
    )
    return {
        "retrieval_top1": top1,
        "retrieval_mrr": mrr,
        "colour_distance": colour_distance(synthetic, reference, colours),
        "kid": kernel_distance(content_encoder(synthetic.images), content_encoder(reference.images), seed=seed),
    }


# ---- style fidelity -----------------------------------------------------------------------------------------------


def own_patient_retrieval(
    queries: np.ndarray,
    query_patients: np.ndarray,
    reference: np.ndarray,
    reference_patients: np.ndarray,
    left_out: Sequence[Sequence[int]] | None = None,
) -> tuple[Measure, Measure]:
    """Top-1 rate and mean reciprocal rank at which an image retrieves its own patient among all reference patients.

    A patient is the mean feature vector of its reference images; nearest by Euclidean distance in units of each
    feature's standard deviation within patients, so that features that vary from image to image count little.
    Patients at equal distance share their ranks, so features that say nothing score as chance does.

    Args:
        queries, reference: features (n, d) and (m, d) of the images to judge and of real ones.
        left_out: of each query the rows of the reference that don't count for its own patient: itself, or what the
            model was shown. A query whose patient has no other is left out.

    Raises:
        StedmError: a queried patient has no reference image.
    """
    patients, number = np.unique(np.asarray(reference_patients, dtype=str), return_inverse=True)
    query_patients = np.asarray(query_patients, dtype=str)
    unknown = sorted(set(query_patients.tolist()) - set(patients))
    if unknown:
        raise StedmError(f"quality: patient {unknown[0]} has no reference image; leave some out of the style images")
    centres = np.stack([reference[number == index].mean(axis=0) for index in range(len(patients))])
    scale = np.sqrt(np.mean((reference - centres[number]) ** 2, axis=0))
    scale[scale <= 1e-8 * (1 + np.abs(centres).max(axis=0))] = np.inf  # a constant feature tells nothing
    ranks = np.full(len(queries), np.nan)
    for row, patient in enumerate(np.searchsorted(patients, query_patients)):
        near = centres
        if left_out is not None and len(left_out[row]):
            kept = np.setdiff1d(np.flatnonzero(number == patient), left_out[row])
            if len(kept) == 0:
                continue
            near = centres.copy()
            near[patient] = reference[kept].mean(axis=0)
        distances = np.linalg.norm((queries[row] - near) / scale, axis=-1)
        own = distances[patient]
        ranks[row] = 1 + (distances < own).sum() + ((distances == own).sum() - 1) / 2
    table = pd.DataFrame({"patient": query_patients, "top1": ranks == 1, "mrr": 1 / ranks})[~np.isnan(ranks)]
    found = table.groupby("patient")
    return over_patients(found["top1"].mean()), over_patients(found["mrr"].mean())


def retrieval_chance(n_patients: int) -> dict[str, float]:
    """What guessing reaches among n patients: 1 / n, and the mean of 1 / rank over random ranks."""
    return {"retrieval_top1": 1 / n_patients, "retrieval_mrr": float(np.mean(1 / np.arange(1, n_patients + 1)))}


def colour_distance(synthetic: ImageSet, reference: ImageSet, space: ColourSpace = "hed") -> Measure:
    """How far each patient's synthetic images are from its real ones in mean and SD of the three stains.

    The mean, over the six numbers, of |synthetic - real| in units of that number's SD between the reference patients:
    at 1 a patient's synthetic images differ from its real ones as two patients' real images do (by one SD).

    Raises:
        StedmError: fewer than two reference patients, so that there is no spread between patients.
    """
    return distance_of_colours(colour_statistics(synthetic, space), colour_statistics(reference, space))


def distance_of_colours(made: pd.DataFrame, real: pd.DataFrame) -> Measure:
    """`colour_distance` of two tables of `colour_statistics`."""
    if len(real) < 2:
        raise StedmError("quality: the colour distance needs real images of two patients or more")
    common = made.index.intersection(real.index)
    return over_patients(((made.loc[common] - real.loc[common]).abs() / real.std(ddof=1)).mean(axis=1))


def colour_statistics(images: ImageSet, space: ColourSpace = "hed") -> pd.DataFrame:
    """Mean and SD of each stain (or L*a*b* channel) over all pixels of each patient: patients x 6."""
    return statistics_of_colours(colour_moments(images.images, space), images.patients, space)


def colour_moments(images: np.ndarray, space: ColourSpace = "hed") -> np.ndarray:
    """Mean and mean square of each channel over each image, (n, 6); those of a patient are the means of its images'."""
    amounts = colour_amounts(images, space)
    return np.concatenate([amounts.mean(axis=(1, 2)), (amounts**2).mean(axis=(1, 2))], axis=1)


def statistics_of_colours(moments: np.ndarray, patients: np.ndarray, space: ColourSpace = "hed") -> pd.DataFrame:
    """`colour_statistics` of `colour_moments`."""
    columns = [f"{moment}_{channel}" for moment in ("mean", "square") for channel in space]
    table = pd.DataFrame(moments, columns=columns).groupby(patients).mean()
    for channel in space:
        variance = table.pop(f"square_{channel}") - table[f"mean_{channel}"] ** 2
        table[f"sd_{channel}"] = np.sqrt(variance.clip(lower=0))
    return table


def colour_amounts(images: np.ndarray, space: ColourSpace) -> np.ndarray:
    """uint8 RGB (n, H, W, 3) -> float (n, H, W, 3): amounts of haematoxylin, eosin, DAB, or L*, a*, b*.

    Stains by the matrix of Ruifrok & Johnston in natural optical density, as in stedm.colour.stain; negative ones are
    kept, since cutting them would hide differences of hue.
    """
    if space == "lab":
        return rgb2lab(images)
    density = -np.log(np.maximum(images.astype(np.float64) / 255, 0.5 / 255))
    return density @ hed_from_rgb


# ---- layout faithfulness ------------------------------------------------------------------------------------------


def layout_iou(segment: Segment, images: ImageSet, classes: Sequence[str], ignore_index: int = 255) -> Measure:
    """Foreground IoU per patient between what `segment` finds in the images and their masks (asked layouts)."""
    if images.masks is None:
        raise StedmError("quality: these images have no masks to compare with")
    found = segment(images.images)
    pairs = zip(found, images.masks, strict=True)
    cells = np.stack([count(one, asked, len(classes), ignore_index) for one, asked in pairs])
    table = counts_table("synthetic", 0, list(images.patients), [""] * len(found), cells, classes)
    return over_patients(per_patient(table).set_index("patient_id")["iou"])


# ---- likeness as a set --------------------------------------------------------------------------------------------


def kernel_distance(
    synthetic: np.ndarray, real: np.ndarray, *, subsets: int = 50, subset_size: int = 100, seed: int = 0
) -> Measure:
    """Kernel inception distance (Binkowski et al. 2018) between features (n, d) and (m, d), by torchmetrics.

    Features are divided by their SD over the real images. The size of the subsets shrinks to four fifths of the
    smaller set, so that they differ. The estimate is unbiased: about 0 for images of the same distribution, and it
    may be negative. `ci` holds the middle 95 % over subsets by the normal approximation of their SD.

    Raises:
        StedmError: torchmetrics is not installed, or there are fewer than four images.
    """
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ModuleNotFoundError as error:
        raise StedmError("quality: KID needs torchmetrics; install it with `pip install 'stedm[quality]'`") from error
    size = min(subset_size, 4 * min(len(synthetic), len(real)) // 5)
    if size < 3:
        raise StedmError("quality: KID needs at least four images of either kind")
    scale = np.maximum(real.std(axis=0), 1e-6 * max(1.0, float(np.abs(real).max())))
    centre = real.mean(axis=0)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # It warns that it keeps all features in memory: we hand it features of a few hundred images.
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all extracted features")
        torch.manual_seed(seed_for(seed, "kid"))
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=subsets, subset_size=size)
        metric.update(torch.from_numpy((real - centre) / scale).double(), real=True)
        metric.update(torch.from_numpy((synthetic - centre) / scale).double(), real=False)
        mean, sd = (float(value) for value in metric.compute())
    return Measure(mean, [mean - 1.96 * sd, mean + 1.96 * sd])
