import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.stats import ttest_1samp

from stedm.config import EvaluationConfig
from stedm.evaluation.counts import counts_table, read_counts, write_counts
from stedm.evaluation.stats import (
    compare,
    default_pairs,
    false_claim,
    holm,
    ordered_arms,
    spearman,
    summarise,
    summarise_arm,
    wilcoxon_p,
    worst_decile,
)

CONFIG = EvaluationConfig()
ARM_FIELDS = {"iou_mean", "iou_sd", "iou_worst_decile", "n_patients", "seeds"}
COMPARISON_FIELDS = {"a", "b", "delta_mean", "delta_ci", "p_wilcoxon", "sd_ratio", "sd_ratio_ci"}


def series(values):
    return pd.Series(values, index=[f"p{i:03d}" for i in range(len(values))], dtype=float)


def counts_of(scores, seed=0, pixels=1000):
    """Counts that give each patient the IoU in `scores[arm]`, to a thousandth."""
    parts = []
    for arm, values in scores.items():
        cells = [[[0, 0, 0, pixels], [round(v * pixels), pixels - round(v * pixels), 0, 0]] for v in values]
        ids = [f"p{i:03d}" for i in range(len(values))]
        parts.append(counts_table(arm, seed, ids, ["x"] * len(ids), cells, ["background", "gland"]))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("n", "lowest"), [(1, 1), (10, 1), (11, 2), (24, 3), (30, 3)])
def test_worst_decile_is_the_mean_of_the_lowest_tenth_rounded_up(n, lowest):
    values = np.random.default_rng(n).permutation(n).astype(float)
    assert worst_decile(values) == pytest.approx(np.arange(lowest).mean())


def test_arm_summary_by_hand():
    entry = summarise_arm(series([0.2, 0.4, 0.9, np.nan]), CONFIG)
    assert entry["iou_mean"] == pytest.approx(0.5)
    assert entry["iou_sd"] == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert entry["iou_worst_decile"] == pytest.approx(0.2)
    assert entry["n_patients"] == 3


def test_known_gain_lies_in_the_interval_and_the_sign_is_new_minus_baseline():
    rng = np.random.default_rng(0)
    baseline = rng.uniform(0.3, 0.9, 40)
    gain = rng.normal(0.1, 0.05, 40)
    result = compare(series(baseline + gain), series(baseline), CONFIG)
    assert result["delta_mean"] == pytest.approx(gain.mean())
    assert 0 < result["delta_ci"][0] < 0.1 < result["delta_ci"][1]
    assert result["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(gain).pvalue)
    assert result["n_improved"] == (gain > 0).sum()
    assert compare(series(baseline), series(baseline + gain), CONFIG)["delta_mean"] == pytest.approx(-gain.mean())


def test_interval_agrees_with_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=30), rng.uniform(size=30)
    ours = compare(series(a), series(b), EvaluationConfig())
    theirs = scipy.stats.bootstrap((a - b,), np.mean, n_resamples=20000, method="percentile", random_state=0)
    np.testing.assert_allclose(ours["delta_ci"], theirs.confidence_interval, atol=0.012)


def test_pairing_makes_a_constant_gain_certain():
    baseline = np.linspace(0.1, 0.8, 12)
    result = compare(series(baseline + 0.1), series(baseline), CONFIG)
    np.testing.assert_allclose(result["delta_ci"], [0.1, 0.1])
    assert result["sd_ratio"] == pytest.approx(1)


def test_rounding_dust_is_no_difference():
    a = series([0.1 + 0.2, 0.5, 0.7])
    result = compare(a, series([0.3, 0.5, 0.7]), CONFIG)
    assert (result["p_wilcoxon"], result["n_improved"]) == (1, 0)


def test_half_the_spread():
    baseline = np.random.default_rng(2).uniform(size=50)
    result = compare(series(0.5 * baseline), series(baseline), CONFIG)
    assert result["sd_ratio"] == pytest.approx(0.5)
    np.testing.assert_allclose(result["sd_ratio_ci"], [0.5, 0.5])


def test_identical_arms_show_nothing():
    same = series([0.2, 0.5, 0.7, 0.9])
    result = compare(same, same.copy(), CONFIG)
    assert (result["delta_mean"], result["delta_ci"], result["p_wilcoxon"]) == (0, [0, 0], 1)
    assert (result["sd_ratio"], result["sd_ratio_ci"]) == (1, [1, 1])


def test_the_seed_fixes_the_interval(monkeypatch):
    rng = np.random.default_rng(3)
    a, b = series(rng.uniform(size=15)), series(rng.uniform(size=15))
    first = compare(a, b, CONFIG)
    assert compare(a, b, CONFIG) == first
    monkeypatch.setattr(EvaluationConfig, "seed", 1)
    assert compare(a, b, CONFIG)["delta_ci"] != first["delta_ci"]


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_patients_give_nulls_and_no_crash(n):
    result = compare(series([0.5] * n), series([0.4] * n), CONFIG)
    assert result["delta_ci"] == result["sd_ratio_ci"] == [None, None]
    assert result["p_wilcoxon"] is None
    assert result["sd_ratio"] is None
    assert result["n_patients"] == n


def test_two_patients_and_a_baseline_without_spread_do_not_crash():
    result = compare(series([0.5, 0.6]), series([0.4, 0.4]), CONFIG)
    assert result["sd_ratio"] is None
    assert result["sd_ratio_ci"] == [None, None]
    assert result["p_wilcoxon"] == pytest.approx(0.5)


def test_nan_and_missing_patients_are_dropped_from_both_arms():
    a, b = series([0.5, np.nan, 0.7, 0.9]), series([0.4, 0.1, np.nan])
    result = compare(a, b, CONFIG)
    assert result["n_patients"] == 1
    assert result["delta_mean"] == pytest.approx(0.1)
    assert result["iou_mean_b"] == pytest.approx(0.4)


def test_the_probability_of_a_false_claim_is_that_of_the_t_test_of_one_side():
    rng = np.random.default_rng(0)
    gains = rng.normal(0.03, 0.1, 12)
    expected = ttest_1samp(gains, 0, alternative="greater").pvalue
    assert false_claim(gains) == pytest.approx(expected)
    assert false_claim(-gains) == pytest.approx(expected)
    assert compare(series(0.5 + gains), series([0.5] * 12), CONFIG)["p_false_claim"] == pytest.approx(expected)
    assert (false_claim(np.zeros(4)), false_claim(np.full(4, 0.1)), false_claim(gains[:1])) == (0.5, 0.0, None)


def test_patients_who_lose_are_named_worst_first():
    lost = compare(series([0.5, 0.3, 0.495, 0.1]), series([0.5] * 4), CONFIG)["lost"]
    assert [name for name, _ in lost] == [series([0] * 4).index[i] for i in (3, 1)]
    assert [loss for _, loss in lost] == pytest.approx([-0.4, -0.2])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_which_arms_are_compared():
    arms = ["real", "real+stain", "ssl", "real+synthetic", "real+stain+synthetic", "upper"]
    means = dict(zip(arms, [0.5, 0.6, 0.55, 0.8, 0.7, 0.9], strict=True))
    pairs = default_pairs(arms, means)
    synthetic = {(a, b) for a in arms[3:5] for b in arms[:3]}
    assert set(pairs) == synthetic | {("real+stain", "real"), ("upper", "real+synthetic")}
    assert len(pairs) == len(set(pairs))
    assert default_pairs(["upper"], {"upper": 0.9}) == []


def test_what_is_left_without_one_patient():
    a, b = (pd.Series(values, index=list("pqrs")) for values in ([0.9, 0.5, 0.5, 0.6], [0.1, 0.5, 0.4, 0.6]))
    entry = compare(a, b, CONFIG)
    assert entry["delta_leave_one_out"] == pytest.approx([0.1 / 3, 0.9 / 3])
    assert entry["delta_median"] == pytest.approx(0.05)
    assert compare(a[:1], b[:1], CONFIG)["delta_leave_one_out"] == [None, None]


def test_arms_stand_in_the_order_of_the_method():
    assert ordered_arms(["zeta", "upper", "real+synthetic", "real"]) == ["real", "real+synthetic", "upper", "zeta"]


def test_summary_has_the_promised_fields_and_plain_numbers():
    scores = {"real": [0.3, 0.5, 0.9], "real+synthetic": [0.5, 0.6, 0.9]}
    counts = pd.concat([counts_of(scores, seed=0), counts_of({a: [0.1, *v[1:]] for a, v in scores.items()}, seed=4)])
    summary = summarise(counts, CONFIG)
    assert set(summary) == {"arms", "comparisons"}
    assert list(summary["arms"]) == ["real", "real+synthetic"]
    for entry in summary["arms"].values():
        assert set(entry) >= ARM_FIELDS
        assert entry["seeds"] == [0, 4]
    (comparison,) = summary["comparisons"]
    assert set(comparison) >= COMPARISON_FIELDS | {"p_holm"}
    assert (comparison["a"], comparison["b"]) == ("real+synthetic", "real")
    # Averaged over seeds first: patient 0 has (0.3 + 0.1) / 2 and (0.5 + 0.1) / 2.
    assert summary["arms"]["real"]["iou_mean"] == pytest.approx((0.2 + 0.5 + 0.9) / 3)
    assert comparison["delta_mean"] == pytest.approx((0.1 + 0.1 + 0.0) / 3)
    per_seed = [np.mean(scores["real"]), np.mean([0.1, 0.5, 0.9])]
    assert summary["arms"]["real"]["seed_sd"] == pytest.approx(np.std(per_seed, ddof=1))
    assert comparison["delta_seed_sd"] == pytest.approx(np.std([0.1, 0.1 / 3], ddof=1))


def test_summary_can_be_computed_again_from_the_file(tmp_path):
    rng = np.random.default_rng(5)
    counts = counts_of({"real": rng.uniform(size=9), "real+stain": rng.uniform(size=9), "upper": rng.uniform(size=9)})
    write_counts(tmp_path / "counts.parquet", counts)
    assert summarise(read_counts(tmp_path / "counts.parquet"), CONFIG) == summarise(counts, CONFIG)


@pytest.mark.parametrize(
    ("gain", "rho", "p"),
    [
        ([4, 3, 2, 1], -1, 2 / 24),
        ([1, 2, 3, 4], 1, 2 / 24),
        ([1, 2, 4, 3], 0.8, 8 / 24),
        ([1, 1, 2, 2], 0.8944, 8 / 24),  # tied: 4 of the 24 orders give the same ranks, as many their opposite
        ([1, 2, 3, 4, 5], 1, 2 / 120),
        ([0.1 + 0.2, 0.3, 2, 2, 9], 0.9487, 8 / 120),  # equal but for rounding
        ([7, 7, 7, 7], None, None),
        ([1, 2, 3], None, None),
    ],
)
def test_few_patients_have_an_exact_p_of_their_rank_correlation(gain, rho, p):
    found = spearman(np.arange(len(gain), dtype=float), np.array(gain, dtype=float))
    if rho is None:
        assert found is None
    else:
        assert found == (pytest.approx(rho, abs=1e-4), pytest.approx(p))


def test_the_exact_p_is_that_of_scipys_permutations_and_near_to_the_approximation_above():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6))
    exact = scipy.stats.permutation_test(
        (x,), lambda a: scipy.stats.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    assert spearman(x, y)[1] == pytest.approx(exact.pvalue)
    x, y = rng.normal(size=(2, 10))
    assert spearman(x, y)[1] == pytest.approx(scipy.stats.spearmanr(x, y).pvalue)
    assert spearman(x, x) == (pytest.approx(1), pytest.approx(2 / 3628800))


@pytest.mark.parametrize("n", [2, 4, 6, 12])
def test_wilcoxon_of_few_patients_with_equal_gains_is_exact_too(n):
    assert wilcoxon_p(np.full(n, 0.1)) == pytest.approx(2 / 2**n)
