"""Columns to inputs: what is fitted on training rows, and what unseen and missing values mean."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.data.dataset import Bag, Categorical, Dataset, Dense, Interactions, Table, Vector
from recjax.data.encode import FeatureSpec, make_encoder
from recjax.data.schema import Feature, Schema
from recjax.errors import ConfigError

NAN = np.nan
WORDS = np.array(["ant", "bee", "cow", "dog"])


def dataset_of(user=(), item=(), context=(), *, num_users=4, num_items=4):
    """A data set with the given (feature, column) pairs and one interaction."""
    pairs = (*user, *item, *context)
    interactions = Interactions.build(np.zeros(1, int), np.zeros(1, int), num_users)
    interactions = dataclasses.replace(interactions, columns={f.name: c for f, c in context})
    return Dataset(
        "small",
        Schema(features=tuple(feature for feature, _ in pairs)),
        Table(np.arange(num_users), {f.name: c for f, c in user}),
        Table(np.arange(num_items), {f.name: c for f, c in item}),
        interactions,
    )


def encoder_of(dataset, query=("all",), item=("all",), train=(0, 1, 2), **overrides):
    train = np.asarray(train)
    arguments = {
        "query_features": query,
        "item_features": item,
        "context_sample": {},
        "history_length": 3,
        "history_table": "history",
    }
    return make_encoder(dataset, train, train, **(arguments | overrides))


def encode_users(feature, column, size, train=(0, 1, 2)):
    """(spec, inputs of every user, rows of the feature's table) of one user column."""
    dataset = dataset_of([(feature, column)], num_users=size, num_items=size)
    encoder = encoder_of(dataset, (feature.name,), None, train)
    inputs = encoder.query_inputs(encoder.arrays, {"user": np.arange(size)})
    (spec,) = encoder.query
    return spec, np.asarray(inputs[feature.name]), encoder.table_rows.get(spec.table)


def encode_numbers(*values, train=(0, 1, 2), **settings):
    feature = Feature("age", "dense", "user", **settings)
    return encode_users(feature, Dense(np.array(values, np.float32)), len(values), train)


def encode_words(*codes, train=(0, 1, 2), vocab=WORDS, **settings):
    feature = Feature("pet", "categorical", "user", **settings)
    column = Categorical(np.array(codes, np.int32), vocab)
    spec, ids, rows = encode_users(feature, column, len(codes), train)
    assert spec == FeatureSpec("pet", "embedding", table="user.pet")
    return ids.tolist(), rows


def test_numbers_are_standardised_on_training_rows():
    spec, inputs, _ = encode_numbers(1, 3, 5, 101)
    assert spec == FeatureSpec("age", "dense", width=1)
    np.testing.assert_allclose(inputs[:, 0], (np.array([1, 3, 5, 101]) - 3) / np.sqrt(8 / 3))


def test_logarithms_are_standardised_after_log1p():
    _, inputs, _ = encode_numbers(0, np.e - 1, np.e**2 - 1, np.e**4 - 1, transform="log")
    np.testing.assert_allclose(inputs[:, 0], (np.array([0, 1, 2, 4]) - 1) / np.sqrt(2 / 3), 1e-6)


def test_the_transform_none_keeps_numbers():
    _, inputs, _ = encode_numbers(1, 3, 5, 101, transform="none")
    np.testing.assert_array_equal(inputs[:, 0], [1, 3, 5, 101])


def test_a_number_that_training_never_varies_is_only_shifted():
    _, inputs, _ = encode_numbers(2, 2, 2, 5)
    np.testing.assert_array_equal(inputs[:, 0], [0, 0, 0, 3])


def test_a_missing_number_is_the_mean_with_a_flag():
    spec, inputs, _ = encode_numbers(1, NAN, 5, NAN)
    assert spec.width == 2
    np.testing.assert_array_equal(inputs, [[-1, 0], [0, 1], [1, 0], [0, 1]])


def test_there_is_no_flag_that_training_never_sets():
    spec, inputs, _ = encode_numbers(1, 3, 5, NAN)
    assert spec.width == 1
    assert inputs[3] == 0


def test_numbers_fall_into_buckets_of_equal_training_shares():
    spec, ids, rows = encode_numbers(
        *(1, 2, 3, 4, -9, 99, NAN), train=range(4), transform="bucket", buckets=2
    )
    assert spec == FeatureSpec("age", "embedding", table="user.age")
    assert ids.tolist() == [0, 0, 1, 1, 0, 1, 2]
    assert rows == 3


def test_buckets_without_training_values_are_one():
    _, ids, rows = encode_numbers(NAN, NAN, 7, train=(0, 1), transform="bucket")
    assert (ids.tolist(), rows) == ([1, 1, 0], 2)


def test_words_get_the_ids_of_training_and_share_one_otherwise():
    ids, rows = encode_words(3, 1, 3, 0, 2, -1)
    assert ids == [1, 0, 1, 2, 2, 3]
    assert rows == 4


def test_words_rarer_than_min_count_are_unseen():
    ids, rows = encode_words(3, 1, 3, 0, min_count=2)
    assert (ids, rows) == ([0, 1, 0, 1], 3)


def test_hashed_words_depend_on_themselves_alone():
    ids, rows = encode_words(0, 1, 2, 3, -1, hash_buckets=5)
    assert rows == 7 and ids[-1] == 6 and max(ids[:-1]) < 5
    turned, _ = encode_words(3, 2, 1, 0, -1, hash_buckets=5, vocab=WORDS[::-1], train=(0,))
    assert turned == ids


def test_words_may_all_be_missing():
    assert encode_words(-1, -1, -1, vocab=WORDS[:0]) == ([1, 1, 1], 2)


def test_bags_are_padded_and_an_empty_one_is_nothing():
    column = Bag(np.array([0, 2, 2, 3, 5]), np.array([3, 1, 1, 0, 3], np.int32), WORDS)
    spec, ids, rows = encode_users(Feature("pets", "bag", "user"), column, 4)
    assert spec == FeatureSpec("pets", "bag", table="user.pets")
    assert ids.tolist() == [[1, 0], [-1, -1], [0, -1], [2, 1]]
    assert rows == 4


def test_a_missing_vector_is_zero():
    column = Vector(np.array([[1, 2], [NAN, NAN], [3, 4]], np.float32))
    spec, inputs, _ = encode_users(Feature("vec", "vector", "user"), column, 3)
    assert spec == FeatureSpec("vec", "vector", width=2)
    assert inputs.tolist() == [[1, 2], [0, 0], [3, 4]]


def test_ids_that_training_never_saw_are_padding():
    encoder = encoder_of(dataset_of(), ("user_id", "history"), ("item_id",), train=(0, 2))
    history = np.array([[-1, 0, 1], [1, 2, 3]], np.int32)
    batch = {"user": np.array([2, 3]), "history": history}
    query = encoder.query_inputs(encoder.arrays, batch)
    assert query["user_id"].tolist() == [2, -1]
    assert query["history"].tolist() == [[-1, 0, -1], [-1, 2, -1]]
    item = encoder.item_inputs(encoder.arrays, np.array([0, 1, 2, -1]))
    assert item["item_id"].tolist() == [0, -1, 2, -1]
    assert item["item"].tolist() == [0, 1, 2, -1]
    assert encoder.table_rows == {"user_id": 4, "history": 4, "item_id": 4}


def test_padding_items_have_no_words():
    words = Feature("pet", "categorical", "item"), Categorical(np.array([0, 1, 0, 1]), WORDS)
    bags = (
        Feature("pets", "bag", "item"),
        Bag(np.arange(5), np.array([0, 1, 0, 1], np.int32), WORDS),
    )
    encoder = encoder_of(dataset_of(item=[words, bags]), ("user_id",))
    inputs = encoder.item_inputs(encoder.arrays, np.array([1, -1]))
    assert inputs["pet"].tolist() == [1, -1]
    assert inputs["pets"].tolist() == [[1], [-1]]


def test_context_features_are_fitted_on_the_sample():
    device = Feature("device", "categorical", "context"), Categorical(np.array([0]), WORDS)
    watched = Feature("watch_time", "dense", "context", transform="log"), Dense(np.zeros(1))
    sample = {
        "context/device": np.array([2, 0, 2, NAN], np.float32),
        "context/hour": np.array([5, 5, 5, 5], np.float32),
        "context/last_watch_time": np.array([0, np.e**2 - 1, NAN, NAN], np.float32),
        "context/user_count": np.array([0, 0, 0, 0], np.float32),
    }
    query = ("device", "hour", "last_watch_time", "user_count")
    encoder = encoder_of(dataset_of(context=[device, watched]), query, None, context_sample=sample)
    raw = {
        "context/device": np.array([0, 2, 1, NAN], np.float32),
        "context/hour": np.array([0, 23, 5, NAN], np.float32),
        "context/last_watch_time": np.array([0, np.e**4 - 1, NAN, np.e - 1], np.float32),
        "context/user_count": np.array([0, np.e - 1, NAN, 0], np.float32),
    }
    inputs = encoder.query_inputs(encoder.arrays, raw)
    assert inputs["device"].tolist() == [0, 1, 2, 3]
    assert inputs["hour"].tolist() == [0, 23, 5, 25]
    np.testing.assert_allclose(
        inputs["last_watch_time"], [[-1, 0], [3, 0], [0, 1], [0, 0]], atol=1e-6
    )
    np.testing.assert_allclose(inputs["user_count"], [[0], [1], [0], [0]], atol=1e-6)
    assert encoder.table_rows == {"context.device": 4, "context.hour": 26}
    assert [spec.width for spec in encoder.query] == [0, 0, 2, 1]


AGE = Feature("age", "dense", "user"), Dense(np.arange(4, dtype=np.float32))
YEAR = Feature("year", "dense", "item"), Dense(np.arange(4, dtype=np.float32))
HOUR = {"context/hour": np.zeros(2, np.float32)}


def test_all_means_everything_but_the_id():
    dataset = dataset_of([AGE], [YEAR])
    encoder = encoder_of(dataset, ("user_id", "all"), ("all", "item_id"), context_sample=HOUR)
    assert [spec.name for spec in encoder.query] == ["user_id", "age", "history", "hour"]
    assert [spec.name for spec in encoder.item] == ["year", "item_id"]


def test_a_softmax_head_has_no_item_features():
    assert encoder_of(dataset_of([], [YEAR]), item=None).item == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": ("agee",)}, r"model.query.features: .* no feature 'agee'.*'age'"),
        ({"item": ("yeer",)}, r"model.item.features: .* no feature 'yeer'.*'year'"),
        ({"query": ("zzz",)}, r"'zzz'; did you mean one of \['user_id', 'age', 'history'\]"),
        ({"query": ()}, r"model.query.features=\(\): no feature is left"),
        ({"query": ("history",), "history_length": 0}, r"no feature 'history'"),
    ],
)
def test_a_name_that_the_data_lacks_is_an_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        encoder_of(dataset_of([AGE], [YEAR]), **arguments)


def test_a_name_that_stands_for_two_things_is_an_error():
    hour = Feature("hour", "dense", "user"), AGE[1]
    with pytest.raises(ConfigError, match="two features called 'hour'"):
        encoder_of(dataset_of([hour]), context_sample=HOUR)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_vocabularies_hold_what_training_saw(data):
    vocab = np.array([f"w{i}" for i in range(data.draw(st.integers(1, 6)))])
    codes = data.draw(st.lists(st.integers(-1, len(vocab) - 1), min_size=8, max_size=8))
    train = data.draw(st.sets(st.integers(0, 7), min_size=1))
    ids, rows = encode_words(*codes, vocab=vocab, train=sorted(train))
    id_of = dict(zip(codes, ids, strict=True))
    known = {codes[row] for row in train} - {-1}
    unseen = set(codes) - known - {-1}
    assert len({id_of[code] for code in unseen}) <= 1
    # Every known word, all unseen ones together, and a missing one: each has its own id.
    assert len(set(ids)) == len(known) + bool(unseen) + (-1 in codes)
    assert all(0 <= i < rows for i in ids)
