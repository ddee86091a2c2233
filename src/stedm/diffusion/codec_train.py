"""Training of an autoencoder as first stage, on annotated and unannotated images together; masks are never read.

L1 error with a small Kullback-Leibler term (KL) or codebook terms (VQ), as in Rombach et al. 2022 but without their
perceptual and adversarial losses, which need networks that would have to be downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, VQModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from stedm.config import DiffusionConfig, KLCodecConfig, TrainedCodecConfig, VQCodecConfig
from stedm.data.cache import ImageCache
from stedm.data.folder import DatasetFolder, rows_by_patient
from stedm.data.symmetry import N_SYMMETRIES, symmetry, to_signed
from stedm.diffusion.codec import AutoencoderCodec
from stedm.diffusion.ldm_checkpoint import load_ldm_vq
from stedm.errors import StedmError
from stedm.io.files import replacing, write_json
from stedm.io.images import write_png
from stedm.seeds import numpy_generator, seed_for, torch_generator
from stedm.style.recolour import recolour_together
from stedm.training.trainer import Engine, Progress

_IMAGES_TO_MEASURE = 256
_IMAGES_TO_SHOW = 8


def train_codec(
    config: DiffusionConfig,
    images: Sequence[DatasetFolder],
    held_out: DatasetFolder,
    folder: Path,
    *,
    image_px: int,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> AutoencoderCodec:
    """Train, or go on training, in `folder`; the autoencoder with its averaged weights is written to `folder/model`,
    with latents.json (mean and standard deviation of each channel), reconstruction.json and reconstruction.png.

    Args:
        config: its `codec` is a KL or VQ configuration; its `recolour` changes images here as it does later.
        images: folders whose images are learned, all patients alike; masks are not opened.
        held_out: images to measure the reconstruction on; their patients are in none of `images`.
        image_px: side of the images.
    """
    assert isinstance(config.codec, TrainedCodecConfig)
    samples = CodecSamples(config.codec, images, image_px, seed)
    some_images = to_signed(samples.some_images(_IMAGES_TO_MEASURE))
    network = _Reconstruction(config.codec, make_autoencoder(config.codec, some_images, seed))
    if config.codec.steps:
        network = _fit(network, config, samples, folder, seed, on_progress)
    if PartialState().is_main_process:
        codec = AutoencoderCodec(network.autoencoder)
        codec = codec.measured(some_images.to(codec.mean.device))
        with replacing(folder / "model") as temporary:
            codec.save_pretrained(temporary)
            write_reconstruction(temporary, codec, ImageCache(held_out, image_px))
    PartialState().wait_for_everyone()
    return AutoencoderCodec.from_pretrained(folder / "model")


def _fit(
    network: "_Reconstruction",
    config: DiffusionConfig,
    samples: "CodecSamples",
    folder: Path,
    seed: int,
    on_progress: Progress | None,
) -> "_Reconstruction":
    """The training loop; returns the network with its averaged weights."""
    engine = Engine(
        network,
        folder,
        config.codec,
        ema_decay=config.codec.ema_decay,
        seed=seed_for(seed, "codec"),
        on_progress=on_progress,
    )
    for batch in engine.batches(samples):
        # There are no style images here: one pixel stands for them.
        image, _ = recolour_together(batch, batch[:, None, :, :1, :1], config.recolour, engine.generator)
        noise = torch.randn(network.latent_shape(image), generator=engine.generator).to(engine.device)
        with engine.autocast():
            reconstructed, penalty = engine.network(image, noise)
        engine.step(F.l1_loss(reconstructed.float(), image) + penalty.float())
    if engine.ema is not None:
        engine.ema.copy_to(network.parameters())
    return network


class _Reconstruction(nn.Module):
    """Image and noise to reconstructed image and weighted penalty: one call, as data parallelism needs."""

    def __init__(self, config: KLCodecConfig | VQCodecConfig, autoencoder: nn.Module):
        super().__init__()
        self.config, self.autoencoder = config, autoencoder

    def latent_shape(self, image: Tensor) -> tuple[int, ...]:
        height, width = image.shape[2] // self.config.factor, image.shape[3] // self.config.factor
        return (len(image), self.config.latent_channels, height, width)

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.autoencoder.encode(image)
        if isinstance(self.config, VQCodecConfig):
            # The nearest code is sought in float32: the choice between two near codes is no place for rounding.
            with torch.autocast(image.device.type, enabled=False):
                codes, commitment, _ = self.autoencoder.quantize(encoded.latents.float())
            decoded = self.autoencoder.decode(codes, force_not_quantize=True).sample
            return decoded, self.config.codebook_weight * commitment
        # The exponentials of the divergence in float32.
        posterior = DiagonalGaussianDistribution(encoded.latent_dist.parameters.float())
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        return decoded, self.config.kl_weight * posterior.kl().mean() / image[0].numel()


class CodecSamples(Dataset):
    """The sample stream: sample i, uint8 (3, px, px), is a pure function of (seed, i).

    Patients are drawn uniformly, then one of their images, then one of the 8 symmetries.
    """

    def __init__(self, config: TrainedCodecConfig, parts: Sequence[DatasetFolder], image_px: int, seed: int):
        if image_px % config.factor:
            raise StedmError(
                f"codec: {len(config.channels)} levels halve the image to 1/{config.factor}, which {image_px} px "
                "can't be divided by; change codec.channels or data.image_px"
            )
        self.config, self.seed = config, seed
        self._caches = [ImageCache(part, image_px) for part in parts if len(part)]
        self._patients = [
            (cache, rows) for cache in self._caches for rows in rows_by_patient(cache.dataset.table).values()
        ]
        if not self._patients:
            raise StedmError("codec: no image to train on")

    def __len__(self) -> int:
        return self.config.steps * self.config.batch

    def __getitem__(self, index: int) -> Tensor:
        generator = numpy_generator(self.seed, "codec-sample", index)
        cache, rows = self._patients[generator.integers(len(self._patients))]
        image = cache.image(int(rows[generator.integers(len(rows))]))
        return _channels_first(symmetry(image, int(generator.integers(N_SYMMETRIES))))

    def some_images(self, n: int) -> Tensor:
        """uint8 `(m, 3, px, px)`: m <= n images, spread over the folders."""
        share = max(1, n // len(self._caches))
        return _channels_first(np.concatenate([_spread(cache, share) for cache in self._caches]))


def split_held_out(parts: Sequence[DatasetFolder], val: DatasetFolder) -> tuple[list[DatasetFolder], DatasetFolder]:
    """(images to learn, images to measure on): the val images, or, where there are none, those of every tenth
    patient of the largest folder, which the codec then doesn't learn from."""
    if len(val):
        return list(parts), val
    largest = max(parts, key=lambda part: len(part.patients()))
    if len(largest.patients()) < 2:
        raise StedmError(f"{largest.root}: no val images and one patient: nothing to measure the codec on")
    chosen = largest.table["patient_id"].isin(largest.patients()[::10])
    learned = [part.select(~chosen) if part is largest else part for part in parts]
    return learned, largest.select(chosen)


# ---- the autoencoder ----------------------------------------------------------------------------------------------


def make_autoencoder(config: TrainedCodecConfig, images: Tensor, seed: int) -> AutoencoderKL | VQModel:
    """The autoencoder of a configuration with its initial weights, a function of `seed` and `images` alone.

    The codes of a new VQModel begin as latents of some of the `images (n, 3, H, W)` in [-1, 1]: from diffusers' own
    small uniform numbers most of them would never be the nearest to anything.
    """
    if config.initial_weights is not None:
        return _initial_autoencoder(config)
    # Layers draw their initial weights from the global generator; fork it so that nobody else notices.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initial-weights"))
        autoencoder = build_autoencoder(config)
    if isinstance(autoencoder, VQModel):
        with torch.no_grad():
            latents = torch.cat([autoencoder.encode(part).latents for part in images.split(16)])
            positions = latents.permute(0, 2, 3, 1).flatten(0, 2)
            codes = autoencoder.quantize.embedding.weight
            generator = torch_generator(seed, "initial-codes")
            codes.copy_(positions[torch.randint(len(positions), (len(codes),), generator=generator)])
    return autoencoder


def build_autoencoder(config: TrainedCodecConfig) -> AutoencoderKL | VQModel:
    """The autoencoder of a configuration; weights are drawn from torch's global generator."""
    levels = len(config.channels)
    common = {
        "block_out_channels": tuple(config.channels),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": config.blocks_per_level,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "mid_block_add_attention": config.mid_attention,
        "scaling_factor": 1.0,
    }
    if isinstance(config, VQCodecConfig):
        return VQModel(**common, num_vq_embeddings=config.num_vq_embeddings, vq_embed_dim=config.latent_channels)
    return AutoencoderKL(**common)


def _initial_autoencoder(config: TrainedCodecConfig) -> AutoencoderKL | VQModel:
    """The autoencoder of `initial_weights`; `StedmError` if it isn't the one that the configuration describes."""
    path = config.initial_weights
    assert path is not None
    autoencoder = AutoencoderCodec.from_pretrained(path).autoencoder if path.is_dir() else load_ldm_vq(path)
    with torch.device("meta"):
        described = build_autoencoder(config)
    there = {name: tuple(value.shape) for name, value in autoencoder.state_dict().items()}
    asked = {name: tuple(value.shape) for name, value in described.state_dict().items()}
    differing = [name for name in sorted(there.keys() | asked.keys()) if there.get(name) != asked.get(name)]
    if type(autoencoder) is not type(described) or differing:
        first = (
            f", {differing[0]}: {there.get(differing[0])} there, {asked.get(differing[0])} asked" if differing else ""
        )
        raise StedmError(
            f"{path}: not the {type(described).__name__} that the codec configuration describes "
            f"({type(autoencoder).__name__}{first}); change channels, latent_channels, blocks_per_level and the like"
        )
    if autoencoder.config.norm_num_groups != config.norm_groups:
        raise StedmError(f"{path}: has norm_groups {autoencoder.config.norm_num_groups}, {config.norm_groups} asked")
    return autoencoder.requires_grad_(True)


# ---- how well it does ---------------------------------------------------------------------------------------------


def write_reconstruction(folder: Path, codec: AutoencoderCodec, images: ImageCache) -> None:
    """Write reconstruction.json (figures of up to 256 images; of a VQModel also how many of its codes they use) and
    reconstruction.png (originals above, below what the codec makes of them)."""
    originals = _spread(images, _IMAGES_TO_MEASURE)
    device = codec.mean.device
    latents = [codec.encode(to_signed(part.to(device))) for part in _channels_first(originals).split(16)]
    decoded = torch.cat([codec.decode(part) for part in latents])
    reconstructed = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    figures = reconstruction_figures(originals, reconstructed)
    if isinstance(codec.autoencoder, VQModel):
        raw = (torch.cat(latents) * codec.std + codec.mean).split(16)
        figures["codes_used"] = len(torch.cat([codec.autoencoder.quantize(part)[2][2] for part in raw]).unique())
    write_json(folder / "reconstruction.json", figures)
    shown = np.linspace(0, len(originals) - 1, min(_IMAGES_TO_SHOW, len(originals))).astype(int)
    grid = np.concatenate([np.concatenate(list(row[shown]), axis=1) for row in (originals, reconstructed)])
    write_png(folder / "reconstruction.png", grid)


def reconstruction_figures(originals: np.ndarray, reconstructed: np.ndarray) -> dict[str, float | int]:
    """PSNR in dB, SSIM and L1 (of 0..1) of uint8 images `(n, H, W, 3)`: mean and standard deviation over images."""
    pairs = list(zip(originals / 255.0, reconstructed / 255.0, strict=True))
    values = {
        # An image of equal pixels may come back exactly: 100 dB instead of infinity.
        "psnr_db": [min(100.0, _psnr(a, b)) for a, b in pairs],
        "ssim": [structural_similarity(a, b, data_range=1.0, channel_axis=-1) for a, b in pairs],
        "l1": [np.abs(a - b).mean() for a, b in pairs],
    }
    figures: dict[str, float | int] = {"n_images": len(pairs)}
    for name, of_images in values.items():
        figures[f"{name}_mean"] = float(np.mean(of_images))
        figures[f"{name}_sd"] = float(np.std(of_images, ddof=1)) if len(pairs) > 1 else float("nan")
    return figures


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float("inf") if np.array_equal(a, b) else float(peak_signal_noise_ratio(a, b, data_range=1.0))


def _spread(cache: ImageCache, n: int) -> np.ndarray:
    """Up to n images of a folder, uint8 (m, px, px, 3), evenly spread over its rows."""
    rows = np.linspace(0, len(cache) - 1, min(n, len(cache))).astype(int)
    return np.stack([cache.image(int(row)) for row in rows])


def _channels_first(images: np.ndarray) -> Tensor:
    """(..., h, w, 3) to (..., 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))
