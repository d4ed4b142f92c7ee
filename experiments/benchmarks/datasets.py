"""The workload's arrays as recjax data sets, and recjax's own loop around one experiment's step."""

import argparse
import collections
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.workload import (
    DIM,
    FEATURE_DIM,
    HIDDEN,
    ITEM_CATEGORIES,
    TAGS,
    USER_CATEGORIES,
    Arrays,
)
from recjax.allocator import keep_freed_memory
from recjax.config import load_config
from recjax.data.dataset import Bag, Categorical, Dataset, Interactions, Table, Vector
from recjax.data.loader import make_batches
from recjax.data.schema import Feature, Schema
from recjax.data.split import TEST, TRAIN, VALID
from recjax.experiment import Experiment, make_experiment

CONFIGS = Path(__file__).parents[2] / "configs"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
USER_FEATURES = ("user_id", "numbers", *(f"category_{i}" for i in range(len(USER_CATEGORIES))))
ITEM_FEATURES = ("item_id", "numbers", "tags", "category_0", "category_1")
_NEVER = 1_000_000_000  # steps of a run that nobody means to finish


def make_dataset(arrays: Arrays, label: np.ndarray | None = None, items: int = 0) -> Dataset:
    """Users and items with their features, and an interaction for each row of the workload.

    Args:
      arrays: of `interactions.npz`.
      label: items of the interactions, in a catalogue of `items` that has no features; those of
        `arrays` where None.

    What a user watched is both a bag among the user's features, as the peers read it, and nothing
    to the `past` of the interactions, which recjax can read in its place. recjax learns nothing
    of an item without a training interaction, and its softmax leaves such items out; so each user
    begins with `leads(dataset)` interactions that no example has as a label, and that together
    name those items.
    """
    user_M = arrays["user"]
    item_M = arrays["item"] if label is None else label
    num_users = len(arrays["user_categories"])
    columns, features = _item_columns(arrays) if label is None else ({}, ())
    num_items = items or len(arrays["item_categories"])
    lead_user, lead_item = _lead_in(user_M, item_M, num_items) if items else (user_M[:0],) * 2
    last = np.zeros(2, np.int32)  # one to validate and one to test on: a split must have them
    item_all = np.concatenate([lead_item, item_M, last])
    part_all = np.full(len(item_all), TRAIN, np.int8)
    part_all[-2:] = VALID, TEST
    return Dataset(
        name="benchmark",
        schema=Schema((*_USER_FEATURES, *features), time="time", part="part"),
        users=Table(np.arange(num_users), _user_columns(arrays)),
        items=Table(np.arange(num_items), columns),
        interactions=Interactions.build(
            np.concatenate([lead_user, user_M, last]),
            item_all,
            num_users,
            time=np.arange(len(item_all), dtype=np.float64),
            part=part_all,
        ),
    )


def leads(dataset: Dataset, examples: int) -> int:
    """How many interactions of each user are no examples: the config's `examples.min_history`."""
    active = len(np.unique(dataset.interactions.user))
    return (dataset.interactions.size - 2 - examples) // active


def build(config: str, dataset: Dataset, **overrides: Any) -> Experiment:
    """An experiment of a config in `configs/`, on one data set, with some keys set."""
    keep_freed_memory()  # as `recjax.main` does
    settings = {
        "train.steps": _NEVER,
        "optim.schedule": "constant",
        "log.every": 1,  # a metric then is one step's
        "tables.init": 0.05 / 3**0.5,  # the deviation of U(-0.05, 0.05), with which peers begin
        **overrides,
    }
    return make_experiment(load_config(str(CONFIGS / config), **settings), dataset)


def softmax_dnn(dataset: Dataset, examples: int) -> dict[str, Any]:
    """The query tower and head of W2 and W3, trained on the last `examples` interactions."""
    return {
        "examples.history_length": 0,
        "examples.min_history": leads(dataset, examples),
        "model.dim": DIM,
        "model.feature_dim": FEATURE_DIM,
        "model.query.features": (*USER_FEATURES, "watched"),
        "model.query.hidden": HIDDEN,
        "model.item.bias": True,
    }


def adagrad_of_a_sum(
    batch_size: int, rate: float = 0.05, accumulator: float = 0.1
) -> dict[str, Any]:
    """The peers' Adagrad, which is on the sum of the losses, for recjax's on their mean.

    A gradient that is B times smaller, with an accumulator that begins B^2 times lower, is the
    same update.
    """
    return {
        "optim.name": "adagrad",
        "optim.learning_rate": rate,
        "optim.initial_accumulator": accumulator / batch_size**2,
        "optim.eps": 1e-10 / batch_size**2,
    }


class Trainer:
    """Takes the steps that `recjax.loop.Loop` takes, without its logs, validations and saves.

    Attributes:
      experiment: what is trained.
      state: after the last step.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.state = experiment.init_state()
        self._pending: collections.deque[Any] = collections.deque()
        self._batches = self._make_batches()

    def _make_batches(self) -> Iterator[dict[str, np.ndarray]]:
        config = self.experiment.config
        return make_batches(
            self.experiment.examples,
            batch_size=config.train.batch_size,
            seed=config.seed,
            start=0,
            stop=_NEVER,
            prefetch=config.train.prefetch,
        )

    def step(self) -> Any:
        """Takes one step; its mean loss, which may still be under way."""
        experiment = self.experiment
        batch = experiment.parallel.put_batch(next(self._batches))
        self.state, metrics = experiment.train_step(self.state, batch, experiment.arrays)
        self._pending.append(metrics["loss"])
        while len(self._pending) >= experiment.parallel.steps_in_flight:
            np.asarray(self._pending.popleft())
        return metrics["loss"]

    def close(self) -> None:
        """Ends the threads that make batches."""
        self._batches.close()  # type: ignore[attr-defined]


def time_training(
    experiment: Experiment, flags: argparse.Namespace, began: float, **notes: Any
) -> None:
    """Times an experiment's steps and prints the result.

    Args:
      experiment: what is trained.
      flags: what `harness.make_parser` parsed.
      began: when the program began to build it, by `time.perf_counter`.
      **notes: more of the record.
    """
    with contextlib.closing(Trainer(experiment)) as trainer:
        setup = time.perf_counter() - began
        result = harness.time_steps(trainer.step, flags, experiment.config.train.batch_size)
    harness.report(PACKAGES, **result, setup_s=setup, **notes)


def _lead_in(
    user_M: np.ndarray, item_M: np.ndarray, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """As many interactions of each active user as it takes to name every item without one."""
    unseen = np.setdiff1d(np.arange(num_items, dtype=np.int32), item_M)
    active = np.unique(user_M)
    per_user = -(-len(unseen) // len(active))
    lead_item = np.zeros(per_user * len(active), np.int32)
    lead_item[: len(unseen)] = unseen
    return np.tile(active, per_user), lead_item


_USER_FEATURES = (
    Feature("numbers", "vector", "user"),
    Feature("watched", "bag", "user"),
    *(Feature(f"category_{i}", "categorical", "user") for i in range(len(USER_CATEGORIES))),
)


def _user_columns(arrays: Arrays) -> dict[str, Any]:
    categories = arrays["user_categories"].T
    return {
        "numbers": Vector(arrays["user_numbers"]),
        "watched": _bag(arrays["user_watched"], len(arrays["item_categories"])),
        **{
            f"category_{i}": Categorical(codes.copy(), np.arange(size))
            for i, (codes, size) in enumerate(zip(categories, USER_CATEGORIES, strict=True))
        },
    }


def _item_columns(arrays: Arrays) -> tuple[dict[str, Any], tuple[Feature, ...]]:
    features = (
        Feature("numbers", "vector", "item"),
        Feature("tags", "bag", "item"),
        *(Feature(f"category_{i}", "categorical", "item") for i in range(len(ITEM_CATEGORIES))),
    )
    columns = {
        "numbers": Vector(arrays["item_numbers"]),
        "tags": _bag(arrays["item_tags"], TAGS),
        **{
            f"category_{i}": Categorical(codes.copy(), np.arange(size))
            for i, (codes, size) in enumerate(
                zip(arrays["item_categories"].T, ITEM_CATEGORIES, strict=True)
            )
        },
    }
    return columns, features


def _bag(padded: np.ndarray, size: int) -> Bag:
    there = padded >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int64)
    return Bag(offsets, padded[there], np.arange(size))
