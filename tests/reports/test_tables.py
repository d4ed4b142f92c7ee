"""The tables of a report, as Markdown, as LaTeX and on a terminal."""

import re

import numpy as np
import pytest

from recjax.reports import tables
from recjax.reports.budget import budgets
from recjax.reports.collect import load_results
from recjax.reports.compare import compare
from recjax.reports.layout import Cell, Table, cells
from recjax.slices import NOT_SCORED
from recjax.tables import table_text
from tests.reports.small import ARMS, write_run, write_sweep

NASTY = Table(
    "A & B",
    "50 % of $x_1$, d_z ± 1",
    ("arm", "Δ"),
    (
        (Cell("a|b_c*", "best"), Cell("-0.10")),
        (Cell("{~^\\#}"), Cell("<0.001", "near")),
    ),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    arms = {name: ARMS[name] for name in ("64 negatives", "full", "wide")}
    folder = tmp_path_factory.mktemp("tables") / "sweep"
    return load_results(write_sweep(folder, arms, unfinished=[("wide", 2)]))


def by_row(table):
    """{name of the row: {column: text}}, for columns that are named once."""
    return {
        row[0].text: dict(zip(table.columns[1:], [cell.text for cell in row[1:]], strict=True))
        for row in table.rows
    }


def test_markdown_is_escaped_and_marked():
    lines = NASTY.markdown().splitlines()
    assert lines[0] == "### A & B"
    assert lines[2:6] == [
        "| arm | Δ |",
        "| --- | ---: |",
        r"| **a\|b\_c\*** | -0.10 |",
        r"| {~^\\#} | *\<0.001* |",
    ]


def test_latex_is_escaped_and_of_booktabs():
    text = NASTY.latex()
    assert r"\caption{A \& B. 50 \% of \$x\_1\$, $d_z$ $\pm$ 1}" in text
    assert r"\textbf{a\textbar{}b\_c*} & $-$0.10 \\" in text
    nasty = r"\{\textasciitilde{}\textasciicircum{}\textbackslash{}\#\} & \textit{$<$0.001} \\"
    assert nasty in text
    rules = [line for line in text.splitlines() if line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\begin{tabular}{lr}" in text


def test_a_name_in_brackets_is_no_argument_of_the_rule_before_it():
    rows = tuple(cells([name, "1"]) for name in ("[a]", "*", "b"))
    lines = Table("t", "", ("arm", "x"), rows).latex().splitlines()
    start = lines.index(r"\midrule")
    assert lines[start + 1 : start + 4] == [r"{}[a] & 1 \\", r"{}* & 1 \\", r"b & 1 \\"]


def test_a_terminal_shows_the_same_cells():
    table = Table("t", "", ("arm", "x"), (cells(["[red]", "1"]),))
    assert table_text(table.terminal()).splitlines()[-1].split() == ["[red]", "1"]


def test_the_main_table_has_every_arm_and_what_it_is_measured_by(results):
    comparison = compare(results, "full", "ndcg@10")
    table = tables.results_table(results, comparison)
    rows = by_row(table)
    assert list(rows) == ["64 negatives", "full", "wide", "popularity", "random"]
    values = [run.metrics["ndcg@10"] for run in results.arm("full").results]
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    assert rows["full"]["ndcg@10"] == f"{np.mean(values):.4f} ± {half:.4f}"
    assert (rows["full"]["seeds"], rows["wide"]["seeds"]) == ("3", "2")
    one = comparison.get("64 negatives", "ndcg@10")
    assert rows["64 negatives"]["Δ"] == f"{one.difference:+.4f} ({one.relative:+.1%})"
    assert rows["64 negatives"]["p"] == tables.p_text(one.p_holm)
    assert (rows["full"]["p"], rows["popularity"]["p"]) == ("-", "-")
    best = [row[0].text for row in table.rows for cell in row if cell.style == "best"]
    assert best == [comparison.leaders["ndcg@10"][0]]


def test_a_metric_of_the_catalogue_has_no_difference(results):
    table = tables.results_table(results, compare(results, metrics=["coverage@10", "recall@10"]))
    assert table.columns == ("arm", "seeds", "coverage@10", "recall@10", "Δ", "p", "d_z")
    assert all(len(row) == len(table.columns) for row in table.rows)
    alone = compare(results, metrics="coverage@10")
    assert alone.differences == () and alone.leaders == {}
    assert tables.results_table(results, alone).columns == ("arm", "seeds", "coverage@10")


def test_every_difference_stands_in_full(results):
    comparison = compare(results, "full", ["recall@10", "ndcg@10"])
    table = tables.differences_table(comparison)
    assert len(table.rows) == 4
    one, row = comparison.differences[0], by_row(table)["wide"]
    assert one.arm == "64 negatives" and row["metric"] == "ndcg@10"
    other = comparison.get("wide", "ndcg@10")
    assert row["95 % interval"] == f"{other.low:+.4f} to {other.high:+.4f}"
    assert row["better"] == f"{other.better:.1%}"


def test_budgets_are_means_over_seeds(results):
    assert budgets(results)["full"]["step_ms"] == pytest.approx(4 + 64 / 50 + 0.1)
    rows = by_row(tables.budget_table(results))
    assert rows["wide"]["parameters"] == f"{60 * 128 * 3 + 64 * 768:,}"
    assert (rows["full"]["steps"], rows["full"]["examples"]) == ("20", "640")


def test_slices_show_those_that_have_queries(results):
    table = tables.slices_table(results, "ndcg@10")
    rows = by_row(table)
    first = results.runs[0].slices
    assert set(table.columns[1:]) == {name for name, one in first.items() if one["queries"]}
    assert rows["(how many)"]["items/head"] == str(first["items/head"]["targets"])
    runs = results.arm("full").results
    expected = np.mean([run.slices["items/head"]["recall@10"] for run in runs])
    assert rows["full"]["items/head"] == f"{expected:.4f}"
    expected = np.mean([run.slices["users/cold"]["ndcg@10"] for run in runs])
    assert rows["full"]["users/cold"] == f"{expected:.4f}"


def test_a_slice_that_a_model_cannot_score_says_so(tmp_path):
    results = load_results(write_run(tmp_path / "run", size=60))
    cold = results.runs[0].slices["users/cold"]
    cold.clear()
    cold.update(queries=3, targets=3, not_scored=3, status=NOT_SCORED)
    assert by_row(tables.slices_table(results, "recall@10"))["run"]["users/cold"] == "not scored"


def test_settings_are_the_keys_that_differ(results):
    assert tables.config_differences(results) == {
        "loss.candidates": {"64 negatives": "uniform", "full": "full", "wide": "full"},
        "loss.num_sampled": {"64 negatives": "64", "full": "1024", "wide": "1024"},
        "model.dim": {"64 negatives": "64", "full": "64", "wide": "128"},
        "model.query.hidden": {"64 negatives": "128", "full": "128", "wide": "512, 256"},
    }


def test_one_run_is_shown_beside_its_baselines(tmp_path):
    results = load_results(write_run(tmp_path / "run"))
    found = tables.make_tables(results, compare(results))
    assert [table.title for table in found] == ["Test results", "Budget", "recall@10 by slice"]
    run = results.runs[0]
    row = by_row(found[0])["recall@10"]
    low, high = run.intervals["recall@10"]
    assert row["model"] == f"{run.metrics['recall@10']:.4f} ± {(high - low) / 2:.4f}"
    assert row["popularity"] == f"{run.baselines['popularity']['recall@10']:.4f}"
    assert "±" not in by_row(found[0])["coverage@10"]["model"]


def test_arms_of_one_seed_have_intervals_over_queries(tmp_path):
    folder = write_sweep(tmp_path / "s", {"full": ARMS["full"], "wide": ARMS["wide"]}, seeds=(4,))
    results = load_results(folder)
    table = tables.results_table(results, compare(results))
    assert "over queries" in table.caption
    low, high = results.runs[0].intervals["recall@10"]
    assert by_row(table)["full"]["recall@10"].endswith(f"± {(high - low) / 2:.4f}")


def test_p_values_are_never_zero():
    assert [tables.p_text(p) for p in (0.0, 0.0004, 0.0316, 1.0)] == [
        "<0.001", "<0.001", "0.032", "1.000",
    ]  # fmt: skip
    assert not re.search(r"\D0\.000", tables.p_text(1e-9))
