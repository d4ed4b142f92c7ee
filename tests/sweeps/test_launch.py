"""Trials run once each, tried again when they crash, stopped, and left to whoever claims them."""

import dataclasses
import json
import os
import subprocess
import threading

import pytest

from recjax.errors import CheckpointError, ConfigError, DivergenceError
from recjax.sweeps import local
from recjax.sweeps.claims import claim
from recjax.sweeps.launch import run_sweep
from recjax.sweeps.trials import load_sweep
from tests.sweeps.files import fake_main, write_arms
from tests.tiny import tiny_dataset


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Runs a sweep of arms with these names, whose trials train nothing."""
    fake_main(monkeypatch)

    def run(*names, seeds=(0,), **options):
        sweep = load_sweep(write_arms(tmp_path, *names, seeds=seeds))
        return sweep, run_sweep(sweep, tmp_path / "w", quiet=True, **options)

    return run


def marks_of(result):
    file = result.workdir / "marks"
    return file.read_text().split() if file.exists() else []


def test_every_trial_is_run_once_and_finished_ones_are_skipped(launch, tmp_path):
    changes = []

    def on_change(trial, result):
        changes.append((trial.arm, trial.seed, result.state))

    sweep, results = launch("a", "b", seeds=(0, 1), workers=3, on_change=on_change)
    assert [result.name for result in results] == [trial.name for trial in sweep.trials]
    assert {result.state for result in results} == {"finished"}
    for arm in ("a", "b"):
        for seed in (0, 1):
            mine = [state for *who, state in changes if who == [arm, seed]]
            assert mine == ["running", "finished"]
    _, again = launch("a", "b", seeds=(0, 1, 2), workers=2)
    assert [marks_of(result) for result in again] == [["began", "ended"]] * 6
    record = json.loads((again[3].workdir / "trial.json").read_text())
    assert record == {"arm": "b", "seed": 1, "overrides": {"model.dim": 9}, "search_trials": 0}
    record = json.loads((tmp_path / "w" / "sweep.json").read_text())
    assert (record["title"], record["about"]) == ("What does it do?", "And why.")
    assert (record["arms"], record["seeds"]) == (["a", "b"], {"a": [0, 1, 2], "b": [0, 1, 2]})
    assert record["trials"] == [result.name for result in again]
    assert record["words"] == list(load_sweep(record["sweep"]).words)


def test_a_finished_trial_takes_the_name_that_its_arm_has_now(launch):
    launch("B = 4")
    _, (result,) = launch("b=4")  # the same folder and the same config
    assert marks_of(result) == ["began", "ended"]
    assert json.loads((result.workdir / "trial.json").read_text())["arm"] == "b=4"


def test_a_crash_is_tried_again_and_what_fails_is_recorded_while_others_go_on(launch):
    names = ("crashes", "crashes once", "diverges", "dies", "dies once", "fine")
    _, results = launch(*names, workers=3)
    found = dict(zip(names, results, strict=True))
    assert {name for name in names if found[name].state == "finished"} == {
        "crashes once",
        "dies once",
        "fine",
    }
    assert {name: marks_of(found[name]).count("began") for name in names} == {
        "crashes": 2,
        "crashes once": 2,
        "diverges": 1,
        "dies": 2,
        "dies once": 2,
        "fine": 1,
    }
    for name, attempts, status, error in (
        ("crashes", 2, 1, "RuntimeError: attempt 2"),
        ("diverges", 1, 3, "error: the loss became NaN"),
        ("dies", 2, -9, "killed by SIGKILL"),
    ):
        record = json.loads((found[name].workdir / "failure.json").read_text())
        assert (record["attempts"], record["status"]) == (attempts, status)
        assert error in record["error"] and record["error"] == found[name].error
    assert found["crashes"].error.startswith("Traceback (most recent call last)")
    assert not (found["crashes once"].workdir / "failure.json").exists()

    _, again = launch(*names, workers=3)  # which tries the failed ones again
    assert [result.state for result in again] == [result.state for result in results]
    assert marks_of(found["diverges"]).count("began") == 2
    assert marks_of(found["fine"]).count("began") == 1


def test_a_stopped_sweep_stops_its_trials_and_begins_no_other(launch, tmp_path):
    _, results = launch(
        "slow and long",
        "slow too and long",
        "c",
        workers=2,
        should_stop=lambda: len(list((tmp_path / "w").glob("*/marks"))) == 2,
    )
    assert [result.state for result in results] == ["stopped", "stopped", "waiting"]
    assert not list((tmp_path / "w").glob("*/failure.json"))
    for result in results:
        with claim(result.workdir) as descriptor:
            assert descriptor is not None


@pytest.mark.parametrize("outcome", ["finished", "failed", "killed"])
def test_a_trial_claimed_elsewhere_is_left_alone_and_its_outcome_awaited(launch, tmp_path, outcome):
    (trial,) = load_sweep(write_arms(tmp_path, "a")).trials
    folder = tmp_path / "w" / trial.name
    released = threading.Event()
    states = []

    def on_change(trial, result):
        states.append(result.state)
        if result.state == "elsewhere":
            released.set()

    def hold():
        released.wait(60)
        if outcome == "finished":
            (folder / "cost.json").write_text("{}")
        if outcome == "failed":
            (folder / "failure.json").write_text('{"error": "over there"}')

    with claim(folder) as descriptor:
        assert descriptor is not None
        child = subprocess.Popen(["sleep", "60"], pass_fds=(descriptor,))
    # The claim is the child's alone now, as that of a trial whose sweep was killed.
    thread = threading.Thread(target=lambda: (hold(), child.kill()))
    thread.start()
    _, (result,) = launch("a", on_change=on_change)
    thread.join()
    child.wait()
    if outcome == "killed":
        assert states == ["elsewhere", "running", "finished"]
        assert marks_of(result) == ["began", "ended"]
    else:
        assert states == ["elsewhere", outcome]
        assert marks_of(result) == []
        assert result.error == ("over there" if outcome == "failed" else "")


def test_two_sweeps_in_one_workdir_run_no_trial_twice(tmp_path, monkeypatch):
    fake_main(monkeypatch)
    # The second sweep begins before the first has recorded a failure, which it would try again.
    names = [f"{word} {i}" for word in ("fine", "crashes") for i in range(6)]
    sweep, found = load_sweep(write_arms(tmp_path, *names)), []

    def run():
        found.append(run_sweep(sweep, tmp_path / "w", workers=2, quiet=True))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = found
    assert [result.state for result in first] == [result.state for result in second]
    assert [result.state for result in first] == ["finished"] * 6 + ["failed"] * 6
    assert [marks_of(result).count("began") for result in first] == [1] * 6 + [2] * 6


def test_each_worker_has_its_own_cores(launch):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    _, results = launch("slow", "slow 2", workers=2)
    first, second = (set(json.loads((r.workdir / "cores").read_text())) for r in results)
    assert len(first) == len(second) == len(cores) // 2
    assert not first & second


@pytest.mark.parametrize(
    ("worker", "workers", "visible", "gpus", "memory"),
    [
        (0, 1, "", None, None),
        (0, 1, "0,1", "0,1", None),
        (1, 2, "4,5,6", "5,6", None),
        (2, 4, "0,1", "0", "0.450"),
        (1, 2, "", None, "0.450"),
    ],
)
def test_gpus_are_shared_out(monkeypatch, worker, workers, visible, gpus, memory):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    share = local.gpu_share(worker, workers, visible)
    assert share.get("CUDA_VISIBLE_DEVICES") == gpus
    assert share.get("XLA_PYTHON_CLIENT_MEM_FRACTION") == memory


def test_in_this_process_errors_are_what_they_are_in_another(tmp_path, monkeypatch, launch):
    def train(is_stopping, config, folder, dataset):
        print(f"trains {config.model.dim} on {dataset.name}")
        errors = {8: DivergenceError("too far"), 9: ConfigError("not so"), 10: KeyError("why")}
        if config.model.dim in errors:
            raise errors[config.model.dim]
        (folder / "cost.json").write_text("{}")

    monkeypatch.setattr(local, "train_until", train)
    _, results = launch("a", "b", "c", "d", workers=0, dataset=tiny_dataset())
    assert [result.state for result in results] == ["failed", "failed", "failed", "finished"]
    records = [json.loads((r.workdir / "failure.json").read_text()) for r in results[:3]]
    assert [(r["attempts"], r["status"]) for r in records] == [(1, 3), (1, 2), (2, 1)]
    assert "error: too far" in results[0].error
    assert "KeyError: 'why'" in results[2].error
    assert (results[3].workdir / "log.txt").read_text() == "trains 11 on synthetic\n"
    with pytest.raises(ConfigError, match="reaches no other process"):
        launch("a", dataset=tiny_dataset())


def test_a_workdir_of_another_sweep_is_refused(launch, tmp_path):
    launch("a")
    other = tmp_path / "other.py"
    (tmp_path / "own.py").rename(other)
    with pytest.raises(ConfigError, match="w holds the sweep .*own.py, not .*other.py"):
        run_sweep(load_sweep(str(other)), tmp_path / "w", quiet=True)
    with pytest.raises(ConfigError, match="workers=-1"):
        run_sweep(load_sweep(str(other)), tmp_path / "w2", workers=-1)
    sweep = load_sweep(str(other))
    run_sweep(dataclasses.replace(sweep, path="a.py:x/data"), tmp_path / "w3", quiet=True)
    with pytest.raises(ConfigError, match="holds the sweep a.py:x/data"):
        run_sweep(dataclasses.replace(sweep, path="b.py:x/data"), tmp_path / "w3", quiet=True)


def test_a_workdir_of_other_data_is_refused_though_its_trials_are_finished(launch, tmp_path):
    dataset = tiny_dataset()
    folder = tmp_path / "w" / "a-seed0-0"
    folder.mkdir(parents=True)
    protocol = {"dataset": "mine", "dataset_hash": dataset.hash}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    launch("a", workers=0, dataset=dataset, should_stop=lambda: True)
    (folder / "protocol.json").write_text(json.dumps(protocol | {"dataset_hash": "0"}))
    with pytest.raises(ConfigError, match="a-seed0-0 was trained on other data .'mine', hash 0"):
        launch("a", workers=0, dataset=dataset)


def test_a_workdir_that_cannot_be_made_is_one_message(launch, tmp_path):
    (tmp_path / "w").touch()
    with pytest.raises(CheckpointError, match="w cannot be written: File exists"):
        launch("a")


def test_without_a_terminal_each_change_is_a_line_and_a_table_comes_last(launch, tmp_path, capsys):
    sweep, _ = launch("a")
    run_sweep(load_sweep(write_arms(tmp_path, "a", "crashes")), tmp_path / "w", workers=1)
    out = capsys.readouterr().out
    assert "1 of 2 trials were finished before\n" in out
    assert "\n1 of 2 done; running: crashes, seed 0\n" in out
    assert "\n2 of 2 done; failed: crashes, seed 0: " in out
    assert "\n1 failed, 1 finished of 2\n" in out
    assert "    RuntimeError: attempt 2\n" in out
    assert out.endswith("1 of 2 trials failed; the same command tries them again\n")
    assert "\x1b" not in out
