"""Tables of text, written as Markdown, as LaTeX and for a terminal."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import rich.box
import rich.table
import rich.text

NONE = "-"

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
}


class Cell(NamedTuple):
    """Text of a cell: `best` is set in bold, `near` in italics."""

    text: str
    style: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A heading, named columns and rows of cells; the first column names the row.

    Attributes:
      title: what it shows, in a few words.
      caption: how it is to be read, in sentences.
      columns: headings.
      rows: as many cells each as there are columns.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """A heading, the table and its caption."""
        marks = {"best": "**{}**", "near": "*{}*", "": "{}"}
        lines = [map(markdown_text, self.columns), ["---"] + ["---:"] * (len(self.columns) - 1)]
        lines += [
            [marks[cell.style].format(markdown_text(cell.text)) for cell in row]
            for row in self.rows
        ]
        table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        caption = f"\n{markdown_text(self.caption)}\n" if self.caption else ""
        return f"### {markdown_text(self.title)}\n\n{table}{caption}"

    def latex(self) -> str:
        r"""A `table` with \toprule, \midrule and \bottomrule, of the package booktabs."""
        marks = {"best": r"\textbf{{{}}}", "near": r"\textit{{{}}}", "": "{}"}
        rows = [[marks[cell.style].format(_latex(cell.text)) for cell in row] for row in self.rows]
        words = _latex(f"{self.title}. {self.caption}".strip())
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{words}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            r"\toprule",
            _latex_row(map(_latex, self.columns)),
            r"\midrule",
            *map(_latex_row, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def terminal(self) -> rich.table.Table:
        """As rich prints it."""
        styles = {"best": "bold", "near": "italic", "": ""}
        table = rich.table.Table(
            title=rich.text.Text(self.title),
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            show_edge=False,
        )
        for i, name in enumerate(self.columns):
            table.add_column(rich.text.Text(name), justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*(rich.text.Text(cell.text, styles[cell.style]) for cell in row))
        return table


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    """A row without marks."""
    return tuple(map(Cell, texts))


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it stands, in a table too."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", text)


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<![\w}])d\\_z\b", "$d_z$", escaped)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)


def _latex_row(texts: Iterable[str]) -> str:
    row = " & ".join(texts) + r" \\"
    # After a rule or another row, LaTeX would take these for an argument.
    return f"{{}}{row}" if row.startswith(("[", "*")) else row
