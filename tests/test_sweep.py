"""The command: its flags, its messages, and sweeps that are killed, stopped and run twice."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from recjax.sweeps.trials import load_sweep
from tests.runs import MODELS, ROOT, TINY
from tests.sweeps.files import FAKE, write_arms

# The arms set model.dim.
SMALL = {key: value for key, value in (TINY | MODELS["mf"]).items() if key != "model.dim"}
SLOW = "from tests.runs import slow_main; slow_main(0.1)"


def start_sweep(*words, main=None):
    """Starts `python -m recjax.sweep` with these words; `main` is run as the trials' program."""
    call = "import sys; from recjax.sweeps import local; from absl import app; "
    if main is not None:
        call += f"local.MAIN = (sys.executable, '-c', {main!r}); "
    call += "from recjax import sweep; app.run(sweep.main, flags_parser=sweep.parse_flags)"
    return subprocess.Popen(
        [sys.executable, "-c", call, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def words_of(path, workdir, *words):
    settings = [f"--config.{key}={value}" for key, value in SMALL.items()]
    return [f"--sweep={path}", f"--workdir={workdir}", *settings, *words]


def test_what_the_command_says_without_training(tmp_path):
    path, workdir = write_arms(tmp_path, "a", "crashes", seeds=(0, 1)), tmp_path / "w"
    processes = (
        start_sweep(*words_of(path, tmp_path / "no", "--dry_run", "--seeds=3")),
        start_sweep(f"--sweep={path}", f"--workdir={workdir}", "--config.model.dmi=3"),
        start_sweep(*words_of(path, workdir, "--seeds=3"), main=FAKE),
    )
    said = [process.communicate(timeout=240) for process in processes]
    dry, unknown, failing = (
        (process.returncode, *texts) for process, texts in zip(processes, said, strict=True)
    )
    trials = load_sweep(path, seeds=[3], **SMALL).trials
    assert dry == (0, "".join(f"{trial.command(tmp_path / 'no')}\n" for trial in trials), "")
    assert not (tmp_path / "no").exists()
    assert unknown[:2] == (2, "")
    message = "error: unknown config key 'model.dmi': did you mean 'model.dim'.*\n"
    assert re.fullmatch(message, unknown[2])
    assert (failing[0], failing[2]) == (1, "")
    assert "\n1 failed, 1 finished of 2\n" in failing[1]
    assert "    RuntimeError: attempt 2\n" in failing[1]


def trial_processes(workdir):
    """The processes that run trials in this workdir."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(word.startswith(f"--workdir={workdir}/") for word in words):
            found.append(int(file.parent.name))
    return found


def assert_same_results(workdir, expected):
    names = sorted(file.parent.name for file in expected.glob("*/cost.json"))
    assert names == sorted(file.parent.name for file in workdir.glob("*/cost.json"))
    assert names
    for name in names:
        for file in ("metrics.jsonl", "eval/test.parquet", "eval/test.json", "config.json"):
            found, wanted = workdir / name / file, expected / name / file
            assert found.read_bytes() == wanted.read_bytes(), (name, file)


@pytest.mark.slow
def test_a_sweep_killed_at_random_points_ends_as_one_never_stopped(tmp_path):
    path = write_arms(tmp_path, "a", "b")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    never = start_sweep(*words_of(path, whole, "--workers=2"))
    chance = random.Random(0)
    for kills_trials in (False, True, True):
        process = start_sweep(*words_of(path, killed, "--workers=2"), main=SLOW)
        while process.poll() is None and not list(killed.glob("*/metrics.jsonl")):
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 1.5))
        process.kill()
        process.communicate()
        for pid in trial_processes(killed) if kills_trials else ():
            os.kill(pid, signal.SIGKILL)
    process = start_sweep(*words_of(path, killed, "--workers=2"), main=SLOW)
    out, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, ""), out
    out, errors = never.communicate(timeout=240)
    assert (never.returncode, errors) == (0, ""), out
    assert_same_results(killed, whole)
    for trial in load_sweep(path, **SMALL).trials:
        assert (killed / trial.name / "config.json").exists()


@pytest.mark.slow
def test_a_signal_stops_the_trials_and_the_same_command_goes_on(tmp_path):
    path = write_arms(tmp_path, "a")
    words = words_of(path, tmp_path / "w")
    process = start_sweep(*words, main=SLOW)
    while process.poll() is None and not list(tmp_path.glob("w/*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "stopped: a, seed 0" in out
    assert out.endswith("1 of 1 trials are not finished; the same command goes on there\n")
    assert not trial_processes(tmp_path / "w")
    process = start_sweep(*words)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    (log,) = tmp_path.glob("w/*/log.txt")
    assert "resumed at step" in log.read_text()


@pytest.mark.slow
def test_two_sweep_processes_run_no_trial_twice(tmp_path):
    path = write_arms(tmp_path, *(f"slow {i}" for i in range(8)))
    words = words_of(path, tmp_path / "w", "--workers=2")
    processes = [start_sweep(*words, main=FAKE) for _ in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")
        assert "\n8 finished of 8\n" in out
    marks = [file.read_text() for file in tmp_path.glob("w/*/marks")]
    assert marks == ["began\nended\n"] * 8
