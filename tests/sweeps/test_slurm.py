"""Trials as jobs, run by submitit's local executor."""

import json
import os
import pickle
import signal
import threading
import time

import pytest

from recjax.errors import ConfigError
from recjax.run import is_finished
from recjax.sweeps.claims import claim
from recjax.sweeps.launch import run_sweep
from recjax.sweeps.slurm import TrialJob
from recjax.sweeps.trials import load_sweep
from tests.runs import MODELS, TINY
from tests.sweeps.files import fake_main, write_arms

LOCAL = {"cluster": "local", "timeout_min": "5", "gpus_per_node": "0"}
SMALL = {key: value for key, value in (TINY | MODELS["mf"]).items() if key != "model.dim"}


@pytest.fixture
def signals_as_they_were():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_job_is_sent_to_another_machine_claims_its_trial_and_runs_it(tmp_path, monkeypatch):
    fake_main(monkeypatch)
    sweep = load_sweep(write_arms(tmp_path, "crashes", "fine", "taken"))
    jobs = [TrialJob(trial, tmp_path, None, "cpu") for trial in sweep.trials]
    failing, fine, taken = (pickle.loads(pickle.dumps(job)) for job in jobs)
    assert failing().state == "failed"
    assert (fine().state, fine().state) == ("finished", "finished")
    with claim(tmp_path / sweep.trials[2].name):
        assert taken().state == "elsewhere"
    folder = tmp_path / sweep.trials[1].name
    assert (folder / "marks").read_text() == "began\nended\n"
    assert "--accelerator=cpu" in (folder / "words").read_text()


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_preempted_job_saves_and_is_submitted_anew(tmp_path, monkeypatch):
    fake_main(monkeypatch)
    (trial,) = load_sweep(write_arms(tmp_path, "slow and long")).trials
    job, again = TrialJob(trial, tmp_path, None, "auto"), []

    def on_preemption(*_):  # as submitit does
        again.append(job.checkpoint())
        raise SystemExit

    def preempt():
        while not (tmp_path / trial.name / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    signal.signal(signal.SIGUSR2, on_preemption)
    thread = threading.Thread(target=preempt)
    thread.start()
    with pytest.raises(SystemExit):
        job()
    thread.join()
    assert isinstance(again[0].function, TrialJob)
    assert (tmp_path / trial.name / "marks").read_text() == "began\n"
    assert not (tmp_path / trial.name / "failure.json").exists()
    with claim(tmp_path / trial.name) as descriptor:
        assert descriptor is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'Could not detect "srun".*--slurm.cluster=local'),
        ({"cluster": "moon"}, "named moon"),
        ({"cluster": "local", "partion": "x"}, "--slurm: .*'partion'"),
        ({"cluster": "local", "timeout_min": "soon"}, "--slurm: .*timeout_min"),
        ({"cluster": "local", "timeout_min": None}, "--slurm.timeout_min needs a value"),
        ({"cluster": "local", "nodes": "2"}, "--slurm.nodes=2: a trial is one task on one node"),
    ],
)
def test_wrong_options_are_one_message_before_anything_starts(tmp_path, options, message):
    sweep = load_sweep(write_arms(tmp_path, "a"))
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep, tmp_path / "w", launcher="slurm", slurm=options, quiet=True)
    assert not (tmp_path / "w" / "sweep.json").exists()
    with pytest.raises(ConfigError, match="launcher='moon'"):
        run_sweep(sweep, tmp_path / "w", launcher="moon")
    with pytest.raises(ConfigError, match="workers=0: with --launcher=slurm"):
        run_sweep(sweep, tmp_path / "w", launcher="slurm", workers=0)


@pytest.mark.slow
def test_a_job_is_cancelled_saves_its_trial_and_another_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Seconds of training, so that the job is cancelled before its end.
    long = {"train.steps": 3000, "eval.every": 3000, "checkpoint.every": 3000, "log.every": 100}
    sweep = load_sweep(write_arms(tmp_path, "a"), **SMALL | long)
    folder, states = tmp_path / "w" / sweep.trials[0].name, []

    def run(should_stop=lambda: False):
        (result,) = run_sweep(
            sweep,
            tmp_path / "w",
            launcher="slurm",
            slurm=LOCAL,
            accelerator="cpu",
            quiet=True,
            on_change=lambda trial, result: states.append(result.state),
            should_stop=should_stop,
        )
        assert result.workdir == folder
        return result

    with claim(folder):
        run(lambda: bool(states))
    assert states == ["elsewhere"]
    run((folder / "log.txt").exists)
    assert states[1:] in (["stopped"], ["running", "stopped"])
    with claim(folder, wait=True):
        ended_all_the_same = is_finished(folder)
    assert run().state == "finished", (folder / "log.txt").read_text()
    assert json.loads((folder / "trial.json").read_text())["arm"] == "a"
    # None for the first, whose trial was elsewhere, nor for the last of a trial that has ended.
    jobs = list((tmp_path / "w" / "slurm").glob("*_submitted.pkl"))
    assert len(jobs) == (1 if ended_all_the_same else 2)
