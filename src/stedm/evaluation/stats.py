"""Statistics over patients: what an arm reaches, and whether one arm beats another on the same patients.

The unit is the patient: scores are averaged over seeds first, so that more seeds make a patient's score steadier but
never count as more patients. The intervals therefore speak of other patients, not of other trainings; the spread
between trainings is given beside them (`seed_sd`, `delta_seed_sd`).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import get_args

import numpy as np
import pandas as pd

from stedm.config import Arm, EvaluationConfig
from stedm.evaluation.counts import SEEN, UNSEEN, pool_units
from stedm.evaluation.metrics import class_iou, per_patient, per_patient_and_seed, pooled_iou
from stedm.seeds import numpy_generator

ARM_ORDER = list(get_args(Arm))
BASELINES = ["real", "real+stain", "ssl", "self-training"]
Interval = list[float | None]
EXACT_UP_TO = 9
"""Pairs of which all orders are looked at: 362,880 of nine."""
NOTED_LOSS = 0.01
"""Patients who lose more are named, the `MOST_NAMED` who lose most."""
MOST_NAMED = 5


def worst_decile(values: np.ndarray) -> np.ndarray:
    """Mean of the ceil(n / 10) lowest of n values, along the last axis; without NaN."""
    values = np.asarray(values, dtype=float)
    lowest = math.ceil(values.shape[-1] / 10)
    return np.partition(values, lowest - 1, axis=-1)[..., :lowest].mean(axis=-1)


def sd_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SD(a) / SD(b) along the last axis (ddof 1); NaN where b does not vary."""
    below = np.std(b, axis=-1, ddof=1)
    # A constant sample can leave rounding dust instead of 0, and dividing by dust gives a wild ratio.
    varies = below > 1e-12
    return np.divide(np.std(a, axis=-1, ddof=1), below, out=np.full(np.shape(below), np.nan), where=varies)


def bootstrap_interval(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray, config: EvaluationConfig
) -> Interval:
    """Percentile bootstrap over patients; paired samples are resampled together.

    `statistic` takes arrays (resamples, n) and works along the last axis. [None, None] with fewer than 2 patients.
    """
    n = len(samples[0])
    if n < 2:
        return [None, None]
    # The same resamples for every comparison: their intervals differ by the data only.
    chosen = numpy_generator(config.seed, "bootstrap", n).integers(n, size=(config.bootstrap, n))
    values = statistic(*(sample[chosen] for sample in samples))
    if np.isnan(values).all():
        return [None, None]
    tail = (1 - config.confidence) / 2
    return [float(bound) for bound in np.nanquantile(values, [tail, 1 - tail])]


def wilcoxon_p(differences: np.ndarray) -> float | None:
    """Two-sided Wilcoxon signed-rank p value; 1 where no pair differs, None with fewer than 2 pairs."""
    if len(differences) < 2:
        return None
    from scipy.stats import wilcoxon

    different = differences[differences != 0]
    return float(wilcoxon(different).pvalue) if len(different) else 1.0


def spearman(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Spearman's rank correlation and its two-sided p value; None with fewer than 4 pairs or where one is constant.

    The p value is exact, over all orders of the given ranks with their ties, up to `EXACT_UP_TO` pairs: the usual
    approximation gives 0.0 where four pairs agree in all, and two of the 24 orders are as extreme.
    """
    x, y = np.round(x, 12), np.round(y, 12)  # rounding dust would break ties
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy.stats import rankdata, spearmanr

    result = spearmanr(x, y)
    if len(x) > EXACT_UP_TO:
        # Even so nothing is rarer than the two orders that agree in all.
        return float(result.statistic), max(float(result.pvalue), 2 / math.factorial(len(x)))
    ranks = rankdata(y) - (len(y) + 1) / 2
    extreme = np.abs(ranks[_orders(len(x))] @ (rankdata(x) - (len(x) + 1) / 2))
    return float(result.statistic), float((extreme >= extreme[0] - 1e-9).mean())


@functools.cache
def _orders(n: int) -> np.ndarray:
    """Every order of n things, uint8 (n!, n); the first is 0, 1, ..."""
    return np.array(list(itertools.permutations(range(n))), np.uint8)


def false_claim(differences: np.ndarray) -> float | None:
    """Probability that the sign of the mean difference is a false claim about patients like these.

    Posterior of the mean under a flat prior: Student's t with n - 1 degrees of freedom about the observed mean, as in
    Christodoulou et al. 2025 (arXiv 2505.04720). At most 0.5; None with fewer than 2 pairs.
    """
    n = len(differences)
    if n < 2:
        return None
    error = differences.std(ddof=1) / math.sqrt(n)
    mean = abs(differences.mean())
    if error < 1e-12:
        return 0.0 if mean > 1e-12 else 0.5
    from scipy.stats import t as student_t

    return float(student_t.sf(mean / error, n - 1))


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979) over the p values that are not None."""
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def summarise_arm(scores: pd.Series, config: EvaluationConfig) -> dict:
    """Mean, median, SD (ddof 1) and worst decile over patients; patients whose score is NaN are left out."""
    values = scores.dropna().to_numpy(dtype=float)
    return {
        "iou_mean": _number(values.mean()) if len(values) else None,
        "iou_sd": _number(values.std(ddof=1)) if len(values) > 1 else None,
        "iou_worst_decile": _number(worst_decile(values)) if len(values) else None,
        "iou_median": _number(np.median(values)) if len(values) else None,
        "n_patients": len(values),
        "iou_mean_ci": bootstrap_interval(lambda x: x.mean(axis=-1), values, config=config),
    }


def compare(a: pd.Series, b: pd.Series, config: EvaluationConfig | None = None) -> dict:
    """Compare two arms over the patients that have a score in both.

    a, b: IoU indexed by patient_id; `a` is the new arm and `b` the baseline, so that `delta_mean` = mean(a - b) > 0
    means that `a` is better, and `sd_ratio` = SD(a) / SD(b) < 1 that its patients are closer together.
    `delta_leave_one_out`: lowest and highest `delta_mean` that is left when one patient is left out. `p_false_claim`:
    of `false_claim`. `lost`: [patient_id, difference] of those who lose most.
    """
    config = config or EvaluationConfig()
    pairs = pd.concat({"a": a, "b": b}, axis=1, join="inner").sort_index()
    kept = pairs.dropna()
    x, y = kept["a"].to_numpy(dtype=float), kept["b"].to_numpy(dtype=float)
    # Rounding dust (means over seeds in another order) would break ties and zeros of the rank test.
    difference = np.round(x - y, 12)
    n = len(kept)
    return {
        "delta_mean": _number((x - y).mean()) if n else None,
        "delta_ci": bootstrap_interval(lambda p, q: (p - q).mean(axis=-1), x, y, config=config),
        "delta_median": _number(np.median(x - y)) if n else None,
        "delta_leave_one_out": _leave_one_out(x - y),
        "p_wilcoxon": wilcoxon_p(difference),
        "p_false_claim": false_claim(x - y),
        "sd_ratio": _number(sd_ratio(x, y)) if n > 1 else None,
        "sd_ratio_ci": bootstrap_interval(sd_ratio, x, y, config=config),
        "delta_worst_decile": _number(worst_decile(x) - worst_decile(y)) if n else None,
        "iou_mean_a": _number(x.mean()) if n else None,
        "iou_mean_b": _number(y.mean()) if n else None,
        "n_patients": n,
        "n_improved": int((difference > 0).sum()),
        "n_worsened": int((difference < 0).sum()),
        "lost": [[str(kept.index[i]), float(difference[i])] for i in _losers(difference)],
    }


def _losers(difference: np.ndarray) -> list[int]:
    order = np.argsort(difference, kind="stable")[:MOST_NAMED]
    return [int(i) for i in order if difference[i] < -NOTED_LOSS]


def _leave_one_out(difference: np.ndarray) -> list[float | None]:
    if len(difference) < 2:
        return [None, None]
    left = (difference.sum() - difference) / (len(difference) - 1)
    return [float(left.min()), float(left.max())]


def default_pairs(arms: Iterable[str], means: dict[str, float | None]) -> list[tuple[str, str]]:
    """Which arms to compare, as (new, baseline).

    Every arm with synthetic images against every arm without, stain augmentation against none, and the fully
    supervised bound against the best of the others. `REPORT/ARM` names are compared within one report.
    """
    arms = list(arms)

    def comparable(a: str, b: str) -> bool:
        return "" in (_report_of(a), _report_of(b)) or _report_of(a) == _report_of(b)

    pairs = [
        (a, b)
        for a in arms
        for b in arms
        if comparable(a, b)
        and _arm_of(b) in BASELINES
        and ("+synthetic" in _arm_of(a) or (_arm_of(a), _arm_of(b)) == ("real+stain", "real"))
    ]
    for upper in (arm for arm in arms if _arm_of(arm) == "upper"):
        others = [b for b in arms if _arm_of(b) != "upper" and comparable(upper, b) and means.get(b) is not None]
        if others:
            pairs.append((upper, max(others, key=lambda b: means[b])))
    return pairs


def summarise(
    counts: pd.DataFrame, config: EvaluationConfig | None = None, pairs: list[tuple[str, str]] | None = None
) -> dict:
    """The content of `summary.json`: {"arms": {ARM: ...}, "comparisons": [...]}, plain numbers, None for "not known".

    Where the counts have groups of categories (annotated, unseen), "groups" has the arms and comparisons of each; p
    values are for the whole alone. All statistics are over `config.unit` ("unit" names it where it isn't the patient),
    which "n_patients" counts.

    pairs: comparisons to make as (new, baseline); by default those of `default_pairs`.
    """
    config = config or EvaluationConfig()
    counts = pool_units(counts, config.unit)
    patients, seeds = per_patient(counts), per_patient_and_seed(counts)
    scores = {arm: group.set_index("patient_id")["iou"] for arm, group in patients.groupby("arm")}
    seed_means = seeds.groupby(["arm", "seed"])["iou"].mean()
    arms = {arm: summarise_arm(scores[arm], config) for arm in ordered_arms(scores)}
    pooled, classes = pooled_iou(counts), class_iou(counts)
    dice_mean = patients.groupby("arm")["dice"].mean()
    for arm, entry in arms.items():
        entry["seeds"] = [int(seed) for seed in seed_means[arm].index]
        entry["seed_sd"] = _number(seed_means[arm].std(ddof=1))
        entry["dice_mean"] = _number(dice_mean[arm])
        entry["iou_pooled"] = _number(pooled[arm])
        entry["iou_pooled_per_class"] = {name: _number(value) for name, value in classes.loc[arm].items()}
        if "n_pictures" in patients:
            entry["n_pictures"] = int(patients.loc[patients["arm"] == arm, "n_pictures"].sum())
    if pairs is None:
        pairs = default_pairs(arms, {arm: entry["iou_mean"] for arm, entry in arms.items()})
    comparisons = []
    for a, b in pairs:
        per_seed = (seed_means[a] - seed_means[b]).dropna()
        entry = {"a": a, "b": b, **compare(scores[a], scores[b], config)}
        comparisons.append({**entry, "delta_seed_sd": _number(per_seed.std(ddof=1))})
    for entry, p in zip(comparisons, holm([entry["p_wilcoxon"] for entry in comparisons]), strict=True):
        entry["p_holm"] = p
    summary = {"arms": arms, "comparisons": comparisons}
    if config.unit != "patient":
        summary = {"unit": config.unit} | summary
    if "group" in counts:
        summary["groups"] = _groups(counts, list(arms), pairs, config)
    return summary


def _groups(counts: pd.DataFrame, arms: list[str], pairs: list[tuple[str, str]], config: EvaluationConfig) -> dict:
    """Per group of categories: which they are, and means and gains with intervals over the units of the group."""
    kept = ("delta_mean", "delta_ci", "sd_ratio", "sd_ratio_ci", "n_patients", "n_improved", "n_worsened")
    groups = {}
    for name in (name for name in (SEEN, UNSEEN) if (counts["group"] == name).any()):
        part = per_patient(counts[counts["group"] == name])
        scores = {arm: rows.set_index("patient_id")["iou"] for arm, rows in part.groupby("arm")}
        compared = [(a, b, compare(scores[a], scores[b], config)) for a, b in pairs]
        groups[name] = {
            "categories": sorted(part["category"].unique()),
            "arms": {arm: summarise_arm(scores[arm], config) for arm in arms},
            "comparisons": [{"a": a, "b": b} | {key: entry[key] for key in kept} for a, b, entry in compared],
        }
    return groups


def ordered_arms(arms: Iterable[str]) -> list[str]:
    """Known arms in the order of the method, then all others by name."""

    def key(arm: str) -> tuple[str, int, str]:
        known = _arm_of(arm) in ARM_ORDER
        return _report_of(arm), ARM_ORDER.index(_arm_of(arm)) if known else len(ARM_ORDER), arm

    return sorted(arms, key=key)


def _arm_of(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _report_of(name: str) -> str:
    return name.rsplit("/", 1)[0] if "/" in name else ""


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
