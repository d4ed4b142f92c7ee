"""Pieces of HTML: tables that can be sorted and filtered, figures, and data for a script."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import polars as pl

from recjax.reports.drawing import PALETTES, Figure


class Cell(NamedTuple):
    """One cell: HTML, and the number that it is sorted by (text sorts by itself)."""

    html: str
    value: float | None = None
    classes: str = ""
    arm: str = ""


class Row(NamedTuple):
    """One row: its cells, the arm that it is of, and words that a search finds it by."""

    cells: Sequence[Cell]
    arm: str = ""
    words: str = ""
    classes: str = ""


class Column(NamedTuple):
    """A column's heading, as HTML; `text` aligns it left; `arm` hides it with that arm."""

    html: str
    text: bool = False
    arm: str = ""


def text(value: object, classes: str = "") -> Cell:
    """A cell that holds words."""
    return Cell(escape(str(value)), classes=f"text {classes}".strip())


def number(value: float | None, form: str = ".4f", html: str = "{}") -> Cell:
    """A cell that holds a number, or a dash where there is none; `html` surrounds it."""
    if value is None or not math.isfinite(value):
        return Cell("–", math.nan)
    return Cell(html.format(f"{value:{form}}".replace("-", "−")), value)


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Row],
    *,
    name: str = "",
    by_arm: bool = False,
) -> str:
    """A table whose headings sort it.

    Args:
      caption: HTML above it.
      columns: its headings.
      rows: the first cell of each heads it.
      name: its id.
      by_arm: columns are arms, so a search for an arm leaves its rows.
    """
    heads = "".join(
        f'<th scope="col"{_classes("text" if column.text else "")}{_data(arm=column.arm)}>'
        f'<button type="button">{column.html}</button></th>'
        for column in columns
    )
    body = "".join(_row(row) for row in rows)
    ident = f' id="{escape(name)}"' if name else ""
    return (
        f'<div class="scroll"><table{ident}{" data-by-arm" if by_arm else ""}>'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
        "</table></div>"
    )


def figure(one: Figure, place: int) -> str:
    """The place of a figure, which the page's script draws into."""
    name = escape(one.name)
    labels = list(one.variants)
    bar = ""
    if len(labels) > 1:
        options = "".join(f"<option>{escape(label)}</option>" for label in labels)
        bar = f'<label>Draw <select aria-label="Draw {name}">{options}</select></label>'
    saves = " ".join(
        f'<button type="button" class="quiet" data-save="{kind}">{kind.upper()}</button>'
        for kind in ("svg", "png")
    )
    chips = f'<div class="chips" id="chips-{name}"></div>' if one.groups else ""
    return (
        f'<figure id="figure-{name}">{f"<div class=bar>{bar}</div>" if bar else ""}{chips}'
        f'<div class="chart" id="chart-{name}" role="group" aria-label="{escape(one.title)}"></div>'
        f'<figcaption><span class="save">{saves}</span>'
        f"<b>Figure {place}. {escape(one.title)}.</b> {escape(one.caption)}</figcaption></figure>"
    )


def figure_data(one: Figure) -> dict[str, Any]:
    """What the page's script needs of a figure."""
    return {
        "name": one.name,
        "renderer": one.renderer,
        "metrics": list(one.metrics),
        "groups": {label: list(names) for label, names in one.groups.items()} or None,
        "variants": dict(one.variants),
        "rows": pack(one.rows),
    }


def pack(frame: pl.DataFrame) -> dict[str, Any]:
    """A frame by columns: numbers of five digits, text as codes into its distinct words."""
    columns: dict[str, Any] = {}
    for name, kind in frame.schema.items():
        column = frame[name]
        if kind == pl.String:
            words = column.unique(maintain_order=True).to_list()
            codes = {word: code for code, word in enumerate(words)}
            columns[name] = {"words": words, "codes": [codes[word] for word in column]}
        elif kind.is_float():
            columns[name] = [None if x is None else float(f"{x:.5g}") for x in column]
        else:
            columns[name] = column.to_list()
    return {"length": len(frame), "columns": columns}


def json_in_script(record: Any) -> str:
    """JSON that may stand in a script element, whatever its strings hold."""
    encoded = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def palette_css() -> str:
    """The colours of arms, as custom properties and as classes c0, c1, ..."""
    pairs = list(zip(PALETTES["light"], PALETTES["dark"], strict=True))
    colors = "".join(f"--c{i}: light-dark({a}, {b}); " for i, (a, b) in enumerate(pairs))
    return f":root {{ {colors}}}\n" + "\n".join(
        f".c{i} {{ --c: var(--c{i % len(pairs)}); }}" for i in range(64)
    )


def facts(pairs: Mapping[str, str]) -> str:
    """A list of terms and what is said of them (HTML)."""
    inner = "".join(f"<dt>{escape(term)}</dt><dd>{html}</dd>" for term, html in pairs.items())
    return f'<dl class="facts">{inner}</dl>'


def details(summary: str, html: str) -> str:
    """What is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _row(row: Row) -> str:
    cells = "".join(_cell(cell, head=i == 0) for i, cell in enumerate(row.cells))
    return (
        f'<tr data-row="{escape(row.words)}"{_data(arm=row.arm)}{_classes(row.classes)}>'
        f"{cells}</tr>"
    )


def _cell(cell: Cell, head: bool) -> str:
    tag, scope = ("th", ' scope="row"') if head else ("td", "")
    value = ""
    if cell.value is not None:
        value = f' data-value="{cell.value if math.isfinite(cell.value) else ""}"'
    return f"<{tag}{scope}{value}{_data(arm=cell.arm)}{_classes(cell.classes)}>{cell.html}</{tag}>"


def _data(arm: str) -> str:
    return f' data-arm="{escape(arm)}"' if arm else ""


def _classes(names: str) -> str:
    return f' class="{names}"' if names else ""
