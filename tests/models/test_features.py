"""Features joined and histories pooled, by hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from recjax.data.encode import FeatureSpec
from recjax.models.features import POOLINGS, AttentionPool, FeatureEncoder, is_summed, mean_of

IDS = jnp.array([[-1, 3, 5], [-1, -1, -1]])
ROWS = jnp.array([[[0.0, 0.0], [1.0, 2.0], [3.0, 6.0]], np.zeros((3, 2))])  # padding is zeros


def test_the_mean_is_over_what_is_there():
    np.testing.assert_array_equal(mean_of(ROWS.sum(1), IDS), [[2, 4], [0, 0]])


def test_power_one_half_divides_by_the_root_of_the_count():
    half = mean_of(ROWS.sum(1), IDS, 0.5)
    np.testing.assert_allclose(half, [[8**0.5, 32**0.5], [0, 0]], rtol=1e-6)


def test_a_history_is_read_as_a_sum_unless_its_rows_are_needed():
    history, bag = FeatureSpec("h", "history", table="h"), FeatureSpec("b", "bag", table="b")
    assert is_summed(history, ("mean", "sqrt")) and not is_summed(history, ("mean", "last"))
    assert is_summed(bag, ("attention",)) and not is_summed(FeatureSpec("i", "embedding"), ())
    encoder = FeatureEncoder((history,), ("mean",))
    joined = encoder.apply({}, {"h": IDS}, {"h": ROWS.sum(1)})
    np.testing.assert_array_equal(joined, [[2, 4], [0, 0]])


def test_features_are_joined_in_their_order():
    specs = (
        FeatureSpec("bag", "bag", table="b"),
        FeatureSpec("age", "dense", width=1),
        FeatureSpec("history", "history", table="h"),
        FeatureSpec("id", "embedding", table="i"),
        FeatureSpec("vec", "vector", width=2),
    )
    inputs = {
        "age": jnp.array([[7.0], [8.0]]),
        "vec": jnp.array([[0.1, 0.2], [0.3, 0.4]]),
        "bag": IDS,
        "history": IDS,
        "id": jnp.array([1, 2]),
    }
    rows = {"bag": ROWS.sum(1), "history": ROWS, "id": jnp.array([[9.0, 9.0], [8.0, 8.0]])}
    joined = FeatureEncoder(specs, ("last", "mean")).apply({}, inputs, rows)
    want = [[2, 4, 7, 3, 6, 2, 4, 9, 9, 0.1, 0.2], [0, 0, 8, 0, 0, 0, 0, 8, 8, 0.3, 0.4]]
    np.testing.assert_allclose(joined, want, rtol=1e-6)


def test_attention_weighs_by_content_and_position():
    pool = AttentionPool()
    params = jax.device_get(jax.jit(pool.init)(jax.random.key(0), ROWS, IDS)["params"])
    params["position"] = np.array([5.0, 1.0, 0.0], np.float32)
    known = np.asarray(ROWS[0, 1:])  # the first is padding
    logits = (np.tanh(known @ params["key"]["kernel"]) @ params["score"]["kernel"])[:, 0] + [1, 0]
    weights = np.exp(logits) / np.exp(logits).sum()
    pooled = jax.jit(pool.apply)({"params": params}, ROWS, IDS)
    np.testing.assert_allclose(pooled[0], weights @ known, rtol=1e-5)
    np.testing.assert_array_equal(pooled[1], [0, 0])


def test_an_empty_history_is_zero_and_has_finite_gradients():
    spec = FeatureSpec("history", "history", table="h")
    encoder = FeatureEncoder((spec,), POOLINGS)
    empty = {"history": jnp.full((1, 3), -1)}
    rows = {"history": jnp.zeros((1, 3, 2))}

    @jax.jit
    def check(key):
        variables = encoder.init(key, empty, rows)
        pooled = encoder.apply(variables, empty, rows)
        grads = jax.grad(lambda v, r: jnp.sum(encoder.apply(v, empty, r)), (0, 1))(variables, rows)
        return pooled, grads

    pooled, grads = check(jax.random.key(0))
    np.testing.assert_array_equal(pooled, np.zeros((1, 8)))
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
