"""The corpus in chunks, and gradients summed over an axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from recjax.models.corpus import encode_corpus, sum_gradient


def make_tower(table_NxD):
    """A nonlinear item side."""
    return lambda item_C: jnp.tanh(table_NxD[item_C] @ table_NxD.T @ table_NxD)


@pytest.mark.parametrize("chunk", [3, 5])
def test_chunks_change_neither_embeddings_nor_gradients(chunk):
    random = np.random.default_rng(0)
    table_NxD = jnp.asarray(random.standard_normal((10, 4)), jnp.float32)
    weight_NxD = jnp.asarray(random.standard_normal((10, 4)), jnp.float32)
    item_N = jnp.arange(9, -1, -1)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(table_NxD, chunk):
        item_NxD = encode_corpus(make_tower(table_NxD), item_N, chunk)
        return jnp.sum(weight_NxD * item_NxD), item_NxD

    (_, got), got_grad = loss(table_NxD, chunk)
    (_, want), want_grad = loss(table_NxD, 100)
    assert got.shape == (10, 4)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(got_grad, want_grad, rtol=1e-5, atol=1e-5)


def test_no_more_than_a_chunk_is_encoded_at_once():
    sizes = []

    def encode(item_C):
        sizes.append(len(item_C))
        return jnp.ones((len(item_C), 2))

    encode_corpus(encode, jnp.arange(10), 4)
    assert set(sizes) == {4}


def test_sum_gradient_sums_over_the_axis():
    """Each device uses the parameter on its own part: the whole gradient is the sum."""
    x_N = jnp.arange(8.0)

    def part(x_n):
        return jax.grad(lambda w: jnp.sum(sum_gradient(w, "model") * x_n))(jnp.float32(2.0))[None]

    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(
        part, mesh=mesh, in_specs=P("model"), out_specs=P("model"), check_vma=False
    )
    np.testing.assert_array_equal(mapped(x_N), np.full(8, 28.0))


def test_sum_gradient_is_the_identity_without_an_axis():
    tree = {"w": jnp.ones(2)}
    assert sum_gradient(tree, None) is tree
