import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.data.context import available_context
from recjax.data.dataset import Dense
from recjax.data.examples import make_train_examples
from recjax.data.split import TEST, TRAIN, VALID
from recjax.errors import ConfigError, DataError
from tests.data.small import dataset_of, datasets, kept, random_splits, split_of


def next_item(data, split, length=3, **options):
    return make_train_examples(
        data, split, labels="next_item", history="past", history_length=length, **options
    )


def multi_hot(data, split, length=3, **options):
    return make_train_examples(
        data, split, labels="multi_hot", history="profile", history_length=length, **options
    )


def all_rows(examples, epoch=0, seed=0):
    return examples.batch(np.arange(examples.size), seed=seed, epoch=epoch)


def test_next_item_examples_equal_a_table_written_by_hand():
    # User 1's interactions are out of order in the file; items 5 and 6 are tied in time.
    data = dataset_of([0, 1, 1, 1, 1, 0], [3, 7, 5, 6, 5, 4], [1.0, 9.0, 2.0, 2.0, 5.0, 2.0])
    batch = all_rows(next_item(data, split_of([TRAIN] * 6)))
    np.testing.assert_array_equal(batch["user"], [0, 1, 1, 1])
    np.testing.assert_array_equal(
        batch["history"], [[-1, -1, 3], [-1, -1, 5], [-1, 5, 6], [5, 6, 5]]
    )
    np.testing.assert_array_equal(batch["label"], [[4], [6], [5], [7]])
    np.testing.assert_array_equal(batch["label_weight"], np.ones((4, 1)))
    np.testing.assert_array_equal(batch["weight"], np.ones(4))
    np.testing.assert_array_equal(batch["index"], np.arange(4))
    dtypes = {name: array.dtype for name, array in batch.items()}
    assert {n for n, d in dtypes.items() if d == np.int32} == {"user", "history", "label", "index"}
    assert {n for n, d in dtypes.items() if d == np.float32} == {"label_weight", "weight"}


def test_held_out_interactions_are_neither_label_nor_history_nor_counted():
    data = dataset_of([0] * 5, [0, 1, 2, 3, 4], np.arange(5.0) * 10.0)
    split = split_of([TRAIN, VALID, TRAIN, TRAIN, TEST])
    batch = all_rows(next_item(data, split, context=("user_count", "time_since_last")))
    np.testing.assert_array_equal(batch["label"], [[2], [3]])
    np.testing.assert_array_equal(batch["history"], [[-1, -1, 0], [-1, 0, 2]])
    np.testing.assert_array_equal(batch["context/user_count"], [1, 2])
    np.testing.assert_array_equal(batch["context/time_since_last"], [20, 10])


@pytest.mark.parametrize("min_history, labels", [(0, [0, 1, 2]), (1, [1, 2]), (2, [2])])
def test_min_history_is_the_number_of_earlier_interactions(min_history, labels):
    data = dataset_of([0] * 3, [0, 1, 2], [0.0, 1.0, 2.0])
    batch = all_rows(next_item(data, split_of([TRAIN] * 3), min_history=min_history))
    np.testing.assert_array_equal(batch["label"][:, 0], labels)


def test_users_without_examples_take_no_memory_and_hide_no_other():
    user_M = [7, 7, 90_000, 90_000, 90_000, 99_999]
    data = dataset_of(user_M, [0, 1, 2, 3, 4, 5], np.arange(6.0), num_users=100_000)
    examples = next_item(data, split_of([TRAIN, TRAIN, TRAIN, TRAIN, TEST, TRAIN]))
    batch = all_rows(examples)
    np.testing.assert_array_equal(batch["user"], [7, 90_000])
    np.testing.assert_array_equal(batch["label"], [[1], [3]])
    np.testing.assert_array_equal(batch["history"], [[-1, -1, 0], [-1, -1, 2]])
    np.testing.assert_array_equal(examples.label_frequency_N, [0, 0.5, 0, 0.5, 0, 0])
    own = [array for array in vars(examples).values() if isinstance(array, np.ndarray)]
    assert own and max(map(len, own)) < 10


@pytest.mark.parametrize("most", [1, 3, 40])
def test_every_example_is_its_users_however_many_each_has(most):
    count_U = np.random.default_rng(most).integers(0, most + 1, 300)
    user = np.repeat(np.arange(300), count_U)
    data = dataset_of(user, np.arange(len(user)) % 7, np.arange(len(user)), num_users=300)
    examples = next_item(data, split_of([TRAIN] * len(user)), min_history=0)
    assert examples.size == len(user)
    np.testing.assert_array_equal(all_rows(examples)["user"], user)


def test_without_history_there_is_an_empty_column():
    data = dataset_of([0] * 3, [0, 1, 2], [0.0, 1.0, 2.0])
    assert all_rows(next_item(data, split_of([TRAIN] * 3), 0))["history"].shape == (2, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_past_holds_only_training_rows_strictly_before_the_label(draw):
    data = draw.draw(datasets(traced=True))
    split = draw.draw(random_splits(data))
    inter = data.interactions
    batch = all_rows(next_item(data, split, 4, min_history=0))
    for history, label, user in zip(batch["history"], batch["label"], batch["user"], strict=True):
        rows = kept(history)
        row = int(label[0])
        before = [r for r in range(row) if inter.user[r] == user and split.part_M[r] == TRAIN]
        assert rows == before[-4:]
        assert all(inter.time[r] <= inter.time[row] for r in rows)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_changing_the_answer_the_future_and_held_out_rows_changes_nothing_seen(draw):
    data = draw.draw(datasets())
    split = draw.draw(random_splits(data))
    names = tuple(n for n in available_context(data) if n != "device")
    examples = next_item(data, split, context=names, min_history=0)
    example = draw.draw(st.integers(0, examples.size - 1))
    inter = data.interactions
    row = np.flatnonzero(split.part_M == TRAIN)[example]
    place = np.arange(inter.size)
    hidden = (place >= row) | (split.part_M != TRAIN)
    watch_time = np.where(hidden, 77.0, inter.columns["watch_time"].values).astype(np.float32)
    changed = dataclasses.replace(
        data,
        interactions=dataclasses.replace(
            inter,
            item=np.where(hidden, (inter.item + 1) % data.items.size, inter.item).astype(np.int32),
            time=inter.time + np.where(place > row, 1e6, 0.0),
            columns={**inter.columns, "watch_time": Dense(watch_time)},
        ),
    )
    one = np.array([example])
    before = examples.batch(one, seed=0, epoch=0)
    after = next_item(changed, split, context=names, min_history=0).batch(one, seed=0, epoch=0)
    for name in ("user", "history", *(f"context/{n}" for n in names)):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_profile_holds_only_the_users_own_training_rows(draw):
    data = draw.draw(datasets(traced=True, timed=draw.draw(st.booleans())))
    split = draw.draw(random_splits(data))
    inter = data.interactions
    batch = all_rows(
        multi_hot(data, split, 4, history_dropout=draw.draw(st.sampled_from([0.0, 0.5])))
    )
    for history, label, user in zip(batch["history"], batch["label"], batch["user"], strict=True):
        own = np.flatnonzero((inter.user == user) & (split.part_M == TRAIN))
        assert set(kept(history)) <= set(own[-4:])
        assert {int(i) for i in label if i >= 0} == set(own)


def test_a_repeated_item_counts_once_in_a_profile_and_takes_its_latest_place():
    data = dataset_of([0] * 5, [2, 4, 2, 3, 4], np.arange(5.0))
    batch = all_rows(multi_hot(data, split_of([TRAIN] * 5), 4))
    np.testing.assert_array_equal(batch["history"], [[-1, 2, 3, 4]])
    np.testing.assert_array_equal(batch["label"], [[2, 3, 4]])
    np.testing.assert_allclose(batch["label_weight"], [[1 / 3, 1 / 3, 1 / 3]])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_labels_are_distinct_weights_sum_to_one_and_padding_is_marked(draw):
    data = draw.draw(datasets())
    batch = all_rows(multi_hot(data, draw.draw(random_splits(data)), max_labels=3))
    np.testing.assert_allclose(batch["label_weight"].sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(batch["label"] < 0, batch["label_weight"] == 0.0)
    for label in batch["label"]:
        items = [i for i in label if i >= 0]
        assert len(items) == len(set(items)) <= 3


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_row_does_not_depend_on_the_batch_it_is_in(draw):
    data = draw.draw(datasets())
    split = draw.draw(random_splits(data))
    if draw.draw(st.booleans()):
        examples = multi_hot(data, split, history_dropout=0.5, max_labels=2)
    else:
        examples = next_item(data, split, context=available_context(data), min_history=0)
    indices = np.array(draw.draw(st.lists(st.integers(0, examples.size - 1), min_size=1)))
    whole = examples.batch(indices, seed=3, epoch=5)
    for row, index in enumerate(indices):
        alone = examples.batch(np.array([index]), seed=3, epoch=5)
        for name in whole.keys() - {"index"}:
            np.testing.assert_array_equal(whole[name][row], alone[name][0], err_msg=name)


def test_dropout_and_label_subsets_change_with_the_epoch_and_the_seed_at_the_stated_rate():
    users, each = 200, 10
    data = dataset_of(np.repeat(np.arange(users), each), np.tile(np.arange(each), users))
    examples = multi_hot(
        data, split_of([TRAIN] * users * each), each, history_dropout=0.3, max_labels=4
    )
    first, again = all_rows(examples), all_rows(examples)
    for other in (all_rows(examples, epoch=1), all_rows(examples, seed=1)):
        assert np.any(other["history"] != first["history"])
        assert np.any(other["label"] != first["label"])
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    # 2,000 draws of chance 0.7; 2,000 labels of 10 items, so 80 of each: 5 standard deviations.
    assert abs((first["history"] >= 0).mean() - 0.7) < 0.052
    counts = np.bincount(first["label"].ravel(), minlength=each)
    assert np.all(np.abs(counts - users * 4 / each) < 5 * np.sqrt(users * 0.4 * 0.6))


@pytest.mark.parametrize("make", [next_item, multi_hot])
def test_label_frequency_is_the_share_of_the_label_mass_of_an_epoch(make):
    data = dataset_of([0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 2, 3, 3, 3], np.arange(7.0))
    examples = make(data, split_of([TRAIN] * 7))
    batch = all_rows(examples)
    mass = np.zeros(4)
    real = batch["label"] >= 0
    np.add.at(mass, batch["label"][real], batch["label_weight"][real])
    assert examples.label_frequency_N.dtype == np.float64
    np.testing.assert_allclose(examples.label_frequency_N, mass / examples.size, rtol=1e-6)
    assert examples.label_frequency_N.sum() == pytest.approx(1.0, abs=1e-12)


def test_label_frequency_counts_labels_that_an_epoch_leaves_out_by_their_chance():
    data = dataset_of([0, 0, 0, 0, 1], [0, 1, 2, 3, 3])
    examples = multi_hot(data, split_of([TRAIN] * 5), max_labels=2)
    np.testing.assert_allclose(examples.label_frequency_N, [0.125, 0.125, 0.125, 0.625])


def test_an_example_weighs_its_number_of_items_to_the_power():
    data = dataset_of([0, 0, 0, 0, 1], [0, 1, 2, 3, 3])
    split = split_of([TRAIN] * 5)
    examples = multi_hot(data, split, max_labels=2, weight_power=0.5)
    np.testing.assert_array_equal(all_rows(examples)["weight"], [2.0, 1.0])
    np.testing.assert_array_equal(all_rows(multi_hot(data, split))["weight"], [1.0, 1.0])
    # How often a row gives a label to a batch does not depend on what the row weighs.
    np.testing.assert_allclose(examples.label_frequency_N, [0.125, 0.125, 0.125, 0.625])


def test_negatives_are_distinct_no_label_and_of_training_rows():
    # Rows by time: items 1, 2, 3 (held out), 1 of user 0; 4 of user 1.
    data = dataset_of(
        [0, 0, 0, 0, 1],
        [1, 2, 3, 1, 4],
        [3.0, 1.0, 4.0, 2.0, 0.0],
        negatives=[[7, 2, 7, 1], [3, 6], [5], [], [2, 4]],
    )
    split = split_of([TRAIN, TRAIN, TRAIN, TEST, TRAIN])
    examples = next_item(data, split, min_history=0, negatives=True)
    batch = all_rows(examples)
    np.testing.assert_array_equal(batch["label"][:, 0], [2, 1, 1, 4])
    np.testing.assert_array_equal(batch["negative"], [[3, 6], [-1, -1], [2, 7], [2, -1]])
    assert batch["negative"].dtype == np.int32
    users = multi_hot(data, split, negatives=True)
    np.testing.assert_array_equal(all_rows(users)["negative"], [[3, 6, 7], [2, -1, -1]])
    assert "negative" not in all_rows(multi_hot(data, split))
    assert "up to 3 negatives of its own" in users.describe()


@pytest.mark.parametrize("make", [next_item, multi_hot])
def test_of_many_negatives_others_are_drawn_each_epoch_whatever_the_batch(make):
    users, each = 300, 8
    shown = [list(range(10, 10 + each)), []] * users
    data = dataset_of(
        np.repeat(np.arange(users), 2), [0, 1] * users, np.arange(2.0 * users), negatives=shown
    )
    options = {"min_history": 0} if make is next_item else {}
    examples = make(data, split_of([TRAIN] * 2 * users), negatives=True, max_negatives=3, **options)
    first, second = (all_rows(examples, epoch=e)["negative"] for e in (0, 1))
    assert first.shape == (examples.size, 3) and np.any(first != second)
    np.testing.assert_array_equal(first, all_rows(examples)["negative"])
    assert np.any(first != all_rows(examples, seed=1)["negative"])
    few = examples.batch(np.array([4, 2]), seed=0, epoch=0)["negative"]
    np.testing.assert_array_equal(few, first[[4, 2]])
    drawn = first[first[:, 0] >= 0]
    assert len(drawn) == users and np.all(np.diff(np.sort(drawn, axis=1), axis=1) > 0)
    counts = np.bincount(drawn.ravel() - 10, minlength=each)
    assert np.all(np.abs(counts - users * 3 / each) < 5 * np.sqrt(users * 3 / each * 5 / each))


def test_data_without_negatives_say_how_to_name_them():
    split = split_of([TRAIN, TRAIN, TEST])
    with pytest.raises(DataError, match="small: .*no negatives.*'negatives' in schema.json"):
        multi_hot(dataset_of([0] * 3, [0, 1, 2]), split, negatives=True)
    held_out = dataset_of([0] * 3, [0, 1, 2], negatives=[[1], [0], [4]])
    with pytest.raises(DataError, match="no training interaction lists a negative"):
        multi_hot(held_out, split, negatives=True)
    with pytest.raises(ConfigError, match="examples.max_negatives=0"):
        multi_hot(held_out, split, negatives=True, max_negatives=0)


def test_descriptions_name_the_kind_and_the_numbers():
    data = dataset_of([0, 0, 0], [0, 1, 2], [0.0, 1.0, 2.0])
    split = split_of([TRAIN] * 3)
    described = next_item(data, split, context=("hour",)).describe()
    assert described == "2 next_item examples of 1 users, past of up to 3, context hour"
    assert (
        "3.0 distinct items each, up to 2 of them"
        in multi_hot(data, split, max_labels=2).describe()
    )


def test_data_without_times_refuses_a_past_and_says_what_to_use():
    with pytest.raises(DataError, match="small: this data has no times.*'multi_hot'"):
        next_item(dataset_of([0, 0], [0, 1]), split_of([TRAIN] * 2))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": "next_item", "history": "profile"}, "'next_item' with 'past'"),
        ({"labels": "single"}, "examples.labels='single'"),
        ({"history": "all"}, "examples.history='all'.*'past' or 'profile'"),
        ({"history_length": -1}, "examples.history_length=-1"),
        ({"history_dropout": 0.5}, "examples.history_dropout=0.5.*'past'"),
        ({"max_labels": 0}, "examples.max_labels=0"),
        ({"weight_power": 0.5}, "examples.weight_power=0.5.*'next_item'.*multi_hot"),
        (
            {"labels": "multi_hot", "history": "profile", "context": ("hour",)},
            "'hour'.*multi_hot",
        ),
        (
            {"labels": "multi_hot", "history": "profile", "history_dropout": 1.0},
            "examples.history_dropout=1.0",
        ),
    ],
)
def test_choices_that_do_not_go_together_are_named(options, message):
    data = dataset_of([0, 0], [0, 1], [0.0, 1.0])
    asked = {"labels": "next_item", "history": "past", "history_length": 2} | options
    with pytest.raises(ConfigError, match=message):
        make_train_examples(data, split_of([TRAIN] * 2), **asked)


def test_no_example_left_is_an_error():
    data = dataset_of([0, 1], [0, 1], [0.0, 1.0])
    with pytest.raises(DataError, match="no training interaction has 1 earlier.*min_history"):
        next_item(data, split_of([TRAIN] * 2))
    with pytest.raises(DataError, match="'given' has no training interactions"):
        next_item(data, split_of([TEST] * 2))
