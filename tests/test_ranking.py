"""Batches are ranked several at once, and come out as if one after another."""

import itertools
import threading
import time

import numpy as np
import pytest

from recjax.ranking import in_batches, rank_batches


class Queries:
    """Query q has seen q % `widths` items; a batch is as wide as its widest."""

    def __init__(self, widths=1):
        self.widths = widths

    def batch(self, rows):
        return {"query": rows}

    def seen(self, rows, policy):
        assert policy == "known"
        return np.full((len(rows), 1 + max(rows % self.widths)), -1)


def by_query(batch, seen_BxS, k):
    """Query q gets the items q, q + 1, ... with scores of their negatives."""
    ids_BxK = batch["query"][:, None] + np.arange(k)
    return -ids_BxK.astype(np.float32), ids_BxK


def lists_of(rows, ranker=by_query, widths=1, **settings):
    batches = in_batches(np.asarray(rows), 4)
    settings = {"seen": "known", "batch_size": 4, **settings}
    return rank_batches(ranker, Queries(widths), batches, 3, **settings)


@pytest.mark.parametrize("at_once", [1, 2, 7])
@pytest.mark.parametrize("widths", [1, 9])
def test_lists_come_in_the_order_of_the_batches_without_what_filled_them(at_once, widths):
    order = np.random.default_rng(0).permutation(42)
    found = list(lists_of(order, widths=widths, at_once=at_once))
    assert [len(one.rows) for one in found] == [4] * 10 + [2]
    np.testing.assert_array_equal(np.concatenate([one.rows for one in found]), order)
    for rows, scores_BxK, ids_BxK in found:
        np.testing.assert_array_equal(ids_BxK, rows[:, None] + np.arange(3))
        np.testing.assert_array_equal(scores_BxK, -ids_BxK)


def test_so_many_are_ranked_at_once_but_a_new_width_alone():
    meet, under_way, beside = threading.Barrier(3), [], {}

    def ranker(batch, seen_BxS, k):
        under_way.append(seen_BxS.shape[1])
        if (width := seen_BxS.shape[1]) in beside:
            meet.wait(timeout=60)  # until three are here
        else:
            beside[width] = None
            time.sleep(0.1)  # in which another would begin
            beside[width] = under_way.count(width) - 1
        under_way.remove(width)
        return by_query(batch, seen_BxS, k)

    class TwoWidths(Queries):
        def seen(self, rows, policy):
            return np.full((len(rows), 1 if rows[0] < 16 else 2), -1)

    batches = in_batches(np.arange(32), 4)  # four of each width, of which three meet
    found = rank_batches(ranker, TwoWidths(), batches, 3, seen="known", batch_size=4, at_once=4)
    assert len(list(found)) == 8
    assert beside == {1: 0, 2: 0}


def test_with_one_at_once_each_begins_when_the_one_before_has_ended():
    under_way = threading.Lock()

    def ranker(batch, seen_BxS, k):
        assert under_way.acquire(blocking=False)
        time.sleep(1e-3)
        under_way.release()
        return by_query(batch, seen_BxS, k)

    assert len(list(lists_of(range(100), ranker, widths=5, at_once=1))) == 25


def test_an_error_of_the_ranker_comes_where_its_lists_would():
    def ranker(batch, seen_BxS, k):
        if 12 in batch["query"]:
            raise ValueError("query 12")
        return by_query(batch, seen_BxS, k)

    found = lists_of(range(40), ranker, at_once=2)
    assert [next(found).rows[0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(ValueError, match="query 12"):
        next(found)


def test_no_thread_is_left_when_no_more_lists_are_wanted():
    before = threading.active_count()
    endless = itertools.cycle([np.arange(4), np.arange(4, 8)])
    found = rank_batches(by_query, Queries(), endless, 3, seen="known", batch_size=4, at_once=2)
    assert [next(found).rows[0] for _ in range(5)] == [0, 4, 0, 4, 0]
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("rows", [[], range(5)])
def test_a_batch_of_no_size_that_fits_is_refused(rows):
    found = rank_batches(
        by_query, Queries(), [np.asarray(rows, int)], 3, seen="known", batch_size=4
    )
    with pytest.raises(ValueError, match=rf"a batch has {len(rows)} rows; .* 1 to 4"):
        next(found)
