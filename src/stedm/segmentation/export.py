"""A segmenter for other programs: ONNX and TorchScript, with the range of images and the softmax inside.

    stedm export SEGMENTER -o gland.onnx      one file, and gland.onnx.json that says how to use it
    stedm export SEGMENTER -o gland.pt        the same as TorchScript
    stedm export SEGMENTER -o GLAND           a folder with both, a card and rdf.yaml (bioimage.io)

What was written is run and compared with the network before it gets its name.
"""

import importlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stedm.data.symmetry import to_signed
from stedm.errors import StedmError
from stedm.io.files import replacing, write_json
from stedm.io.ownership import check_folder, check_outputs
from stedm.seeds import numpy_generator
from stedm.segmentation.export_card import CARD, EXPORTED, INPUT, OUTPUT, Written, card, write_package
from stedm.segmentation.info import SegmenterInfo
from stedm.segmentation.model import stride_of

TOLERANCE = 1e-3
"""Most by which a probability may differ from the segmenter's, both in float32 on a CPU."""
_Run = Callable[[np.ndarray], np.ndarray]


class Exported(nn.Module):
    """A segmenter as other programs run it: float images (n, 3, H, W), RGB from 0 to 255, to probabilities
    (n, n_classes, H, W), 1 in sum."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(to_signed(image)).float().softmax(dim=1)


def export_segmenter(
    network: nn.Module,
    info: SegmenterInfo,
    output: str | Path,
    *,
    inputs: Iterable[Path] = (),
    overwrite: bool = False,
) -> list[Path]:
    """Write a segmenter to FILE.onnx or FILE.pt with FILE.*.json, or to a folder in both formats; returns the files.

    Args:
        network, info: as `load_segmenter` gives them, on the CPU.
        inputs: files that must not be written over.
        overwrite: replace files that stedm did not write.

    Raises:
        StedmError: a package is missing, or the network can't be exported.
    """
    output, exported = Path(output), Exported(network).eval()
    if output.suffix == "":
        check_folder(output, CARD)
        with replacing(output) as folder:
            folder.mkdir()
            files = [_export(exported, info, folder / f"model{suffix}") for suffix in _FORMATS]
            side = _side(exported, info)
            image = _image(side, side, 1)
            write_package(folder, info, files, image, _run(exported)(image))
        return sorted(output.iterdir())
    if output.suffix not in _FORMATS:
        raise StedmError(f"{output}: give {' or '.join(f'FILE{suffix}' for suffix in _FORMATS)}, or a folder for both")
    beside = output.with_name(f"{output.name}.json")
    check_outputs({output: EXPORTED, beside: EXPORTED}, inputs, overwrite=overwrite)
    with replacing(output) as temporary:
        file = _export(exported, info, temporary)
    write_json(beside, card(info, file))
    return [output, beside]


def _export(exported: Exported, info: SegmenterInfo, path: Path) -> Written:
    """Write one file and run it; sides and batches that it takes are found by trial."""
    write, load = _FORMATS[path.suffix]
    stride, side = stride_of(exported.network), _side(exported, info)
    step = stride if stride > 1 else 32  # of a network of one's own nobody knows which sides it takes
    for any_size in (True, False):
        example = _image(side, side + step * any_size, 2)
        file = Written(path, any_size, stride, "")
        try:
            version = write(exported, torch.from_numpy(example), path, any_size, json.dumps(card(info, file)))
            run, trials = load(path), [_image(side, side, 1)]
            trials += [_image(side + step, side + 2 * step, 3)] if any_size else [_image(side, side, 3)]
            difference = max(float(np.abs(run(image) - _run(exported)(image)).max()) for image in trials)
        except (StedmError, OSError):
            raise
        except Exception as error:  # exporters and runtimes raise whatever a network makes them raise
            if any_size:
                continue
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise StedmError(f"{path.name}: this network can't be exported ({text}); {_OTHER[path.suffix]}") from error
        if difference <= TOLERANCE:
            return replace(file, version=version, difference=difference)
    raise StedmError(
        f"{path.name}: what was exported gives probabilities that differ by {difference:.2g} from the segmenter's; a "
        f"step of the network depends on its input; {_OTHER[path.suffix]}"
    )


def _side(exported: Exported, info: SegmenterInfo) -> int:
    """That of the training images, or the next one that the network takes."""
    stride = stride_of(exported.network)
    return -(-info.image_px // stride) * stride


def _run(exported: Exported) -> _Run:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return exported(torch.from_numpy(images)).numpy()

    return run


def _image(height: int, width: int, n: int) -> np.ndarray:
    """Images to try a network on, float32 (n, 3, height, width) of whole numbers from 0 to 255."""
    generator = numpy_generator(0, "export", height, width, n)
    coarse = generator.integers(0, 256, (n, 3, -(-height // 8), -(-width // 8)))
    return coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width].astype(np.float32)


# ---- formats --------------------------------------------------------------------------------------------------------


def _write_onnx(exported: Exported, example: Tensor, path: Path, any_size: bool, told: str) -> str:
    """Returns the opset."""
    _require("onnx", "onnxscript", "onnxruntime")
    axes = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    program = torch.onnx.export(
        exported,
        (example,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(axes,),
        verbose=False,
    )
    program.model.metadata_props.update({"made_by": EXPORTED, "stedm": told})
    program.save(str(path))
    return str(program.model.opset_imports[""])


def _load_onnx(path: Path) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _write_torchscript(exported: Exported, example: Tensor, path: Path, _: bool, told: str) -> str:
    """Returns the version of torch."""
    with _torchscript():
        traced = torch.jit.trace(exported, (example,), check_trace=False)
        torch.jit.save(traced, path, _extra_files={f"{EXPORTED}.json": told})
    return torch.__version__.split("+")[0]


def _load_torchscript(path: Path) -> _Run:
    with _torchscript():
        return _run(torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu"))


@contextmanager
def _torchscript() -> Iterator[None]:
    """torch calls TorchScript deprecated since 2.10, and it is what DJL, and so QuPath, reads of PyTorch. What tracing
    warns of, a choice made once for all inputs, is found by running the result."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", r".*torch\.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


_FORMATS = {".onnx": (_write_onnx, _load_onnx), ".pt": (_write_torchscript, _load_torchscript)}
_OTHER = {".onnx": "try FILE.pt", ".pt": "try FILE.onnx"}


def _require(*packages: str) -> None:
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise StedmError(f'ONNX needs {name}: pip install "stedm[export]", or give FILE.pt') from error
