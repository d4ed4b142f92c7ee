import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from recjax.ops.softmax import corpus_logsumexp, softmax_loss

TILINGS = [4, (4, 5)]  # rows by all items, rows by a chunk


def reference(query, item, label, y, weight, bias=0.0, mask=True, scale=1.0, smoothing=0.0):
    """Loss per example and the gradients of the weighted sum, in float64."""
    query, item, y, weight = (np.asarray(x, np.float64) for x in (query, item, y, weight))
    dots = query @ item.T
    scores = scale * dots + np.asarray(bias, np.float64)
    valid = np.where(mask, scores, -np.inf)
    top = valid.max(1)
    log_z = top + np.log(np.exp(valid - top[:, None]).sum(1))
    counts = np.broadcast_to(mask, scores.shape)
    target = smoothing * counts / counts.sum(1, keepdims=True)
    rows, slots = np.nonzero(label >= 0)
    np.add.at(target, (rows, label[rows, slots]), (1 - smoothing) * y[rows, slots])
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
    "batch, items, labels, tile, smoothing",
    [
        (7, 13, 3, 4, 0.0),
        (8, 1, 1, 4, 0.0),
        (1, 300, 1, (128, 128), 0.1),
        (130, 37, 5, None, 0.0),
        (33, 101, 4, (16, 10), 0.3),
    ],
)
def test_values_and_gradients_are_those_of_the_float64_reference(
    batch, items, labels, tile, smoothing
):
    case = problem(batch=batch, items=items, labels=min(labels, items), spread=10.0)
    rng = np.random.default_rng(1)
    bias, prior = rng.normal(size=(2, items)).astype(np.float32)
    mask = (np.arange(items) % 3 != 1) | np.isin(np.arange(items), case[2])
    (total, loss), grads = value_and_grads(
        *case,
        bias,
        1.7,
        mask_N=jnp.asarray(mask),
        log_prior_N=jnp.asarray(prior),
        label_smoothing=smoothing,
        tile=tile,
    )
    expected, expected_grads = reference(*case, bias + prior, mask, 1.7, smoothing)
    assert_close(loss, expected, 1e-6)
    np.testing.assert_allclose(total, (case[-1] * expected).sum(), rtol=1e-6)
    for got, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(got, expected_grad, 1e-5)


@pytest.mark.parametrize("chunk", [None, 5])
def test_the_loss_is_what_the_log_partition_gives(chunk):
    query, item, label, y, weight = (jnp.asarray(x) for x in problem())
    prior = jnp.linspace(-1, 1, 13).at[3].set(-jnp.inf)
    label, scale = jnp.where(label == 3, 4, label), jnp.float32(0.7)
    shifts = {"mask_N": jnp.arange(13) != 7, "log_prior_N": prior}
    label = jnp.where(label == 7, 8, label)

    def by_hand(query, item, bias, scale):
        lse = corpus_logsumexp(query, item, bias_N=bias, scale=scale, chunk=chunk, **shifts)
        score = scale * jnp.einsum("bd,bpd->bp", query, item[label]) + (bias + prior)[label]
        loss = lse - jnp.sum(y * score, axis=1)
        return jnp.sum(weight * loss), loss

    bias = jnp.cos(jnp.arange(13.0))
    run = jax.jit(jax.value_and_grad(by_hand, argnums=(0, 1, 2, 3), has_aux=True))
    (total, loss), grads = run(query, item, bias, scale)
    (total2, loss2), grads2 = value_and_grads(
        query, item, label, y, weight, bias, scale, **shifts, tile=(4, 5)
    )
    np.testing.assert_allclose(total, total2, rtol=1e-6)
    np.testing.assert_allclose(loss, loss2, rtol=1e-6, atol=1e-6)
    for grad, grad2 in zip(grads, grads2, strict=True):
        assert_close(grad, grad2, 1e-6)


def test_the_value_without_differentiation_is_the_same_and_forms_no_gradient():
    query, item, label, y, weight = (jnp.asarray(x) for x in problem())
    run = jax.jit(lambda q, v: softmax_loss(q, v, label, y, weight, tile=4))
    total, loss = run(query, item)
    expected, _ = reference(query, item, label, y, weight)
    assert_close(loss, expected, 1e-6)
    assert str(jax.make_jaxpr(run)(query, item)).count("dot_general") == 1


def dense(query, item, label, y, weight):
    logits = query @ item.T
    target = jnp.sum(y * jnp.take_along_axis(logits, jnp.maximum(label, 0), axis=1), axis=1)
    loss = jax.nn.logsumexp(logits, axis=1) - target
    return jnp.sum(weight * loss), loss


@pytest.mark.parametrize("tile", TILINGS)
def test_logits_of_ten_thousand_are_no_worse_than_in_dense_float32(tile):
    case = problem(batch=16, items=50, spread=4e3)
    expected, expected_grads = reference(*case)
    logits = case[0].astype(np.float64) @ case[1].astype(np.float64).T
    assert 1e4 < np.abs(logits).max() < 1e5
    (_, loss), grads = value_and_grads(*case, np.zeros(50, np.float32), tile=tile)
    run = jax.jit(jax.value_and_grad(dense, argnums=(0, 1), has_aux=True))
    (_, plain_loss), plain_grads = run(*(jnp.asarray(x) for x in case))
    ours, plains = (loss, *grads[:2]), (plain_loss, *plain_grads)
    for got, plain, exact in zip(ours, plains, (expected, *expected_grads[:2]), strict=True):
        assert np.isfinite(got).all()
        error, plain_error = (np.abs(np.asarray(x) - exact).max() for x in (got, plain))
        assert error <= 2 * plain_error + 1e-6 * np.abs(exact).max()


@pytest.mark.parametrize("tile", [None, (2, 300)])
def test_zero_scores_lose_log_n_exactly(tile):
    items = 1000
    zeros = jnp.zeros((3, 4)), jnp.zeros((items, 4))
    label = jnp.asarray([[0], [500], [999]], jnp.int32)
    ones = jnp.ones((3, 1)), jnp.ones(3)
    exact = np.log(np.full(3, items, np.float32))
    _, loss = softmax_loss(*zeros, label, *ones, label_smoothing=0.1, tile=tile)
    np.testing.assert_array_equal(loss, exact)
    np.testing.assert_array_equal(corpus_logsumexp(*zeros, chunk=300), exact)


def test_a_masked_label_has_an_infinite_loss_unless_its_example_has_no_weight():
    query, item, label, y, weight = (jnp.asarray(x) for x in problem(labels=1))
    mask = jnp.arange(13) != label[2, 0]
    total, loss = softmax_loss(query, item, label, y, weight, mask_N=mask)
    assert loss[2] == jnp.inf
    assert np.isfinite(total) == np.isfinite(np.delete(loss, 2)).all()


def test_permuting_padding_and_splitting_the_batch_changes_nothing():
    query, item, label, y, weight = problem()
    bias = np.zeros(13, np.float32)
    settings = {"tile": (4, 5), "label_smoothing": 0.1}
    (total, loss), grads = value_and_grads(query, item, label, y, weight, bias, **settings)
    order = np.append(np.random.default_rng(3).permutation(7), [0, 0])
    padded = np.where(np.arange(9) < 7, weight[order], 0).astype(np.float32)
    (total2, loss2), grads2 = value_and_grads(
        query[order], item, label[order], y[order], padded, bias, **settings
    )
    halves = [
        softmax_loss(
            *(jnp.asarray(x) for x in (query[p], item, label[p], y[p], weight[p])), **settings
        )
        for p in (slice(3), slice(3, 7))
    ]
    np.testing.assert_allclose(total, total2, rtol=1e-6)
    np.testing.assert_allclose(total, halves[0][0] + halves[1][0], rtol=1e-6)
    np.testing.assert_allclose(loss2, loss[order], rtol=1e-6)
    assert_close(grads2[0][:7], grads[0][order[:7]], 1e-6)
    assert_close(grads2[1], grads[1], 1e-6)
    assert not grads2[0][7:].any()


def test_the_loss_of_each_example_passes_no_gradient():
    query, item, label, y, weight = (jnp.asarray(x) for x in problem())
    grad = jax.grad(lambda q: softmax_loss(q, item, label, y, weight)[1].sum())(query)
    assert not grad.any()


@pytest.mark.parametrize("tile", TILINGS)
def test_four_by_two_devices_give_what_one_gives(tile):
    query, item, label, y, weight = problem(batch=16, items=26)
    rng = np.random.default_rng(1)
    bias, prior = rng.normal(size=(2, 26)).astype(np.float32)
    mask = np.arange(26) != 20
    label[label == 20] = 0
    fixed = label, y, weight, mask, prior

    def loss(params, rest, offset=0, axis=None):
        query, item, bias, scale = params
        label, y, weight, mask, prior = rest
        shared = {"bias_N": bias, "mask_N": mask, "log_prior_N": prior, "scale": scale}
        shared |= {"axis": axis}
        total, loss_B = softmax_loss(
            query, item, label, y, weight, offset=offset, tile=tile, label_smoothing=0.2, **shared
        )
        lse_B = corpus_logsumexp(query, item, chunk=5, **shared)
        return total + jnp.sum(weight * lse_B**2), (loss_B, lse_B)

    gradient = jax.value_and_grad(loss, has_aux=True)
    mesh = Mesh(
        np.array(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )

    def replica(params, rest):
        offset = jax.lax.axis_index("model") * len(params[1])
        (total, aux), (query, *grads) = gradient(params, rest, offset, "model")
        return (jax.lax.psum(total, "data"), aux), (query, *jax.lax.psum(grads, "data"))

    rows, items = P("data"), P("model")
    run = jax.shard_map(
        replica,
        mesh=mesh,
        in_specs=((rows, items, items, P()), (rows, rows, rows, items, items)),
        out_specs=((P(), rows), (rows, items, items, P())),
        check_vma=False,
    )
    params = (query, item, bias, jnp.float32(0.5))
    got, expected = jax.jit(run)(params, fixed), jax.jit(gradient)(params, fixed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("batch, items", [(512, 40_000), (4096, 8_192)])
def test_no_temporary_comes_near_the_logits(batch, items):
    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def loss(query, item, label, y, weight, mask):
        return softmax_loss(query, item, label, y, weight, mask_N=mask)[0]

    def lse(query, item, label, y, weight, mask):
        return jnp.sum(weight * corpus_logsumexp(query, item, mask_N=mask))

    ids = shape(batch, 1, dtype=jnp.int32)
    rest = shape(batch, 1), shape(batch), shape(items, dtype=jnp.bool_)
    for function in (loss, lse):
        lowered = jax.jit(jax.grad(function, argnums=(0, 1))).lower(
            shape(batch, 8), shape(items, 8), ids, *rest
        )
        temporary = lowered.compile().memory_analysis().temp_size_in_bytes
        assert temporary < batch * items * 4 / 3, function


@pytest.mark.parametrize("tile", [None, (4, 128)])
def test_bfloat16_embeddings_are_summed_in_float32(tile):
    query, item, label, y, weight = problem(items=400)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (query, item)]
    rounded = [np.asarray(x, np.float32) for x in half]
    rest = [jnp.asarray(x) for x in (label, y, weight)]
    run = jax.value_and_grad(lambda q, v: softmax_loss(q, v, *rest, tile=tile)[0], argnums=(0, 1))
    total, grads = run(*half)
    expected, expected_grads = reference(*rounded, label, y, weight)
    np.testing.assert_allclose(total, (weight * expected).sum(), rtol=1e-6)
    for got, expected_grad in zip(grads, expected_grads, strict=False):
        assert got.dtype == jnp.bfloat16
        assert_close(np.asarray(got, np.float32), expected_grad, 2e-2)


def test_the_log_partition_normalises_the_scores():
    query, item = (jnp.asarray(x) for x in problem(batch=6, items=5000)[:2])
    mask = jnp.arange(5000) != 7
    log_z = corpus_logsumexp(query, item, mask_N=mask, scale=2.0, chunk=999)
    p = np.exp(2.0 * (query @ item.T) - log_z[:, None])[:, np.asarray(mask)]
    np.testing.assert_allclose(p.astype(np.float64).sum(1), 1, atol=1e-5)
    grad = jax.grad(lambda q: corpus_logsumexp(q, item, mask_N=mask, scale=2.0, chunk=999).sum())(
        query
    )
    assert_close(grad, 2 * p @ np.asarray(item)[np.asarray(mask)], 1e-5)
