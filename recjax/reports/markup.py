"""Pieces of HTML: tables that can be sorted and filtered, figures, and data for a script."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import polars as pl

from recjax.reports.drawing import PALETTES, SHAPES, Figure
from recjax.reports.layout import NONE, Cell, Table

_STYLES = {"": "{}", "best": "<b>{}</b>", "near": "<i>{}</i>", "mark": "<mark>{}</mark>"}


def table(shown: Table, place: int, arms: Sequence[str], name: str = "") -> str:
    """A table whose headings sort it, and whose rows and columns hide with their arm.

    Args:
      shown: the table; rows and columns named like an arm are that arm's.
      place: its number on the page.
      arms: names in the order of their colours.
      name: its id.
    """
    columns = list(zip(*shown.rows, strict=True))
    numeric = [i > 0 and _is_numeric(column) for i, column in enumerate(columns)]
    heads = "".join(
        f'<th scope="col"{_arm(head, arms)}{"" if is_number else " data-text"}>'
        f'<button type="button">{_name(head, arms)}</button></th>'
        for head, is_number in zip(shown.columns, numeric, strict=True)
    )
    body = "".join(_row(row, shown.columns, numeric, arms) for row in shown.rows)
    kind = "by-arm" if set(shown.columns) & set(arms) else ""
    kind = "of-arms" if any(row[0].text in arms for row in shown.rows) else kind
    ident = f' id="{escape(name)}"' if name else ""
    return (
        f'<div class="scroll"><table{ident}{_class(kind)}><caption><b>Table {place}. '
        f"{_words(shown.title)}.</b> {_words(shown.caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(one: Figure, place: int) -> str:
    """The place of a figure, which the page's script draws into."""
    name = escape(one.name)
    bar = ""
    if len(one.variants) > 1:
        options = "".join(f"<option>{escape(label)}</option>" for label in one.variants)
        bar = f'<div class="bar"><select aria-label="What is drawn">{options}</select></div>'
    saves = " ".join(
        f'<button type="button" class="quiet" data-save="{kind}">{kind.upper()}</button>'
        for kind in ("svg", "png")
    )
    chips = f'<div class="chips" id="chips-{name}"></div>' if one.groups else ""
    return (
        f'<figure id="figure-{name}">{bar}{chips}'
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
    """A frame by columns: numbers of seven digits, text as codes into its distinct words."""
    columns: dict[str, Any] = {}
    for name, kind in frame.schema.items():
        column = frame[name]
        if kind == pl.String:
            words = column.unique(maintain_order=True).to_list()
            codes = {word: code for code, word in enumerate(words)}
            columns[name] = {"words": words, "codes": [codes[word] for word in column]}
        elif kind.is_float():
            columns[name] = [None if x is None else float(f"{x:.7g}") for x in column]
        else:
            columns[name] = column.to_list()
    return {"length": len(frame), "columns": columns}


def json_in_script(record: Any) -> str:
    """JSON that may stand in a script element, whatever its strings hold."""
    encoded = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def chip(index: int, name: str) -> str:
    """A checkbox in the colour of the arm of this index."""
    return (
        f'<label class="chip c{index}"><input type="checkbox" value="{escape(name)}" checked>'
        f'<span class="swatch c{index}"></span><span>{escape(name)}</span></label>'
    )


def palette_css(count: int) -> str:
    """Classes c0, c1, ... of so many arms: the colour, and the shape as a swatch shows it."""
    pairs = list(zip(PALETTES["light"], PALETTES["dark"], strict=True))
    glyphs = list(SHAPES.values())
    rules = []
    for i in range(max(count, len(pairs))):
        light, dark = pairs[i % len(pairs)]
        rules.append(f".c{i} {{ --c: light-dark({light}, {dark}); }}")
        rules.append(f'.swatch.c{i}::before {{ content: "{glyphs[i % len(glyphs)]}"; }}')
    return "\n".join(rules)


def facts(pairs: Mapping[str, str]) -> str:
    """Terms, and what is said of each (HTML)."""
    inner = "".join(f"<dt>{escape(term)}</dt><dd>{html}</dd>" for term, html in pairs.items())
    return f'<dl class="facts">{inner}</dl>'


def details(summary: str, html: str) -> str:
    """What is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _row(
    row: Sequence[Cell], columns: Sequence[str], numeric: Sequence[bool], arms: Sequence[str]
) -> str:
    first = row[0].text
    shown = [f'<th scope="row">{_name(first, arms)}</th>']
    for cell, column, is_number in zip(row[1:], columns[1:], numeric[1:], strict=True):
        text = "" if cell.text == NONE else _words(cell.text)
        kind = _class("" if is_number else "text")
        shown.append(f"<td{kind}{_arm(column, arms)}>{_STYLES[cell.style].format(text)}</td>")
    return f"<tr data-row{_arm(first, arms)}>{''.join(shown)}</tr>"


def _is_numeric(column: Iterable[Cell]) -> bool:
    texts = [cell.text for cell in column if cell.text != NONE]
    return all(re.match(r"[<+-]?\d", text) for text in texts)


def _name(text: str, arms: Sequence[str]) -> str:
    if text not in arms or len(arms) < 2:
        return _words(text)
    return f'<span class="swatch c{arms.index(text)}"></span>{escape(text)}'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _arm(name: str, arms: Sequence[str]) -> str:
    return f' data-arm="{escape(name)}"' if name in arms else ""


def _words(text: str) -> str:
    """Escaped, with minus signs and subscripts as they are set in print."""
    signed = re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", escape(text))
    return re.sub(r"\bd_z\b", "<i>d<sub>z</sub></i>", signed)
