"""Results as tables for people, on a terminal or in a log."""

import io
import math
from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table

from recjax import metrics as metrics_lib
from recjax import slices as slices_lib


def metrics_table(
    rows: Mapping[str, Mapping[str, float]],
    *,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
) -> rich.table.Table:
    """One line per metric, one column per ranker, such as the model beside its baselines.

    Where an `oracle` is among the rankers, a last column gives the first ranker's per-query metrics
    as a share of the oracle's.

    Args:
      rows: ranker -> metric -> value.
      intervals: ranker -> metric -> (low, high), shown as plus or minus half its width.
      metrics: which metrics, in order; those of the first ranker where None.
      title: a line above the table.
    """
    names = list(rows)
    table = _table(title, "metric", names)
    first = rows[names[0]]
    if "oracle" in rows and names[0] != "oracle":
        table.add_column("of oracle", justify="right", no_wrap=True)
    for metric in first if metrics is None else metrics:
        cells = []
        for name in names:
            interval = (intervals or {}).get(name, {}).get(metric)
            cells.append(_cell(rows[name].get(metric), interval))
        if "oracle" in rows and names[0] != "oracle":
            cells.append(_share(metric, first.get(metric), rows["oracle"].get(metric)))
        table.add_row(metric, *cells)
    return table


def slices_table(
    slices: Mapping[str, slices_lib.Slice], metrics: Sequence[str], *, title: str | None = None
) -> rich.table.Table:
    """One line per slice: its queries, its targets and the metrics asked for."""
    table = _table(title, "slice", ["queries", "targets", *metrics])
    for name, record in slices.items():
        cells = [str(record["queries"]), str(record["targets"])]
        if record["status"] == slices_lib.NOT_SCORED:
            cells += [slices_lib.NOT_SCORED]
        else:
            values = [record.get(metric) for metric in metrics]
            cells += [_cell(None if isinstance(v, str) else v) for v in values]
        table.add_row(name, *cells)
    return table


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows that all have the keys of the first, as a Markdown table under these names."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[_text(row[name]) for name in names] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def table_text(table: rich.table.Table) -> str:
    """The table as plain text without escape codes, as wide as it needs to be."""
    console = rich.console.Console(
        file=io.StringIO(), width=1000, color_system=None, force_jupyter=False
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"


def _table(title: str | None, first: str, columns: Sequence[str]) -> rich.table.Table:
    table = rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, show_edge=False
    )
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None or math.isnan(value):
        return "-"
    text = _number(value)
    return text if interval is None else f"{text} ± {_number((interval[1] - interval[0]) / 2)}"


def _text(value: object) -> str:
    return _cell(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _share(metric: str, value: float | None, oracle: float | None) -> str:
    if metric.split("@")[0] not in metrics_lib.PER_QUERY or value is None or not oracle:
        return ""
    return f"{value / oracle:.1%}"
