import dataclasses
import sys

import polars as pl
import pytest
import vl_convert

from recjax.errors import ConfigError
from recjax.reports import frames
from recjax.reports.collect import load_results
from recjax.reports.compare import compare
from recjax.reports.drawing import PALETTES, Drawing, chart_config
from recjax.reports.figures import make_figures
from recjax.slices import NOT_SCORED
from tests.reports.small import ARMS, write_sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "sweep"
    return load_results(write_sweep(folder, unfinished=[("wide", 2)]))


@pytest.fixture(scope="module")
def figures(results):
    made = make_figures(results, compare(results, samples=50))
    return {one.name: one for group in made.values() for one in group}


def marks_of(figure, variant, kind, **params):
    """How many items each mark of a kind has, drawn by Vega."""
    spec = {**figure.variants[variant], "datasets": {"rows": figure.rows.to_dicts()}}
    spec["params"] = [
        {**one, "value": params.get(one["name"], one["value"])} for one in spec["params"]
    ]
    scene = vl_convert.vegalite_to_scenegraph(spec, config=chart_config("light"))
    found, pending = [], [scene["scenegraph"]]
    while pending:
        node = pending.pop()
        if node.get("marktype") == kind and node.get("role") == "mark":
            found.append(len(node["items"]))
        pending += node.get("items", [])
    return found


def test_values_are_those_of_the_runs_and_their_mean(results):
    rows = frames.values_frame(results, ["recall@10"]).filter(pl.col("arm") == "full")
    values = [run.metrics["recall@10"] for run in results.arm("full").results]
    assert rows["seed"].to_list() == ["0", "1", "2", "mean"]
    assert rows["value"].to_list() == pytest.approx([*values, sum(values) / 3])
    assert rows["low"][3] < rows["value"][3] < rows["high"][3]


def test_a_curve_has_a_mean_only_where_all_seeds_have_a_value(results):
    arm = results.arm("full")
    short = dataclasses.replace(arm.results[1])
    short.__dict__["curves"] = arm.results[1].curves.filter(pl.col("step") <= 7)
    arms = (dataclasses.replace(arm, results=(arm.results[0], short)),)
    rows = frames.curves_frame(dataclasses.replace(results, arms=arms), ["valid/recall@10"], 50)
    steps = {seed: rows.filter(pl.col("seed") == seed)["step"].to_list() for seed in "01"}
    assert steps == {"0": [7, 14, 20], "1": [7]}
    assert rows.filter(pl.col("seed") == "mean")["step"].to_list() == [7]


def test_a_long_curve_is_thinned_and_keeps_its_end(results):
    arms = results.arms[:1]
    rows = frames.curves_frame(dataclasses.replace(results, arms=arms), ["train/loss"], 2)
    assert rows.filter(pl.col("seed") == "0")["step"].to_list() == [8, 20]
    seconds = arms[0].results[0].cost["train_seconds"]
    assert rows["seconds"][1] == pytest.approx(seconds)


def test_a_slice_that_an_arm_cannot_score_is_said_and_not_drawn(results):
    run = results.runs[0]
    slices = {**run.slices, "users/cold": {**run.slices["users/cold"], "status": NOT_SCORED}}
    arm = dataclasses.replace(results.arms[0], results=(dataclasses.replace(run, slices=slices),))
    arms = (arm, *results.arms[1:])
    rows, notes = frames.slices_frame(
        dataclasses.replace(results, arms=arms), "users", ["recall@10"]
    )
    assert notes == ("Not scored by full: users cold.",)
    drawn = rows.filter(pl.col("slice") == "cold")["arm"].to_list()
    assert drawn == [one.name for one in arms[1:]]


def test_every_section_is_drawn(figures):
    assert list(figures) == [
        "values",
        "difference-recall-10",
        "loss",
        "validation",
        "slices-history",
        "slices-items",
        "slices-users",
        "popularity",
        "cost",
    ]
    assert list(figures["cost"].variants) == [
        "parameters",
        "training time (s)",
        "examples per second",
        "query latency (ms)",
    ]


def test_hidden_arms_have_no_marks(figures):
    everything = marks_of(figures["values"], "", "symbol")
    hidden = marks_of(figures["values"], "", "symbol", hidden=["full", "wide"])
    assert sum(everything) == len(ARMS)
    assert sum(hidden) == len(ARMS) - 2


def test_the_front_holds_what_nothing_is_both_cheaper_and_better_than(results, figures):
    rows = pl.DataFrame(
        {
            "arm": ["a", "b", "c", "d", "e"],
            "seed": ["mean"] * 5,
            "metric": ["recall@10"] * 5,
            "value": [0.1, 0.3, 0.2, 0.3, 0.4],
            "parameters": [1.0, 2.0, 3.0, 4.0, 5.0],
            "examples_per_second": [5.0, 4.0, 3.0, 2.0, 1.0],
        }
    )
    cost = dataclasses.replace(figures["cost"], rows=rows)
    assert marks_of(cost, "parameters", "line") == [3]  # a, b and e
    assert marks_of(cost, "examples per second", "line") == [3]
    # Without b, c and d (which is better) come forward.
    assert marks_of(cost, "parameters", "line", hidden=["b"]) == [4]


def test_only_what_is_better_for_being_more_has_a_front(results):
    asked = ("mean_popularity@10", "gini@5", "coverage@10")
    made = make_figures(results, compare(results, metrics=asked))
    assert set(asked) <= set(made["comparison"][0].metrics)
    names = {name.partition("@")[0] for name in made["cost"][0].metrics}
    assert names == {"coverage", "recall", "ndcg", "mrr", "novelty"}


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ConfigError, match=r"altair.*\[report\]"):
        Drawing(["one"])


def test_both_themes_have_a_colour_for_each_place():
    assert len(PALETTES["light"]) == len(PALETTES["dark"]) == len(set(PALETTES["light"]))
    assert chart_config("dark")["range"]["category"] == list(PALETTES["dark"])
