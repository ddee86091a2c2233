"""The first stage: encoding and decoding, of the configuration's codec and, for comparison, of the usual ones."""

import torch

from stedm.bench.effort import Effort
from stedm.bench.machine import MatmulPeak
from stedm.bench.measure import Turns
from stedm.bench.result import Result, Row
from stedm.bench.setting import Setting, channels_first
from stedm.config import KLCodecConfig, VQCodecConfig
from stedm.data.symmetry import to_signed
from stedm.diffusion.codec import AutoencoderCodec, Codec, PixelCodec
from stedm.diffusion.codec_train import build_autoencoder
from stedm.experiment.cost import flops_of
from stedm.seeds import seed_for
from stedm.training.precision import autocast

_BATCH = 8


def run(setting: Setting, effort: Effort) -> Result:
    """Encode and decode a batch with each codec, all in turns."""
    images = to_signed(channels_first(setting.images(_BATCH))).to(setting.device)
    actions, flops = {}, {}
    codecs = {name: codec for name, codec in _codecs(setting).items() if setting.image_px % codec.factor == 0}
    for name, codec in codecs.items():
        with torch.no_grad():
            latents = codec.encode(images)
            flops[f"{name} encode"] = flops_of(lambda codec=codec: codec.encode(images))
            flops[f"{name} decode"] = flops_of(lambda codec=codec, latents=latents: codec.decode(latents))
        actions[f"{name} encode"] = _in_precision(setting, codec.encode, images)
        actions[f"{name} decode"] = _in_precision(setting, codec.decode, latents)
    peak = MatmulPeak(setting.device, setting.precision, effort.matmul_n)
    turns = Turns(actions, effort.repeats, setting.device, peak)
    rows: list[Row] = [
        {
            "codec": name,
            "direction": direction,
            "latent": "x".join(map(str, _latent_shape(codec, setting.image_px))),
            "ms_per_image": 1e3 * turns.median(f"{name} {direction}") / _BATCH,
            "ratio_to_configured": turns.ratio(f"{name} {direction}", f"configured {direction}"),
            "gflop_per_image": flops[f"{name} {direction}"] / _BATCH / 1e9,
            "share_of_matmul_peak": turns.share_of_peak(f"{name} {direction}", flops[f"{name} {direction}"]),
        }
        for name, codec in codecs.items()
        for direction in ("encode", "decode")
    ]
    figures = {
        "batch": _BATCH,
        "configured": setting.config.diffusion.codec.kind,
        "gflop_per_s_matmul_peak": peak.flop_per_s / 1e9,
    }
    return Result("codec", figures, {"codecs": rows}, ["kl, vq: untrained, of the package's default sizes."])


def _codecs(setting: Setting) -> dict[str, Codec]:
    found: dict[str, Codec] = {"configured": setting.codec}
    if setting.config.diffusion.codec.kind != "pixel":
        found["pixel"] = PixelCodec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(0, "bench codec"))
        for config in (KLCodecConfig(kind="kl"), VQCodecConfig(kind="vq")):
            found[config.kind] = AutoencoderCodec(build_autoencoder(config))
    return {name: codec.to(setting.device).eval() for name, codec in found.items()}


def _in_precision(setting: Setting, function, value: torch.Tensor):
    def call() -> None:
        with torch.inference_mode(), autocast(setting.precision, setting.device):
            function(value)

    return call


def _latent_shape(codec: Codec, image_px: int) -> tuple[int, int, int]:
    return codec.latent_channels, image_px // codec.factor, image_px // codec.factor
