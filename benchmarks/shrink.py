"""Make figures small enough to be kept: no alpha, a palette, at most WIDTH pixels wide (no limit by default).

    python benchmarks/shrink.py FILE.png ... [--width 1000] [--colours 128]

A file is replaced only where that makes it smaller. Grids of images are best left as wide as they are: resized pixels
have more colours and compress worse.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from stedm.io.files import replacing


def shrink(path: Path, width: int | None = None, colours: int = 128) -> None:
    """Replace a PNG by a smaller one of the same figure."""
    with Image.open(path) as opened:
        image = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert("RGB")
    if width and image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    # MAXCOVERAGE drops pale stains; dithering looks like tissue where there is none.
    image = image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    made = io.BytesIO()
    image.save(made, format="PNG", optimize=True)
    if made.tell() < path.stat().st_size:
        with replacing(path) as temporary:
            temporary.write_bytes(made.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--width", type=int)
    parser.add_argument("--colours", type=int, default=128)
    given = parser.parse_args()
    for file in given.files:
        shrink(file, given.width, given.colours)
