"""`StyleDiffusion`: a trained model that paints a layout in the style of given images."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stedm.config import MachineConfig, Sampling
from stedm.data.card import README, read_card
from stedm.data.symmetry import to_signed
from stedm.diffusion.card import diffusion_card
from stedm.diffusion.codec import AutoencoderCodec, Codec, PixelCodec, load_codec, place
from stedm.diffusion.denoiser import StyleDenoiser, load_denoiser
from stedm.diffusion.guidance import Guidance, as_guidance
from stedm.diffusion.model_index import read_model_index
from stedm.diffusion.sampler import guided_trajectory
from stedm.errors import StedmError
from stedm.io.files import replacing, write_json, write_text
from stedm.io.hub import ASK, is_hub_id, model_folder, push_model
from stedm.io.manifest import verify_folder, write_manifest
from stedm.io.ownership import check_folder
from stedm.io.weights import require_finite
from stedm.seeds import numpy_generator, torch_generator
from stedm.style.sampling import style_views
from stedm.training.device import choose_device, move
from stedm.training.precision import autocast, checked_numbers
from stedm.version import __version__

ENCODED_AT_ONCE = 256
"""Style images that the encoder sees in one pass."""


class StyleDiffusion:
    """Denoiser + codec + what is needed to use them.

    Args:
        denoiser: the trained network.
        codec: images to latents and back.
        objective: `eps`, `v` or `flow`, as trained.
        classes: names of the layout's classes, by index.
        image_px: side of the images it was trained on.
        style_sampling: which images it was shown as style in training (see stedm.style.sampling).

    Attributes:
        precision: arithmetic of sampling, `auto`, `fp32`, `bf16` or `fp16` (see stedm.training.precision).
        provenance: versions, data and training that the model is from (stedm.data.provenance.of_model).
        card: README.md of the folder that it was read from; None = a new one is written.
    """

    precision: str = "auto"
    card: str | None = None

    def __init__(
        self,
        denoiser: StyleDenoiser,
        codec: Codec,
        *,
        objective: str,
        classes: list[str],
        image_px: int,
        style_sampling: str = "cohort",
        provenance: dict[str, Any] | None = None,
    ):
        self.denoiser = denoiser.eval()
        self.codec = codec
        place(codec, self.device)
        self.objective, self.classes, self.image_px = objective, list(classes), image_px
        self.style_sampling, self.provenance = style_sampling, provenance or {}

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def fingerprint(self) -> str:
        """Names the weights and settings: equal for models that draw equal images."""
        settings = f"{self.objective}/{self.classes}/{self.image_px}/{type(self.codec).__qualname__}"
        digest = hashlib.sha256(settings.encode())
        for part in (self.denoiser, self.codec):
            state = part.state_dict() if isinstance(part, nn.Module) else {}
            for name, tensor in sorted(state.items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device) -> "StyleDiffusion":
        """Move the networks."""
        move(self.denoiser, device)
        place(self.codec, device)
        return self

    def on(self, machine: MachineConfig) -> "StyleDiffusion":
        """Move the networks to the device of `machine`, and draw in its precision."""
        self.precision = machine.precision
        return self.to(choose_device(machine.device))

    @torch.inference_mode()
    def generate(
        self,
        layouts: np.ndarray,
        style: Sequence[np.ndarray] | Sequence[Sequence[np.ndarray]] | None = None,
        *,
        style_vectors: np.ndarray | torch.Tensor | None = None,
        sampling: Sampling | None = None,
        guidance: float | Guidance | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        start_images: np.ndarray | None = None,
        start: float = 1.0,
        batch: int = 32,
        on_progress: Callable[[int], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Paint layouts in a style.

        Args:
            layouts: class indices, uint8 `(n, H, W)` or `(H, W)`; any index that is not a class (such as 255) means
                "unknown here".
            style: style images, uint8 RGB `(h, w, 3)`, for all layouts; or one such list for each layout.
            style_vectors: instead of style images, a style vector `(style_dim,)` for all layouts, or one for each
                `(n, style_dim)`, as `style_vectors()` or a style bank give them.
            sampling: guidance, sampler, steps and time shift; None = the default ones.
            guidance: in place of that of `sampling`; a number is classifier-free guidance on style alone, 1 = none.
            steps: in place of those of `sampling`.
            seed: one seed for the call, or one for each image (image i then doesn't depend on the others).
            start_images: uint8 RGB `(n, H, W, 3)`: images to paint anew. Noise is put on them up to time `start`;
                what stands out from it and doesn't contradict layout and style stays (SDEdit, Meng et al. 2022).
            start: 1 = pure noise, where there are no `start_images`; with them a time below 1.
            batch: images drawn at once.
            on_progress: called with the number of images done.
            on_step: called with (steps done, steps) of the images that are being drawn.

        Returns:
            uint8 RGB `(n, H, W, 3)`.

        Raises:
            StedmError: layouts, style images or style vectors of a wrong shape or type.
        """
        layouts = self._checked_layouts(layouts)
        given = {"guidance": guidance if guidance is None else as_guidance(guidance), "steps": steps}
        sampling = (sampling or Sampling()).model_copy(update={k: v for k, v in given.items() if v is not None})
        if start_images is not None or start != 1.0:
            _check_start(start_images, start, layouts.shape)
        if (style is None) == (style_vectors is None):
            raise StedmError("generate: give either style images or style_vectors")
        styles = _checked_styles(style, len(layouts)) if style is not None else []
        vectors = self._checked_vectors(style_vectors, len(layouts)) if style_vectors is not None else None
        seeds = list(seed) if isinstance(seed, Sequence) else [_image_seed(seed, i) for i in range(len(layouts))]
        if len(seeds) != len(layouts):
            raise StedmError(f"generate: {len(seeds)} seeds for {len(layouts)} layouts; give one seed or one for each")
        done = []
        for first in range(0, len(layouts), batch):
            part = slice(first, first + batch)
            with autocast(self.precision, self.device):
                chosen = self.style_vectors(styles[part]) if vectors is None else vectors[part]
                images = None if start_images is None else start_images[part]
                done.append(self._draw(layouts[part], chosen, seeds[part], sampling, images, start, on_step))
            if on_progress:
                on_progress(min(first + batch, len(layouts)))
        return np.concatenate(done)

    @torch.inference_mode()
    def style_vectors(self, styles: Sequence[Sequence[np.ndarray]]) -> torch.Tensor:
        """Style vectors `(n, style_dim)`, one for each list of style images (uint8 RGB, of any and unequal sizes)."""
        flat = [image for images in styles for image in images]
        ends = np.cumsum([len(images) for images in styles])
        members = [list(range(end - len(images), end)) for images, end in zip(styles, ends, strict=True)]
        return self.aggregate_encoded(self.encode_images(flat), members)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """What the aggregation reads of style images: a vector each `(m, dim)`, or the images themselves."""
        flat = [_rgb(image) for image in images]
        encoder = self.denoiser.style_encoder
        if encoder is None:
            return torch.stack([self._at_training_size(image) for image in flat])
        values = torch.zeros(len(flat), self.denoiser.style_dim, device=self.device)
        for shape in {image.shape for image in flat}:
            alike = [i for i, image in enumerate(flat) if image.shape == shape]
            for start in range(0, len(alike), ENCODED_AT_ONCE):
                chosen = alike[start : start + ENCODED_AT_ONCE]
                pixels = torch.from_numpy(np.stack([flat[i] for i in chosen])).to(self.device)
                values[chosen] = encoder(to_signed(pixels)).float()
        return values

    @torch.inference_mode()
    def aggregate_encoded(self, encoded: torch.Tensor, members: Sequence[Sequence[int]]) -> torch.Tensor:
        """Style vectors `(n, style_dim)` of sets of images, given by their places in `encode_images`' result."""
        counts = torch.tensor([len(group) for group in members], device=self.device)
        valid = torch.arange(int(counts.max()), device=self.device) < counts.unsqueeze(1)
        padded = encoded.new_zeros(*valid.shape, *encoded.shape[1:])
        padded[valid] = encoded[[i for group in members for i in group]]
        return self.denoiser.aggregate(padded, valid).float()

    @property
    def largest_style_set(self) -> int | None:
        """The most style images that the aggregation takes; None = any number."""
        return None if self.denoiser.aggregate.any_number else self.denoiser.aggregate.n_images

    def shown(self, images: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
        """What the model is to be shown of style images, uint8 RGB `(h, w, 3)`: these, or deformed views of them
        where it has learned from such (`style_sampling` augmented)."""
        if self.style_sampling != "augmented":
            return list(images)
        views = max(1, self.denoiser.aggregate.n_images // len(images))
        return [
            view
            for number, image in enumerate(images)
            for view in style_views(image, views, numpy_generator(seed, "style-views", number))
        ]

    def _at_training_size(self, image: np.ndarray) -> torch.Tensor:
        """uint8 `(3, h, w)` to floats in [-1, 1] with the sides that the model was trained on."""
        side = (self.image_px, self.image_px)
        signed = to_signed(torch.from_numpy(image).to(self.device)).unsqueeze(0)
        return F.interpolate(signed, side, mode="bilinear", antialias=True)[0]

    def _draw(
        self,
        layouts: np.ndarray,
        style: torch.Tensor,
        seeds: Sequence[int],
        sampling: Sampling,
        start_images: np.ndarray | None,
        start: float,
        on_step: Callable[[int, int], None] | None,
    ) -> np.ndarray:
        height, width = layouts.shape[1:]
        shape = (self.codec.latent_channels, height // self.codec.factor, width // self.codec.factor)
        # One generator an image: the same seed gives the same noise alone or in any batch.
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        latents = torch.stack(noise).to(self.device)
        layout = torch.from_numpy(layouts.astype(np.int64)).to(self.device)
        clean = None if start_images is None else self._latents(start_images)
        trajectory = guided_trajectory(
            self.denoiser, latents, layout, style, sampling, objective=self.objective, clean=clean, start=start
        )
        for step, latents in enumerate(trajectory, start=1):  # noqa: B007 - the last one is the image
            if on_step:
                on_step(step, sampling.steps)
        # Checked before too: a first stage clips infinity to white.
        latents = checked_numbers(latents, "the diffusion model")
        images = checked_numbers(self.codec.decode(latents), "the first stage of the diffusion model")
        return ((images + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _latents(self, images: np.ndarray) -> torch.Tensor:
        """Latents of uint8 RGB `(n, H, W, 3)`."""
        return self.codec.encode(to_signed(torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)))

    def _checked_layouts(self, layouts: np.ndarray) -> np.ndarray:
        layouts = np.asarray(layouts)
        if layouts.ndim == 2:
            layouts = layouts[None]
        if layouts.ndim != 3 or not np.issubdtype(layouts.dtype, np.integer):
            raise StedmError(f"layouts: integer class indices (n, H, W) expected, got {layouts.dtype} {layouts.shape}")
        # Each level of the U-Net but the last halves the latent.
        multiple = self.codec.factor * 2 ** (len(self.denoiser.unet.config.block_out_channels) - 1)
        if layouts.shape[1] % multiple or layouts.shape[2] % multiple:
            raise StedmError(f"layouts: sides must be multiples of {multiple} px, got {layouts.shape[1:]}")
        known = (layouts >= 0) & (layouts < len(self.classes))
        return np.where(known, layouts, self.denoiser.unknown).astype(np.uint8)

    def _checked_vectors(self, vectors: np.ndarray | torch.Tensor, n: int) -> torch.Tensor:
        vectors = torch.as_tensor(vectors, dtype=torch.float32, device=self.device)
        dim = self.denoiser.style_dim
        if vectors.shape not in ((dim,), (n, dim)):
            raise StedmError(
                f"style_vectors: ({dim},) or ({n}, {dim}) expected for {n} layouts, got {tuple(vectors.shape)}"
            )
        if not torch.isfinite(vectors).all():
            raise StedmError("style_vectors: hold values that are not finite")
        return vectors.expand(n, dim)

    def save_pretrained(self, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Write the model folder: model_index.json, a card and, per part, config.json + safetensors. Atomic.

        `provenance`: in place of that of the model. A card of the folder that the model was read from is kept.
        """
        require_finite(self.denoiser.state_dict(), str(folder))
        check_folder(folder, "model_index.json")
        told = {
            "objective": self.objective,
            "style_sampling": self.style_sampling,
            "classes": self.classes,
            "image_px": self.image_px,
        }
        provenance = self.provenance if provenance is None else provenance
        with replacing(folder) as temporary:
            temporary.mkdir()
            self.denoiser.save_pretrained(temporary / "denoiser")
            own_codec = not isinstance(self.codec, PixelCodec | AutoencoderCodec)
            if not own_codec:
                self.codec.save_pretrained(temporary / "codec")
            index = {
                "_class_name": "StyleDiffusion",
                "_stedm_version": __version__,
                **told,
                **({"own_codec": type(self.codec).__qualname__} if own_codec else {}),
                "provenance": provenance,
            }
            write_json(temporary / "model_index.json", index)
            write_manifest(temporary)
            # After the manifest: a card is edited by those who hand the model on.
            write_text(temporary / README, self.card or diffusion_card(**told, provenance=provenance))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        style_encoder: nn.Module | None = None,
        codec: Codec | None = None,
        local_files_only: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "StyleDiffusion":
        """Read a model folder from disk, or one of the Hugging Face hub.

        Args:
            folder: the folder, or `owner/name` on the hub, from its local cache.
            style_encoder, codec: those of your own that the model was trained with, and only those: the folder has the
                weights of the style encoder, but no code, and nothing of the codec.
            local_files_only: False = download from the hub what the cache doesn't have. revision, token: of the hub.

        Raises:
            StedmError: there is no such folder, it holds no model of this kind, or a style encoder or codec is
                missing or given in vain.
        """
        hub = {"local_files_only": local_files_only, "revision": revision, "token": token}
        folder = model_folder(folder, "model_index.json", **hub)
        index_path = folder / "model_index.json"
        if not index_path.is_file():
            where = (
                folder / "model" if (folder / "model" / "model_index.json").is_file() else "the model/ folder of a run"
            )
            asked = f", or, {ASK}" if is_hub_id(str(folder)) else ""
            raise StedmError(f"{folder}: no model here (model_index.json is missing); give {where}{asked}")
        verify_folder(folder)
        index = read_model_index(index_path)
        if index.own_codec and codec is None:
            raise StedmError(
                f"{folder}: was trained with a codec of your own ({index.own_codec}); give it as codec=..."
            )
        if not index.own_codec and codec is not None:
            raise StedmError(f"{folder}: has a codec; leave codec out")
        denoiser = load_denoiser(folder / "denoiser", style_encoder)
        codec = load_codec(folder / "codec") if codec is None else codec
        told = (denoiser.unknown, denoiser.config.latent_channels, denoiser.config.layout_factor)
        if told != (len(index.classes), codec.latent_channels, codec.factor):
            raise StedmError(f"{folder}: its parts are not of one model (classes, latents); train it again")
        model = cls(
            denoiser,
            codec,
            objective=index.objective,
            classes=index.classes,
            image_px=index.image_px,
            style_sampling=index.style_sampling,
            provenance=index.provenance,
        )
        model.card = read_card(folder)
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model folder, with its card, to the Hugging Face hub; returns the address of the commit.

        Args:
            repo_id: `owner/name`; made where it isn't there yet, for yourself alone unless `private` is False.

        Raises:
            StedmError: the hub refuses it; it would be public under no stated licence.
        """
        how = {"private": private, "token": token, "commit_message": commit_message, "create_pr": create_pr}
        return push_model(self.save_pretrained, repo_id, **how)

    @classmethod
    def train(
        cls,
        annotated: Any,
        unlabeled: Any = None,
        *,
        folder: str | Path,
        config: Any = None,
        image_px: int = 64,
        seed: int = 0,
        **options: Any,
    ) -> "StyleDiffusion":
        """Train in `folder`, or go on if it was interrupted, and write the model to `folder/model`.

        Args:
            annotated: `DatasetFolder` of images with masks.
            unlabeled: `DatasetFolder` of images whose masks are never read; None = annotated ones alone.
            config: `stedm.config.DiffusionConfig`; None = the defaults.
            image_px: side of the square images; others are reduced to it, and oblong ones cut into squares.
            options: of `stedm.diffusion.train.train_diffusion`: pseudo_labels, style_sources, recolour, on_progress.
        """
        from stedm.config import DiffusionConfig
        from stedm.data.squares import in_squares
        from stedm.diffusion.train import train_diffusion

        config, annotated = config or DiffusionConfig(), in_squares(annotated)
        unlabeled = None if unlabeled is None else in_squares(unlabeled)
        return train_diffusion(config, annotated, unlabeled, Path(folder), image_px=image_px, seed=seed, **options)


def _image_seed(seed: int, index: int) -> int:
    return torch_generator(seed, "picture", index).initial_seed()


def _rgb(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) to (3, h, w)."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise StedmError(f"style: uint8 RGB images (h, w, 3) expected, got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _check_start(images: np.ndarray | None, start: float, shape: tuple[int, ...]) -> None:
    """Refuse what drawing can't begin at, for layouts of `shape`."""
    if images is None or not 0 < start < 1:
        raise StedmError(f"generate: start {start} needs start_images, and they a start between 0 and 1")
    if images.shape != (*shape, 3) or images.dtype != np.uint8:
        raise StedmError(f"generate: start_images: uint8 RGB {(*shape, 3)} expected, got {images.dtype} {images.shape}")


def _checked_styles(style: Sequence, n: int) -> list[list[np.ndarray]]:
    style = list(style)
    if not style:
        raise StedmError("style: give at least one style image")
    if isinstance(style[0], np.ndarray) and style[0].ndim <= 3:
        return [style] * n
    if len(style) != n:
        raise StedmError(f"style: {len(style)} lists of style images for {n} layouts; give one list, or one for each")
    if any(len(images) == 0 for images in style):
        raise StedmError("style: a list of style images is empty")
    return [list(images) for images in style]
