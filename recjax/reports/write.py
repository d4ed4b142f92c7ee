"""A report in a folder: tables to paste, and the page with its figures."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from recjax.data.dataset import Dataset
from recjax.errors import ConfigError
from recjax.files import write_file
from recjax.reports.collect import Results
from recjax.reports.compare import Comparison, compare
from recjax.reports.layout import Table, markdown_text
from recjax.reports.page import write_page
from recjax.reports.tables import make_tables


class Report(NamedTuple):
    """What was written, and what it says.

    Attributes:
      files: paths of what was written: `table.md`, `table.tex`, the page and its figures.
      comparison: of every arm with the baseline.
      tables: the main one first.
      notes: what a reader must know, one sentence each.
    """

    files: tuple[pathlib.Path, ...]
    comparison: Comparison
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def write_report(
    results: Results,
    out: str | os.PathLike[str],
    *,
    baseline: str = "",
    metrics: str | Sequence[str] = "",
    page: bool = True,
    dataset: Dataset | None = None,
) -> Report:
    """Compares, and writes `table.md`, `table.tex`, `page.html` and a PNG of each figure.

    Args:
      results: as `load_results` returns them.
      out: the folder, made where it is missing.
      baseline: the arm that others are compared with; the first where empty.
      metrics: what is compared, such as `("recall@10", "ndcg@10")`; the metric that chose the
        checkpoints where empty.
      page: False for the tables alone. Without the extra `report` they are all there is, and a
        note says so.
      dataset: of a single run, where its config cannot load it, to look inside the model.

    Raises:
      ReportError: an unknown arm or metric.
      CheckpointError: a file cannot be written.
    """
    folder = pathlib.Path(out)
    comparison = compare(results, baseline, metrics)
    tables = make_tables(results, comparison)
    notes = (*results.notes, *comparison.notes)
    markdown, latex = folder / "table.md", folder / "table.tex"
    write_file(markdown, _markdown(results, tables, notes))
    write_file(latex, _latex(tables, notes))
    files = [markdown, latex]
    if page:
        try:
            files += write_page(results, comparison, folder, dataset)
        except ConfigError as error:
            notes = (*notes, f"No page.html: {error}.")
    return Report(tuple(files), comparison, tables, notes)


def protocol_text(results: Results) -> str:
    """In one sentence, under which protocol everything was measured."""
    protocol = results.protocol
    return (
        f"{protocol['dataset']} ({protocol['dataset_hash']}), split {protocol['split']} "
        f"({protocol['split_hash']}), {protocol['candidates']:,} items ranked "
        f"({protocol['corpus']}, seen items: {protocol['seen']}), measured on "
        f"{results.measured_on}; checkpoint: {protocol['selection_metric']}."
    )


def _markdown(results: Results, tables: Sequence[Table], notes: Iterable[str]) -> str:
    title, protocol = markdown_text(results.title), markdown_text(protocol_text(results))
    head = [f"## {title}", *filter(None, [results.about]), protocol]
    listed = "".join(f"- {markdown_text(note)}\n" for note in notes)
    body = [f"{block}\n" for block in head] + [listed] * bool(listed)
    return "\n".join([*body, *(table.markdown() for table in tables)])


def _latex(tables: Sequence[Table], notes: Iterable[str]) -> str:
    head = "% \\usepackage{booktabs}\n" + "".join(f"% {note}\n" for note in notes)
    return "\n".join([head, *(table.latex() for table in tables)])
