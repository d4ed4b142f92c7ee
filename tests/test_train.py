"""The loop: what is due at which step, and what happens when it cannot go on."""

import dataclasses
import json
import re

import numpy as np
import pytest

from recjax import load_config, train
from recjax.errors import CheckpointError, ConfigError, DivergenceError
from recjax.experiment import make_experiment
from recjax.run import train_until
from recjax.train import train_experiment
from tests.runs import (
    ROOT,
    assert_same_run,
    checkpoints_of,
    lines_of,
    never_stopped,
    small_config,
    stopper,
)
from tests.tiny import quickly_compiled


def steps_with(name, workdir):
    """The steps whose lines in metrics.jsonl have a scalar of this name."""
    return [line["step"] for line in lines_of(workdir) if name in line]


def test_each_interval_is_its_own_and_the_last_step_is_logged_validated_and_saved():
    run = never_stopped("mf")
    assert steps_with("train/loss", run.workdir) == [4, 8, 12, 16, 20]
    assert steps_with("valid/recall@10", run.workdir) == [7, 14, 20]
    assert sorted(p.name for p in (run.workdir / "checkpoints" / "latest").iterdir()) == [
        "18",
        "20",
    ]


def test_metrics_are_a_line_of_a_step_and_named_scalars_the_test_metrics_last():
    run = never_stopped("mf")
    lines = lines_of(run.workdir)
    assert [next(iter(line)) for line in lines] == ["step"] * len(lines)
    assert all(isinstance(v, int | float) for line in lines for v in line.values())
    assert lines[-1]["step"] == 20
    assert {"test/recall@10", "test/ndcg@5", "test/popularity/recall@10"} < set(lines[-1])
    assert not any(name.startswith("test/") for line in lines[:-1] for name in line)


def test_a_run_leaves_its_config_protocol_events_and_results():
    workdir = never_stopped("mf").workdir
    protocol = json.loads((workdir / "protocol.json").read_text())
    assert protocol["selection_metric"] == "valid/recall@10"
    assert {"dataset_hash", "split_hash", "corpus", "seen", "ties"} <= set(protocol)
    results = json.loads((workdir / "eval" / "test.json").read_text())
    assert list(results["rankers"]) == ["model", "popularity", "random", "oracle"]
    assert list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["model"]["dim"] == 8
    assert not list(workdir.rglob("*.partial"))


def test_the_best_validation_is_what_is_tested():
    run = never_stopped("mf")
    values = {
        s: line["valid/recall@10"]
        for line in lines_of(run.workdir)
        if "valid/recall@10" in line
        for s in [line["step"]]
    }
    assert run.step == max(values, key=lambda step: (values[step], -step))


def test_it_stops_after_so_many_validations_without_a_gain(tmp_path):
    never_better = {"optim.learning_rate": 1e-9, "eval.every": 3, "eval.patience": 2}
    config = small_config("mf", **never_better, **{"checkpoint.every": 100})
    run = train(config, tmp_path, quiet=True)
    assert run.step == 3
    assert steps_with("valid/recall@10", tmp_path) == [3, 6, 9]
    assert steps_with("train/loss", tmp_path) == [4, 8, 9]
    assert steps_with("test/recall@10", tmp_path) == [9]
    step, state, record = checkpoints_of(run)[0]
    assert (step, int(state.step), record["best"]["stale"]) == (9, 9, 2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    train(config, tmp_path, quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    config = small_config("mf", **{"eval.every": 100})
    assert train_until(stopper(5), config, tmp_path, quiet=True) is None
    experiment = make_experiment(config)
    spoilt = {**experiment.arrays, "trainable_N": np.zeros(60, bool)}  # a softmax over nothing
    with pytest.raises(DivergenceError, match="infinite at step 6; .* Try a lower optim.learning"):
        train_experiment(dataclasses.replace(experiment, arrays=spoilt), tmp_path, quiet=True)
    assert steps_with("train/loss", tmp_path) == [4]
    assert checkpoints_of(never_stopped("mf"), tmp_path)[0][0] == 5


@pytest.mark.parametrize(
    "changes", [{}, {"loss.candidates": "uniform", "tables.dtype": "bfloat16"}]
)
def test_parameters_that_are_no_numbers_are_not_saved(tmp_path, changes):
    huge = {"optim.learning_rate": 1e30, "optim.weight_decay": 1e30, "optim.name": "sgd"}
    with pytest.raises(DivergenceError, match="parameters became NaN or infinite at step 1"):
        config = small_config("mf", **huge, **changes, **{"checkpoint.every": 1})
        train(config, tmp_path, quiet=True)
    assert not list((tmp_path / "checkpoints").glob("*/*"))


def test_a_workdir_that_is_no_folder_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'file'}")):
        train(small_config("mf"), tmp_path / "file", quiet=True)


# The last fit, once everything is chosen, of a model with a candidate source that has a state.
LAST_FIT = {
    "split.fit": "train_and_valid",
    "train.steps": 10,
    "model.normalize": True,
    "model.temperature": 0.25,
    "loss.candidates": "mixed",
    "loss.mixed": ("memory", "uniform"),
    "loss.memory": 48,
    "loss.num_sampled": 16,
    "loss.frequency": "streaming",
    "diagnostics.every": 4,
    "diagnostics.queries": 8,
    "diagnostics.draws": 4,
}


@pytest.fixture(scope="module")
def last_fit(tmp_path_factory):
    with quickly_compiled():
        return train(small_config("mf", **LAST_FIT), tmp_path_factory.mktemp("last"), quiet=True)


def test_a_last_fit_has_nothing_to_validate_on_and_tests_its_last_step(last_fit):
    lines = lines_of(last_fit.workdir)
    assert not any(name.startswith("valid/") for line in lines for name in line)
    assert steps_with("test/recall@10", last_fit.workdir) == [10]
    assert last_fit.step == 10
    protocol = json.loads((last_fit.workdir / "protocol.json").read_text())
    assert protocol["selection_metric"] == "none: the last step"
    assert protocol["split_params"]["fit"] == "train_and_valid"
    with pytest.raises(ConfigError, match="nothing to validate on; ask for 'test'"):
        last_fit.evaluate("valid")
    before = never_stopped("mf").experiment.examples.size
    assert last_fit.experiment.examples.size > before


def test_the_estimators_error_and_the_temperature_are_logged(last_fit):
    for group in ("query", "items", "head"):
        for name in ("bias", "bias_noise", "variance", "cosine"):
            assert steps_with(f"diagnostics/{group}/{name}", last_fit.workdir) == [4, 8]
    assert 0 < last_fit.metrics["diagnostics/items/cosine"] < 1
    assert last_fit.metrics["train/logit_scale"] == pytest.approx(4, rel=1e-5)
    assert last_fit.metrics["train/effective_temperature"] == pytest.approx(0.25, rel=1e-5)


def test_a_checkpoint_holds_what_the_candidate_source_remembers_and_has_counted(last_fit):
    (step, state, _), _ = checkpoints_of(last_fit)
    assert step == 10
    assert (np.asarray(state.source["memory"]["ids_M"]) >= 0).all()
    assert float(state.source["frequency"]["draws"]) == pytest.approx(32, abs=2)


@pytest.mark.slow
def test_a_last_fit_that_was_stopped_ends_as_if_it_never_was(last_fit, tmp_path):
    config = small_config("mf", **LAST_FIT)
    with quickly_compiled():
        assert train_until(stopper(5), config, tmp_path, quiet=True) is None
        train(config, tmp_path, quiet=True)
    assert_same_run(tmp_path, last_fit)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_every_shipped_config_trains_two_steps(tmp_path, path):
    changes = {"train.steps": 2, "parallel.data": 1, "eval.bootstrap": 0}
    world = {"data.synthetic.users": 300, "data.synthetic.items": 200}
    run = train(load_config(str(path), **changes | world), tmp_path, quiet=True)
    assert run.step == 2
    assert 0 < run.metrics["train/loss"] < 1.1 * np.log(200)
