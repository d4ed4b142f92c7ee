"""What each arm was given: trials of a search, steps, examples, time and size."""

from collections.abc import Iterable, Mapping

import numpy as np

from recjax.reports.collect import Arm, Results

# What a fair comparison gives every arm alike; the rest of a budget is what follows from it.
_GIVEN = {"search_trials": "search trials", "steps": "steps", "examples": "examples"}
_SHOWN = 4

BUDGET = (
    "search_trials",
    "steps",
    "examples",
    "train_seconds",
    "parameters",
    "step_ms",
    "query_ms",
)


def budgets(results: Results) -> dict[str, dict[str, float]]:
    """By arm, each of BUDGET, the mean over its seeds; NaN where it was not measured."""
    return {
        arm.name: {name: float(np.mean(_values(arm, name))) for name in BUDGET}
        for arm in results.arms
    }


def budget_notes(results: Results) -> Iterable[str]:
    """A sentence for each part of the budget that not all arms were given alike, and on devices."""
    for name, words in _GIVEN.items():
        arms_of: dict[str, list[str]] = {}
        means: dict[str, float] = {}
        for arm in results.arms:
            values = _values(arm, name)
            low, high = min(values), max(values)
            text = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
            arms_of.setdefault(text, []).append(arm.name)
            means[text] = float(np.mean(values))
        if len(arms_of) > 1:
            yield f"Unequal budgets, {words}: {_listed(arms_of, means)}."
    devices = dict.fromkeys(str(run.cost.get("devices", "unknown")) for run in results.runs)
    if len(devices) > 1:
        yield f"Times do not compare, as runs had different devices: {', '.join(devices)}."


def _values(arm: Arm, name: str) -> list[float]:
    """Of each seed; NaN where the run does not say."""
    if name == "search_trials":
        return [float(run.search_trials) for run in arm.results]
    values = [run.cost.get(name) for run in arm.results]
    return [float("nan") if value is None else float(value) for value in values]


def _listed(arms_of: Mapping[str, list[str]], means: Mapping[str, float]) -> str:
    """Values with the arms that have them, least first; of many, the least and the most."""
    texts = sorted(arms_of, key=lambda text: means[text])
    shown = texts if len(texts) <= _SHOWN else [texts[0], texts[-1]]
    between = "; " if shown is texts else " ... "
    return between.join(f"{text} ({', '.join(arms_of[text])})" for text in shown)
