import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.losses import bpr
from recjax.ops.candidate_loss import candidate_loss

BATCH, DIM, COUNT = 5, 3, 12


def weighted_scores(score_TxP, log_w_TxP, y_TxP, score_TxC, log_w_TxC):
    """A rule that is linear in the scores: own items count y + w, candidates w."""
    own_T = jnp.sum((y_TxP + jnp.exp(log_w_TxP)) * score_TxP, axis=1)
    return own_T + jnp.sum(jnp.exp(log_w_TxC) * score_TxC, axis=1)


def value_and_grads(inputs, *targets, tile=2):
    def loss(query, own, candidate):
        return candidate_loss(weighted_scores, query, own, candidate, *targets, tile=tile)

    inputs = [jnp.asarray(x) for x in inputs]
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)


def problem(num_own, count):
    rng = np.random.default_rng(0)
    shapes = (BATCH, DIM), (BATCH, num_own, DIM), (count, DIM)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    own = np.stack([rng.permutation(20)[:num_own] for _ in range(BATCH)]).astype(np.int32)
    if num_own > 1:
        own[::2, -1] = -1
    y = rng.random((BATCH, num_own)).astype(np.float32)
    weight = np.asarray([1, 0, 2, 0.5, 1], np.float32)
    return inputs, own, y, weight


@pytest.mark.parametrize("num_own, count, named", [(4, 12, True), (10, 12, False), (10, 0, True)])
def test_own_items_are_no_candidates_and_what_is_padding_does_not_count(num_own, count, named):
    inputs, own, y, weight = problem(num_own, count)
    ids = np.random.default_rng(1).integers(0, 20, size=count).astype(np.int32)
    ids = np.arange(count, dtype=np.int32) if not named else ids
    log_w = np.linspace(-1, 1, count, dtype=np.float32)
    log_w[:2] = -np.inf
    (total, loss), grads = value_and_grads(
        inputs,
        jnp.asarray(own),
        None,
        jnp.asarray(y),
        jnp.asarray(ids) if named else None,
        jnp.asarray(log_w),
        jnp.asarray(weight),
    )
    query, own_embedding, candidate = inputs
    w_own = y + (own >= 0)
    w = np.where((own[:, :, None] == ids).any(1), 0, np.exp(log_w))
    pulled = np.einsum("bp,bpd->bd", w_own, own_embedding) + w @ candidate
    np.testing.assert_allclose(loss, (query * pulled).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, weight @ loss, rtol=1e-5)
    expected = (
        weight[:, None] * pulled,
        (weight[:, None] * w_own)[:, :, None] * query[:, None],
        w.T @ (weight[:, None] * query),
    )
    for got, grad in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-5, atol=1e-5)


def test_bfloat16_embeddings_have_bfloat16_gradients_and_float32_sums():
    inputs, own, y, weight = problem(4, COUNT)
    targets = [jnp.asarray(own), None, jnp.asarray(y), None, jnp.zeros(COUNT), jnp.asarray(weight)]
    (total, loss), exact = value_and_grads(inputs, *targets)
    low = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    (low_total, low_loss), grads = value_and_grads(low, *targets)
    assert low_total.dtype == low_loss.dtype == jnp.float32
    assert {grad.dtype for grad in grads} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(low_loss, loss, atol=0.02 * np.abs(loss).max())
    for got, expected in zip(grads, exact, strict=True):
        got = np.asarray(got, np.float32)
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_there_are_fewer_rows_in_a_tile_where_there_are_many_candidates():
    count = 2**20
    shapes = [(256, 2), (256, 1, 2), (count, 2)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(query, own, candidate):
        ids, ones = jnp.zeros((256, 1), jnp.int32), jnp.ones(256)
        targets = ids, None, ones[:, None], None, jnp.zeros(count), ones
        return candidate_loss(weighted_scores, query, own, candidate, *targets)[0]

    memory = jax.jit(jax.grad(loss)).lower(*inputs).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2**28


def test_bpr_with_many_labels_holds_no_more_than_some_tiles():
    tile, labels, count = 64, 100, 2000
    shapes = [(tile, 4), (tile, labels, 4), (count, 4)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(query, own, candidate):
        ids = jnp.arange(tile * labels, dtype=jnp.int32).reshape(tile, labels)
        targets = ids, None, jnp.ones((tile, labels)), None, jnp.zeros(count), jnp.ones(tile)
        return candidate_loss(bpr, query, own, candidate, *targets)[0]

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    memory = grad.lower(*inputs).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 12 * tile * count * 4
