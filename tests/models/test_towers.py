"""Towers: layers as configured, and dropout that belongs to the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.data.encode import FeatureSpec
from recjax.models.dropout import ExampleDropout, IdDropout
from recjax.models.towers import ACTIVATIONS, QueryTower

pytestmark = pytest.mark.usefixtures("quick_compilation")

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


def test_a_dropped_id_is_an_unknown_id_and_the_rest_of_the_row_stays():
    """Of 64 examples, those that lose their id give what they would with a row of zeros."""
    specs = (FeatureSpec("user_id", "embedding", table="u"), *SPEC)
    x_Bx3, row_Bx4 = jnp.tile(X, (16, 1)), jnp.arange(1.0, 257.0).reshape(64, 4)
    plain = QueryTower(specs, 2, output="none")
    tower = QueryTower(specs, 2, output="none", id_dropout=0.4)

    def embed(tower, row_Bx4, *index):
        rngs = {"dropout": jax.random.key(0)}
        return np.asarray(tower.apply({}, {"x": x_Bx3}, {"user_id": row_Bx4}, *index, rngs=rngs))

    known = embed(plain, row_Bx4)
    unknown = embed(plain, jnp.zeros_like(row_Bx4))
    np.testing.assert_array_equal(embed(tower, row_Bx4), known)  # no index: off
    found = embed(tower, row_Bx4, jnp.arange(64))
    is_dropped_B = (found == unknown).all(axis=1)
    assert 12 <= is_dropped_B.sum() <= 40
    np.testing.assert_array_equal(found, np.where(is_dropped_B[:, None], unknown, known))
    turned = IdDropout(0.4).apply(
        {}, row_Bx4[::-1], jnp.arange(64)[::-1], rngs={"dropout": jax.random.key(1)}
    )
    straight = IdDropout(0.4).apply(
        {}, row_Bx4, jnp.arange(64), rngs={"dropout": jax.random.key(1)}
    )
    np.testing.assert_array_equal(turned, straight[::-1])


def test_embedding_dropout_is_on_the_entries_of_embeddings_alone():
    specs = (FeatureSpec("id", "embedding", table="u"), *SPEC)
    tower = QueryTower(specs, 2, output="none", embedding_dropout=0.5)
    rows, order = {"id": jnp.ones((4, 64))}, np.array([2, 0, 3, 1])

    def embed(x_Bx3, *index):
        return np.asarray(
            tower.apply({}, {"x": x_Bx3}, rows, *index, rngs={"dropout": jax.random.key(0)})
        )

    off, found = embed(X), embed(X, INDEX)
    np.testing.assert_array_equal(off[:, :64], 1)
    assert set(np.unique(found[:, :64])) == {0, 2}
    np.testing.assert_array_equal(found[:, 64:], X)
    assert len({tuple(row) for row in found[:, :64]}) == 4
    np.testing.assert_array_equal(embed(X[order], INDEX[order]), found[order])
