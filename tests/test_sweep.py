"""The command: its flags, its messages, and sweeps that are killed, stopped and run twice."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from recjax.sweeps.trials import load_sweep
from tests.runs import MODELS, ROOT, TINY, assert_same_run, never_stopped
from tests.sweeps.files import FAKE, write_arms

# The first arm of `write_arms` is `never_stopped("mf")`: it sets model.dim as TINY does.
SMALL = {key: value for key, value in (TINY | MODELS["mf"]).items() if key != "model.dim"}
SLOW = "from tests.runs import slow_main; slow_main(0.3)"


@pytest.fixture(autouse=True)
def compiled_once(tmp_path, monkeypatch):
    """All sweeps of a test share what their trials have compiled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


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


def test_what_the_command_says_and_that_two_of_them_run_no_trial_twice(tmp_path):
    names = ("a", "crashes", "slow", "b", "c")
    path, workdir = write_arms(tmp_path, *names, seeds=(0, 1)), tmp_path / "w"
    running = words_of(path, workdir, "--seeds=3", "--workers=2")
    processes = (
        start_sweep(*words_of(path, tmp_path / "no", "--dry_run", "--seeds=3")),
        start_sweep(f"--sweep={path}", f"--workdir={workdir}", "--config.seeds=3"),
        start_sweep(*running, main=FAKE),
        start_sweep(*running, main=FAKE),
    )
    said = [process.communicate(timeout=240) for process in processes]
    dry, unknown, *both = (
        (process.returncode, *texts) for process, texts in zip(processes, said, strict=True)
    )
    trials = load_sweep(path, seeds=[3], **SMALL).trials
    assert dry == (0, "".join(f"{trial.command(tmp_path / 'no')}\n" for trial in trials), "")
    assert not (tmp_path / "no").exists()
    assert unknown[:2] == (2, "")
    assert unknown[2] == "error: unknown config key 'seeds': did you mean --seeds?\n"
    for code, out, errors in both:
        assert (code, errors) == (1, "")
        assert "\n1 failed, 4 finished of 5\n" in out
        assert re.search("^    RuntimeError: attempt [24]$", out, re.MULTILINE)
    began = [(workdir / trial.name / "marks").read_text().count("began") for trial in trials]
    # A sweep that begins after the other has recorded a failure tries that once more, rightly.
    assert began[1] in (2, 4)
    assert began[:1] + began[2:] == [1] * 4


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


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_ends_as_one_that_never_was(tmp_path):
    path, workdir = write_arms(tmp_path, "a"), tmp_path / "w"
    (trial,) = load_sweep(path, **SMALL).trials
    folder, words = workdir / trial.name, words_of(path, workdir)

    def start_and_wait_for_steps():
        file = folder / "timings.jsonl"
        before = file.read_text() if file.exists() else ""
        process = start_sweep(*words, main=SLOW)
        while process.poll() is None and (not file.exists() or file.read_text() == before):
            time.sleep(0.02)
        return process

    process = start_and_wait_for_steps()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, "")
    assert "stopped: a, seed 0" in out
    assert out.endswith("1 of 1 trials are not finished; the same command goes on there\n")
    assert not trial_processes(workdir)

    process = start_and_wait_for_steps()
    process.kill()
    process.communicate()
    assert trial_processes(workdir)  # which the next sweep leaves alone
    process = start_sweep(*words, main=SLOW)
    while "elsewhere" not in (line := process.stdout.readline()) and line:
        pass
    for pid in trial_processes(workdir):
        os.kill(pid, signal.SIGKILL)
    out, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, ""), out
    assert "resumed at step" in (folder / "log.txt").read_text()
    assert_same_run(folder, never_stopped("mf"))
