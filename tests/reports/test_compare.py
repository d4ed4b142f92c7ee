"""Arms against a baseline, over queries paired by user."""

import pathlib

import numpy as np
import polars as pl
import pytest
from scipy import stats

from recjax.errors import ReportError
from recjax.reports.collect import Arm, Result, Results
from recjax.reports.compare import compare
from recjax.reports.statistics import holm

METRICS = ("recall@10", "ndcg@10")


def make_result(arm, seed, values, *, users=None, steps=20, search_trials=0):
    """A finished run in memory: these values of each query, their squares as ndcg@10."""
    users = np.arange(len(values)) if users is None else users
    values = np.asarray(values, np.float64)
    columns = {"recall@10": values, "ndcg@10": values**2}
    result = Result(
        workdir=pathlib.Path(f"/runs/{arm}-{seed}"),
        arm=arm,
        seed=seed,
        config=None,
        protocol={},
        step=1,
        metrics={name: float(column.mean()) for name, column in columns.items()}
        | {"coverage@10": 0.5},
        intervals={},
        baselines={},
        slices={},
        cost={"steps": steps, "examples": 32 * steps},
        search_trials=search_trials,
    )
    frame = pl.DataFrame({"user": users, "num_targets": np.ones(len(users), np.int32), **columns})
    vars(result)["per_query"] = frame  # as if read from its file
    return result


def make_results(**arms):
    """Results of arms, each a list of its runs."""
    found = tuple(Arm(name, tuple(runs)) for name, runs in arms.items())
    return Results("made up", "", found, {"selection_metric": "valid/recall@10"})


def uniform(seed, size=80):
    return np.random.default_rng(seed).uniform(size=size)


def test_each_arm_is_tested_against_the_baseline_query_by_query():
    a, b, c = uniform(0), uniform(0) ** 1.2, uniform(2)
    results = make_results(
        a=[make_result("a", 0, a)], b=[make_result("b", 0, b)], c=[make_result("c", 0, c)]
    )
    found = compare(results, "b", (*METRICS, "coverage@10"))
    assert (found.baseline, found.queries) == ("b", 80)
    assert [(one.arm, one.metric) for one in found.differences] == [
        ("a", "recall@10"), ("a", "ndcg@10"), ("c", "recall@10"), ("c", "ndcg@10"),
    ]  # fmt: skip
    first = found.get("a", "recall@10")
    assert first.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert first.difference == pytest.approx(np.mean(a - b))
    assert first.relative == pytest.approx(np.mean(a - b) / np.mean(b))
    assert (first.better, first.worse) == (1, 0)
    assert first.different and first.bootstrap_low > 0
    p_values = [one.p for one in found.differences]
    assert [one.p_holm for one in found.differences] == holm(p_values)
    assert found.get("b", "recall@10") is None and found.get("a", "coverage@10") is None


def test_the_frame_has_a_row_for_each_difference():
    results = make_results(a=[make_result("a", 0, uniform(0))], b=[make_result("b", 0, uniform(1))])
    frame = compare(results, metrics="ndcg@10").frame()
    assert frame.select("arm", "metric", "seeds", "different").rows() == [
        ("b", "ndcg@10", 1, False)
    ]
    alone = make_results(a=[make_result("a", 0, uniform(0))])
    assert compare(alone).frame().schema == frame.schema


def test_queries_are_paired_by_user_whatever_their_order():
    order = np.random.default_rng(3).permutation(80)
    a, b = uniform(0), uniform(1)
    in_order = make_results(a=[make_result("a", 0, a)], b=[make_result("b", 0, b)])
    shuffled = make_results(
        a=[make_result("a", 0, a)], b=[make_result("b", 0, b[order], users=order)]
    )
    assert compare(in_order).differences == compare(shuffled).differences


def test_other_users_are_refused():
    for users in (np.arange(1, 81), np.arange(79)):
        results = make_results(
            a=[make_result("a", 0, uniform(0))],
            b=[make_result("b", 0, uniform(1, len(users)), users=users)],
        )
        with pytest.raises(ReportError, match=r"/runs/b-0 and /runs/a-0 .* different users"):
            compare(results)


def test_what_cannot_be_tested_is_refused():
    lone = make_results(a=[make_result("a", 0, [0.5])], b=[make_result("b", 0, [0.7])])
    with pytest.raises(ReportError, match="over 1 test query"):
        compare(lone)
    damaged = make_results(
        a=[make_result("a", 0, [0.5, 1.0])], b=[make_result("b", 0, [0.7, np.nan])]
    )
    with pytest.raises(ReportError, match=r"/runs/b-0: eval/test.parquet .* not finite"):
        compare(damaged)


def test_many_comparisons_have_resamples_enough_for_holm():
    arms = {f"arm {i}": [make_result(f"arm {i}", 0, uniform(i) + 0.8 * i)] for i in range(60)}
    found = compare(make_results(**arms))
    assert max(one.bootstrap_p_holm for one in found.differences) < 0.05


def test_unknown_metrics_and_arms_are_named():
    results = make_results(a=[make_result("a", 0, uniform(0))])
    with pytest.raises(ReportError, match="no metric 'recal@10'.*near ones: recall@10"):
        compare(results, metrics="recal@10")
    with pytest.raises(ReportError, match="no arm is named 'z'; there are 'a'"):
        compare(results, "z")


def test_leaders_are_the_best_and_those_not_told_from_it():
    base = uniform(0)
    results = make_results(
        low=[make_result("low", 0, 0.5 * base)],
        near=[make_result("near", 0, base + 0.1 * (uniform(1) - 0.55))],
        best=[make_result("best", 0, base)],
    )
    assert compare(results).leaders == {"recall@10": ("best", "near")}


def test_notes_say_how_far_the_p_values_go():
    def runs(name, seeds, **budget):
        return [make_result(name, seed, uniform(seed), **budget) for seed in range(seeds)]

    one = compare(make_results(a=runs("a", 1), b=runs("b", 1)))
    assert len(one.notes) == 1 and "of these trained models, not of the methods" in one.notes[0]
    mixed = compare(make_results(a=runs("a", 3), b=runs("b", 1)))
    assert mixed.notes[0].startswith("One seed only: b;")
    assert compare(make_results(a=runs("a", 3), b=runs("b", 3))).notes == ()
    assert compare(make_results(a=runs("a", 2), b=runs("b", 3))).notes[0].startswith("Two seeds")
    elsewhere = make_results(a=runs("a", 3), b=runs("b", 3))
    elsewhere.runs[0].cost["devices"] = "1 x gpu"
    assert compare(elsewhere).notes == (
        "Times do not compare, as runs had different devices: 1 x gpu, unknown.",
    )
    unequal = compare(
        make_results(a=runs("a", 3), b=runs("b", 3, steps=40, search_trials=5), c=runs("c", 3))
    )
    assert unequal.notes == (
        "Unequal budgets, search trials: 0 (a, c); 5 (b).",
        "Unequal budgets, steps: 20 (a, c); 40 (b).",
        "Unequal budgets, examples: 640 (a, c); 1,280 (b).",
    )
