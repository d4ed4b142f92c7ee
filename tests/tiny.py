"""Experiments on a planted world so small that a step compiles in about a second."""

import contextlib
import functools
from pathlib import Path

import jax

from recjax.config import load_config
from recjax.data.loader import Batches
from recjax.data.synthetic import make_synthetic
from recjax.experiment import make_experiment

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = {
    "examples.history_length": 3,
    "model.dim": 8,
    "model.feature_dim": 4,
    "model.query.features": ("history", "age", "country"),
    "model.query.hidden": (8,),
    "model.item.hidden": (8,),
    "train.batch_size": 16,
    "optim.name": "sgd",
    "optim.schedule": "constant",
    "optim.learning_rate": 0.3,
    "parallel.data": 1,
    "tables.init": 0.3,
}


@contextlib.contextmanager
def quickly_compiled():
    """Compiles in half the time; the sums and their order are the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def tiny_dataset():
    """40 users, 51 items (an odd number, so that no two devices get the same share)."""
    return make_synthetic(users=40, items=51, interactions_per_user=8)


def tiny_experiment(config="two_tower", dataset=None, **overrides):
    """An experiment of one device; overrides are config keys with `__` for the dot."""
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    loaded = load_config(str(CONFIGS / f"{config}.py"), **(SMALL | overrides))
    return make_experiment(loaded, dataset or tiny_dataset())


def whole_state(experiment, seed=0):
    """The first state, not yet placed on the experiment's devices."""
    return experiment.step.init(seed, host_batch(experiment, 0), host_arrays(experiment))


def host_arrays(experiment):
    """What the encoder reads, on no devices."""
    return jax.device_get(experiment.arrays)


def host_batch(experiment, step, seed=0):
    """The batch of a step."""
    return Batches(experiment.examples, experiment.config.train.batch_size, seed)(step)


def variables_of(state):
    """What `model.apply` takes."""
    return {"params": state.params, "tables": state.tables}
