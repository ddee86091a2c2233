"""Peak memory of segmenting a large slide against a small one, each in a process of its own; the ratio is printed.

python benchmarks/slide_memory.py            8,192 against 32,768 px (two minutes on one core)
python benchmarks/slide_memory.py 4096 8192  other sizes

Phantom slides at 0.5 mpp, looked at by a network of one smoothing layer at 1 mpp in tiles of 512 px: what a real
network needs beside comes once and is the same for both, so that it could only hide a difference.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (8192, 32768)


def write(path: Path, side_px: int) -> None:
    """A phantom slide, mirror images of one patch of 1,024 px."""
    from stedm.config import PhantomConfig
    from stedm.phantom.slides import draw_phantom_slide, write_phantom_slide

    slide = draw_phantom_slide(PhantomConfig(image_px=256, stain="he"), "train", 0, (side_px, side_px))
    write_phantom_slide(slide, path)


def measure(path: Path) -> dict[str, float]:
    """Segment the slide; seconds, and peak memory of this process before and after, in MB."""
    import torch

    from stedm.config import SlideSegmentationConfig
    from stedm.segmentation.model import SegmenterInfo
    from stedm.segmentation.whole_slide import segment_slide
    from stedm.slides.slide import Slide

    class Darkness(torch.nn.Module):
        """Two classes: pale and dark on a scale of 30 microns."""

        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.output_stride = 1
            self.threshold = torch.nn.Parameter(torch.tensor(0.25))

        def forward(self, images):
            coarse = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 32)
            smooth = torch.nn.functional.interpolate(coarse, scale_factor=32, mode="bilinear")
            return torch.cat([smooth - self.threshold, self.threshold - smooth], dim=1) * 10

    info = SegmenterInfo(architecture="unet", classes=["pale", "dark"], image_px=512, mpp=1.0)
    before, started = _peak_mb(), time.perf_counter()
    config = SlideSegmentationConfig(label_map=True)
    areas = segment_slide(Darkness(), info, Slide.open(path), path.with_suffix(".geojson"), config, key="benchmark")
    seconds = time.perf_counter() - started
    fraction = float(areas["fraction"].iloc[1])
    return {"seconds": seconds, "before_mb": before, "peak_mb": _peak_mb(), "dark_fraction": fraction}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_own_process(*arguments: object) -> str:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(sizes: list[int]) -> None:
    # Nothing heavy is imported here: a child's peak memory begins with that of the process that starts it.
    print("| slide (px) | seconds | MB before | MB peak | dark |\n|---|---|---|---|---|")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for side_px in sizes:
            path = Path(folder) / f"{side_px}.svs"
            _in_own_process("write", path, side_px)
            found = json.loads(_in_own_process("measure", path))
            peaks.append(found["peak_mb"])
            print(
                f"| {side_px} | {found['seconds']:.1f} | {found['before_mb']:.0f} | {found['peak_mb']:.0f} "
                f"| {found['dark_fraction']:.3f} |"
            )
    print(f"peak memory, largest against smallest: {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main([int(value) for value in sys.argv[1:]] or list(SIZES))
