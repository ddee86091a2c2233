"""First-stage checkpoints of CompVis' latent-diffusion (Rombach et al. 2022), converted to diffusers' VQModel.

The paper starts from its VQ-f4: 8192 codes, latents of 3 x 128 x 128 for images of 512 px. This conversion is the
one place where a file that isn't safetensors is read, with torch's `weights_only` reader, which runs no code of the
file.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from stedm.errors import StedmError
from stedm.io.weights import read_weights

VQ_F4 = {
    "block_out_channels": (128, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "vq_embed_dim": 3,
    "num_vq_embeddings": 8192,
    "norm_num_groups": 32,
    "scaling_factor": 1.0,
}
"""Arguments of diffusers' VQModel for the published VQ-f4."""
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
_CODES = "quantize.embedding.weight"


def load_ldm_vq(path: str | Path, architecture: dict[str, Any] = VQ_F4) -> VQModel:
    """Read a VQ first stage, alone or inside a whole latent diffusion checkpoint (`first_stage_model.*`).

    Args:
        architecture: arguments of diffusers' VQModel.
        path: .safetensors, or a checkpoint of torch or Lightning (.ckpt, .pt, .pth).

    Raises:
        StedmError: no such file, not readable without running its code, or no first stage of this architecture in it.
    """
    path = Path(path)
    if not path.is_file():
        raise StedmError(f"{path}: no such checkpoint; correct its path")
    values = read_weights(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = values.get("state_dict", values)
    tensors = {str(key).removeprefix("first_stage_model."): v for key, v in state.items() if isinstance(v, Tensor)}
    try:
        return convert_ldm_vq({key: value for key, value in tensors.items() if key.startswith(_PARTS)}, architecture)
    except StedmError as error:
        raise StedmError(f"{path}: {error}") from error


def convert_ldm_vq(state: dict[str, Tensor], architecture: dict[str, Any] = VQ_F4) -> VQModel:
    """The VQModel of a state dict with the key names of latent-diffusion, without prefix and losses.

    Equal outputs, not only equal weights: see the test. Attention inside the levels (vq-f8, vq-f16) isn't covered.

    Raises:
        StedmError: keys are missing, left over, or of a wrong shape.
    """
    if _CODES not in state or "encoder.conv_in.weight" not in state:
        raise StedmError(
            f"no VQ first stage of latent-diffusion here ({_CODES} or the encoder is missing); "
            "docs/codecs.md says which to give"
        )
    with torch.device("meta"):
        model = VQModel(**architecture)
    converted = convert_ldm_vae_checkpoint(state, model.config) | {_CODES: state[_CODES]}
    try:
        model.load_state_dict(converted, strict=True, assign=True)
    except RuntimeError as error:
        raise StedmError(f"not the architecture of VQ-f4 ({' '.join(str(error).split())})") from error
    return model.requires_grad_(True).eval()


class _Inert:
    """Stands for whatever else a checkpoint names (Lightning keeps its callbacks there): does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError, OSError):
        others = []  # the old format of torch.save: read without stand-ins
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in others]):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises whatever a damaged pickle makes it raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StedmError(f"{path}: can't be read as weights only ({reason}); download it again") from error
    if not isinstance(values, dict):
        raise StedmError(f"{path}: a checkpoint with a state dict expected; docs/codecs.md says which to give")
    return values
