"""What a configuration leaves to the data: the side of the images, and who labels first."""

from collections import Counter

import numpy as np

from stedm.config import RunConfig
from stedm.data.budget import choose_annotated, choose_annotated_images
from stedm.data.folder import DatasetFolder
from stedm.data.info import read_info
from stedm.errors import StedmError
from stedm.phantom.patients import CLASSES

FEW_PATIENTS = 3
"""Up to so many annotated patients, self-trained segmenters label better than those of annotated images alone
(results/ebhi_few_patients)."""
_IMAGES_TO_LOOK_AT = 32
_ASSUMED_CLASSES = 2
_MULTIPLE_PX, _MULTIPLE_PX_OF_LATENTS = 16, 32
"""Three levels of a U-Net on latents of an eighth of the side want a multiple of 32."""
PUBLISHED = "stabilityai/sd-vae-ft-mse"
"""An autoencoder under the MIT licence: latents of 4 channels at an eighth of the side."""


def resolve(config: RunConfig) -> RunConfig:
    """The same configuration with `data.image_px` and `rounds.labels.arm` filled in where they are null.

    Raises:
        StedmError: there is no dataset at `data.path`.
    """
    labels = config.rounds.labels
    chooses_labels = labels is not None and labels.arm is None
    if config.data.image_px is not None and not chooses_labels:
        return config
    phantom = config.data.phantom
    dataset = None if phantom else open_dataset(config)
    if config.data.image_px is None:
        px = phantom.image_px if phantom else _common_side(dataset, config)
        config = config.model_copy(update={"data": config.data.model_copy(update={"image_px": px})})
    if labels is not None and chooses_labels:
        n = _n_annotated_of_phantom(config) if phantom else len(annotated_part(dataset, config).patients())
        arm = "self-training" if n <= FEW_PATIENTS else "real+stain"
        rounds = config.rounds.model_copy(update={"labels": labels.model_copy(update={"arm": arm})})
        config = config.model_copy(update={"rounds": rounds})
    return config


def resolve_if_there(config: RunConfig) -> RunConfig:
    """`resolve` for looking at a configuration: where its dataset isn't there, the largest side of the preset."""
    if config.data.path is None or config.data.path.is_dir():
        return resolve(config)
    px = config.data.image_px or config.largest_image_px
    return config.model_copy(update={"data": config.data.model_copy(update={"image_px": px})})


def classes_of(config: RunConfig) -> tuple[int, str]:
    """Number of classes of a configuration's data, and how it is known; two where the data aren't there."""
    data = config.data
    if data.phantom is not None:
        return len(CLASSES[data.phantom.stain]), f"phantom {data.phantom.stain}"
    if data.path is not None and (data.path / "dataset.yaml").is_file():
        info = read_info(data.path)
        return len(info.classes), info.name
    return _ASSUMED_CLASSES, "assumed: data.path has no dataset.yaml"


def sizes_text(config: RunConfig) -> str:
    """What was chosen for a resolved configuration, in a line."""
    diffusion, segmentation, rounds = config.diffusion, config.segmentation, config.rounds
    text = (
        f"preset {config.preset}: images of {config.data.side} px; diffusion model {diffusion.steps} steps of "
        f"{diffusion.batch}"
    )
    if config.fine_tunes and rounds.fine_tune:
        text += f", then {rounds.fine_tune.steps} in each later one of {rounds.last} rounds"
    labels = f"; first labels by {rounds.labels.arm}" if rounds.labels else ""
    return f"{text}; segmenters {segmentation.steps} steps of {segmentation.batch}{labels}"


def first_stage_text(config: RunConfig) -> str | None:
    """How to give an autoencoder, for a configuration of a GPU that has none and works on pixels; None for others."""
    if config.preset != "gpu" or config.diffusion.codec.kind != "pixel":
        return None
    return (
        f"no autoencoder is given: pixels, at most {config.largest_image_px} px; for latents and 256 px run "
        f"`hf download {PUBLISHED}` once and add --set diffusion.codec.source={PUBLISHED} (or a folder; docs/codecs.md)"
    )


def check_first_stage(config: RunConfig) -> None:
    """Refuse what would stop a run after hours: a first stage that isn't there, a side that can't be halved so often.

    Raises:
        StedmError: see there.
    """
    from stedm.diffusion.codec import check_codec  # which needs seconds to be imported

    codec, levels = config.diffusion.codec, len(config.diffusion.denoiser.channels)
    multiple = check_codec(codec).factor * 2 ** (levels - 1)
    if config.data.side % multiple:
        raise StedmError(
            f"data.image_px {config.data.side}: must be a multiple of {multiple} for this first stage and "
            f"{levels} levels of the U-Net; set it to {max(1, config.data.side // multiple) * multiple}"
        )


def open_dataset(config: RunConfig, **options) -> DatasetFolder:
    """The dataset folder at `data.path`, patients of unseen categories counted as unlabeled."""
    assert config.data.path is not None
    return DatasetFolder.open(config.data.path, unseen_categories=config.data.unseen_categories, **options)


def annotated_part(dataset: DatasetFolder, config: RunConfig) -> DatasetFolder:
    """The train images that count as annotated under the label budget."""
    if config.data.annotated_per_category is not None:
        return dataset.select(choose_annotated_images(dataset, config.data.annotated_per_category, config.data.draw))
    chosen = choose_annotated(dataset, config.data.annotated_patients, config.data.draw)
    table = dataset.table
    return dataset.select((table["patient_id"].isin(chosen) & (table["mask_file_name"] != "")).to_numpy())


def _common_side(dataset: DatasetFolder, config: RunConfig) -> int:
    """The most frequent shorter side of some images, at most `largest_image_px`, a multiple of what divides it."""
    multiple = _MULTIPLE_PX if config.diffusion.codec.kind == "pixel" else _MULTIPLE_PX_OF_LATENTS
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), _IMAGES_TO_LOOK_AT)).astype(int)
    sides = Counter(min(dataset.read_image(int(row)).shape[:2]) for row in rows)
    side = min(sides.most_common(1)[0][0], config.largest_image_px)
    return max(multiple, side // multiple * multiple)


def _n_annotated_of_phantom(config: RunConfig) -> int:
    phantom = config.data.phantom
    assert phantom is not None
    return min(phantom.patients.get("train", 0), config.data.annotated_patients or phantom.patients.get("train", 0))
