"""Baseline rankers."""

import numpy as np
import pytest

from recjax import baselines


def batch(users):
    return {"user": np.array(users, np.int32), "history": np.full((len(users), 2), -1, np.int32)}


def test_popularity_lists_the_most_popular_that_are_left():
    popularity = np.array([3, 9, 3, 5, 7, 0])
    rank = baselines.popularity_ranker(popularity, np.array([True, True, True, True, False, True]))
    seen = np.array([[-1, -1], [1, 4], [3, 0], [0, 0]], np.int32)
    scores, ids = rank(batch([0, 1, 2, 3]), seen, 3)
    assert np.asarray(ids).tolist() == [[1, 3, 0], [3, 0, 2], [1, 2, 5], [1, 3, 2]]
    assert (np.diff(np.asarray(scores), axis=1) < 0).all()


def test_popularity_lists_end_where_nothing_is_left():
    rank = baselines.popularity_ranker(np.array([3, 2, 1]), np.ones(3, bool))
    _, ids = rank(batch([0]), np.array([[1, 0, -1, -1]], np.int32), 4)
    assert np.asarray(ids).tolist() == [[2, -1, -1, -1]]


def test_random_lists_are_seeded_by_user_and_hold_no_seen_or_masked_item():
    mask = np.ones(40, bool)
    mask[::3] = False
    rank = baselines.random_ranker(mask, seed=1)
    seen = np.random.default_rng(0).integers(-1, 40, size=(30, 16)).astype(np.int32)
    users = np.arange(30)
    ids = np.asarray(rank(batch(users), seen, 8)[1])
    for row, removed in zip(ids, seen, strict=True):
        left = set(np.flatnonzero(mask)) - set(removed)
        assert set(row) <= left and len(set(row)) == 8
    again = np.asarray(rank(batch(users[::-1]), seen[::-1], 8)[1])
    np.testing.assert_array_equal(again[::-1], ids)
    other = np.asarray(baselines.random_ranker(mask, seed=2)(batch(users), seen, 8)[1])
    assert (other != ids).any()


def test_random_lists_show_every_item_equally_often():
    rank = baselines.random_ranker(np.ones(10, bool), seed=0)
    ids = np.asarray(rank(batch(np.arange(4000)), np.full((4000, 1), -1, np.int32), 3)[1])
    np.testing.assert_allclose(np.bincount(ids.ravel(), minlength=10), 1200, rtol=0.12)


def test_the_oracle_ranks_by_the_truth():
    class World:
        def log_prob(self, user_B, history_BxL):
            scores = np.log([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])[user_B]
            np.put_along_axis(scores, np.maximum(history_BxL[:, -1:], 0), -np.inf, axis=1)
            return scores

    rank = baselines.oracle_ranker(World(), np.array([True, True, True, False]))
    _, ids = rank(batch([1, 0]), np.array([[1], [-1]], np.int32), 2)
    assert np.asarray(ids).tolist() == [[2, -1], [2, 1]]


def test_no_item_to_rank_is_refused():
    with pytest.raises(ValueError, match="no item"):
        baselines.popularity_ranker(np.ones(3), np.zeros(3, bool))
