"""Where the time goes on this machine. Figures and tables on stdout, with -o also as JSON.

python -m benchmarks.speed                                  every target, on small.yaml; some minutes
python -m benchmarks.speed train configs/ebhi_seg.yaml      one target, of a configuration with its data
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from stedm.errors import StedmError
from stedm.io.files import write_json
from stedm.progress import Reporter

from .effort import Effort
from .machine import describe
from .setting import SMALL, open_setting

TARGETS = {
    "train": "a training step of the diffusion model: data, forward, backward, optimiser, operators",
    "sampling": "samplers, guidance and batch sizes: time and network calls an image",
    "data": "reading, style sampling, recolouring, batches",
    "synthesis": "execution of a plan: what is spent outside of the network",
    "growth": "time and memory against style images, planned images, patients, image size",
}
"""Name to what it measures; `run(setting, effort)` in NAME.py returns figures, tables and notes."""

Show = Callable[[str, dict[str, Any]], None]


def measure(
    targets: Sequence[str], config: Path, overrides: Sequence[str], effort: Effort, show: Show
) -> dict[str, Any]:
    """Measure the targets, show each when it is there, and return what `-o` writes."""
    found = {}
    with open_setting(config, overrides) as setting:
        machine = describe(setting.device, setting.precision)
        show("machine", {"figures": machine})
        for name in targets:
            with Reporter().stage(f"speed {name}"):
                found[name] = import_module(f".{name}", __package__).run(setting, effort)
            show(name, found[name])
        made_of = {"name": setting.config.name, "fingerprint": setting.config.fingerprint, "source": str(config)}
    return {"machine": machine, "configuration": made_of, "targets": found}


def show(target: str, found: dict[str, Any]) -> None:
    """Print what a target has measured."""
    print(f"\n{target}")
    for name, value in found["figures"].items():
        print(f"  {name.replace('_', ' '):36} {text(name, value)}")
    for title, rows in found.get("tables", {}).items():
        shown = [{name.replace("_", " "): text(name, value) for name, value in row.items()} for row in rows]
        print(f"\n{target}: {title}\n{pd.DataFrame(shown).to_string(index=False)}")
    for note in found.get("notes", []):
        print(note)


def text(name: str, value: Any) -> str:
    """A value as it is printed: shares in per cent, numbers to three digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and "share" in name:
        return f"{100 * value:.1f} %"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="targets:\n" + "\n".join(f"  {name:14}{what}" for name, what in TARGETS.items()),
    )
    parser.add_argument("target", nargs="?", choices=TARGETS, metavar="TARGET", help="all of them if left out")
    parser.add_argument("config", nargs="?", type=Path, default=SMALL, metavar="CONFIG.yaml")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    parser.add_argument("-n", type=int, default=Effort.images, help="images of the target synthesis")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    asked = parser.parse_args(arguments)
    targets = [asked.target] if asked.target else list(TARGETS)
    try:
        measured = measure(targets, asked.config, asked.overrides, Effort(images=asked.n), show)
    except StedmError as error:
        sys.exit(str(error))
    if asked.output:
        write_json(asked.output, measured)


if __name__ == "__main__":
    main()
