"""Notebooks: each in step with its script, clean, readable and, as documented, run to the end."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest

from tests.runs import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FORMATS = "ipynb,py:percent"
LONGEST = 15

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path, kind):
    """Sources of the code or markdown cells."""
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def code_lines(source):
    return [line for line in source.splitlines() if line.strip()]


def test_there_are_five_pairs():
    assert [path.stem[0] for path in NOTEBOOKS] == list("12345")
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in FOLDER.glob("*.py"))


@each_notebook
def test_a_notebook_is_in_step_with_its_script(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.jupytext.formats == FORMATS
    script = path.with_suffix(".py").read_text()
    assert jupytext.writes(notebook, "py:percent") == script, (
        f"run: jupytext --to ipynb --update notebooks/{path.stem}.py (or --sync, whose newer file "
        "is the right one)"
    )


@each_notebook
def test_a_notebook_holds_no_outputs(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), (
                f"run: jupytext --to ipynb notebooks/{path.stem}.py, which writes it without"
            )


@each_notebook
def test_cells_are_short_and_plain(path):
    for source in cells_of(path, "code"):
        assert len(code_lines(source)) <= LONGEST, source
        assert not re.search(r"^\s*[%!]|(?<![\w.])/(home|tmp|root|work|Users)/", source, re.M)
        ast.parse(source)
    sections = [text for text in cells_of(path, "markdown") if re.search("^##? ", text, re.M)]
    assert len(sections) >= 4
    for text in cells_of(path, "markdown"):
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (FOLDER / link).exists(), link


@each_notebook
def test_figures_have_titles_and_so_have_their_axes(path):
    drawn = [source for source in cells_of(path, "code") if "alt.Chart(" in source]
    assert drawn
    for source in drawn:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        names = [ast.unparse(call.func) for call in calls]
        given = [{keyword.arg for keyword in call.keywords} for call in calls]
        titled = [
            "title" in keys
            for name, keys in zip(names, given, strict=True)
            if name == "alt.Chart" or name.endswith(".facet")
        ]
        assert any(titled), source
        for name, keys in zip(names, given, strict=True):
            if name in ("alt.X", "alt.Y", "alt.Color", "alt.Size"):
                assert "title" in keys, f"{name} without a title in:\n{source}"


def test_the_quickstart_takes_at_most_twenty_lines():
    """From the frames to recommendations, the import included."""
    cells = nbformat.read(FOLDER / "1_quickstart.ipynb", 4).cells
    heads = [i for i, cell in enumerate(cells) if cell.source.startswith("## ")]
    first = next(i for i in heads if cells[i].source.startswith("## From frames"))
    last = next(i for i in heads if i > first)
    lines = [line for cell in cells[first:last] if cell.cell_type == "code"
             for line in code_lines(cell.source)]  # fmt: skip
    assert "run.recommend" in "".join(lines)
    assert len(lines) + 1 <= 20


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_as_documented(path, tmp_path):
    """`jupyter execute`, here with the outputs kept; from a copy, in which it leaves nothing."""
    for name in ("configs", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy = tmp_path / "notebooks" / path.name
    files = set(tmp_path.rglob("*.*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("XLA_FLAGS", None)  # the eight devices of the tests
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # programs are compiled in half the time
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", str(copy)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(tmp_path.rglob("*.*")) == files
    figures = 0
    for cell in nbformat.read(copy, 4).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output.text
            if "data" in output:
                assert output.data.get("text/plain"), f"something empty is shown by:\n{cell.source}"
                figures += "vegaEmbed" in output.data.get("text/html", "")
    assert figures == sum("alt.Chart(" in source for source in cells_of(path, "code"))
    assert not re.search(re.escape(str(tmp_path)), json.dumps(nbformat.read(copy, 4)))
