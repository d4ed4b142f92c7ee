"""A run that was killed, stopped or damaged ends as the run that never was, bit for bit."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest

from recjax import train
from recjax.errors import CheckpointError
from recjax.run import train_until
from tests.runs import (
    MODELS,
    assert_same_run,
    checkpoints_of,
    lines_of,
    never_stopped,
    small_config,
    start,
    stopper,
    train_and_be_killed,
)

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "mf"]


@pytest.fixture
def finished_copy(tmp_path):
    """A copy of the workdir of a finished run, and that run."""
    run = never_stopped("mf")
    return shutil.copytree(run.workdir, tmp_path / "copy"), run


def truncate_largest(folder):
    largest = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize("name", ["mf", *SLOW])
def test_killed_three_times_it_ends_as_if_it_never_was(tmp_path, name):
    rng = np.random.default_rng(list(name.encode()))
    for while_saving in (False, True, False):
        steps = int(rng.integers(4, 8))
        killed = start(train_and_be_killed, name, str(tmp_path), steps, while_saving)
        errors = killed.communicate(timeout=120)[1]
        assert killed.returncode == -signal.SIGKILL, errors
        assert not (tmp_path / "eval").exists()
    train(small_config(name), tmp_path, quiet=True)
    assert_same_run(tmp_path, never_stopped(name))


def test_stopped_at_any_step_it_goes_on_from_there(tmp_path, capsys):
    config = small_config("mf")
    assert train_until(stopper(0), config, tmp_path) is None
    assert train_until(stopper(7), config, tmp_path) is None
    # As if the best of step 7 had still been on its way when the latest of step 7 was complete.
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    assert train_until(stopper(1), config, tmp_path) is None
    assert "resumed at step 7 of 20\nstopped after step 8" in capsys.readouterr().out
    train(config, tmp_path, quiet=True)
    assert_same_run(tmp_path, never_stopped("mf"))


def test_a_finished_run_is_tested_again_to_the_same_end(finished_copy):
    workdir, run = finished_copy
    shutil.rmtree(workdir / "eval")
    train(small_config("mf"), workdir, quiet=True)
    assert_same_run(workdir, run)


def test_a_truncated_checkpoint_gives_way_to_the_one_before(finished_copy, caplog):
    workdir, run = finished_copy
    newest = workdir / "checkpoints" / "latest" / "20"
    truncate_largest(newest)
    train(small_config("mf"), workdir, quiet=True)
    assert f"{newest} is damaged" in caplog.text
    assert_same_run(workdir, run)


@pytest.mark.parametrize(("steps", "bests"), [(20, (14, 20)), (9, (9,))])
def test_a_truncated_best_is_chosen_anew(tmp_path, caplog, steps, bests):
    assert train_until(stopper(9), small_config("mf"), tmp_path, quiet=True) is None
    (best,) = (tmp_path / "checkpoints" / "best").iterdir()
    truncate_largest(best)
    run = train(small_config("mf", **{"train.steps": steps}), tmp_path, quiet=True)
    assert "of step 7, is damaged or missing: the best is chosen anew from step 9" in caplog.text
    assert ("the last, of step 9, takes its place" in caplog.text) == (steps == 9)
    assert run.step in bests
    latest, kept = checkpoints_of(run)
    assert (latest[0], latest[2]["best"]["step"], kept[0]) == (steps, run.step, run.step)
    assert (tmp_path / "eval" / "test.json").exists()
    caplog.clear()
    assert (
        train(small_config("mf", **{"train.steps": steps}), tmp_path, quiet=True).step == run.step
    )
    assert not caplog.text


def test_keys_that_may_change_are_changed_and_training_goes_on(finished_copy):
    workdir, run = finished_copy
    changes = {"train.steps": 22, "eval.ks": (10, 20), "log.every": 100, "eval.bootstrap": 0}
    train(small_config("mf", **changes), workdir, quiet=True)
    before, after = lines_of(run.workdir), lines_of(workdir)
    assert after[: len(before) - 1] == before[:-1]
    assert [line["step"] for line in after[len(before) - 1 :]] == [21, 22, 22, 22]
    assert "test/recall@20" in after[-1]


def test_the_workdir_of_another_config_is_refused_and_left_as_it_was(finished_copy):
    workdir, _ = finished_copy
    kept = (workdir / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="model.dim was 8, is 16.*another --workdir"):
        train(small_config("mf", **{"model.dim": 16, "train.steps": 30}), workdir)
    assert (workdir / "config.json").read_bytes() == kept


def test_the_workdir_of_other_data_is_refused(finished_copy):
    workdir, run = finished_copy
    renamed = dataclasses.replace(run.experiment.dataset, name="other")
    with pytest.raises(CheckpointError, match="another protocol: dataset differ"):
        train(small_config("mf"), workdir, renamed, quiet=True)


def test_a_run_goes_on_under_the_other_mapper_and_on_other_devices(tmp_path):
    def train_steps(steps, workdir, mapper, devices):
        changes = {"eval.every": 20, "checkpoint.every": 4, "checkpoint.keep": 3}
        changes |= {"parallel.mapper": mapper, "parallel.data": devices}
        assert (
            train_until(stopper(steps), small_config("mf", **changes), workdir, quiet=True) is None
        )

    straight, changing = tmp_path / "straight", tmp_path / "changing"
    train_steps(12, straight, "shard_map", 8)
    shutil.copytree(straight, changing)
    for step in ("8", "12"):
        shutil.rmtree(changing / "checkpoints" / "latest" / step)
    train_steps(4, changing, "pmap", 8)
    train_steps(4, changing, "shard_map", 2)
    (step, found, _), (_, expected, _) = (
        checkpoints_of(never_stopped("mf"), workdir)[0] for workdir in (changing, straight)
    )
    assert step == 12
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)
