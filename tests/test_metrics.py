"""Metrics against tables worked out by hand."""

import numpy as np
import pytest

from recjax import metrics

# query 0: hits at ranks 1 and 3 of 2 targets; 1: a miss; 2: hit at rank 2 of 4 targets;
# 3: hit at rank 4 in a short list
TOP = np.array([[5, 1, 7, 2], [0, 1, 2, 3], [9, 8, 7, 6], [3, 2, 1, 4]], np.int32)
TARGETS = [[7, 5], [9], [8, 0, 1, 2], [4]]
D2, D3, D4, D5 = (1 / np.log2(r) for r in (2, 3, 4, 5))
TABLE = {
    "recall@1": [1 / 2, 0, 0, 0],
    "recall@2": [1 / 2, 0, 1 / 4, 0],
    "recall@4": [1, 0, 1 / 4, 1],
    "ndcg@1": [1, 0, 0, 0],
    "ndcg@2": [D2 / (D2 + D3), 0, D3 / (D2 + D3), 0],
    "ndcg@4": [(D2 + D4) / (D2 + D3), 0, D3 / (D2 + D3 + D4 + D5), D5 / D2],
    "hit_rate@1": [1, 0, 0, 0],
    "hit_rate@2": [1, 0, 1, 0],
    "hit_rate@4": [1, 0, 1, 1],
    "precision@1": [1, 0, 0, 0],
    "precision@2": [1 / 2, 0, 1 / 2, 0],
    "precision@4": [1 / 2, 0, 1 / 4, 1 / 4],
    "mrr@1": [1, 0, 0, 0],
    "mrr@2": [1, 0, 1 / 2, 0],
    "mrr@4": [1, 0, 1 / 2, 1 / 4],
    "map@1": [1, 0, 0, 0],
    "map@2": [1 / 2, 0, 1 / 4, 0],
    "map@4": [(1 + 2 / 3) / 2, 0, 1 / 8, 1 / 4],
}


def ragged(lists):
    offsets = np.cumsum([0] + [len(row) for row in lists])
    return offsets, np.array([i for row in lists for i in row], np.int32)


def test_ranking_metrics_equal_the_table():
    got = metrics.ranking_metrics(TOP, *ragged(TARGETS), [1, 2, 4])
    assert list(got) == list(TABLE)
    for name, values in TABLE.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-15, err_msg=name)
        assert got[name].dtype == np.float64


def test_a_target_held_twice_counts_once():
    doubled = [[7, 5, 7], [9, 9], [8, 0, 1, 2, 2], [4]]
    got = metrics.ranking_metrics(TOP, *ragged(doubled), [1, 4])
    want = metrics.ranking_metrics(TOP, *ragged(TARGETS), [1, 4])
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_order_of_targets_does_not_matter():
    got = metrics.ranking_metrics(TOP, *ragged([row[::-1] for row in TARGETS]), [2, 4])
    want = metrics.ranking_metrics(TOP, *ragged(TARGETS), [2, 4])
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_permuting_queries_permutes_values():
    order = [2, 0, 3, 1]
    got = metrics.ranking_metrics(TOP[order], *ragged([TARGETS[q] for q in order]), [1, 2, 4])
    want = metrics.ranking_metrics(TOP, *ragged(TARGETS), [1, 2, 4])
    for name in want:
        np.testing.assert_array_equal(got[name], want[name][order])


def test_empty_places_are_misses():
    short = np.array([[3, -1, -1], [-1, -1, -1]], np.int32)
    got = metrics.ranking_metrics(short, *ragged([[3], [0]]), [3])
    assert got["precision@3"].tolist() == [1 / 3, 0]
    assert got["recall@3"].tolist() == [1, 0]


def test_a_perfect_list_scores_one():
    got = metrics.ranking_metrics(np.array([[4, 2, 9]]), *ragged([[9, 4, 2, 7]]), [1, 3])
    assert [got[f"{name}@3"][0] for name in ("ndcg", "map", "mrr", "precision")] == [1, 1, 1, 1]
    assert got["recall@3"][0] == 3 / 4


def test_many_targets_are_looked_up_in_chunks(monkeypatch):
    want = metrics.ranking_metrics(TOP, *ragged(TARGETS), [4])
    monkeypatch.setattr(metrics, "_CHUNK", 8)
    got = metrics.ranking_metrics(TOP, *ragged(TARGETS), [4])
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("ks", [[], [0, 2], [5]])
def test_cut_offs_outside_the_lists_are_refused(ks):
    with pytest.raises(ValueError, match="from 1 to 4"):
        metrics.ranking_metrics(TOP, *ragged(TARGETS), ks)


def test_a_query_without_targets_is_refused():
    with pytest.raises(ValueError, match="query 1 has no targets"):
        metrics.ranking_metrics(TOP, *ragged([[1], [], [2], [3]]), [1])


def test_catalogue_metrics_equal_the_table():
    # shown@2: item 0 three times, 1 twice, 2 once; items 3 and 4 never; item 5 is not in the corpus
    top = np.array([[0, 1], [0, 1], [0, 2], [-1, -1]], np.int32)
    popularity = np.array([8, 4, 0, 2, 1, 1])
    got = metrics.catalogue_metrics(top, popularity, 5, [1, 2], np.array([1, 3, 2, 2]))
    want = {
        "coverage@1": 1 / 5,
        "coverage@2": 3 / 5,
        "gini@1": 4 / 5,
        # ascending 0 0 1 2 3: (2 * 3 - 6) 1 + (2 * 4 - 6) 2 + (2 * 5 - 6) 3 = 16; over 5 * 6
        "gini@2": 16 / 30,
        "mean_popularity@1": 8.0,
        "mean_popularity@2": (3 * 8 + 2 * 4 + 0) / 6,
        # targets: (4 + 2 + 0 + 0) / 4 = 1.5
        "popularity_lift@1": 8 / 1.5,
        "popularity_lift@2": 32 / 6 / 1.5,
        # 8/16 -> 1 bit, 4/16 -> 2 bits, item 2 was never seen: as once, 1/16 -> 4 bits
        "novelty@1": 1.0,
        "novelty@2": (3 * 1 + 2 * 2 + 4) / 6,
    }
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-15, err_msg=name)


def test_gini_is_zero_where_all_are_shown_alike():
    top = np.array([[0, 1], [2, 3]])
    assert metrics.catalogue_metrics(top, np.ones(4), 4, [2], np.array([0]))["gini@2"] == 0


def test_catalogue_metrics_of_no_recommendation_are_undefined_not_zero():
    got = metrics.catalogue_metrics(np.full((2, 2), -1), np.ones(3), 3, [2], np.array([0]))
    assert got["coverage@2"] == 0
    assert all(np.isnan(got[f"{n}@2"]) for n in ("gini", "mean_popularity", "novelty"))


def test_popularity_lift_is_undefined_where_targets_have_no_popularity():
    got = metrics.catalogue_metrics(np.array([[0]]), np.array([3, 0]), 2, [1], np.array([1]))
    assert np.isnan(got["popularity_lift@1"])


def test_bootstrap_interval_matches_the_normal_one():
    values = np.random.default_rng(0).normal(2, 3, size=4000)
    low, high = metrics.bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.02)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [
        metrics.bootstrap_interval(rng.exponential(size=100), samples=200, seed=i)
        for i in range(200)
    ]
    assert 0.88 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.99


def test_bootstrap_means_equal_means_of_the_drawn_values(monkeypatch):
    values = np.random.default_rng(0).random((7, 2))
    monkeypatch.setattr(metrics, "_CHUNK", 7 * 50)
    got = metrics.bootstrap_means(values, samples=50, seed=3)
    drawn = np.random.default_rng(3).integers(7, size=(50, 7), dtype=np.int32)
    np.testing.assert_allclose(got, values[drawn].mean(axis=1), rtol=1e-12)


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).random(50)
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(values)
    assert metrics.bootstrap_interval(values) != metrics.bootstrap_interval(values, seed=1)


def test_a_constant_has_an_interval_of_no_width():
    assert metrics.bootstrap_interval(np.full(20, 0.5)) == (0.5, 0.5)


def test_pairing_finds_a_difference_that_separate_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    a, b = hard + 0.02 + rng.normal(0, 0.01, 500), hard
    assert metrics.bootstrap_interval(b)[1] > metrics.bootstrap_interval(a)[0]
    difference, low, high = metrics.paired_bootstrap(a, b, level=0.99)
    assert 0.015 < low < difference < high < 0.025


def test_bad_bootstrap_input_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        metrics.bootstrap_interval(np.zeros(0))
    with pytest.raises(ValueError, match="NaN"):
        metrics.bootstrap_interval(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="level=95"):
        metrics.bootstrap_interval(np.ones(3), level=95.0)
    with pytest.raises(ValueError, match="3 queries against 2"):
        metrics.paired_bootstrap(np.ones(3), np.ones(2))
