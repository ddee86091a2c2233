"""What to do after a run, with the commands for it."""

import shlex
from dataclasses import dataclass

from stedm.config import EvaluationConfig
from stedm.evaluation.verdict import is_first_look, judge, patients_needed

MOST_NAMED = 5
MORE_SEEDS = 2


@dataclass(frozen=True)
class Step:
    """A sentence, and the command that does it ("" = none does)."""

    text: str
    command: str = ""


def next_steps(summary: dict, run: str) -> list[Step]:
    """The most useful ones first; `run` is the run folder as commands name it, such as `runs/demo`."""
    evaluation, arms, run = EvaluationConfig(unit=summary.get("unit", "patient")), summary["arms"], shlex.quote(run)
    steps = []
    if is_first_look(summary, evaluation):
        text = (
            f"{summary['short_training']}. To see what it does for your patients, run it as recommended: hours on a CPU"
        )
        steps.append(Step(text, f"stedm run DATASET -o {run}-recommended"))
    usable = {arm: entry for arm, entry in arms.items() if arm != "upper" and entry["iou_mean"] is not None}
    if usable:
        best = max(usable, key=lambda arm: usable[arm]["iou_mean"])
        model = f"{run}/segmenters/{best}/seed-{usable[best]['seeds'][0]}/model"
        text = f"Use the network of the arm with the highest mean here, {best}"
        steps.append(Step(text, f"stedm segment {model} IMAGES -o MASKS"))
    if summary.get("quality", {}).get("warnings"):
        text = (
            "The synthetic images are not what was asked for: have the diffusion model learn for longer, N being "
            "several times its steps"
        )
        steps.append(Step(text, f"stedm run {run}/config.yaml -o {run}-longer --set diffusion.steps=N"))
    if doubted := summary.get("contradicted"):
        named = ", ".join(doubted[:MOST_NAMED]) + (", ..." if len(doubted) > MOST_NAMED else "")
        text = (
            f"Annotate next: {named}. Segmenters contradict each other about them. With their masks in the dataset and "
            "their split set to train, begin a new run"
        )
        steps.append(Step(text, f"stedm run DATASET -o {run}-annotated"))
    if (verdict := judge(summary, evaluation)).pair:
        needed = patients_needed(evaluation)
        n = min(arms[arm]["n_patients"] for arm in verdict.pair)
        if n < needed:
            steps.append(Step(f"Have at least {needed} {evaluation.units} to score: {n} can't be evidence"))
        seeds = arms[verdict.pair[0]]["seeds"]
        if len(seeds) == 1:
            more = ",".join(map(str, range(seeds[0], seeds[0] + 1 + MORE_SEEDS)))
            text = "Train every network with more seeds, to see how much is chance; what is there is kept"
            steps.append(Step(text, f"stedm run {run}/config.yaml -o {run} --set 'segmentation.seeds=[{more}]'"))
    return steps
