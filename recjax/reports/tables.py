"""The tables of a report: results, differences, budgets, slices and settings of each arm."""

import math
from collections.abc import Sequence

import numpy as np

from recjax.config import Config, flatten_config
from recjax.reports.budget import BUDGET, budgets
from recjax.reports.collect import NO_SETTING, Arm, Results
from recjax.reports.compare import LEVEL, Comparison, Difference
from recjax.reports.layout import NONE, Cell, Table, cells
from recjax.reports.statistics import mean_interval
from recjax.slices import NOT_SCORED

_LEVEL = f"{100 * LEVEL:g} %"


def make_tables(results: Results, comparison: Comparison) -> tuple[Table, ...]:
    """Every table that there is something to fill with, the main one first."""
    if len(results.runs) == 1:
        found = [run_table(results)]
    else:
        found = [results_table(results, comparison)]
    found += [differences_table(comparison)] if comparison.differences else []
    found += [budget_table(results), slices_table(results, comparison.metrics[0])]
    found += [settings_table(results)] if len(results.arms) > 1 else []
    return tuple(table for table in found if table.rows)


def results_table(results: Results, comparison: Comparison) -> Table:
    """Each arm's metrics beside what popularity and chance reach, and how it differs."""
    compared = {one.metric for one in comparison.differences}
    columns, styles = ["arm", "seeds"], []
    for metric in comparison.metrics:
        columns += [metric] + ["Δ", "p", "d_z"] * (metric in compared)
    rows = []
    for arm in results.arms:
        row = [Cell(arm.name), Cell(str(len(arm.results)))]
        for metric in comparison.metrics:
            leaders = comparison.leaders.get(metric, ()) if compared else ()
            place = leaders.index(arm.name) if arm.name in leaders else -1
            styles.append(style := "" if place < 0 else "near" if place else "best")
            row.append(Cell(_mean(results, arm, metric), style))
            if metric in compared:
                row += cells(_difference(comparison.get(arm.name, metric)))
        rows.append(tuple(row))
    means = {metric: results.baseline_means(metric) for metric in comparison.metrics}
    for name in means[comparison.metrics[0]]:
        row = [name, NONE]
        for metric in comparison.metrics:
            row += [number_text(means[metric][name]), *[NONE] * 3 * (metric in compared)]
        rows.append(cells(row))
    caption = f"Means over seeds {_spread_words(results)}. "
    if compared:
        caption += (
            f"Δ: difference to {comparison.baseline!r}; p: paired t test over "
            f"{comparison.queries:,} queries that counts the noise between seeds too, by Holm for "
            f"{len(comparison.differences)} comparisons; d_z: Cohen's effect size. "
        )
        caption += "Bold: the best arm. " if "best" in styles else ""
        caption += f"Italics: not told from it at {_LEVEL}. " if "near" in styles else ""
    return Table("Test results", caption.strip(), tuple(columns), tuple(rows))


def run_table(results: Results) -> Table:
    """Every metric of a single run, with its interval over queries, beside its baselines."""
    run = results.runs[0]
    rows = []
    for metric in results.metrics:
        low, high = run.intervals.get(metric, (math.nan, math.nan))
        value = number_text(run.metrics[metric])
        value += f" ± {number_text((high - low) / 2)}" if math.isfinite(low) else ""
        others = [number_text(found.get(metric)) for found in run.baselines.values()]
        rows.append(cells([metric, value, *others]))
    caption = (
        f"The model of step {run.step:,}. ± half the 95 % bootstrap interval over queries: of "
        "other users, not of other seeds."
    )
    return Table("Test results", caption, ("metric", "model", *run.baselines), tuple(rows))


def differences_table(comparison: Comparison) -> Table:
    """Each difference in full: by the t test, by the bootstrap, and how many queries gain."""
    columns = (
        "arm",
        "metric",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "bootstrap interval",
        "bootstrap p (Holm)",
        "d_z",
        "better",
        "worse",
    )
    rows = [
        cells(
            [
                one.arm,
                one.metric,
                _change(one),
                f"{one.low:+.4f} to {one.high:+.4f}",
                p_text(one.p),
                p_text(one.p_holm),
                f"{one.bootstrap_low:+.4f} to {one.bootstrap_high:+.4f}",
                p_text(one.bootstrap_p_holm),
                _signed(one.effect_size, 2),
                f"{one.better:.1%}",
                f"{one.worse:.1%}",
            ]
        )
        for one in comparison.differences
    ]
    caption = (
        "An arm is called different where the p of the t test, by Holm over all rows, is below "
        f"{_LEVEL}. Better and worse: shares of the queries, means over seeds."
    )
    return Table(f"Differences to {comparison.baseline!r}", caption, columns, tuple(rows))


def budget_table(results: Results) -> Table:
    """What each arm was given and what it costs, means over seeds."""
    rows = [
        cells([name, *(_amount(key, budget[key]) for key in BUDGET)])
        for name, budget in budgets(results).items()
    ]
    devices = dict.fromkeys(str(run.cost.get("devices", "unknown")) for run in results.runs)
    columns = ("arm", "search trials", "steps", "examples", "train s", "parameters")
    batches = {run.cost.get("query_batch") for run in results.runs}
    batch = f" of {batches.pop()}" if len(batches) == 1 else ""
    caption = (
        f"Means over seeds, on {', '.join(devices)}. A query's time is its share of a batch"
        f"{batch}, encoded and ranked."
    )
    return Table("Budget", caption, (*columns, "step ms", "query ms"), tuple(rows))


def slices_table(results: Results, metric: str) -> Table:
    """Where each arm is good: a metric by slice, and recall for the slices of items."""
    first, recall = results.runs[0].slices, f"recall@{metric.rpartition('@')[2]}"
    metric = metric if metric in first["all"] else recall
    columns, counts, values = ["arm"], [], []
    for name, record in first.items():
        name_there = recall if _of_items(name) else metric
        there = [[run.slices[name] for run in arm.results] for arm in results.arms]
        same_as_all = record["queries"] == first["all"]["queries"] and not _of_items(name)
        if not record["queries"] or same_as_all and name != "all":
            continue
        columns.append(name)
        counts.append(str(record["targets" if _of_items(name) else "queries"]))
        values.append([_slice_mean(seeds, name_there) for seeds in there])
    rows = [cells(["(how many)", *counts])]
    for i, arm in enumerate(results.arms):
        row = [Cell(arm.name)]
        for column in values:
            numbers = [value for value in column if isinstance(value, float)]
            is_best = len(results.arms) > 1 and column[i] == max(numbers, default=None)
            value = column[i]
            text = number_text(value) if isinstance(value, float) else value
            row.append(Cell(text, "best" if is_best else ""))
        rows.append(tuple(row))
    caption = "Means over seeds. How many: queries, targets for items."
    if metric != recall:
        caption += f" Of items: {recall}, the only metric of single targets."
    return Table(f"{metric} by slice", caption, tuple(columns), tuple(rows))


def settings_table(results: Results) -> Table:
    """The config keys that differ between arms."""
    differ = config_differences(results)
    rows = [cells([arm.name, *(differ[key][arm.name] for key in differ)]) for arm in results.arms]
    return Table("Settings that differ", "", ("arm", *differ), tuple(rows) if differ else ())


def config_differences(results: Results) -> dict[str, dict[str, str]]:
    """Keys whose values differ between arms: key -> arm -> value, those of its seeds joined."""
    flat = {arm.name: [flatten_config(run.config) for run in arm.results] for arm in results.arms}
    keys = sorted(set().union(*(config for configs in flat.values() for config in configs)))
    differ = {}
    for key in keys:
        values = {
            name: " / ".join(dict.fromkeys(setting_text(config, key) for config in configs))
            for name, configs in flat.items()
        }
        if key not in NO_SETTING and len(set(values.values())) > 1:
            differ[key] = values
    return differ


def setting_text(flat: Config, key: str) -> str:
    """A key's value as a table shows it."""
    if key not in flat:
        return "absent"
    value = flat[key]
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "''"


def p_text(p: float) -> str:
    """A p value to three digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def number_text(value: float | None) -> str:
    """A metric as a table shows it."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def _mean(results: Results, arm: Arm, metric: str) -> str:
    values = [run.metrics[metric] for run in arm.results]
    mean, low, high = mean_interval(values)
    if len(values) == 1 and _all_alone(results):
        low, high = arm.results[0].intervals.get(metric, (math.nan, math.nan))
    return number_text(mean) + (f" ± {number_text((high - low) / 2)}" if math.isfinite(low) else "")


def _spread_words(results: Results) -> str:
    if not _all_alone(results):
        return "± half their 95 % t interval"
    return "(one an arm) ± half the 95 % bootstrap interval over queries"


def _all_alone(results: Results) -> bool:
    return all(len(arm.results) == 1 for arm in results.arms)


def _difference(one: Difference | None) -> list[str]:
    if one is None:
        return [NONE] * 3
    return [_change(one), p_text(one.p_holm), _signed(one.effect_size, 2)]


def _change(one: Difference) -> str:
    relative = f" ({one.relative:+.1%})" if math.isfinite(one.relative) else ""
    return f"{_signed(one.difference, 4)}{relative}"


def _slice_mean(seeds: Sequence[dict], metric: str) -> float | str:
    if any(one["status"] == NOT_SCORED for one in seeds):
        return "not scored"
    values = [one[metric] for one in seeds if metric in one]
    return float(np.mean(values)) if values else NONE


def _of_items(name: str) -> bool:
    return name.startswith("items/")


def _amount(name: str, value: float) -> str:
    if not math.isfinite(value):
        return NONE
    if name.endswith("_ms"):
        return f"{value:#.3g}" if value < 1 else f"{value:,.2f}"
    return f"{value:,.1f}" if name == "train_seconds" else f"{value:,.0f}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}"
