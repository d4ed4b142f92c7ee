"""Small random data sets, full of ties in time, whose items say which row they come from."""

import numpy as np
from hypothesis import strategies as st

from recjax.data.dataset import Categorical, Dataset, Dense, Interactions, Table
from recjax.data.lists import ItemLists
from recjax.data.schema import Feature, Schema
from recjax.data.split import TRAIN, Split

SCHEMA = Schema(
    features=(
        Feature("watch_time", "dense", "context"),
        Feature("device", "categorical", "context"),
    ),
    time="time",
)
DEVICES = np.array(["tv", "phone"])


def dataset_of(
    user, item, time=None, watch_time=None, device=None, *, num_users=None, negatives=None
):
    """A data set of rows given in any order; `negatives` is a list of items for each row."""
    user, item = np.asarray(user), np.asarray(item)
    columns = {}
    if watch_time is not None:
        columns["watch_time"] = Dense(np.asarray(watch_time, np.float32))
    if device is not None:
        columns["device"] = Categorical(np.asarray(device, np.int32), DEVICES)
    users = num_users or int(user.max(initial=0)) + 1
    interactions = Interactions.build(
        user,
        item,
        users,
        time=None if time is None else np.asarray(time, np.float64),
        columns=columns,
        negatives=None if negatives is None else lists_of(negatives),
    )
    shown = [0] if negatives is None else sum(negatives, [0])
    items = Table(np.arange(max(int(item.max(initial=0)), max(shown)) + 1))
    return Dataset("small", SCHEMA, Table(np.arange(users)), items, interactions)


def lists_of(rows):
    """Lists of items from a list of lists."""
    offsets = np.cumsum([0, *map(len, rows)])
    return ItemLists(offsets, np.array(sum(rows, []), np.int32))


def split_of(part):
    """A split with the given codes."""
    return Split("given", np.asarray(part, np.int8), {}, "0" * 16)


@st.composite
def datasets(draw, *, traced=False, timed=True):
    """A data set; with `traced`, item i occurs only in row i of the sorted interactions."""
    num_users = draw(st.integers(1, 5))
    size = draw(st.integers(2, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    user = (
        np.sort(random.integers(0, num_users, size))
        if traced
        else random.integers(0, num_users, size)
    )
    time = random.integers(0, 6, size) * 40_000.0
    item = random.integers(0, 7, size)
    if traced:
        time, item = time[np.lexsort((time, user))], np.arange(size)
    watch_time = np.where(random.random(size) < 0.3, np.nan, random.random(size))
    device = random.integers(-1, 2, size)
    return dataset_of(user, item, time if timed else None, watch_time, device, num_users=num_users)


@st.composite
def random_splits(draw, dataset):
    """Parts without a rule, at least one interaction in training."""
    size = dataset.interactions.size
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    part = random.choice(5, size, p=[0.5, 0.15, 0.15, 0.1, 0.1])
    part[random.integers(size)] = TRAIN
    return split_of(part)


def kept(history):
    """The items of one history, after a check that padding is on the left."""
    items = [int(i) for i in history if i >= 0]
    assert list(history[: len(history) - len(items)]) == [-1] * (len(history) - len(items))
    return items
