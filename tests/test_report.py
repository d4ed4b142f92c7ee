"""The command that compares runs, and the function behind it."""

import dataclasses
import re

import pytest
from absl.testing import flagsaver

from recjax import report
from recjax.errors import ConfigError
from recjax.flags import parse_words
from recjax.reports import write
from recjax.reports.collect import load_results
from recjax.reports.write import protocol_text, write_report
from tests.reports.small import ARMS, write_run, write_sweep

TWO = {name: ARMS[name] for name in ("full", "64 negatives")}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "sweep"
    return write_sweep(folder, TWO, unfinished=[("full", 1)], size=60)


def command(*words):
    """`python -m recjax.report` with these words: its exit status."""
    with flagsaver.flagsaver():
        try:
            report.main(parse_words(["recjax.report", *map(str, words)]))
        except SystemExit as end:
            return end.code
    return 0


def test_tables_are_printed_and_written(sweep, tmp_path, capsys):
    words = ["--baseline=64 negatives", "--metrics=recall@10,ndcg@10", "--nopage"]
    assert command(sweep, *words, f"--out={tmp_path}") == 0
    said = capsys.readouterr().out
    assert "How many negatives does a softmax need?" in said
    assert "Differences to '64 negatives'" in said
    assert "note: Not finished: full-seed1-" in said
    assert "note: Arm 'full' has 2 of 3 seeds: 0, 2." in said
    assert f"Written to {tmp_path}: table.md, table.tex" in said
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.tex"}
    markdown, latex = ((tmp_path / name).read_text() for name in ("table.md", "table.tex"))
    assert markdown.startswith("## How many negatives does a softmax need?\n")
    assert "| 64 negatives | 3 |" in markdown and "- Not finished: full-seed1-" in markdown
    assert "split predefined (fedcba9876543210)" in markdown
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 5


def test_the_protocol_says_how_many_users_were_asked(tmp_path):
    every = write_run(tmp_path / "every", size=20)
    some = write_run(tmp_path / "some", protocol={"max_queries": 10_000}, size=20)
    assert ", measured on test; checkpoint" in protocol_text(load_results(every))
    asked = "measured on test of at most 10,000 users; checkpoint"
    assert asked in protocol_text(load_results(some))


def test_a_report_lies_in_the_workdir_unless_told_otherwise(tmp_path):
    run = write_run(tmp_path / "run", size=20)
    assert command(run, "--page=false") == 0
    assert (run / "report" / "table.md").exists()


def test_markdown_shows_titles_and_notes_as_they_are(sweep, tmp_path):
    results = dataclasses.replace(load_results(sweep), title="a *b*", notes=("<class> of no_name",))
    write_report(results, tmp_path, page=False)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == r"## a \*b\*"
    assert r"- \<class> of no\_name" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which runs?"),
        (["/no/such"], "/no/such is not a folder"),
        (["SWEEP", "--baseline=none"], "no arm is named 'none'"),
        (["SWEEP", "--metrics=recall@7"], "no metric 'recall@7'"),
        (["SWEEP", "OTHER"], "different protocols.*split_hash is 'fedcba9876543210' in"),
        (["SWEEP", "--base=x"], "Unknown command line flag 'base'"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(words, message, sweep, tmp_path, capsys):
    other = write_run(tmp_path / "other", protocol={"split_hash": "00"}, size=20)
    paths = {"SWEEP": sweep, "OTHER": other}
    assert command(*(paths.get(word, word) for word in words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(f"error: .*{message}.*\n", said.err)


def test_without_the_extra_the_tables_are_written_and_the_extra_is_named(
    sweep, tmp_path, monkeypatch
):
    def without_extra(*args):
        raise ConfigError("this needs altair, which is not installed: pip install -e '.[report]'")

    monkeypatch.setattr(write, "write_page", without_extra)
    found = write_report(load_results(sweep), tmp_path)
    assert [path.name for path in found.files] == ["table.md", "table.tex"]
    assert "pip install -e '.[report]'" in found.notes[-1]
    assert found.comparison.baseline == "full"
