"""top_k against a stable sort in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.ops import topk


def reference(scores_BxN, k, mask_N=None, seen_BxS=None):
    """Stable descending sort of what is left."""
    scores_out = np.full((len(scores_BxN), k), -np.inf, np.float32)
    ids_out = np.full((len(scores_BxN), k), -1, np.int32)
    for b, scores in enumerate(scores_BxN):
        scores = np.where(mask_N, scores, -np.inf) if mask_N is not None else scores.copy()
        if seen_BxS is not None:
            scores[[i for i in seen_BxS[b] if i >= 0]] = -np.inf
        order = [i for i in np.argsort(-scores, kind="stable")[:k] if scores[i] > -np.inf]
        ids_out[b, : len(order)] = order
        scores_out[b, : len(order)] = scores[order]
    return scores_out, ids_out


def assert_same(got, want):
    np.testing.assert_array_equal(np.asarray(got[1]), want[1])
    np.testing.assert_array_equal(np.asarray(got[0]), want[0])


def many_ties(rng, batch, num_items):
    # -0.0 among them: a product such as -1 * 0 makes it, and it ties with 0.0
    scores = rng.integers(-3, 4, size=(batch, num_items)).astype(np.float32)
    return np.where((scores == 0) & (rng.random(scores.shape) < 0.5), np.float32(-0.0), scores)


@pytest.mark.parametrize(
    "batch, num_items, k",
    [(3, 7, 3), (5, 300, 10), (5, 1000, 3), (2, 5120, 10), (45, 120_001, 10)],
    ids=["few", "plain", "blocks", "whole blocks", "tiles of blocks"],
)
def test_equals_a_stable_sort(batch, num_items, k):
    rng = np.random.default_rng(num_items)
    scores = many_ties(rng, batch, num_items)
    mask = rng.random(num_items) < 0.7
    seen = rng.integers(-1, num_items, size=(batch, 8)).astype(np.int32)
    got = topk.top_k_scores(jnp.asarray(scores), k, jnp.asarray(mask), jnp.asarray(seen))
    assert_same(got, reference(scores, k, mask, seen))
    assert_same(topk.top_k_scores(jnp.asarray(scores), k), reference(scores, k))


def test_all_equal_scores_come_in_index_order():
    _, ids = topk.top_k_scores(jnp.zeros((2, 2000)), 5)
    np.testing.assert_array_equal(np.asarray(ids), [[0, 1, 2, 3, 4]] * 2)


def test_best_items_in_one_block():
    scores = np.zeros((1, 4000), np.float32)
    scores[0, 3000:3010] = np.arange(10)
    _, ids = topk.top_k_scores(jnp.asarray(scores), 8)
    np.testing.assert_array_equal(np.asarray(ids)[0], np.arange(3009, 3001, -1))


@pytest.mark.parametrize("num_items", [6, 2000])
def test_fewer_left_than_k(num_items):
    mask = np.zeros(num_items, bool)
    mask[[0, 2, num_items - 1]] = True
    seen = np.array([[-1, -1], [2, -1], [num_items - 1, 0]], np.int32)
    scores = np.tile(np.arange(num_items, dtype=np.float32), (3, 1))
    got = topk.top_k_scores(jnp.asarray(scores), 4, jnp.asarray(mask), jnp.asarray(seen))
    last = num_items - 1
    np.testing.assert_array_equal(
        np.asarray(got[1]), [[last, 2, 0, -1], [last, 0, -1, -1], [2, -1, -1, -1]]
    )
    assert np.isneginf(np.asarray(got[0])[np.asarray(got[1]) < 0]).all()


def test_k_above_the_corpus():
    scores, ids = topk.top_k_scores(jnp.asarray([[1.0, 3.0, 2.0]]), 5)
    np.testing.assert_array_equal(np.asarray(ids), [[1, 2, 0, -1, -1]])
    np.testing.assert_array_equal(np.asarray(scores), [[3, 2, 1, -np.inf, -np.inf]])


def test_padding_of_seen_does_not_wrap_to_the_last_item():
    _, ids = topk.top_k_scores(
        jnp.asarray([[0.0, 1.0, 2.0]]), 1, None, jnp.asarray([[-1]], jnp.int32)
    )
    assert np.asarray(ids).tolist() == [[2]]


@pytest.mark.parametrize("num_items", [50, 3000])
def test_products_bias_and_scale(num_items):
    rng = np.random.default_rng(0)
    # small integers: products are exact, and many are equal
    query = rng.integers(-2, 3, size=(40, 4)).astype(np.float32)
    item = rng.integers(-2, 3, size=(num_items, 4)).astype(np.float32)
    bias = rng.integers(-1, 2, size=num_items).astype(np.float32)
    mask = rng.random(num_items) < 0.5
    seen = rng.integers(-1, num_items, size=(40, 16)).astype(np.int32)
    got = topk.top_k(
        jnp.asarray(query),
        jnp.asarray(item),
        6,
        bias_N=jnp.asarray(bias),
        mask_N=jnp.asarray(mask),
        seen_BxS=jnp.asarray(seen),
        scale=0.5,
    )
    assert_same(got, reference(0.5 * query @ item.T + bias, 6, mask, seen))


def test_scale_may_be_a_traced_temperature():
    query, item = jnp.ones((2, 3)), jnp.arange(12.0).reshape(4, 3)
    scores, _ = jax.jit(lambda t: topk.top_k(query, item, 2, scale=1 / t))(jnp.float32(0.5))
    np.testing.assert_allclose(np.asarray(scores), [[60.0, 42.0]] * 2)


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k=0"):
        topk.top_k_scores(jnp.zeros((1, 3)), 0)


def test_a_score_that_is_not_a_number_comes_first_and_is_seen_by_the_caller():
    scores = jnp.zeros((1, 2000)).at[0, 1234].set(jnp.nan)
    assert np.isnan(np.asarray(topk.top_k_scores(scores, 3)[0])[0, 0])
