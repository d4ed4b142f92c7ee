"""What a run cost is written last, from its timings and a timed query."""

import json
import shutil

import jax
import pytest

from recjax import train
from recjax.cost import training_speed
from recjax.run import is_finished, train_until
from tests.runs import never_stopped, small_config, stopper


def cost_of(workdir):
    return json.loads((workdir / "cost.json").read_text())


def speed_of(folder, *lines, steps=20):
    file = folder / "timings.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return training_speed(file, steps, batch_size=10)


def rate(step, examples_per_second):
    return {"step": step, "train/examples_per_second": examples_per_second}


def test_a_finished_run_says_what_it_cost():
    run = never_stopped("mf")
    cost = cost_of(run.workdir)
    variables = jax.tree.leaves(run.variables)
    assert cost["parameters"] == sum(leaf.size for leaf in variables)
    size = run.experiment.examples.size
    assert (cost["steps"], cost["query_batch"]) == (20, 64)
    assert cost["examples"] == 20 // run.experiment.steps_per_epoch * size + min(
        20 % run.experiment.steps_per_epoch * 32, size
    )
    assert cost["step_ms"] == pytest.approx(1e3 * 32 / cost["examples_per_second"])
    assert 0 < cost["step_ms"] / 1e3 < cost["train_seconds"] < 60
    assert 0 < cost["query_ms"] < 1e3
    assert cost["devices"] == "1 x cpu (cpu)"
    assert cost["jax"] == jax.__version__


def test_a_run_is_finished_from_its_end_until_it_goes_on(tmp_path):
    workdir = shutil.copytree(never_stopped("mf").workdir, tmp_path / "run")
    assert is_finished(workdir)
    before = cost_of(workdir)
    longer = small_config("mf", **{"train.steps": 23})
    assert train_until(stopper(1), longer, workdir, quiet=True) is None
    assert not is_finished(workdir)
    train(longer, workdir, quiet=True)
    assert is_finished(workdir)
    assert cost_of(workdir)["steps"] == 23
    assert cost_of(workdir)["train_seconds"] > before["train_seconds"]
    assert not is_finished(tmp_path)


def test_speed_is_the_median_without_the_first_interval_of_a_start(tmp_path):
    begun, validated = {"step": 0, "started": 1.0}, {"step": 4, "valid/seconds": 9.0}
    lines = begun, rate(4, 1.0), validated, rate(8, 40.0), rate(12, 20.0), rate(16, 10.0)
    found = speed_of(tmp_path, *lines, rate(20, 80.0))
    assert found["examples_per_second"] == 30
    assert found["step_ms"] == pytest.approx(1e3 / 3)
    assert found["train_seconds"] == 40 + 1 + 2 + 4 + 0.5


def test_what_was_lost_in_a_stop_took_the_median_time(tmp_path):
    again = {"step": 10, "started": 2.0}
    lines = {"step": 0, "started": 1.0}, rate(4, 1.0), rate(8, 20.0), again, rate(12, 2.0)
    found = speed_of(tmp_path, *lines, steps=14)
    assert found["examples_per_second"] == 20
    assert found["train_seconds"] == 40 + 2 + 10 + 4 * 0.5  # steps 9, 10, 13 and 14


def test_a_lone_interval_counts_and_none_is_null(tmp_path):
    assert speed_of(tmp_path, rate(20, 50.0))["examples_per_second"] == 50
    assert set(speed_of(tmp_path).values()) == {None}
    assert set(training_speed(tmp_path / "none", 20, 10).values()) == {None}
