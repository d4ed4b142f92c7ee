import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recjax.data.context import available_context
from recjax.data.queries import make_queries, serving_queries
from recjax.data.split import FOLD_IN, TEST, TRAIN, VALID, make_split
from recjax.data.synthetic import make_synthetic
from recjax.errors import ConfigError, DataError
from tests.data.small import dataset_of, datasets, kept, random_splits, split_of


def past_queries(data, split, part="test", length=3, **options):
    return make_queries(data, split, part, history="past", history_length=length, **options)


def rows_of(queries):
    return np.arange(queries.size)


def hand_made():
    # User 0 has two test items and a repeated one, user 1 nothing to predict, user 2 no training.
    user = [0, 0, 0, 0, 0, 1, 2, 2]
    item = [1, 2, 1, 3, 4, 2, 5, 5]
    part = [TRAIN, TRAIN, TRAIN, VALID, TEST, TRAIN, TEST, TEST]
    return dataset_of(user, item, np.arange(8.0) * 100.0), split_of(part)


def test_queries_equal_a_table_written_by_hand():
    data, split = hand_made()
    queries = past_queries(data, split, context=("time_since_last", "user_count"))
    np.testing.assert_array_equal(queries.user_Q, [0, 2])
    np.testing.assert_array_equal(queries.target_offsets, [0, 1, 2])
    np.testing.assert_array_equal(queries.target_items, [4, 5])
    np.testing.assert_array_equal(queries.seen_targets("known"), [False, False])
    np.testing.assert_array_equal(queries.history_count_Q, [4, 0])
    np.testing.assert_array_equal(queries.user_in_training_Q, [True, False])
    batch = queries.batch(rows_of(queries))
    assert batch.keys() == {"user", "history", "context/time_since_last", "context/user_count"}
    np.testing.assert_array_equal(batch["history"], [[2, 1, 3], [-1, -1, -1]])
    np.testing.assert_array_equal(batch["context/time_since_last"], [100.0, np.nan])
    np.testing.assert_array_equal(batch["context/user_count"], [4.0, 0.0])


def test_a_profile_of_a_query_has_each_item_once():
    data, split = hand_made()
    queries = make_queries(data, split, "test", history="profile", history_length=4)
    np.testing.assert_array_equal(queries.batch(np.array([0]))["history"], [[-1, 2, 1, 3]])


def test_validation_queries_know_nothing_of_validation():
    data, split = hand_made()
    queries = past_queries(data, split, "valid")
    np.testing.assert_array_equal(queries.target_items, [3])
    np.testing.assert_array_equal(queries.batch(np.array([0]))["history"], [[1, 2, 1]])
    np.testing.assert_array_equal(queries.seen(np.array([0]), "known"), [[2, 1]])


@pytest.mark.parametrize(
    "policy, first", [("known", [2, 1, 3, -1]), ("train", [2, 1]), ("none", [-1])]
)
def test_seen_items_are_distinct_and_padded_to_a_power_of_two(policy, first):
    data, split = hand_made()
    queries = past_queries(data, split)
    seen = queries.seen(np.array([0, 1]), policy)
    assert seen.dtype == np.int32
    np.testing.assert_array_equal(seen, [first, [-1] * len(first)])


def test_an_unknown_seen_policy_and_an_empty_part_are_errors():
    data, split = hand_made()
    with pytest.raises(ConfigError, match="eval.seen='all'.*'known', 'train', 'none'"):
        past_queries(data, split).seen(np.array([0]), "all")
    with pytest.raises(DataError, match="'given' has nothing to predict in 'valid'"):
        past_queries(data, split_of([TRAIN] * 7 + [TEST]), "valid")
    with pytest.raises(DataError, match="no times"):
        past_queries(dataset_of([0, 0], [0, 1]), split_of([TRAIN, TEST]))


def test_a_split_that_trains_on_validation_has_no_validation_queries():
    data = dataset_of([0, 0, 0], [0, 1, 2], [0.0, 1.0, 2.0])
    split = make_split(data, "leave_one_out", fit="train_and_valid")
    with pytest.raises(ConfigError, match="split.fit='train_and_valid'.*nothing to validate on"):
        past_queries(data, split, "valid")
    queries = past_queries(data, split)
    assert queries.batch(rows_of(queries))["history"].tolist() == [[-1, 0, 1]]
    assert queries.seen(rows_of(queries), "train").tolist() == [[0, 1]]


def test_a_target_that_the_user_had_in_training_stays_a_target():
    data = dataset_of([0, 0, 1], [1, 1, 2], np.arange(3.0))
    queries = past_queries(data, split_of([TRAIN, TEST, TRAIN]))
    np.testing.assert_array_equal(queries.target_items, [1])
    np.testing.assert_array_equal(queries.seen_targets("train"), [True])
    np.testing.assert_array_equal(queries.seen_targets("none"), [False])


def test_a_repeated_target_counts_once_and_is_asked_for_at_its_first_time():
    data = dataset_of([0] * 4, [1, 2, 3, 2], np.arange(4.0) * 10.0)
    queries = past_queries(data, split_of([TRAIN, TEST, TEST, TEST]), context=("time_since_last",))
    np.testing.assert_array_equal(queries.target_items, [2, 3])
    np.testing.assert_array_equal(queries.batch(np.array([0]))["context/time_since_last"], [10.0])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["valid", "test"]), st.sampled_from(["past", "profile"]))
def test_only_known_rows_of_the_user_enter_a_query(draw, part, history):
    data = draw.draw(datasets(traced=True))
    split = draw.draw(random_splits(data))
    assume(split.target_M(part).any())
    queries = make_queries(data, split, part, history=history, history_length=50)
    hidden = {TEST} if part == "test" else {VALID, TEST}
    inter = data.interactions
    batch = queries.batch(rows_of(queries))
    seen = queries.seen(rows_of(queries), "known")
    for q, user in enumerate(queries.user_Q):
        known = np.flatnonzero((inter.user == user) & split.known_M(part))
        targets = np.flatnonzero((inter.user == user) & split.target_M(part))
        may_read = known[known < targets[0]] if history == "past" else known
        assert kept(batch["history"][q]) == list(may_read)
        assert sorted(i for i in seen[q] if i >= 0) == list(known)
        assert not hidden & set(split.part_M[known])
        low, high = queries.target_offsets[q : q + 2]
        assert list(queries.target_items[low:high]) == list(targets)
        assert queries.time_Q[q] == inter.time[targets[0]]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["valid", "test"]))
def test_context_of_a_query_is_of_known_rows_before_its_first_target(draw, part):
    data = draw.draw(datasets(traced=True))
    split = draw.draw(random_splits(data))
    assume(split.target_M(part).any())
    queries = past_queries(data, split, part, context=available_context(data))
    batch = queries.batch(rows_of(queries))
    inter = data.interactions
    watch = inter.columns["watch_time"].values
    for q, user in enumerate(queries.user_Q):
        own = inter.user == user
        first = np.flatnonzero(own & split.target_M(part))[0]
        before = [r for r in np.flatnonzero(own & split.known_M(part)) if r < first]
        since = inter.time[first] - inter.time[before[-1]] if before else np.nan
        watched = watch[before[-5:]]
        watched = watched[~np.isnan(watched)]
        np.testing.assert_allclose(batch["context/time_since_last"][q], since)
        assert batch["context/user_count"][q] == len(before)
        np.testing.assert_allclose(
            batch["context/last_watch_time"][q],
            watched.mean() if watched.size else np.nan,
            rtol=1e-6,
        )


@settings(max_examples=60, deadline=None)
@given(
    datasets(traced=True),
    st.sampled_from(["valid", "test"]),
    st.sampled_from(["leave_one_out", "global_time", "strong_generalisation"]),
)
def test_in_splits_by_time_a_history_is_all_before_the_first_target(data, part, name):
    try:
        split = make_split(data, name, valid=0.3, test=0.3, fold_in=0.5)
        queries = past_queries(data, split, part, length=50)
    except DataError:
        assume(False)
        return
    batch = queries.batch(rows_of(queries))
    for q in range(queries.size):
        first = queries.target_items[queries.target_offsets[q]]
        assert all(row < first for row in kept(batch["history"][q]))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_query_does_not_depend_on_the_batch_it_is_in(draw):
    data = draw.draw(datasets())
    split = draw.draw(random_splits(data))
    assume(split.target_M("test").any())
    queries = past_queries(data, split, context=available_context(data))
    rows = np.array(draw.draw(st.lists(st.integers(0, queries.size - 1), min_size=1)))
    whole = queries.batch(rows)
    for place, row in enumerate(rows):
        for name, value in queries.batch(np.array([row])).items():
            np.testing.assert_array_equal(whole[name][place], value[0], err_msg=name)


def test_fold_in_is_known_and_seen_but_not_training():
    data = dataset_of([0, 0, 1, 1], [0, 1, 2, 3], np.arange(4.0))
    queries = past_queries(data, split_of([TRAIN, TRAIN, FOLD_IN, TEST]))
    np.testing.assert_array_equal(queries.batch(np.array([0]))["history"], [[-1, -1, 2]])
    np.testing.assert_array_equal(queries.seen(np.array([0]), "known"), [[2]])
    np.testing.assert_array_equal(queries.seen(np.array([0]), "train"), [[-1]])
    np.testing.assert_array_equal(queries.user_in_training_Q, [False])


def test_serving_knows_everything_and_asks_at_the_last_interaction():
    data = dataset_of(
        [0, 0, 0, 2], [1, 2, 3, 4], [0.0, 10.0, 7200.0, 5.0], [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]
    )
    split = split_of([TRAIN, VALID, TEST, TEST])
    queries = serving_queries(
        data,
        split,
        np.array([2, 0, 0, 1]),
        history="past",
        history_length=3,
        context=available_context(data),
    )
    batch = queries.batch(rows_of(queries))
    np.testing.assert_array_equal(batch["user"], [2, 0, 0, 1])
    np.testing.assert_array_equal(
        batch["history"], [[-1, -1, 4], [1, 2, 3], [1, 2, 3], [-1, -1, -1]]
    )
    np.testing.assert_array_equal(batch["context/time_since_last"], [0, 0, 0, np.nan])
    np.testing.assert_array_equal(batch["context/hour"], [0, 2, 2, np.nan])
    np.testing.assert_array_equal(batch["context/user_count"], [1, 3, 3, 0])
    np.testing.assert_array_equal(batch["context/last_watch_time"], [4, 2, 2, np.nan])
    np.testing.assert_array_equal(batch["context/device"], [np.nan] * 4)
    np.testing.assert_array_equal(queries.user_in_training_Q, [False, True, True, False])
    np.testing.assert_array_equal(queries.seen(np.array([0, 1]), "train"), [[-1], [1]])
    assert queries.target_items.size == 0


def test_serving_without_a_split_takes_everything_as_training():
    data = dataset_of([0, 0], [1, 2])
    queries = serving_queries(data, None, np.array([0]), history="profile", history_length=2)
    np.testing.assert_array_equal(queries.seen(np.array([0]), "train"), [[1, 2]])
    assert queries.user_in_training_Q.all()


def test_serving_names_a_position_outside_the_user_table():
    with pytest.raises(DataError, match="no user at position -1 \\(query 1\\).*0 to 0"):
        serving_queries(
            dataset_of([0], [0]), None, np.array([0, -1]), history="profile", history_length=2
        )


def test_of_many_users_a_fixed_few_are_asked_and_each_as_before():
    data = make_synthetic(users=60, items=40, interactions_per_user=9)
    split = make_split(data, "leave_one_out")
    context = available_context(data)
    asked = {}
    for part in ("valid", "test"):
        every = past_queries(data, split, part, context=context)
        for count in (7, 12, 60):
            few = past_queries(data, split, part, context=context, max_queries=count)
            assert few.size == min(count, every.size)
            rows = np.searchsorted(every.user_Q, few.user_Q)
            np.testing.assert_array_equal(every.user_Q[rows], few.user_Q)
            whole = every.batch(rows)
            for name, array in few.batch(rows_of(few)).items():
                np.testing.assert_array_equal(array, whole[name], err_msg=name)
            for policy in ("known", "train"):
                for row, (one, other) in enumerate(
                    zip(few.seen(rows_of(few), policy), every.seen(rows, policy), strict=True)
                ):
                    assert set(one) | {-1} == set(other) | {-1}, row
            asked[part, count] = set(few.user_Q.tolist())
    assert asked["valid", 7] == asked["test", 7] < asked["test", 12]
