"""Towers: layers as configured, and dropout that belongs to the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.data.encode import FeatureSpec
from recjax.models.towers import ACTIVATIONS, ExampleDropout, QueryTower

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
SPEC = (FeatureSpec("x", "dense", width=3),)
INDEX = jnp.arange(4)


def make(**settings):
    """(a tower over one dense feature: variables, x, ... to embeddings; its variables)."""
    tower = QueryTower(SPEC, 2, **settings)

    @jax.jit
    def embed(variables, x, index=None, key=None):
        return tower.apply(
            variables, {"x": x}, {}, index, rngs={} if key is None else {"dropout": key}
        )

    return embed, jax.device_get(jax.jit(tower.init)(jax.random.key(1), {"x": X}, {}))


def test_without_layers_the_features_are_the_embedding():
    embed, variables = make(output="none")
    assert not variables
    np.testing.assert_array_equal(embed(variables, X), X)


def test_a_tower_is_its_layers_one_after_the_other():
    embed, variables = make(hidden=(5, 4), activation="tanh", normalization="layer")
    params = variables["params"]
    h = np.asarray(X)
    for i in range(2):
        h = h @ params[f"hidden_{i}"]["kernel"] + params[f"hidden_{i}"]["bias"]
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)
        h = np.tanh(h)
    want = h @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(embed(variables, X), want, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_without_an_output_layer_the_last_hidden_layer_is_the_embedding(activation):
    embed, variables = make(hidden=(2,), output="none", activation=activation)
    params = variables["params"]["hidden_0"]
    want = ACTIVATIONS[activation](X @ params["kernel"] + params["bias"][None, :])
    np.testing.assert_allclose(embed(variables, X), want, rtol=1e-5)


def test_dropout_follows_the_example_wherever_it_stands():
    embed, variables = make(hidden=(16,), dropout=0.5)
    key, order = jax.random.key(2), np.array([2, 0, 3, 1])
    straight = embed(variables, X, INDEX, key)
    turned = embed(variables, X[order], INDEX[order], key)
    np.testing.assert_allclose(turned, straight[order], rtol=1e-6)
    assert not np.allclose(straight, embed(variables, X, INDEX + 1, key))


def test_no_index_means_no_dropout():
    embed, variables = make(hidden=(16,), dropout=0.5)
    plain, _ = make(hidden=(16,))
    np.testing.assert_array_equal(embed(variables, X), plain(variables, X))
    assert not np.allclose(embed(variables, X), embed(variables, X, INDEX, jax.random.key(2)))


def test_dropout_keeps_the_mean():
    dropout = jax.jit(ExampleDropout(0.25).apply)
    dropped = dropout({}, jnp.ones((64, 64)), jnp.arange(64), rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert float(np.mean(dropped)) == pytest.approx(1, abs=0.05)
