"""Training of the style-extracting diffusion model, semi-supervised: unannotated images train it too.

An unannotated image is a sample whose layout is unknown everywhere. Its style is then learned, not extrapolated,
which the paper's training on annotated images alone can't do.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from stedm.colour.recolour import recolour_together, stain_factors
from stedm.config import DiffusionConfig, MachineConfig, RecolourConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.data.provenance import of_model
from stedm.data.symmetry import N_SYMMETRIES, channels_first, symmetry, to_signed
from stedm.diffusion.codec import AutoencoderCodec, Codec, open_codec, place
from stedm.diffusion.denoiser import StyleDenoiser
from stedm.diffusion.latent_cache import LatentCache
from stedm.diffusion.objective import Objective
from stedm.diffusion.pipeline import StyleDiffusion
from stedm.diffusion.progress_grid import ProgressGrid
from stedm.errors import StedmError
from stedm.seeds import numpy_generator, seed_for, torch_generator
from stedm.style.sampling import StyleSampler, refuse_impossible_sampling
from stedm.training.trainer import Progress, Trainer

_IMAGES_TO_MEASURE = 256
_LAYOUTS_TO_LOOK_AT = 8


def train_diffusion(
    config: DiffusionConfig,
    annotated: DatasetFolder,
    unlabeled: DatasetFolder | None,
    folder: Path,
    *,
    image_px: int,
    seed: int = 0,
    pseudo_labels: DatasetFolder | None = None,
    style_sources: DatasetFolder | None = None,
    init_from: StyleDiffusion | None = None,
    machine: MachineConfig | None = None,
    recolour: RecolourConfig | None = None,
    style_encoder: nn.Module | None = None,
    codec: Codec | None = None,
    on_progress: Progress | None = None,
) -> StyleDiffusion:
    """Train, or go on training, in `folder`; the model with its averaged weights is written to `folder/model`.

    Args:
        annotated: images with masks.
        unlabeled: images whose masks are never read; None or `unlabeled_fraction` 0 = labelled-only.
        image_px: side of the images.
        seed: of initial weights, samples and noise.
        pseudo_labels: layouts for the images of `unlabeled`, row by row, `ignore_index` = unknown; None = unknown
            everywhere.
        style_sources: images of the annotated patients that are shown as style only (see
            stedm.style.sampling.unannotated_tissue).
        init_from: a model of the same configuration, whose weights are the initial ones; None = random ones.
        machine: how it is computed.
        recolour: how far stains may differ; None = the defaults.
        style_encoder: a module of your own in place of `config.style.encoder` (see `StyleDenoiser`).
        codec: a first stage of your own in place of `config.codec`. `StyleDiffusion.from_pretrained` wants both again.
    """
    machine, recolour = machine or MachineConfig(), recolour or RecolourConfig()
    samples = DiffusionSamples(config, annotated, unlabeled, image_px, seed, pseudo_labels, style_sources)
    some_images = to_signed(samples.some_images(_IMAGES_TO_MEASURE))
    first_stage = open_codec(config.codec) if codec is None else codec
    denoiser = make_denoiser(config, first_stage, len(annotated.info.classes), seed, image_px, style_encoder)
    if init_from is not None:
        denoiser.load_state_dict(init_from.denoiser.state_dict())
    denoiser.measure(some_images)
    objective = Objective(config.objective, config.loss, config.time_shift)
    if machine.activation_checkpointing:
        denoiser.checkpoint_activations()
    trainer = Trainer(
        denoiser,
        folder,
        config,
        machine,
        ema_decay=config.ema_decay,
        seed=seed_for(seed, "diffusion"),
        on_progress=on_progress,
    )
    place(first_stage, trainer.device)
    if codec is None and not first_stage.is_measured:
        with trainer.autocast():
            first_stage = first_stage.measured(some_images)
        place(first_stage, trainer.device)
    cache = open_cache(trainer, first_stage, samples, image_px) if machine.cache_latents else None
    about = {
        "codec": first_stage,
        "objective": config.objective,
        "classes": annotated.info.classes,
        "image_px": image_px,
        "style_sampling": config.style.sampling,
    }
    at_once = config.batch // machine.accumulate
    grid = ProgressGrid(samples, machine, seed=seed, at_once=at_once, **about)
    for batch in trainer.batches(DrawnSamples(samples, recolour, objective, first_stage, image_px)):
        if recolour.probability > 0:
            image, style = recolour_together(batch["image"], batch["style"], batch["stain_factors"])
        else:
            image, style = to_signed(batch["image"]), to_signed(batch["style"])
        with trainer.autocast():
            latent = encode(image, batch, first_stage, cache)
        noisy, target, timestep = objective.corrupt(latent, batch["noise"], batch["time"])
        with trainer.autocast():
            predicted = trainer.network(noisy, timestep, batch["layout"].long(), style, batch["valid"])
        trainer.step(objective(predicted.float(), target))
        if grid.is_due(trainer):
            grid.paint(trainer)
    with trainer.averaged_weights() as network:
        if trainer.accelerator.is_main_process:
            from_where = _provenance(samples, style_sources, init_from is not None)
            StyleDiffusion(network, **about, provenance=from_where).save_pretrained(folder / "model")
    trainer.accelerator.wait_for_everyone()
    return StyleDiffusion.from_pretrained(folder / "model", style_encoder=style_encoder, codec=codec)


class DiffusionSamples(Dataset):
    """The sample stream: sample i is a pure function of (seed, i).

    A sample has `image` uint8 (3, px, px), `layout` uint8 (px, px) in 0..n_classes with n_classes = unknown, `style`
    uint8 (n, 3, px, px) and `valid` bool (n,), all False where the null style is shown; `row` (in `names`) and
    `symmetry_index` (of the 8 symmetries) tell which image it is.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        annotated: DatasetFolder,
        unlabeled: DatasetFolder | None,
        image_px: int,
        seed: int,
        pseudo_labels: DatasetFolder | None = None,
        style_sources: DatasetFolder | None = None,
    ):
        if len(annotated) == 0:
            raise StedmError(
                f"{annotated.root}: no annotated image to train the diffusion model on; "
                "add masks to images of split train"
            )
        shown = annotated if style_sources is None else annotated.followed_by(style_sources)
        refuse_impossible_sampling(config.style.sampling, *filter(None, (shown, unlabeled)))
        self.config, self.seed = config, seed
        self.n_classes = len(annotated.info.classes)
        self._annotated = _Pool(annotated, config, image_px, annotated, style_sources)
        semi = unlabeled is not None and len(unlabeled) > 0 and config.unlabeled_fraction > 0
        self._unlabeled = _Pool(unlabeled, config, image_px, pseudo_labels) if unlabeled is not None and semi else None
        self.annotated, self.unlabeled = annotated, unlabeled if semi else None
        self.has_labels = pseudo_labels is not None

    def __len__(self) -> int:
        return self.config.steps * self.config.batch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = numpy_generator(self.seed, "diffusion-sample", index)
        pool = self._pool(generator)
        row = pool.draw(generator)
        symmetry_index = int(generator.integers(N_SYMMETRIES))
        image = symmetry(pool.cache.image(row), symmetry_index)
        layout = self._layout(pool, row, symmetry_index, generator)
        style, valid = pool.styles(row, generator)
        if generator.random() < self.config.style.dropout:
            valid = np.zeros_like(valid)
        return {
            "image": channels_first(image),
            "layout": torch.from_numpy(np.ascontiguousarray(layout)),
            "style": channels_first(style),
            "valid": torch.from_numpy(valid),
            "row": torch.tensor(row if pool is self._annotated else row + len(self._annotated)),
            "symmetry_index": torch.tensor(symmetry_index),
        }

    def _pool(self, generator: np.random.Generator) -> "_Pool":
        from_unlabeled = self._unlabeled is not None and generator.random() < self.config.unlabeled_fraction
        return self._unlabeled if from_unlabeled and self._unlabeled else self._annotated

    def _layout(self, pool: "_Pool", row: int, symmetry_index: int, generator: np.random.Generator) -> np.ndarray:
        if pool.layouts is None or generator.random() < self.config.layout_dropout:
            side = pool.cache.image_px
            return np.full((side, side), self.n_classes, np.uint8)
        layout = symmetry(pool.layouts.mask(row), symmetry_index)
        # Pixels under the ignore index have no known class.
        layout[layout >= self.n_classes] = self.n_classes
        return layout

    @property
    def names(self) -> list[str]:
        """File names of all images, annotated ones first."""
        pools = [self._annotated] + ([self._unlabeled] if self._unlabeled else [])
        return [name for pool in pools for name in pool.cache.dataset.table["image_file_name"].iloc[: len(pool)]]

    def some_layouts(self, n: int) -> np.ndarray:
        """uint8 `(m, px, px)`: layouts of m <= n annotated patients, of each the most varied one of a few."""
        pool = self._annotated
        chosen = []
        for rows in pool.some_patients(n):
            layouts = [pool.cache.mask(int(row)) for row in rows[:_LAYOUTS_TO_LOOK_AT]]
            chosen.append(min(layouts, key=self._sameness))
        return np.stack(chosen)

    def _sameness(self, layout: np.ndarray) -> int:
        """Pixels of the most frequent class, or of none that is known."""
        counts = np.bincount(layout.ravel(), minlength=self.n_classes)[: self.n_classes]
        return int(layout.size - counts.sum() + counts.max())

    def some_styles(self, n: int) -> list[list[np.ndarray]]:
        """Style images of one annotated and n - 1 unannotated patients, or of n annotated ones; fewer where there are
        fewer."""
        pools = [(self._annotated, n)]
        if self._unlabeled:
            pools = [(self._annotated, 1), (self._unlabeled, n - 1)]
        return [
            [pool.cache.image(int(row)) for row in rows[: self.config.style.n_images]]
            for pool, patients in pools
            for rows in pool.some_patients(patients)
        ]

    def some_images(self, n: int) -> torch.Tensor:
        """uint8 `(m, 3, px, px)`: m <= n images spread over annotated and unannotated ones."""
        pools = [self._annotated] + ([self._unlabeled] if self._unlabeled else [])
        chosen = [
            pool.cache.image(int(row))
            for pool in pools
            for row in np.linspace(0, len(pool) - 1, min(n // len(pools), len(pool)))
        ]
        return channels_first(np.stack(chosen))


def _provenance(samples: DiffusionSamples, style_sources: DatasetFolder | None, goes_on: bool) -> dict[str, Any]:
    config, annotated, unlabeled = samples.config, samples.annotated, samples.unlabeled
    training: dict[str, Any] = {"steps": config.steps, "batch": config.batch, "seed": samples.seed}
    if goes_on:
        training["begun at"] = "the model of the round before"
    if unlabeled is not None:
        training["layouts of unannotated images"] = "pseudo-labels" if samples.has_labels else "unknown"
    parts = {"annotated": annotated, "unannotated": unlabeled, "shown as style only": style_sources}
    return of_model(annotated, training, **parts)


class DrawnSamples(Dataset):
    """`DiffusionSamples` with all that training draws for a sample: the same however the samples are divided among
    batches, parts of batches, processes and workers.

    Adds `stain_factors` (3,), `time` () in (0, 1), and `noise` and `codec_noise`, standard normal in latent shape; the
    latter is for codecs that give distributions.
    """

    def __init__(
        self,
        samples: DiffusionSamples,
        recolour: RecolourConfig,
        objective: Objective,
        codec: Codec,
        image_px: int,
    ):
        self.samples, self.recolour, self.objective = samples, recolour, objective
        side = image_px // codec.factor
        self.latent_shape = (codec.latent_channels, side, side)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch_generator(self.samples.seed, "diffusion-draws", index)
        return {
            **self.samples[index],
            "stain_factors": stain_factors(1, self.recolour, generator)[0],
            "time": self.objective.sample_times(1, generator)[0],
            "noise": torch.randn(self.latent_shape, generator=generator),
            "codec_noise": torch.randn(self.latent_shape, generator=generator),
        }


class _Pool:
    """Images of one kind (annotated or not), with their styles and, where there are any, their layouts.

    Rows of `style_sources` lie behind those of `dataset` in the cache and are never drawn.
    """

    def __init__(
        self,
        dataset: DatasetFolder,
        config: DiffusionConfig,
        image_px: int,
        layouts: DatasetFolder | None,
        style_sources: DatasetFolder | None = None,
    ):
        self._n_images = len(dataset)
        shown = dataset if style_sources is None else dataset.followed_by(style_sources)
        self.cache = ImageCache(shown, image_px)
        self.layouts = None
        if layouts is not None:
            if len(layouts) != len(dataset):
                raise StedmError(f"{layouts.root}: {len(layouts)} layouts for {len(dataset)} images; remove it")
            self.layouts = self.cache if layouts is dataset else ImageCache(layouts, image_px)
        self.styles = StyleSampler(self.cache, config.style.sampling, config.style.n_images)
        # A patient is drawn and then one of its images: patients with many images don't drown the others.
        self._rows = list(rows_by_patient(dataset.table).values())

    def __len__(self) -> int:
        return self._n_images

    def some_patients(self, n: int) -> list[np.ndarray]:
        """The rows of m <= n patients, spread over all."""
        return [self._rows[i] for i in np.linspace(0, len(self._rows) - 1, min(n, len(self._rows))).astype(int)]

    def draw(self, generator: np.random.Generator) -> int:
        rows = self._rows[generator.integers(len(self._rows))]
        return int(rows[generator.integers(len(rows))])


@torch.no_grad()
def encode(
    image: torch.Tensor, batch: dict[str, torch.Tensor], codec: Codec, cache: LatentCache | None
) -> torch.Tensor:
    """Latents of a batch of `DrawnSamples`, whose images `(b, 3, H, W)` in [-1, 1] may have been recoloured."""
    if cache is None:
        return codec.encode(image, batch["codec_noise"]).float()
    unchanged = (batch["stain_factors"] == 1).all(dim=1)
    return cache(image, batch["row"], batch["symmetry_index"], batch["codec_noise"], unchanged=unchanged)


def open_cache(trainer: Trainer, codec: Codec, samples: DiffusionSamples, image_px: int) -> LatentCache | None:
    """The latents of the training images in RUN/latents, where the codec is an autoencoder."""
    if not isinstance(codec, AutoencoderCodec):
        return None
    with trainer.accelerator.main_process_first():
        return LatentCache(trainer.folder / "latents", codec, samples.names, image_px)


def make_denoiser(
    config: DiffusionConfig,
    codec: Codec,
    n_classes: int,
    seed: int,
    image_px: int = 64,
    style_encoder: nn.Module | None = None,
) -> StyleDenoiser:
    """The network with initial weights that are a function of `seed` alone, or the style encoder's given ones."""
    style = config.style
    # Layers draw their initial weights from the global generator; fork it so that nobody else notices.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initial-weights"))
        denoiser = StyleDenoiser(
            n_classes=n_classes,
            latent_channels=codec.latent_channels,
            layout_factor=codec.factor,
            image_px=image_px,
            denoiser=config.denoiser.model_dump(mode="json"),
            # A model folder goes to others: where its first weights lay is nothing to them.
            style={**style.model_dump(mode="json"), "weights": style.weights and style.weights.name},
            style_encoder=style_encoder,
        )
    if style.weights is not None and denoiser.style_encoder is not None:
        denoiser.style_encoder.load_weights(style.weights)
    if not style.trainable:
        for part in (denoiser.style_encoder, denoiser.aggregate):
            if part is not None:
                part.requires_grad_(False)
    return denoiser
