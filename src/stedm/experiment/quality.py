"""The stage of a run that looks at its synthetic images: RUN/quality.json (docs/quality.md)."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stedm.data.folder import DatasetFolder
from stedm.data.squares import in_squares
from stedm.evaluation.assessment import Parts
from stedm.evaluation.quality_files import measured, remembered
from stedm.experiment.context import RunContext


def look_at_synthetic(context: RunContext, synthetic: DatasetFolder, segmenter: Path | None) -> dict[str, Any]:
    """What was measured of a run's synthetic images, now or before; says at once what must not be overlooked.

    segmenter: one of the run that has learned from real images alone; None = layouts are looked for without one.
    """
    parts = Parts(synthetic, context.annotated, context.unlabeled, in_squares(context.dataset.split("val")))
    what = parts, context.config.data.side, segmenter, context.folder
    if (quality := remembered(*what)) is None:
        with context.reporter.stage("look at synthetic images", images=1) as tick:
            quality = measured(*what, context.config.machine, tick)
        context.note_seconds()
        for line in quality["warnings"]:
            context.reporter.say(f"warning: {line}")
    return quality


def for_report(quality: dict[str, Any], names_of: Callable[[Iterable[str]], list[str]] = list) -> dict[str, Any]:
    """What stands in summary.json: without names of images; `names_of` gives patients other names."""
    layout = quality["layout"]
    per_patient = dict(zip(names_of(layout["per_patient"]), layout["per_patient"].values(), strict=True))
    return {name: value for name, value in quality.items() if name != "closest"} | {
        "layout": layout | {"per_patient": per_patient}
    }
