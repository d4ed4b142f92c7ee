"""Each arm against a chosen baseline, over per-query results paired by user."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import polars as pl

from recjax.errors import ReportError
from recjax.reports.budget import budget_notes
from recjax.reports.collect import Arm, Result, Results
from recjax.reports.statistics import bootstrap_tests, effect_of, holm, paired_t

# An adjusted p value below it is called a difference.
LEVEL = 0.05

# Resamples: the least, and for each comparison, lest Holm raise what none contradicts above LEVEL.
_SAMPLES, _SAMPLES_EACH = 2000, 400


@dataclasses.dataclass(frozen=True)
class Difference:
    """One arm against the baseline, in one per-query metric.

    Attributes:
      arm: the arm's name.
      metric: such as `recall@10`.
      seeds: number of the arm's.
      baseline_seeds: number of the baseline's.
      mean: of the arm, over queries and seeds.
      baseline_mean: of the baseline.
      difference: mean - baseline_mean.
      relative: that as a share of baseline_mean; NaN where it is 0.
      low: of the 95 % interval of the difference, by the t test.
      high: of the same.
      t: statistic of `paired_t`.
      df: its degrees of freedom.
      p: its p value.
      p_holm: the same, Holm-adjusted over all differences of the comparison.
      bootstrap_low: of the 95 % interval of the difference, by the bootstrap.
      bootstrap_high: of the same.
      bootstrap_p: p value of `bootstrap_tests`.
      bootstrap_p_holm: the same, Holm-adjusted.
      effect_size: Cohen's d_z over queries.
      better: share of queries where the arm is better.
      worse: share of queries where the baseline is.
    """

    arm: str
    metric: str
    seeds: int
    baseline_seeds: int
    mean: float
    baseline_mean: float
    difference: float
    relative: float
    low: float
    high: float
    t: float
    df: float
    p: float
    p_holm: float
    bootstrap_low: float
    bootstrap_high: float
    bootstrap_p: float
    bootstrap_p_holm: float
    effect_size: float
    better: float
    worse: float

    @property
    def different(self) -> bool:
        """Whether the t test, Holm-adjusted, tells the two apart at 5 %."""
        return self.p_holm < LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All arms against one of them.

    Attributes:
      baseline: the arm that the others are compared with.
      metrics: that were asked for; those of the catalogue have no differences.
      queries: that every difference is a mean over.
      differences: of each other arm, in order, in each per-query metric.
      leaders: by per-query metric, the best arm and those that the t test, Holm-adjusted over the
        arms, does not tell from it at 5 %, by their means.
      notes: how far the p values go and which budgets differ, one sentence each.
    """

    baseline: str
    metrics: tuple[str, ...]
    queries: int
    differences: tuple[Difference, ...]
    leaders: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def get(self, arm: str, metric: str) -> Difference | None:
        """The difference of an arm in a metric; None for the baseline, or where there is none."""
        for one in self.differences:
            if (one.arm, one.metric) == (arm, metric):
                return one
        return None

    def frame(self) -> pl.DataFrame:
        """One row per difference: the fields of `Difference`, and `different`."""
        rows = [{**dataclasses.asdict(one), "different": one.different} for one in self.differences]
        names = {field.name: field.type for field in dataclasses.fields(Difference)}
        kinds = {str: pl.String, int: pl.Int64, float: pl.Float64}
        schema = {name: kinds[kind] for name, kind in names.items()} | {"different": pl.Boolean}
        return pl.DataFrame(rows, schema)


def compare(
    results: Results,
    baseline: str = "",
    metrics: str | Sequence[str] = "",
    *,
    samples: int = 0,
    seed: int = 0,
) -> Comparison:
    """Tests whether arms differ from a baseline: paired t and paired bootstrap, Holm-adjusted.

    Args:
      results: as `load_results` returns them.
      baseline: name of an arm; the first where empty.
      metrics: one or several, such as `ndcg@10`; the one that chose the checkpoints where empty.
        All differences of one call count as one family for Holm's adjustment.
      samples: of the bootstrap; 0 for 2000, or 400 for each difference where that is more.
      seed: of the bootstrap.

    Raises:
      ReportError: an unknown arm or metric, runs whose test queries are not the same users', a
        query without a finite value, or arms to be tested over fewer than two queries.
    """
    metrics = check_metrics(results, metrics)
    against = results.arm(baseline) if baseline else results.arms[0]
    values = _per_query_values(results, metrics)
    tested = [name for name in metrics if name in results.runs[0].per_query.columns]
    others = [arm for arm in results.arms if arm is not against]
    pairs = [(arm, name) for arm in others for name in tested]
    queries = len(results.runs[0].per_query)
    differences: tuple[Difference, ...] = ()
    if pairs:
        if queries < 2:
            raise ReportError(f"arms cannot be tested over {queries} test query: two are needed")
        sides = [
            (values[arm.name][tested.index(name)], values[against.name][tested.index(name)])
            for arm, name in pairs
        ]
        samples = samples or max(_SAMPLES, _SAMPLES_EACH * len(pairs))
        differences = _differences(against, pairs, sides, samples, seed)
    return Comparison(
        baseline=against.name,
        metrics=metrics,
        queries=queries,
        differences=differences,
        leaders={
            name: _leaders({arm: found[i] for arm, found in values.items()})
            for i, name in enumerate(tested)
        },
        notes=(*_seed_notes(against, others), *budget_notes(results)),
    )


def check_metrics(results: Results, metrics: str | Sequence[str] = "") -> tuple[str, ...]:
    """The metrics asked for, or the one that chose the checkpoints.

    Raises:
      ReportError: one that not all runs have.
    """
    asked = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    names = tuple(dict.fromkeys(filter(None, asked))) or (results.metric,)
    for name in names:
        if name not in results.metrics:
            near = get_close_matches(name, results.metrics, 3, 0.4)
            hint = f"; near ones: {', '.join(near)}" if near else ""
            raise ReportError(f"no metric {name!r} that all runs have{hint}")
    return names


def _differences(
    against: Arm,
    pairs: Sequence[tuple[Arm, str]],
    sides: Sequence[tuple[np.ndarray, np.ndarray]],
    samples: int,
    seed: int,
) -> tuple[Difference, ...]:
    tests = [paired_t(arm_SxQ, baseline_SxQ) for arm_SxQ, baseline_SxQ in sides]
    difference_QxM = np.stack([a.mean(axis=0) - b.mean(axis=0) for a, b in sides], axis=1)
    resampled = bootstrap_tests(difference_QxM, tests, samples=samples, seed=seed)
    adjusted = holm([test.p for test in tests])
    resampled_adjusted = holm([test.p for test in resampled])
    found = []
    for i, (arm, name) in enumerate(pairs):
        test, effect = tests[i], effect_of(difference_QxM[:, i])
        baseline_mean = float(sides[i][1].mean())
        found.append(
            Difference(
                arm=arm.name,
                metric=name,
                seeds=len(arm.results),
                baseline_seeds=len(against.results),
                mean=float(sides[i][0].mean()),
                baseline_mean=baseline_mean,
                difference=test.difference,
                relative=test.difference / baseline_mean if baseline_mean else float("nan"),
                low=test.low,
                high=test.high,
                t=test.t,
                df=float(test.df),
                p=test.p,
                p_holm=adjusted[i],
                bootstrap_low=resampled[i].low,
                bootstrap_high=resampled[i].high,
                bootstrap_p=resampled[i].p,
                bootstrap_p_holm=resampled_adjusted[i],
                effect_size=effect.size,
                better=effect.better,
                worse=effect.worse,
            )
        )
    return tuple(found)


def _leaders(values: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The best arm and those not told from it, by their means, of [seed, query] each."""
    names = sorted(values, key=lambda name: -values[name].mean())
    tests = [paired_t(values[name], values[names[0]]) for name in names[1:]]
    adjusted = holm([test.p for test in tests])
    near = [name for name, p in zip(names[1:], adjusted, strict=True) if p >= LEVEL]
    return names[0], *near


def _per_query_values(results: Results, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """By arm: float64 [metric, seed, query], the queries of all runs in one order of users."""
    first = results.runs[0]
    tested = [name for name in metrics if name in first.per_query.columns]
    user_Q = first.per_query["user"]
    return {
        arm.name: np.stack([_aligned(run, tested, first, user_Q) for run in arm.results], axis=1)
        for arm in results.arms
    }


def _aligned(run: Result, metrics: list[str], first: Result, user_Q: pl.Series) -> np.ndarray:
    """The run's per-query metrics, float64 [metric, query], in the order of `user_Q`."""
    frame = run.per_query
    if not frame["user"].equals(user_Q):
        frame = user_Q.to_frame().join(frame, on="user", how="left", maintain_order="left")
        if len(frame) != len(run.per_query) or frame["num_targets"].null_count():
            raise ReportError(
                f"{run.workdir} and {first.workdir} have test queries of different users, though "
                "their protocols are equal: one of their eval/test.parquet is not the run's"
            )
    values = frame.select(metrics).to_numpy().astype(np.float64).T
    values = values.reshape(len(metrics), len(frame))  # none at all of metrics of the catalogue
    if not np.isfinite(values).all():
        raise ReportError(f"{run.workdir}: eval/test.parquet holds a value that is not finite")
    return values


def _seed_notes(against: Arm, others: Sequence[Arm]) -> Iterable[str]:
    """How far the p values go, by the number of seeds behind them."""
    alone = [arm.name for arm in (against, *others) if len(arm.results) == 1]
    if not others:
        return
    if len(alone) == len(others) + 1:
        yield (
            "One seed an arm: the p values speak of these trained models, not of the methods; "
            "three seeds or more tell those apart from luck."
        )
    elif alone:
        yield (
            f"One seed only: {', '.join(alone)}; taken to vary between seeds as what it is "
            "compared with, where p values may be too small."
        )
    if any(len(arm.results) == 2 for arm in (against, *others)):
        yield "Two seeds tell little of how an arm varies: p values there may be too small."
