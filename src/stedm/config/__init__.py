"""The configuration of a run: frozen pydantic models, YAML files, `--set a.b=c` overrides, fingerprint, JSON schema.

Every default of the package stands in this folder once. An unknown key is an error. The docstring under a field is its
description in the JSON schema (`stedm config schema`), so that editors complete and explain it.
"""

from stedm.config.base import Fraction, Part, Positive, Precision, TrainingConfig, checked
from stedm.config.codec import AutoencoderCodecConfig, CodecConfig, PixelCodecConfig, VQF4CodecConfig
from stedm.config.data import DataConfig, EvaluationConfig, PhantomConfig
from stedm.config.diffusion import DenoiserConfig, DiffusionConfig
from stedm.config.machine import MachineConfig
from stedm.config.recolour import RecolourConfig
from stedm.config.rounds import FineTuneConfig, PredictedConfig, PseudoLabelConfig, RoundsConfig
from stedm.config.run import RunConfig, load_config, load_phantom_config, parse_config, resolve_paths, to_yaml
from stedm.config.segmentation import (
    Arm,
    SegmentationConfig,
    StainAugmentConfig,
    first_teacher,
    uses_self_training,
    uses_ssl,
    uses_stain,
    uses_synthetic,
)
from stedm.config.slides import SlideSegmentationConfig, TilingConfig, TissueConfig, load_tiling_config
from stedm.config.style import StyleConfig
from stedm.config.synthesis import Guidance, LayoutKind, Sampler, Sampling, SynthesisConfig

__all__ = [
    "Arm",
    "AutoencoderCodecConfig",
    "CodecConfig",
    "DataConfig",
    "DenoiserConfig",
    "DiffusionConfig",
    "EvaluationConfig",
    "FineTuneConfig",
    "Fraction",
    "Guidance",
    "LayoutKind",
    "MachineConfig",
    "Part",
    "PhantomConfig",
    "PixelCodecConfig",
    "Positive",
    "Precision",
    "PredictedConfig",
    "PseudoLabelConfig",
    "RecolourConfig",
    "RoundsConfig",
    "RunConfig",
    "Sampler",
    "Sampling",
    "SegmentationConfig",
    "SlideSegmentationConfig",
    "StainAugmentConfig",
    "StyleConfig",
    "SynthesisConfig",
    "TilingConfig",
    "TissueConfig",
    "TrainingConfig",
    "VQF4CodecConfig",
    "checked",
    "first_teacher",
    "load_config",
    "load_phantom_config",
    "load_tiling_config",
    "parse_config",
    "resolve_paths",
    "to_yaml",
    "uses_self_training",
    "uses_ssl",
    "uses_stain",
    "uses_synthetic",
]
