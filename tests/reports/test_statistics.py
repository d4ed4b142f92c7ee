"""Intervals and tests, against slow ones written out and against simulated truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from recjax import metrics
from recjax.reports import statistics

QUERIES = 943
COMPARISONS = 200


def simulate(seeds, *, seed_noise, effect=0.0, metric="recall", comparisons=COMPARISONS, rng=0):
    """(arms, baselines), each [comparison, seed, query]: two methods measured on the same queries.

    How far a target stands above the other items is the sum of what the query, the method for
    this query, the seed and chance give; its rank decides recall@10 or ndcg@10. Without an
    `effect` both sides have one distribution.
    """
    rng = np.random.default_rng(rng)
    shape = (comparisons, seeds, QUERIES)
    of_query = rng.normal(size=(comparisons, 1, QUERIES))
    sides = []
    for shift in (effect, 0.0):
        of_method = 0.3 * rng.normal(size=(comparisons, 1, QUERIES))
        of_seed = seed_noise * rng.normal(size=(comparisons, seeds, 1))
        height = of_query + of_method + of_seed + 0.5 * rng.normal(size=shape) + shift
        rank = np.floor(60 * stats.norm.sf(height))
        gain = 1.0 if metric == "recall" else 1 / np.log2(rank + 2)
        sides.append(np.where(rank < 10, gain, 0.0))
    return sides


def rates(arms, baselines):
    """Share of the comparisons that the t and the bootstrap call different at 5 %."""
    tests = [statistics.paired_t(a, b) for a, b in zip(arms, baselines, strict=True)]
    difference_QxM = (arms.mean(axis=1) - baselines.mean(axis=1)).T
    resampled = statistics.bootstrap_tests(difference_QxM, tests, samples=1000)
    return tuple(float(np.mean([one.p < 0.05 for one in found])) for found in (tests, resampled))


@pytest.mark.parametrize("metric", ["recall", "ndcg"])
@pytest.mark.parametrize(("seeds", "seed_noise"), [(1, 0.0), (3, 0.0), (3, 0.05), (3, 0.1)])
def test_an_equal_arm_is_called_different_at_the_nominal_rate(seeds, seed_noise, metric):
    sides = simulate(seeds, seed_noise=seed_noise, metric=metric, rng=1)
    for rate in rates(*sides):
        assert 0.02 <= rate <= 0.09


@pytest.mark.parametrize(("seeds", "effect", "most"), [(1, 0.22, 0.16), (3, 0.18, 0.18)])
def test_a_small_effect_is_found(seeds, effect, most):
    sides = simulate(seeds, seed_noise=0.01, effect=effect, comparisons=50)
    arms, baselines = sides
    sizes = [statistics.effect_of(d_Q).size for d_Q in arms.mean(axis=1) - baselines.mean(axis=1)]
    assert 0.05 < np.mean(sizes) < most  # Cohen calls 0.2 small
    for rate in rates(*sides):
        assert rate >= 0.8


def test_seed_noise_that_queries_alone_do_not_show_is_not_taken_for_a_difference():
    arms, baselines = simulate(3, seed_noise=0.2, rng=1)
    pairs = zip(arms.mean(axis=1), baselines.mean(axis=1), strict=True)
    naive = np.mean([stats.ttest_rel(a_Q, b_Q).pvalue < 0.05 for a_Q, b_Q in pairs])
    assert naive > 0.3
    assert max(rates(arms, baselines)) <= 0.09


def test_one_seed_is_the_plain_paired_t():
    (arms, baselines) = simulate(1, seed_noise=0.0, effect=0.1, comparisons=3)
    for a_SxQ, b_SxQ in zip(arms, baselines, strict=True):
        found = statistics.paired_t(a_SxQ, b_SxQ)
        wanted = stats.ttest_rel(a_SxQ[0], b_SxQ[0])
        low, high = wanted.confidence_interval()
        np.testing.assert_allclose(
            [found.t, found.df, found.p, found.low, found.high],
            [wanted.statistic, wanted.df, wanted.pvalue, low, high],
            rtol=1e-9,
        )
        assert found.seed_error == 0


def slow_squares(values):
    """Mean squares of seeds and residual, cell by cell."""
    seeds, queries = values.shape
    all_mean = values.mean()
    of_seeds = sum(queries * (values[s].mean() - all_mean) ** 2 for s in range(seeds))
    residual = sum(
        (values[s, q] - values[s].mean() - values[:, q].mean() + all_mean) ** 2
        for s, q in itertools.product(range(seeds), range(queries))
    )
    return of_seeds / (seeds - 1), residual / ((seeds - 1) * (queries - 1))


def test_several_seeds_against_the_formula_written_out():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(3, 40)) + rng.normal(size=(3, 1))
    b = rng.normal(size=(4, 40)) + rng.normal(size=(4, 1))
    (seeds_a, rest_a), (seeds_b, rest_b) = slow_squares(a), slow_squares(b)
    difference = a.mean(axis=0) - b.mean(axis=0)
    queries = difference.var(ddof=1) / 40
    of_seeds = (seeds_a - rest_a) / 120 + (seeds_b - rest_b) / 160
    df = (queries + of_seeds) ** 2 / (
        queries**2 / 39
        + (seeds_a / 120) ** 2 / 2
        + (seeds_b / 160) ** 2 / 3
        + (rest_a / 120) ** 2 / 78
        + (rest_b / 160) ** 2 / 117
    )
    found = statistics.paired_t(a, b)
    error = np.sqrt(queries + of_seeds)
    assert found.t == pytest.approx(difference.mean() / error)
    assert found.df == pytest.approx(max(df, 2))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.t), found.df))
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, found.df) * error)
    assert found.seed_error == pytest.approx(np.sqrt(of_seeds))


def test_a_lone_seed_is_taken_to_vary_as_the_other_side_does():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(3, 40)) + rng.normal(size=(3, 1))
    of_seeds, residual = slow_squares(a)
    found = statistics.paired_t(a, rng.normal(size=(1, 40)))
    assert found.seed_error**2 == pytest.approx((1 / 3 + 1) * (of_seeds - residual) / 40)
    assert found.seed_df == pytest.approx(2)


def test_equal_values_are_no_difference_and_a_constant_one_is_certain():
    values = np.random.default_rng(0).normal(size=(1, 30))
    same = statistics.paired_t(values, values)
    assert (same.difference, same.t, same.p) == (0, 0, 1)
    assert statistics.bootstrap_tests(np.zeros((30, 1)), [same])[0] == (0, 0, 1)
    shifted = statistics.paired_t(np.ones((1, 30)), np.zeros((1, 30)))
    assert (shifted.difference, shifted.p, shifted.low) == (1, 0, 1)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="4 against 5"):
        statistics.paired_t(np.ones((1, 4)), np.ones((1, 5)))
    with pytest.raises(ValueError, match="two queries or more"):
        statistics.paired_t(np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match="NaN"):
        statistics.paired_t(np.full((1, 4), np.nan), np.ones((1, 4)))


def test_one_seed_bootstraps_its_queries():
    difference_Q = np.random.default_rng(2).normal(0.1, 1, 300)
    test = statistics.paired_t(difference_Q[None], np.zeros((1, 300)))
    found = statistics.bootstrap_tests(difference_Q[:, None], [test], samples=500, seed=4)[0]
    means = metrics.bootstrap_means(difference_Q[:, None], samples=500, seed=4)[:, 0]
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(2 * ((means <= 0).sum() + 1) / 501)


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04, times 4, 3, 2, 1, none below one before it.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def test_the_interval_over_seeds_is_the_t_interval():
    values = [0.31, 0.35, 0.30]
    found = statistics.mean_interval(values)
    wanted = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found == pytest.approx((np.mean(values), *wanted))
    assert np.isnan(statistics.mean_interval([0.3])[1:]).all()


def test_effect_sizes_by_hand():
    found = statistics.effect_of(np.array([1.0, 0.0, -0.5, 0.5, 0.0]))
    assert found == pytest.approx((0.2 / np.sqrt(1.3 / 4), 0.4, 0.2))
    assert statistics.effect_of(np.zeros(4)) == (0, 0, 0)
