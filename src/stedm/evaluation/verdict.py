"""What the numbers of a run allow to say, in plain words that were fixed beforehand."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from stedm.config import DiffusionConfig, EvaluationConfig
from stedm.evaluation.numbers import capital, interval, p_value, percent, shown, signed
from stedm.evaluation.stats import BASELINES, NOTED_LOSS

# Arms that differ in the synthetic images alone: the comparisons the verdict speaks of.
LIKE_FOR_LIKE = {
    ("real+synthetic", "real"): "synthetic images",
    ("real+stain+synthetic", "real+stain"): "synthetic images on top of stain augmentation",
    ("real+stain+synthetic+ssl", "ssl"): "synthetic images on top of consistency training",
    ("real+stain+synthetic+self-training", "self-training"): "synthetic images on top of self-training",
}


# Only arms that differ in one thing alone allow to say that this thing did it.
CAUSAL_PHRASES = {
    "better": "{subject} raised {mean}",
    "worse": "{subject} hurt: {mean} fell",
    "unclear": "no evidence that {subject} changed {mean}:",
}


PHRASES = {
    "better": "{subject}: {mean} is higher,",
    "worse": "{subject}: {mean} is lower,",
    "unclear": "{subject}: no evidence of a difference in {mean},",
}


FEW_PATIENTS = 10
SHORT_TRAINING = 0.25
"""Part of the recommended training below which a diffusion model that brought nothing has had no chance."""
FIRST_LOOK = "A first look: too little training to say whether it helps"


@dataclass(frozen=True)
class Verdict:
    """What a run shows: `tone` is better, worse or unclear, of all patients together; `word` says in a few words whom
    it helped and hurt; `pair` are the (new, baseline) arms of the headline.

    `shade` is better, worse, unclear or mixed: a gain of some that others pay for is neither.
    """

    tone: str
    headline: str
    sentences: list[str]
    pair: tuple[str, str] | None = None
    word: str = "Nothing to compare"
    shade: str = "unclear"


def judge(summary: dict, evaluation: EvaluationConfig) -> Verdict:
    """Say in plain words what the comparisons show.

    The headline pair is fixed beforehand (synthetic images against the same arm without), not picked by result.
    """
    arms, comparisons = summary["arms"], summary["comparisons"]
    if not comparisons:
        told = [
            f"{arm}: mean IoU {shown(x['iou_mean'])} over {x['n_patients']} {evaluation.units}."
            for arm, x in arms.items()
        ]
        return Verdict("unclear", "There is nothing to compare in this report.", told)
    told = [entry for pair in LIKE_FOR_LIKE if (entry := find(summary, *pair))] or comparisons[:1]
    main = told[0]
    baselines = [arm for arm in BASELINES if arm in arms and arms[arm]["iou_mean"] is not None]
    strongest = max(baselines, key=lambda arm: arms[arm]["iou_mean"], default=None)
    for entry in comparisons:
        if "+synthetic" in entry["a"] and entry["b"] == strongest and entry not in told:
            told.append(entry)
    # The mean of all hides what each group has: where there are groups, they are the headline.
    sentences = [_sentence(entry, evaluation) for entry in told]
    groups = _groups(main, summary)
    if groups:
        sentences.insert(0, _group_sentence(main, groups, evaluation))
    word, shade = _word(main, {_whose(name, evaluation): group for name, group in groups.items()}, evaluation)
    ahead = find(summary, main["a"], strongest) if strongest and strongest != main["b"] else None
    if ahead is not None and shade in ("better", "mixed") and _tone(ahead, evaluation) == "worse":
        # Who reads this line alone should not go away with the weaker network.
        word, shade = f"{word}, but {strongest} without synthetic images is better", "mixed"
    if is_first_look(summary, evaluation) and "+synthetic" in main["a"]:
        word, shade = FIRST_LOOK, "unclear"
        sentences.insert(1, f"{summary['short_training']}: it says nothing yet about your patients.")
    return Verdict(
        _tone(main, evaluation),
        sentences[0],
        [*sentences[1:], *_caveats(main, summary, evaluation)],
        (main["a"], main["b"]),
        word,
        shade,
    )


def short_training(config: DiffusionConfig) -> str | None:
    """How far a training is below the recommended one, in images seen; None where it is not far below."""
    seen, recommended = config.steps * config.batch, DiffusionConfig().steps * DiffusionConfig().batch
    if seen >= SHORT_TRAINING * recommended:
        return None
    return f"The diffusion model saw {seen:,} images in training, {recommended:,} are recommended"


def is_first_look(summary: dict, evaluation: EvaluationConfig) -> bool:
    """Whether a short training is all that a run without a gain shows. A gain is one after any training."""
    synthetic = [find(summary, *pair) for pair in LIKE_FOR_LIKE]
    better = any(_tone(entry, evaluation) == "better" for entry in synthetic if entry is not None)
    return "short_training" in summary and not better


def _sentence(entry: dict, evaluation: EvaluationConfig) -> str:
    subject = LIKE_FOR_LIKE.get((entry["a"], entry["b"]), f"{entry['a']} against {entry['b']}")
    n, delta = entry["n_patients"], entry["delta_mean"]
    if delta is None:
        return f"{capital(subject)}: no {evaluation.unit} has a score in both arms."
    change = f"from {shown(entry['iou_mean_b'])} to {shown(entry['iou_mean_a'])}"
    if entry["delta_ci"][0] is None:
        return f"{capital(subject)}: mean IoU went {change} on one {evaluation.unit}; one is no evidence."
    size = f"({signed(delta)}, {percent(evaluation.confidence)} interval {interval(entry['delta_ci'])})"
    phrases = CAUSAL_PHRASES if (entry["a"], entry["b"]) in LIKE_FOR_LIKE else PHRASES
    phrase = phrases[_tone(entry, evaluation)].format(subject=subject, mean=f"mean IoU over {n} {evaluation.units}")
    text = f"{capital(phrase)} {change} {size}"
    return text + (_spread(entry, evaluation.units) if n >= patients_needed(evaluation) else "") + "."


def _groups(main: dict, summary: dict) -> dict[str, dict]:
    """The headline's comparison in each group of categories that has one, with both arms' means; unseen ones first."""
    found = {}
    for name, group in reversed(summary.get("groups", {}).items()):
        entry = find(group, main["a"], main["b"])
        if entry is not None and entry["delta_mean"] is not None:
            means = {key: group["arms"][main[key]]["iou_mean"] for key in ("a", "b")}
            found[name] = {**entry, "mean_a": means["a"], "mean_b": means["b"]}
    return found


def _group_sentence(main: dict, groups: dict[str, dict], evaluation: EvaluationConfig) -> str:
    told = []
    for name, entry in groups.items():
        change = f"{shown(entry['mean_b'])} → {shown(entry['mean_a'])}, {signed(entry['delta_mean'])}"
        size = f" ({interval(entry['delta_ci'])})" if entry["delta_ci"][0] is not None else ""
        told.append(f"{entry['n_patients']} {_whose(name, evaluation)} {change}{size}")
    subject = LIKE_FOR_LIKE.get((main["a"], main["b"]), f"{main['a']} against {main['b']}")
    return f"{capital(subject)}, mean IoU: {'; '.join(told)}."


def _whose(name: str, evaluation: EvaluationConfig) -> str:
    return f"patients of {name}" if evaluation.unit == "patient" else name


def _word(main: dict, groups: dict[str, dict], evaluation: EvaluationConfig) -> tuple[str, str]:
    """Whom it helped and hurt, and how that is to be taken: better, worse, unclear or mixed.

    What is below `NOTED_LOSS` happened slightly: a slight loss of some beside a gain of others is named, and not mixed.
    """
    tones = {name: _tone(group, evaluation) for name, group in groups.items()}
    found = {kind: [name for name, tone in tones.items() if tone == kind] for kind in ("better", "worse")}
    if not groups or any(len(names) == len(groups) for names in found.values()) or not any(found.values()):
        whole = _tone(main, evaluation)
        only = next((kind for kind, names in found.items() if names and len(names) == len(groups)), whole)
        if only == "unclear":
            return "No evidence that it helps or hurts", only
        return f"It {_did(only, [main])}", only
    told = [
        f"{_did(kind, [groups[name] for name in names])} {' and '.join(names)}"
        for kind, names in found.items()
        if names
    ]
    shades = [kind for kind, names in found.items() if names]
    if len(shades) > 1:
        slight = {kind: _slight([groups[name] for name in names]) for kind, names in found.items()}
        shade = "better" if slight["worse"] and not slight["better"] else "mixed"
    else:
        shade = shades[0]
    return "It " + " and ".join(told), shade


def _did(kind: str, entries: list[dict]) -> str:
    return ("slightly " if _slight(entries) else "") + {"better": "helped", "worse": "hurt"}[kind]


def _slight(entries: Iterable[dict]) -> bool:
    """Whether all differences are smaller than a patient's that would be named."""
    return all(abs(entry["delta_mean"]) < NOTED_LOSS for entry in entries)


def _spread(entry: dict, units: str) -> str:
    low, high = entry["sd_ratio_ci"]
    if entry["sd_ratio"] is None or low is None:
        return ""
    ratio = f"(SD ratio {shown(entry['sd_ratio'], 2)}, {interval([low, high], 2)})"
    if high < 1:
        return f", and the spread between {units} fell {ratio}"
    if low > 1:
        return f", and the spread between {units} grew {ratio}"
    return f"; the spread between {units} did not clearly change {ratio}"


def _caveats(main: dict, summary: dict, evaluation: EvaluationConfig) -> list[str]:
    caveats = []
    if main["lost"]:
        lost = ", ".join(f"{patient} ({signed(loss)})" for patient, loss in main["lost"])
        caveats.append(f"{capital(evaluation.units)} who lose most: {lost}.")
    tone, needed = _tone(main, evaluation), patients_needed(evaluation)
    p, k = main["p_holm"], sum(entry["p_wilcoxon"] is not None for entry in summary["comparisons"])
    if tone != "unclear" and p is not None and p > 1 - evaluation.confidence:
        corrected = f"corrected for {k} comparisons" if k > 1 else "of this one comparison"
        caveats.append(f"The signed-rank test, {corrected}, does not confirm it (p = {p_value(p)}).")
    if 1 < main["n_patients"] < needed:
        chance = f"by chance all of them do better, or all worse, once in {2 ** (main['n_patients'] - 1)} times"
        caveats.append(f"Only {main['n_patients']} {evaluation.units}: {chance}; evidence begins with {needed}.")
    elif needed <= main["n_patients"] < FEW_PATIENTS:
        caveats.append(f"Only {main['n_patients']} {evaluation.units}: the intervals are rough.")
    delta, left = main["delta_mean"], [value for value in main["delta_leave_one_out"] if value is not None]
    # Of a difference about zero anyone decides much.
    if left and main["n_patients"] >= FEW_PATIENTS and tone != "unclear":
        without = max(left, key=lambda value: abs(value - delta))
        if abs(without - delta) > abs(delta) / 2:
            one = f"One {evaluation.unit} decides much of it"
            caveats.append(f"{one}: without it the difference is {signed(without)}.")
    if min(len(summary["arms"][arm]["seeds"]) for arm in (main["a"], main["b"])) == 1:
        caveats.append("Each network was trained once (one seed): chance in training is not measured.")
    elif main["delta_seed_sd"] is not None and main["delta_seed_sd"] > abs(main["delta_mean"] or 0):
        caveats.append(
            f"The gain differs between trainings by more than its size (SD over seeds {shown(main['delta_seed_sd'])})."
        )
    return caveats


def patients_needed(evaluation: EvaluationConfig) -> int:
    """How many patients it takes that a difference of one sign in all of them is evidence: the smallest n for which
    the signed-rank test can reach the level (2 / 2^n). Bootstrap intervals of fewer exclude 0 far too often."""
    return math.ceil(1 - math.log2(1 - evaluation.confidence))


def _tone(entry: dict, evaluation: EvaluationConfig) -> str:
    low, high = entry["delta_ci"]
    if low is None or low <= 0 <= high or entry["n_patients"] < patients_needed(evaluation):
        return "unclear"
    return "better" if low > 0 else "worse"


def find(summary: dict, a: str, b: str) -> dict | None:
    return next((entry for entry in summary["comparisons"] if (entry["a"], entry["b"]) == (a, b)), None)
