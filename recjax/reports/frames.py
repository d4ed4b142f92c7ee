"""Results as long frames: a row for each thing that a figure draws."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from recjax.metrics import PER_QUERY
from recjax.reports.collect import Result, Results
from recjax.reports.statistics import mean_interval
from recjax.slices import NOT_SCORED

MEAN = "mean"
BASELINE = "baseline"


def shown_metrics(results: Results, asked: Sequence[str]) -> tuple[str, ...]:
    """The metrics that a page offers: those asked for, and what they are seen beside."""
    k, largest = results.metric.rpartition("@")[2], max(results.protocol["ks"])
    names = [*asked, results.metric]
    names += [f"{name}@{each}" for each in (k, largest) for name in ("recall", "ndcg", "mrr")]
    names += [f"{name}@{k}" for name in ("coverage", "gini", "popularity_lift", "novelty")]
    return tuple(name for name in dict.fromkeys(names) if name in results.metrics)


def values_frame(results: Results, metrics: Sequence[str]) -> pl.DataFrame:
    """Test metrics of every run, of each arm's mean, and of the baselines.

    Returns:
      Columns arm, seed (a run's, `mean` or `baseline`), metric, value, and low and high of the
      mean's 95 % interval over seeds.
    """
    rows = []
    for arm in results.arms:
        for metric in metrics:
            values = [run.metrics[metric] for run in arm.results]
            for run, value in zip(arm.results, values, strict=True):
                rows.append((arm.name, str(run.seed), metric, value, None, None))
            mean = mean_interval(values)
            rows.append((arm.name, MEAN, metric, mean.mean, mean.low, mean.high))
    for metric in metrics:
        for name, value in results.baseline_means(metric).items():
            rows.append((name, BASELINE, metric, value, None, None))
    names = ("arm", "seed", "metric", "value", "low", "high")
    return _finite(pl.DataFrame(rows, _schema(names), orient="row"))


def costs_frame(results: Results, costs: Sequence[str]) -> pl.DataFrame:
    """Columns arm, seed (a run's, or `mean`) and a number of cost.json each."""
    rows = []
    for arm in results.arms:
        values_SxC = [[_cost(run, name) for name in costs] for run in arm.results]
        for run, values in zip(arm.results, values_SxC, strict=True):
            rows.append((arm.name, str(run.seed), *values))
        rows.append((arm.name, MEAN, *np.mean(values_SxC, axis=0).tolist()))
    return _finite(pl.DataFrame(rows, _schema(("arm", "seed", *costs)), orient="row"))


def curves_frame(results: Results, metrics: Sequence[str], points: int) -> pl.DataFrame:
    """Scalars on the way, of every run and, at the steps that all of its seeds have, of an arm.

    Args:
      results: what to read.
      metrics: names in metrics.jsonl.
      points: the most that are kept of one curve.

    Returns:
      Columns arm, seed (a run's, or `mean`), step, seconds (the step's share of `train_seconds`),
      metric and value.
    """
    schema = pl.Schema(_schema(("arm", "seed", "step", "seconds", "metric", "value")))
    frames = [pl.DataFrame(schema=schema)]
    for arm in results.arms:
        runs = [_curves_of(run, metrics) for run in arm.results]
        together = pl.concat(runs)
        mean = (
            together.group_by("arm", "step", "metric", maintain_order=True)
            .agg(pl.col("seconds", "value").mean(), pl.len().alias("seeds"))
            .filter(pl.col("seeds") == len(runs))
            .with_columns(pl.lit(MEAN).alias("seed"))
        )
        frames += [frame.select(schema.names()).cast(schema) for frame in (together, mean)]
    place, last = pl.int_range(pl.len()), pl.len() - 1
    stride = (pl.len() + points - 1) // points
    kept = ((last - place) % stride == 0).over("arm", "seed", "metric")
    return _finite(pl.concat(frames).filter(kept))


def slices_frame(
    results: Results, group: str, metrics: Sequence[str]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Metrics by the slices `group/*`, the mean over each arm's seeds.

    Returns:
      Columns arm, slice, size (queries; targets of `items/*`), seeds, metric, value (the mean), low
      and high (of the seeds); and a sentence on each slice that some arm cannot score.
    """
    rows, unscored = [], {}
    size = "targets" if group == "items" else "queries"
    for name, record in results.runs[0].slices.items():
        if not name.startswith(f"{group}/") or not record[size]:
            continue
        label = name.partition("/")[2]
        for arm in results.arms:
            slices = [run.slices[name] for run in arm.results]
            if any(one["status"] == NOT_SCORED for one in slices):
                unscored.setdefault(label, []).append(arm.name)
                continue
            for metric in metrics:
                if all(metric in one for one in slices) and metric.split("@")[0] in PER_QUERY:
                    values = [float(one[metric]) for one in slices]
                    spread = float(np.mean(values)), min(values), max(values)
                    rows.append((arm.name, label, record[size], len(slices), metric, *spread))
    notes = tuple(
        f"Not scored by {'any arm' if len(arms) == len(results.arms) else ', '.join(arms)}: "
        f"{group} {label}."
        for label, arms in unscored.items()
    )
    names = ("arm", "slice", "size", "seeds", "metric", "value", "low", "high")
    return _finite(pl.DataFrame(rows, _schema(names), orient="row")), notes


def _curves_of(run: Result, metrics: Sequence[str]) -> pl.DataFrame:
    seconds = _cost(run, "train_seconds") / max(_cost(run, "steps"), 1)
    return run.curves.filter(pl.col("metric").is_in(list(metrics))).select(
        pl.lit(run.arm).alias("arm"),
        pl.lit(str(run.seed)).alias("seed"),
        "step",
        (pl.col("step") * seconds).alias("seconds"),
        "metric",
        "value",
    )


def _cost(run: Result, name: str) -> float:
    value = run.cost.get(name)
    return float("nan") if value is None else float(value)


def _schema(names: Sequence[str]) -> dict[str, Any]:
    text, counts = ("arm", "seed", "slice", "metric"), ("step", "size", "seeds")
    kinds = dict.fromkeys(text, pl.String) | dict.fromkeys(counts, pl.Int64)
    return {name: kinds.get(name, pl.Float64) for name in names}


def _finite(frame: pl.DataFrame) -> pl.DataFrame:
    """Null in place of what JSON has no word for."""
    return frame.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name)
        for name, kind in frame.schema.items()
        if kind == pl.Float64
    )
