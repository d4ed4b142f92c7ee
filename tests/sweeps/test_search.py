"""Searches: equal budgets, the same values each time, and what a file may declare."""

import json
from pathlib import Path

import pytest

from recjax.errors import ConfigError
from recjax.sweeps.launch import run_sweep
from recjax.sweeps.search import load_ranges
from recjax.sweeps.trials import load_sweep
from tests.sweeps.files import fake_main, write_arms

RATE = "suggest('optim.learning_rate', low=1e-4, high=1, log=True)"
BOTH = f"{RATE}\nsuggest('model.query.pooling', choices=(('mean',), ('last', 'sqrt')))"


def write_search(folder, body, names=("a", "b"), seeds=(0, 1)):
    path = write_arms(folder, *names, seeds=seeds)
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    with open(path, "a") as file:
        file.write(f"\n\ndef search(suggest):\n{lines}")
    return path


def test_every_arm_gets_as_many_trials_and_is_run_with_the_best_values(tmp_path, monkeypatch):
    fake_main(monkeypatch)  # whose validation metric is best at a learning rate of 0.01
    sweep = load_sweep(write_search(tmp_path, BOTH))
    options = dict(search="optuna", search_trials=8, workers=2, quiet=True)
    results = run_sweep(sweep, tmp_path / "w", **options)
    assert [result.state for result in results] == ["finished"] * 4
    tried = json.loads((tmp_path / "w" / "search.json").read_text())
    for place, (name, arm) in enumerate(tried.items()):
        assert len(arm) == 8
        best = max(arm, key=lambda one: one["valid"])
        assert 0.001 < best["values"]["optim.learning_rate"] < 0.1
        for seed in (0, 1):
            result = results[2 * place + seed]
            record = json.loads((result.workdir / "trial.json").read_text())
            pooling = {"model.query.pooling": list(best["values"]["model.query.pooling"])}
            overrides = {"model.dim": 8 + place, **best["values"], **pooling}
            expected = {"arm": name, "seed": seed, "overrides": overrides, "search_trials": 8}
            assert record == expected
            words = (result.workdir / "words").read_text()
            assert f"--config.optim.learning_rate={best['values']['optim.learning_rate']}" in words
            folders = list((tmp_path / "w" / "search" / name).iterdir())
            assert len(folders) == len({json.dumps(one["values"]) for one in arm})
    record = json.loads((tmp_path / "w" / "sweep.json").read_text())
    assert record["trials"] == [result.name for result in results]

    marks = sorted((tmp_path / "w").rglob("marks"))

    def stop():
        return len(list((tmp_path / "other").rglob("marks"))) > 5

    stopped = run_sweep(sweep, tmp_path / "other", should_stop=stop, **options)
    assert "waiting" in [result.state for result in stopped]
    again = run_sweep(sweep, tmp_path / "other", **options)
    assert [result.name for result in again] == [result.name for result in results]
    assert json.loads((tmp_path / "other" / "search.json").read_text()) == tried
    names = [file.relative_to(tmp_path / "w") for file in marks]
    assert (
        sorted(file.relative_to(tmp_path / "other") for file in (tmp_path / "other").rglob("marks"))
        == names
    )


def test_a_diverging_trial_counts_as_0_and_is_not_run_again(tmp_path, monkeypatch):
    fake_main(monkeypatch)
    sweep = load_sweep(write_search(tmp_path, RATE, ["diverges", "fine"], seeds=(0,)))
    for _ in range(2):
        results = run_sweep(
            sweep, tmp_path / "w", search="optuna", search_trials=3, workers=3, quiet=True
        )
        assert [result.state for result in results] == ["failed", "finished"]
        assert results[0].error == "none of the 3 trials of the search finished"
    marks = [file.read_text() for file in (tmp_path / "w" / "search").rglob("marks")]
    assert sorted(marks) == ["began\n"] * 3 + ["began\nended\n"] * 3


def test_none_waits_when_all_is_done_though_values_are_drawn_twice(tmp_path, monkeypatch, capsys):
    fake_main(monkeypatch)
    body = "suggest('optim.name', choices=('adam', 'sgd'))"
    sweep, planned = load_sweep(write_search(tmp_path, body, ["a"])), []

    def on_change(trial, result):
        planned.append(len(json.loads((tmp_path / "w" / "sweep.json").read_text())["trials"]))

    options = dict(search="optuna", search_trials=6, on_change=on_change)
    for said in ("4 of 4 done; finished: a, seed 1", "2 of 2 trials were finished before"):
        run_sweep(sweep, tmp_path / "w", **options)
        out = capsys.readouterr().out
        assert said in out
        assert f"\n{said[0]} finished of {said[0]}\n" in out
    assert (planned[0], planned[-1]) == (0, 2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "suggests nothing"),
        ("suggest('seed', low=1, high=9)", "every trial of a search has seed 0"),
        ("suggest('optim.rate', low=1.0, high=2.0)", "arm 'a': unknown config key 'optim.rate'"),
        ("suggest('model.dim', choices=(8, 16))", "model.dim is searched, but arm 'a' sets it"),
        ("suggest('optim.b1', low=0.1, high=0.9)", "optim.b1 is searched, but --config"),
        ("suggest('optim.eps')", "needs the numbers low= and high=, or else choices="),
        ("suggest('optim.eps', low=1e-3)", "needs the numbers low= and high="),
        ("suggest('optim.eps', low=1e-3, high=1e-4)", "low=0.001 is not below high=0.0001"),
        ("suggest('optim.eps', low=0, high=1, log=True)", "low=0 must be above 0"),
        ("suggest('optim.eps', choices=(1e-3, 1e-3))", "a choice stands there twice"),
        ("suggest('loss.num_sampled', low=0.5, high=8)", "'loss.num_sampled' must be int"),
        ("suggest('optim.name', low=1, high=8)", "'optim.name' must be str"),
        ("suggest('optim.name', choices=('adam', 'adma'))", "arm 'a': config.optim.name='adma'"),
        (f"{RATE}\n{RATE}", "suggests optim.learning_rate twice"),
    ],
)
def test_a_wrong_range_is_one_message_before_anything_starts(tmp_path, body, message):
    sweep = load_sweep(write_search(tmp_path, body), **{"optim.b1": 0.5})
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep, tmp_path / "w", search="optuna", quiet=True)
    assert not Path(tmp_path / "w").exists()


def test_ranges_have_the_type_of_their_key(tmp_path):
    body = "suggest('optim.eps', low=1, high=2)\nsuggest('loss.num_sampled', low=8, high=64)"
    floats, ints = load_ranges(load_sweep(write_search(tmp_path, body)))
    assert type(floats.low) is float and type(ints.low) is int
    assert floats.value(1.23456) == 1.23
    assert floats.value(1.9999) == 2.0
    assert ints.value(33) == 33


def test_a_file_without_ranges_a_budget_of_none_and_another_search_are_refused(tmp_path):
    sweep = load_sweep(write_arms(tmp_path, "a"))
    with pytest.raises(ConfigError, match=r"own.py has no function search\(suggest\)"):
        run_sweep(sweep, tmp_path / "w", search="optuna")
    with pytest.raises(ConfigError, match="search_trials=0"):
        run_sweep(sweep, tmp_path / "w", search="optuna", search_trials=0)
    with pytest.raises(ConfigError, match="search='grid': the one there is is 'optuna'"):
        run_sweep(sweep, tmp_path / "w", search="grid")
