"""Several seeds as one call: each ends as the run of its own that it stands for."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from recjax import load_run, train
from recjax.errors import CheckpointError, ConfigError
from recjax.seeds import train_seeds, train_seeds_until
from tests import test_step
from tests.runs import (
    assert_same_run,
    assert_same_state,
    checkpoints_of,
    flags_of,
    lines_of,
    slow_main,
    small_config,
    start,
    start_main,
    stopper,
)
from tests.tiny import host_batch, tiny_dataset, tiny_experiment

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = (3, 0, 5)
# Sampled candidates, tables of both modes, and an end that is early for some seeds.
SGD = {
    "optim.name": "sgd",
    "optim.learning_rate": 2.0,
    "model.query.features": ("history", "age"),
    "model.query.pooling": ("mean",),
    "train.steps": 10,
    "eval.every": 2,
    "eval.patience": 2,
    "eval.bootstrap": 0,
    "log.tensorboard": False,
}


def config(**changes):
    return small_config("softmax", **SGD, **changes)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    return train_seeds(config(), SEEDS, tmp_path_factory.mktemp("s"), mode="auto", quiet=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return train_seeds(config(), SEEDS, tmp_path_factory.mktemp("v"), mode="vmap", quiet=True)


def ends(runs):
    """(last step, step of the best) of each run."""
    return [(lines_of(run.workdir)[-1]["step"], run.step) for run in runs]


def assert_close_runs(runs, expected):
    """The same checkpoints and metrics but for rounding."""
    assert ends(runs) == ends(expected)
    for run, wanted in zip(runs, expected, strict=True):
        for found, want in zip(checkpoints_of(run), checkpoints_of(wanted), strict=True):
            assert found[2]["best"]["step"] == want[2]["best"]["step"]
            test_step.assert_close(found[1], want[1], 1e-5)
        lines, other = lines_of(run.workdir), lines_of(wanted.workdir)
        assert [line.keys() for line in lines] == [line.keys() for line in other]
        for line, known in zip(lines, other, strict=True):
            assert line == pytest.approx(known, abs=1e-5, nan_ok=True)


def test_one_after_another_each_is_the_run_of_its_own_bit_for_bit(sequential, tmp_path):
    assert [run.workdir.name for run in sequential] == ["seed3", "seed0", "seed5"]
    assert len({run.metrics["train/loss"] for run in sequential}) == len(SEEDS)
    separate = train(config(seed=5), tmp_path, quiet=True)
    assert_same_run(sequential[2].workdir, separate)
    for name in ("config.json", "protocol.json"):
        found = (sequential[2].workdir / name).read_text()
        assert found == (tmp_path / name).read_text()


def test_what_is_compiled_and_made_is_shared(sequential):
    first, *others = (run.experiment for run in sequential)
    for other in others:
        assert other.dataset is first.dataset
        assert other.queries("test") is first.queries("test")
        assert other.scorer is first.scorer
    assert first.train_step._cache_size() == 1
    assert first._compiled_init._cache_size() == 1


def test_side_by_side_ten_steps_are_those_of_the_runs_by_themselves(sequential, together):
    last = [step for step, _ in ends(sequential)]
    assert 10 in last and len(set(last)) > 1
    assert_close_runs(together, sequential)


def test_a_seeds_folder_is_a_workdir_like_any_other(together):
    run = together[1]
    assert {"cost.json", "timings.jsonl", "eval"} <= {path.name for path in run.workdir.iterdir()}
    assert json.loads((run.workdir / "config.json").read_text())["seed"] == 0
    loaded = load_run(run.workdir)
    assert loaded.step == run.step
    assert_same_state(loaded.variables, run.variables)
    with pytest.raises(CheckpointError, match="model.dim was 8, is 4"):
        train(config(**{"model.dim": 4}), run.workdir)


@pytest.mark.slow
def test_seeds_that_were_killed_at_different_steps_go_on_each_at_its_own(
    sequential, tmp_path, capsys
):
    assert train_seeds_until(stopper(5), config(), SEEDS, tmp_path, mode="vmap") is None
    assert capsys.readouterr().out.count("stopped after step 5; the same command goes on") == 3
    shutil.rmtree(tmp_path / "seed0" / "checkpoints" / "latest" / "5")
    shutil.rmtree(tmp_path / "seed5")
    runs = train_seeds(config(), SEEDS, tmp_path, mode="vmap")
    out = capsys.readouterr().out
    assert re.findall(r"seed (\d): resumed at step (\d) of 10\n", out) == [("3", "5"), ("0", "3")]
    assert_close_runs(runs, sequential)


@pytest.mark.parametrize(
    ("seeds", "mode", "changes", "message"),
    [
        ((), "auto", {}, "at least one, and none twice"),
        ((1, 2, 1), "auto", {}, r"seeds=\[1, 2, 1\]: .* none twice"),
        ((0, -1), "auto", {}, "config.seed=-1"),
        ((0, 1), "pmap", {}, "no mode 'pmap'; it is one of auto, vmap, sequential"),
        ((0, 1), "vmap", {"parallel.data": 2}, "one device, .* parallel.data=2 .*=sequential"),
    ],
)
def test_what_cannot_be_is_one_message(tmp_path, seeds, mode, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_seeds(small_config("mf", **changes), seeds, tmp_path, mode=mode, quiet=True)
    assert not list(tmp_path.iterdir())


# The others differ in how items are drawn or scored, which all of them do by the same functions.
CASES = {name: test_step.CASES[name] for name in ("softmax", "in_batch_bpr", "mixed", "hard")}
CASES["ccl"] = {"loss__name": "ccl", "model__normalize": True}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c == "softmax" else pytest.mark.slow) for c in CASES]
)
def test_every_source_loss_and_side_trains_side_by_side(case):
    settings = dict(CASES[case])
    dataset = settings.pop("dataset", tiny_dataset)()
    experiment = tiny_experiment(**settings, dataset=dataset)
    parallel, seeds = experiment.parallel, (0, 1, 2**32 - 1)
    states = [experiment.with_seed(seed).init_state() for seed in seeds]
    many, step = parallel.stack(states), parallel.compile_many(experiment.step)
    for number in test_step.STEPS:
        batches = [host_batch(experiment, number, seed) for seed in seeds]
        many, metrics = step(many, parallel.put_batches(batches), experiment.arrays)
        alone = []
        for place, batch in enumerate(batches):
            batch = parallel.put_batch(batch)
            states[place], one = experiment.train_step(states[place], batch, experiment.arrays)
            alone.append(one)
    assert step._cache_size() == 1
    for place, state in enumerate(states):
        test_step.assert_close(parallel.pick(many, place), state, 1e-5)
        for name, value in alone[place].items():
            assert float(metrics[name][place]) == pytest.approx(float(value), abs=1e-5)
    assert not np.array_equal(*(jax.tree.leaves(state.params)[0] for state in states[:2]))


@pytest.mark.slow
def test_the_command_takes_seeds_and_goes_on_after_a_signal(tmp_path):
    words = [*flags_of("mf", tmp_path, **{"train.steps": 200}), "--seeds=2,4"]
    process = start(slow_main, 0.2, words=words)
    while process.poll() is None and not (tmp_path / "seed2" / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert re.search(r"stopped after step \d+; the same command goes on there\n$", out)
    process = start_main(*words, "--config.train.steps=20")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert out.count("resumed at step") == 1
    for seed in (2, 4):
        assert f"seed {seed}: test/recall@10 0." in out
    assert re.search(r"recall@10 of 2 seeds: mean 0\.\d{4}, standard deviation", out)
    process = start_main(*words, "--seeds=0,x")
    assert process.communicate(timeout=120)[1].startswith("error: --seeds=0,x: expected whole")
    assert process.returncode == 2
