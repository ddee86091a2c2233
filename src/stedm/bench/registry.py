"""The targets of `stedm bench` and how a run of them is put together."""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from stedm.bench.effort import Effort
from stedm.errors import StedmError

TARGETS = {
    "train": "a training step of the diffusion model: data, forward, backward, optimiser, operators",
    "sampling": "samplers, guidance and batch sizes: time and network calls an image",
    "codec": "encoding and decoding of the first stage",
    "data": "reading, style sampling, recolouring, batches",
    "synthesis": "execution of a plan: what is spent outside of the network",
    "segmentation": "prediction of masks",
    "growth": "time and memory against style images, planned images, patients, classes, image size",
}
"""Name to what it measures; the function `run(setting, effort)` of stedm.bench.NAME returns a `Result`."""


def run_bench(
    what: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
    effort: Effort | None = None,
    show: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Measure one target, or all of them, and return what `-o` writes.

    Args:
        what: a name in `TARGETS`; None = all.
        config: configuration to measure; None = a small one on phantom data (bench/small.yaml).
        show: called with the machine's description and then with the `Result` of each target when it is there.

    Raises:
        StedmError: there is no such target, or the configuration or its data can't be used.
    """
    if what is not None and what not in TARGETS:
        raise StedmError(f"bench {what}: no such target; there are {', '.join(TARGETS)}")
    from stedm.bench.machine import describe
    from stedm.bench.setting import open_setting
    from stedm.progress import Reporter

    found: dict[str, Any] = {}
    with open_setting(config, overrides) as setting:
        machine = describe(setting.device, setting.precision)
        if show:
            show(machine)
        for name in [what] if what else TARGETS:
            with Reporter().stage(f"bench {name}"):
                result = import_module(f"stedm.bench.{name}").run(setting, effort or Effort())
            found[name] = result.as_dict()
            if show:
                show(result)
        configuration = {
            "name": setting.config.name,
            "fingerprint": setting.config.fingerprint,
            "source": str(config) if config else "built in",
        }
    return {"machine": machine, "configuration": configuration, "targets": found}
