import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from recjax.ops.softmax import log_partition, softmax_loss


def reference(query, item, label, y, weight, bias=0.0, mask=True, scale=1.0):
    """Loss per example and the gradients of the weighted sum, in float64."""
    query, item, y, weight = (np.asarray(x, np.float64) for x in (query, item, y, weight))
    dots = query @ item.T
    scores = scale * dots + np.asarray(bias, np.float64)
    valid = np.where(mask, scores, -np.inf)
    top = valid.max(1)
    log_z = top + np.log(np.exp(valid - top[:, None]).sum(1))
    target = np.zeros_like(scores)
    rows, slots = np.nonzero(label >= 0)
    np.add.at(target, (rows, label[rows, slots]), y[rows, slots])
    loss = log_z - (target * scores).sum(1)
    excess = weight[:, None] * (np.exp(valid - log_z[:, None]) - target)
    grads = (
        scale * excess @ item,
        scale * excess.T @ query,
        excess.sum(0),
        (excess * dots).sum(),
    )
    return loss, grads


def problem(seed=0, batch=7, items=13, dim=5, labels=3, spread=1.0):
    rng = np.random.default_rng(seed)
    query = spread * rng.normal(size=(batch, dim))
    item = rng.normal(size=(items, dim))
    label = np.stack([rng.permutation(items)[:labels] for _ in range(batch)]).astype(np.int32)
    y = rng.random((batch, labels))
    if labels > 1:
        label[::2, -1], y[::2, -1] = -1, 0
    y /= y.sum(1, keepdims=True)
    weight = np.where(np.arange(batch) == 2, 0.0, rng.random(batch) + 0.5)
    floats = [x.astype(np.float32) for x in (query, item)]
    return *floats, label, y.astype(np.float32), weight.astype(np.float32)


def value_and_grads(query, item, label, y, weight, bias, scale=1.0, **kwargs):
    def loss(query, item, bias, scale):
        return softmax_loss(query, item, label, y, weight, bias_N=bias, scale=scale, **kwargs)

    arrays = [jnp.asarray(x) for x in (query, item, bias)]
    label, y, weight = (jnp.asarray(x) for x in (label, y, weight))
    scale = jnp.float32(scale)
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    return run(*arrays, scale)


def assert_close(got, expected, relative):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize(
    "batch, items, labels, tile", [(7, 13, 3, 4), (8, 1, 1, 4), (1, 300, 1, 128), (130, 37, 5, 128)]
)
def test_values_and_gradients_are_those_of_the_float64_reference(batch, items, labels, tile):
    case = problem(batch=batch, items=items, labels=min(labels, items))
    rng = np.random.default_rng(1)
    bias = rng.normal(size=items).astype(np.float32)
    mask = (np.arange(items) % 3 != 1) | np.isin(np.arange(items), case[2])
    (total, loss), grads = value_and_grads(*case, bias, 1.7, mask_N=jnp.asarray(mask), tile=tile)
    expected, expected_grads = reference(*case, bias, mask, 1.7)
    assert_close(loss, expected, 1e-6)
    np.testing.assert_allclose(total, (case[-1] * expected).sum(), rtol=1e-6)
    for got, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(got, expected_grad, 1e-5)


def test_the_value_without_differentiation_is_the_same_and_forms_no_gradient():
    query, item, label, y, weight = (jnp.asarray(x) for x in problem())
    run = jax.jit(lambda q, v: softmax_loss(q, v, label, y, weight, tile=4))
    total, loss = run(query, item)
    expected, _ = reference(query, item, label, y, weight)
    assert_close(loss, expected, 1e-6)
    assert str(jax.make_jaxpr(run)(query, item)).count("dot_general") == 1


def test_logits_of_ten_thousand_give_finite_values_and_gradients():
    query, item, label, y, weight = problem(spread=1e4)
    (_, loss), grads = value_and_grads(query, item, label, y, weight, np.zeros(13, np.float32))
    assert np.isfinite(loss).all() and all(np.isfinite(grad).all() for grad in grads)
    # The logits themselves carry float32 rounding of 1e4.
    assert_close(loss, reference(query, item, label, y, weight)[0], 1e-6)


def test_zero_scores_lose_log_n_exactly():
    items = 1000
    zeros = jnp.zeros((3, 4)), jnp.zeros((items, 4))
    label = jnp.asarray([[0], [500], [999]], jnp.int32)
    _, loss = softmax_loss(*zeros, label, jnp.ones((3, 1)), jnp.ones(3))
    np.testing.assert_array_equal(loss, np.log(np.full(3, items, np.float32)))


def test_a_masked_label_has_an_infinite_loss_unless_its_example_has_no_weight():
    query, item, label, y, weight = (jnp.asarray(x) for x in problem(labels=1))
    mask = jnp.arange(13) != label[2, 0]
    total, loss = softmax_loss(query, item, label, y, weight, mask_N=mask)
    assert loss[2] == jnp.inf
    assert np.isfinite(total) == np.isfinite(np.delete(loss, 2)).all()


def test_permuting_and_padding_the_batch_changes_nothing():
    query, item, label, y, weight = problem()
    bias = np.zeros(13, np.float32)
    (total, loss), grads = value_and_grads(query, item, label, y, weight, bias, tile=4)
    order = np.append(np.random.default_rng(3).permutation(7), [0, 0])
    padded = np.where(np.arange(9) < 7, weight[order], 0).astype(np.float32)
    (total2, loss2), grads2 = value_and_grads(
        query[order], item, label[order], y[order], padded, bias, tile=4
    )
    np.testing.assert_allclose(total, total2, rtol=1e-6)
    np.testing.assert_allclose(loss2, loss[order], rtol=1e-6)
    assert_close(grads2[0][:7], grads[0][order[:7]], 1e-6)
    assert_close(grads2[1], grads[1], 1e-6)
    assert not grads2[0][7:].any()


def test_the_loss_of_each_example_passes_no_gradient():
    query, item, label, y, weight = (jnp.asarray(x) for x in problem())
    grad = jax.grad(lambda q: softmax_loss(q, item, label, y, weight)[1].sum())(query)
    assert not grad.any()


def test_a_corpus_split_over_four_devices_gives_what_one_device_gives():
    case = problem(items=16)
    bias = np.random.default_rng(1).normal(size=16).astype(np.float32)
    mask = (np.arange(16) < 13) | np.isin(np.arange(16), case[2])
    mask[12:] = False  # the last shard is padding alone
    case[2][case[2] >= 12] = 0
    (total, loss), grads = value_and_grads(*case, bias, 0.5, mask_N=jnp.asarray(mask), tile=4)

    mesh = Mesh(np.array(jax.devices()[:4]), ("model",), axis_types=(AxisType.Auto,))

    def shard(query, item, bias, mask):
        offset = jax.lax.axis_index("model") * item.shape[0]
        return value_and_grads(
            query,
            item,
            *case[2:],
            bias,
            0.5,
            mask_N=mask,
            offset=offset,
            axis="model",
            tile=4,
        )

    split = P("model")
    run = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(P(), split, split, split),
        out_specs=((P(), P()), (P(), split, split, P())),
        check_vma=False,
    )
    (total4, loss4), grads4 = jax.jit(run)(case[0], case[1], bias, mask)
    np.testing.assert_allclose(total4, total, rtol=1e-6)
    assert_close(loss4, loss, 1e-6)
    for got, expected in zip(grads4, grads, strict=True):
        assert_close(got, expected, 1e-6)


def test_bfloat16_embeddings_are_summed_in_float32():
    query, item, label, y, weight = problem(items=400)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (query, item)]
    rounded = [np.asarray(x, np.float32) for x in half]
    rest = [jnp.asarray(x) for x in (label, y, weight)]
    run = jax.value_and_grad(lambda q, v: softmax_loss(q, v, *rest)[0], argnums=(0, 1))
    total, grads = run(*half)
    expected, expected_grads = reference(*rounded, label, y, weight)
    np.testing.assert_allclose(total, (weight * expected).sum(), rtol=1e-6)
    for got, expected_grad in zip(grads, expected_grads, strict=False):
        assert got.dtype == jnp.bfloat16
        assert_close(np.asarray(got, np.float32), expected_grad, 2e-2)


def test_log_partition_normalises_the_scores():
    query, item = (jnp.asarray(x) for x in problem(batch=6, items=5000)[:2])
    mask = jnp.arange(5000) != 7
    log_z = log_partition(query, item, mask_N=mask, scale=2.0, tile=4)
    p = np.exp(2.0 * (query @ item.T) - log_z[:, None])[:, np.asarray(mask)]
    np.testing.assert_allclose(p.astype(np.float64).sum(1), 1, atol=1e-5)
    grad = jax.grad(lambda q: log_partition(q, item, mask_N=mask, scale=2.0, tile=4).sum())(query)
    assert_close(grad, 2 * p @ np.asarray(item)[np.asarray(mask)], 1e-5)
