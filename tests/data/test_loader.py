import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.data.examples import make_train_examples
from recjax.data.loader import Batches, make_batches, steps_per_epoch
from recjax.data.split import TRAIN
from tests.data.small import dataset_of, split_of


def examples_of(size, labels="next_item"):
    """`size` examples of one label each; with multi_hot, of random histories too."""
    split = split_of([TRAIN] * size * 3)
    data = dataset_of(
        np.repeat(np.arange(size), 3), np.arange(size * 3), np.tile(np.arange(3.0), size)
    )
    if labels == "next_item":
        return make_train_examples(
            data, split, labels=labels, history="past", history_length=2, min_history=2
        )
    return make_train_examples(
        data,
        split,
        labels=labels,
        history="profile",
        history_length=3,
        history_dropout=0.5,
        max_labels=2,
    )


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_holds_every_example_once_and_pads_with_weight_zero(size, batch_size, epoch):
    batches = Batches(examples_of(size), batch_size, seed=1)
    assert batches.per_epoch == steps_per_epoch(size, batch_size) == -(-size // batch_size)
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    users, weight = [], []
    for batch in map(batches, steps):
        assert batch["user"].shape == (batch_size,)
        np.testing.assert_array_equal(batch["index"], np.arange(batch_size))
        padded = batch["weight"] == 0.0
        np.testing.assert_array_equal(batch["user"][padded], batch["user"][0])
        users.append(batch["user"])
        weight.append(batch["weight"])
    users, weight = np.concatenate(users), np.concatenate(weight)
    np.testing.assert_array_equal(np.sort(users[weight == 1.0]), np.arange(size))
    assert weight.sum() == size


def test_the_order_changes_with_the_epoch_and_the_seed_only():
    examples = examples_of(100)
    users = {
        (seed, step): Batches(examples, 100, seed)(step)["user"].tolist()
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len({tuple(order) for order in users.values()}) == 4
    assert Batches(examples, 100, 0)(1)["user"].tolist() == users[0, 1]


def test_steps_may_be_asked_for_in_any_order():
    forwards, backwards = (Batches(examples_of(5), 2, seed=0) for _ in range(2))
    assert_same([forwards(s) for s in range(12)], [backwards(s) for s in range(11, -1, -1)][::-1])


@pytest.mark.parametrize("labels", ["next_item", "multi_hot"])
@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_prefetched_batches_are_those_computed_directly_from_any_start(labels, prefetch):
    examples = examples_of(23, labels)
    direct = Batches(examples, 4, seed=7)
    for start in (0, 5, 13):
        loaded = list(
            make_batches(examples, batch_size=4, seed=7, start=start, stop=20, prefetch=prefetch)
        )
        assert_same(loaded, [direct(step) for step in range(start, 20)])


def test_nothing_is_left_where_start_is_stop():
    examples = examples_of(3)
    assert not list(make_batches(examples, batch_size=2, seed=0, start=4, stop=4, prefetch=2))


def prefetching():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


@pytest.mark.parametrize("end", ["drop", "close", "exhaust"])
def test_threads_end_with_the_iterator(end):
    before = len(prefetching())
    batches = make_batches(
        examples_of(50),
        batch_size=2,
        seed=0,
        start=0,
        stop=1000 if end != "exhaust" else 5,
        prefetch=4,
    )
    next(batches)
    assert len(prefetching()) > before
    if end == "close":
        batches.close()
    if end == "exhaust":
        assert len(list(batches)) == 4
    del batches
    gc.collect()
    deadline = time.monotonic() + 10.0
    while len(prefetching()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(prefetching()) == before


@pytest.mark.parametrize("labels", ["next_item", "multi_hot"])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_processes_are_the_whole_batch(labels, processes):
    examples, share = examples_of(21, labels), 8 // processes
    whole = Batches(examples, 8, seed=3)
    parts = [
        Batches(examples, 8, seed=3, rows=slice(i * share, (i + 1) * share))
        for i in range(processes)
    ]
    for step in range(2 * whole.per_epoch):  # the last batch of an epoch is padded
        made = [part(step) for part in parts]
        joined = {name: np.concatenate([each[name] for each in made]) for name in made[0]}
        assert_same([joined], [whole(step)])
