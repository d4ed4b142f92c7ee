import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recjax.data import blocks, examples, history, split
from recjax.data.blocks import count_by_user_and_item, owners, user_blocks
from recjax.data.context import available_context
from recjax.data.examples import make_train_examples
from recjax.data.history import distinct_rows
from recjax.data.split import SPLITS, TRAIN, make_split
from recjax.data.synthetic import make_synthetic
from tests.data.small import datasets, random_splits


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 9))
def test_blocks_are_whole_users_in_order_and_few_rows(counts, rows):
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    users, places = zip(*user_blocks(offsets, rows), strict=True)
    assert [u.start for u in users] == [0, *(u.stop for u in users[:-1])]
    assert users[-1].stop == len(counts) and places[-1].stop == offsets[-1]
    for user, place in zip(users, places, strict=True):
        assert (place.start, place.stop) == (offsets[user.start], offsets[user.stop])
        assert place.stop - place.start <= rows or user.stop == user.start + 1
        found = owners(offsets, user) + user.start
        wanted = np.repeat(np.arange(len(counts)), counts)[place]
        np.testing.assert_array_equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_counts_are_those_of_the_interactions_themselves(draw):
    data = draw.draw(datasets())
    mask = draw.draw(random_splits(data)).part_M == TRAIN
    inter = data.interactions
    count_U, count_N = count_by_user_and_item(inter, mask, data.items.size)
    np.testing.assert_array_equal(count_U, np.bincount(inter.user[mask], minlength=len(count_U)))
    np.testing.assert_array_equal(count_N, np.bincount(inter.item[mask], minlength=len(count_N)))


@pytest.mark.parametrize("name", SPLITS)
def test_nothing_depends_on_the_size_of_blocks(name, monkeypatch):
    data = make_synthetic(users=60, items=40, interactions_per_user=9)

    def everything():
        made = make_split(data, name, fit="train_and_valid")
        found = make_train_examples(
            data,
            made,
            labels="next_item",
            history="past",
            history_length=4,
            context=available_context(data),
        )
        batch = found.batch(np.arange(found.size), seed=0, epoch=0)
        return [
            made.part_M,
            make_split(data, name).part_M,
            found.label_frequency_N,
            *batch.values(),
        ]

    whole = everything()
    monkeypatch.setattr(blocks, "BLOCK", 13)
    monkeypatch.setattr(split, "BLOCK", 13)
    monkeypatch.setattr(split, "_SAMPLE", 90)
    monkeypatch.setattr(history, "_SORTED", 5)
    for found, wanted in zip(everything(), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_training_rows_read_in_place_equal_a_copy_of_them(draw):
    data = draw.draw(datasets())
    made = draw.draw(random_splits(data))
    made.part_M[:] = np.sort(made.part_M)  # mostly in place

    def batch(copied):
        with pytest.MonkeyPatch.context() as patch:
            if copied:
                patch.setattr(examples, "_comes_first", lambda *args: False)
            found = make_train_examples(
                data,
                made,
                labels="next_item",
                history="past",
                history_length=3,
                context=available_context(data),
                min_history=0,
            )
        return found.batch(np.arange(found.size), seed=0, epoch=0)

    copied, in_place = batch(True), batch(False)
    for name, array in copied.items():
        assert in_place[name].dtype == array.dtype
        np.testing.assert_array_equal(in_place[name], array, err_msg=name)


def test_the_nth_time_is_that_of_the_sorted_times(monkeypatch):
    monkeypatch.setattr(split, "BLOCK", 50)
    monkeypatch.setattr(split, "_SAMPLE", 100)
    draw = np.random.default_rng(0)
    for times in (draw.normal(size=997), draw.integers(0, 4, 997) * 1.0, np.zeros(997)):
        for place in (0, 1, 500, 896, 996):
            assert split._nth(times, place) == np.sort(times)[place]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30), st.integers(1, 8))
def test_pairs_found_in_parts_are_those_found_at_once(pairs, rows):
    pairs = np.array(sorted(pairs, key=lambda p: p[0]), np.int64).reshape(-1, 2)
    wanted = [distinct_rows(*pairs.T, keep=keep) for keep in ("first", "last")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "_SORTED", rows)
        found = [distinct_rows(*pairs.T, keep=keep) for keep in ("first", "last")]
    np.testing.assert_array_equal(found, wanted)
