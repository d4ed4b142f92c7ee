"""Is one method better than another? Intervals and paired tests over queries and seeds: float64.

Letters: Q queries, S seeds, M comparisons, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from recjax.metrics import bootstrap_means, interval_of

# Differences of means over seeds below this are rounding.
_TIE = 1e-12


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN where one value says nothing of how it varies."""

    mean: float
    low: float
    high: float


class TTest(NamedTuple):
    """A paired t test over queries that also counts the noise between seeds.

    Attributes:
      difference: mean of arm - baseline.
      low: of its 95 % interval.
      high: of its 95 % interval.
      t: the difference over its standard error.
      df: degrees of freedom.
      p: two-sided.
      seed_error: the part of the standard error that seeds bring; 0 where none is seen.
      seed_df: degrees of freedom of that part.
    """

    difference: float
    low: float
    high: float
    t: float
    df: float
    p: float
    seed_error: float
    seed_df: float


class BootstrapTest(NamedTuple):
    """The 95 % interval of a mean difference, and twice the smaller share beyond 0."""

    low: float
    high: float
    p: float


class Effect(NamedTuple):
    """How large a difference is, query by query, over means of the seeds.

    Attributes:
      size: Cohen's d_z, mean of the differences / their standard deviation; 0 where both are.
      better: share of the queries where the arm is better.
      worse: share where the baseline is.
    """

    size: float
    better: float
    worse: float


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over seeds and its t interval; low and high are NaN with fewer than two values."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, float("nan"), float("nan"))
    error = float(array.std(ddof=1)) / np.sqrt(len(array))
    half = _t_quantile((1 + level) / 2, len(array) - 1.0) * error
    return Interval(mean, mean - half, mean + half)


def paired_t(
    arm_SxQ: Float[np.ndarray, "S1 Qa"],
    baseline_SxQ: Float[np.ndarray, "S2 Qb"],
    level: float = 0.95,
) -> TTest:
    """Whether an arm's mean over queries and seeds differs from its baseline's.

    The value of query q and seed s of one side is mu + u_q + v_s + e_qs, with random query and seed
    effects: two other seeds, or other queries, would have given another difference. Queries are
    paired; seeds are not, as two methods share nothing through a seed's number. With D_q the
    difference of the means over seeds, and MS_s and MS_e the mean squares of seeds and residual
    in one side's two-way table,

        V = var(D_q) / Q + sum over both sides of (MS_s - MS_e) / (S Q), the sum at least 0

    is the squared standard error, with degrees of freedom by Satterthwaite (1946). A side of one
    seed is taken to vary between seeds as the other does. With one seed on both sides this is the
    plain paired t over queries, which speaks of these two trained models, not of the methods.

    Args:
      arm_SxQ: per-query values of each of the arm's seeds.
      baseline_SxQ: those of the baseline, for the same queries.
      level: of the interval.

    Raises:
      ValueError: fewer than two queries, unequal numbers of them, or a value that is not finite.
    """
    sides = arm_SxQ.astype(np.float64), baseline_SxQ.astype(np.float64)
    num_queries = sides[0].shape[1]
    if num_queries != sides[1].shape[1] or num_queries < 2:
        raise ValueError(
            f"a paired test needs two queries or more, the same on both sides: {num_queries} "
            f"against {sides[1].shape[1]}"
        )
    if not all(np.isfinite(side).all() for side in sides):
        raise ValueError("a paired test: a value is NaN or infinite")
    difference_Q = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    difference = float(difference_Q.mean())
    of_queries = float(difference_Q.var(ddof=1)) / num_queries

    # Each term of V with its degrees of freedom: what Satterthwaite's formula needs.
    of_seeds, parts, seed_parts = 0.0, [(of_queries, num_queries - 1)], []
    for side, other in (sides, sides[::-1]):
        seeds = len(side)
        if seeds < 2:
            continue
        weight = (1 / seeds + (len(other) == 1)) / num_queries
        seed_square, residual_square = _mean_squares(side)
        of_seeds += weight * (seed_square - residual_square)
        seed_parts.append((weight * seed_square, seeds - 1))
        parts.append((weight * residual_square, (seeds - 1) * (num_queries - 1)))
    if of_seeds > 0:
        variance = of_queries + of_seeds
        df = _satterthwaite(variance, [*parts, *seed_parts])
        # Where the paired queries vary less than the formula foresees, it would fall below what
        # seeds alone have.
        df = max(df, float(min(free for _, free in seed_parts)))
        seed_df = _satterthwaite(sum(part for part, _ in seed_parts), seed_parts)
    else:
        variance, of_seeds, df, seed_df = of_queries, 0.0, num_queries - 1.0, 1.0

    error = float(np.sqrt(variance))
    half = _t_quantile((1 + level) / 2, df) * error
    t = difference / error if error else float(np.sign(difference)) * float("inf")
    t = 0.0 if abs(difference) < _TIE else t
    return TTest(
        difference=difference,
        low=difference - half,
        high=difference + half,
        t=t,
        df=df,
        p=float(2 * special.stdtr(df, -abs(t))),
        seed_error=float(np.sqrt(of_seeds)),
        seed_df=seed_df,
    )


def bootstrap_tests(
    difference_QxM: Float[np.ndarray, "Q M"],
    tests: Sequence[TTest],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> list[BootstrapTest]:
    """Paired bootstrap of M comparisons over the same queries (Efron, 1979; percentiles).

    Queries are drawn with replacement, the same draws for all comparisons. Seeds are too few for
    that (of three, one draw in nine is one seed thrice), so their part is drawn from the t
    distribution that `paired_t` found for it: seed_error * t(seed_df).

    Args:
      difference_QxM: arm - baseline of each query, means over seeds, one column a comparison.
      tests: `paired_t` of each comparison.
      samples: resamples; no p value is below 2 / (samples + 1), before Holm's adjustment.
      seed: of the draws.
      level: of the intervals.
    """
    means_RxM = bootstrap_means(difference_QxM, samples=samples, seed=seed)
    for column, test in enumerate(tests):
        if test.seed_error:
            rng = np.random.default_rng([seed, column])
            means_RxM[:, column] += test.seed_error * rng.standard_t(test.seed_df, samples)
    low_M, high_M = interval_of(means_RxM, level)
    beyond_M = np.minimum((means_RxM <= 0).sum(axis=0), (means_RxM >= 0).sum(axis=0))
    p_M = np.minimum(2 * (beyond_M + 1) / (samples + 1), 1.0)
    return [BootstrapTest(*map(float, row)) for row in zip(low_M, high_M, p_M, strict=True)]


def effect_of(difference_Q: Float[np.ndarray, " Q"]) -> Effect:
    """Effect sizes of differences arm - baseline, one a query."""
    spread = float(difference_Q.std(ddof=1))
    mean = float(difference_Q.mean())
    size = mean / spread if spread > _TIE else float(np.sign(mean)) * float("inf")
    return Effect(
        size=0.0 if abs(mean) < _TIE else size,
        better=float((difference_Q > _TIE).mean()),
        worse=float((difference_Q < -_TIE).mean()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted so that 5 % is the chance of any false alarm among all (Holm, 1979)."""
    p_M = np.asarray(p_values, np.float64)
    order = np.argsort(p_M, kind="stable")
    steps = np.arange(len(p_M), 0, -1)
    adjusted_M = np.empty(len(p_M))
    adjusted_M[order] = np.minimum(np.maximum.accumulate(p_M[order] * steps), 1.0)
    return adjusted_M.tolist()


def _t_quantile(share: float, df: float) -> float:
    """Quantile of Student's t; scipy.stats would double the time that importing this takes."""
    return float(special.stdtrit(df, share))


def _satterthwaite(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a variance whose parts have (size, degrees of freedom)."""
    return variance**2 / sum(part**2 / free for part, free in parts)


def _mean_squares(values_SxQ: Float[np.ndarray, "S Q"]) -> tuple[float, float]:
    """Mean squares of seeds and of the residual in a two-way table without repetition."""
    num_seeds, num_queries = values_SxQ.shape
    seed_S = values_SxQ.mean(axis=1)
    residual_SxQ = values_SxQ - seed_S[:, None] - values_SxQ.mean(axis=0) + seed_S.mean()
    seed_square = num_queries * seed_S.var(ddof=1)
    residual_square = (residual_SxQ**2).sum() / ((num_seeds - 1) * (num_queries - 1))
    return float(seed_square), float(residual_square)
