"""What a sweep shows of its trials, from their own files."""

import io
import json

import rich.console

from recjax.sweeps.attempts import TrialResult
from recjax.sweeps.status import Status, TrialProgress, read_progress
from recjax.sweeps.trials import load_sweep
from recjax.tables import table_text
from tests.sweeps.files import write_arms


def write_run(folder):
    folder.mkdir(parents=True)
    lines = [
        {"step": 50, "train/loss": 3.0},
        {"step": 60, "valid/recall@10": 0.3, "valid/recall@5": 0.9},
        {"step": 120, "valid/recall@10": 0.2},
        {"step": 120, "valid/recall@10": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 130, "valid/rec')
    timings = [{"step": 50, "train/examples_per_second": 1234.5}, {"step": 60, "valid/seconds": 1}]
    (folder / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timings))
    (folder / "log.txt").write_text("optimizer   adam, 1,200 steps of 512 examples (9 an epoch)\n")


def test_progress_is_read_from_a_run_that_is_being_written(tmp_path):
    write_run(tmp_path / "run")
    found = read_progress(tmp_path / "run", "recall@10")
    assert found == TrialProgress(step=120, total=1200, best=0.3, rate=1234.5)
    assert read_progress(tmp_path / "none", "recall@10") == TrialProgress()


def test_the_table_shows_what_runs_first_and_counts_the_rest(tmp_path):
    trials = load_sweep(write_arms(tmp_path, *"abcdefgh")).trials
    write_run(tmp_path / trials[6].name)
    console = rich.console.Console(file=io.StringIO(), width=100)
    with Status(trials, tmp_path, console) as status:
        for trial, state in ((trials[6], "running"), (trials[3], "failed")):
            status.change(trial, TrialResult(trial.name, state, tmp_path / trial.name))
        head, rule, *rows, counts = table_text(status.table(3)).splitlines()
    assert [row.split()[0] for row in rows] == ["a", "d", "g"]
    assert rows[2].split()[1:9] == [
        "0",
        "running",
        "120",
        "of",
        "1,200",
        "0.3000",
        "1,234",
        "0:00:00",
    ]
    assert counts.strip() == "1 running, 1 failed, 6 waiting of 8"


def test_a_terminal_gets_one_table(tmp_path):
    trials = load_sweep(write_arms(tmp_path, "a", "b")).trials
    out = io.StringIO()
    with Status(trials, tmp_path, rich.console.Console(file=out, force_terminal=True)) as status:
        for state in ("running", "finished"):
            status.change(trials[0], TrialResult(trials[0].name, state, tmp_path))
    assert "done;" not in out.getvalue()
    assert out.getvalue().rstrip().endswith("1 finished, 1 waiting of 2")
