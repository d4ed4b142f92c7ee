import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.candidates import Candidates, make_source
from recjax.losses import sampled_softmax, softmax


def problem(seed=0, batch=7, items=13, dim=5, labels=3, count=9):
    """A batch against candidates among which are duplicates, hits and one that is none."""
    rng = np.random.default_rng(seed)
    label = np.stack([rng.permutation(items)[:labels] for _ in range(batch)]).astype(np.int32)
    y = rng.random((batch, labels))
    if labels > 1:
        label[::2, -1], y[::2, -1] = -1, 0
    y = (y / y.sum(1, keepdims=True)).astype(np.float32)
    ids = rng.integers(0, items, size=count).astype(np.int32)
    ids[0], ids[1] = ids[2], label[0, 0]
    log_q = rng.normal(size=count).astype(np.float32)
    ids[-1], log_q[-1] = -1, np.inf
    weight = np.where(np.arange(batch) == 2, 0, rng.random(batch) + 0.5).astype(np.float32)
    shapes = {
        "query": (batch, dim),
        "positive": (batch, labels, dim),
        "candidate": (count, dim),
        "positive_bias": (batch, labels),
        "candidate_bias": (count,),
    }
    floats = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return floats, label, y, ids, log_q, weight


def reference(floats, label, y, ids, log_q, weight, scale):
    """Loss per example and the gradients of the weighted sum, in float64."""
    query, positive, candidate, positive_bias, candidate_bias = (
        x.astype(np.float64) for x in floats.values()
    )
    dot_p = np.einsum("bd,bpd->bp", query, positive)
    dot_c = query @ candidate.T
    score = scale * dot_p + positive_bias
    logit_p = np.where(label >= 0, score, -np.inf)
    is_hit = (ids[None, None, :] == label[:, :, None]).any(1)
    logit_c = np.where(is_hit, -np.inf, scale * dot_c + candidate_bias - log_q.astype(np.float64))
    z = np.exp(logit_p).sum(1) + np.exp(logit_c).sum(1)
    loss = np.log(z) - (y * score).sum(1)
    d_p = weight[:, None] * (np.exp(logit_p) / z[:, None] - y)
    d_c = weight[:, None] * np.exp(logit_c) / z[:, None]
    grads = {
        "query": scale * (d_c @ candidate + np.einsum("bp,bpd->bd", d_p, positive)),
        "positive": scale * d_p[:, :, None] * query[:, None, :],
        "candidate": scale * d_c.T @ query,
        "positive_bias": d_p,
        "candidate_bias": d_c.sum(0),
        "scale": (d_p * dot_p).sum() + (d_c * dot_c).sum(),
    }
    return loss, grads


def value_and_grads(floats, label, y, ids, log_q, weight, scale, **kwargs):
    label, y, weight = (jnp.asarray(x) for x in (label, y, weight))
    candidates = Candidates(jnp.asarray(ids), jnp.asarray(log_q))

    def loss(arrays):
        return sampled_softmax(
            arrays["query"],
            arrays["positive"],
            arrays["candidate"],
            label,
            y,
            candidates,
            weight,
            scale=arrays["scale"],
            positive_bias_BxP=arrays["positive_bias"],
            candidate_bias_C=arrays["candidate_bias"],
            **kwargs,
        )

    arrays = {name: jnp.asarray(x) for name, x in floats.items()} | {"scale": jnp.float32(scale)}
    (total, loss_B), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return total, loss_B, grads


def assert_close(got, expected, relative):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize("labels, tile", [(1, 3), (3, 3), (3, 128)])
def test_sampled_softmax_is_that_of_the_float64_reference(labels, tile):
    case = problem(labels=labels)
    total, loss, grads = value_and_grads(*case, 1.7, tile=tile)
    expected, expected_grads = reference(*case, 1.7)
    assert_close(loss, expected, 1e-6)
    np.testing.assert_allclose(total, (case[-1] * expected).sum(), rtol=1e-6)
    assert grads.keys() == expected_grads.keys()
    for name in grads:
        assert_close(grads[name], expected_grads[name], 1e-5)


def test_without_correction_log_q_is_dropped_but_what_is_no_candidate_stays_out():
    floats, label, y, ids, log_q, weight = problem()
    _, loss, _ = value_and_grads(floats, label, y, ids, log_q, weight, 1.0, correct=False)
    dropped = np.where(np.isinf(log_q), log_q, 0)
    assert_close(loss, reference(floats, label, y, ids, dropped, weight, 1.0)[0], 1e-6)


def test_the_positive_can_be_corrected_too():
    floats, label, y, ids, log_q, weight = problem()
    positive_log_q = np.linspace(-1, 1, label.size, dtype=np.float32).reshape(label.shape)
    case = label, y, ids, log_q, weight, 1.0
    _, loss, _ = value_and_grads(floats, *case, positive_log_q_BxP=jnp.asarray(positive_log_q))
    moved = floats | {"positive_bias": floats["positive_bias"] - positive_log_q}
    assert_close(loss, reference(moved, *case)[0], 1e-6)


@pytest.mark.parametrize("labels", [1, 3])
def test_the_whole_corpus_as_candidates_is_the_exact_softmax(labels):
    floats, label, y, _, _, weight = problem(labels=labels)
    item = jax.random.normal(jax.random.key(0), (13, 5))
    label, y, weight = (jnp.asarray(x) for x in (label, y, weight))
    everything = Candidates(jnp.arange(13), jnp.zeros(13))

    def sampled(query, item):
        positive = item[jnp.maximum(label, 0)]
        return sampled_softmax(query, positive, item, label, y, everything, weight)

    def exact(query, item):
        return softmax(query, item, label, y, weight)

    results = [
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(jnp.asarray(floats["query"]), item)
        for loss in (sampled, exact)
    ]
    for got, expected in zip(*map(jax.tree.leaves, results), strict=True):
        assert_close(got, expected, 1e-6)


def test_padding_of_labels_candidates_and_examples_changes_nothing():
    floats, label, y, ids, log_q, weight = problem()
    total, loss, grads = value_and_grads(floats, label, y, ids, log_q, weight, 1.0, tile=4)
    extra = {
        name: np.pad(x, [(0, 2)] + [(0, 0)] * (x.ndim - 1), constant_values=3)
        for name, x in floats.items()
    }
    wide = {"positive": (0, 0, 0), "positive_bias": (0, 0)}
    for name, (_, before, *rest) in wide.items():
        pad = [(0, 0), (before, 1), *[(0, 0) for _ in rest]]
        extra[name] = np.pad(extra[name], pad, constant_values=5)
    total2, loss2, grads2 = value_and_grads(
        extra,
        np.pad(label, ((0, 2), (0, 1)), constant_values=-1),
        np.pad(y, ((0, 2), (0, 1))),
        np.pad(ids, (0, 2), constant_values=4),
        np.pad(log_q, (0, 2), constant_values=np.inf),
        np.pad(weight, (0, 2)),
        1.0,
        tile=4,
    )
    np.testing.assert_allclose(total2, total, rtol=1e-6)
    assert_close(loss2[:7], loss, 1e-6)
    for name, grad in grads.items():
        whole = grads2[name]
        kept = tuple(slice(0, size) for size in grad.shape)
        assert_close(whole[kept], grad, 1e-6)
        assert_close(jnp.abs(whole).sum(), jnp.abs(grad).sum(), 1e-6)


def test_an_example_of_padding_alone_gives_no_nan():
    floats, label, y, ids, _, weight = problem()
    empty = np.full_like(label, -1), np.zeros_like(y)
    total, _, grads = value_and_grads(
        floats, *empty, ids, np.full(9, np.inf, np.float32), np.zeros_like(weight), 1.0
    )
    assert total == 0 and all(not grad.any() for grad in grads.values())


ITEMS = 30
FREQUENCY = 1 / np.arange(1.0, ITEMS + 1)


def estimates(name, count, repeats, *, correct=True):
    """Z and d loss / d query, (estimated [repeats], exact), of two examples with two labels."""
    keys = jax.random.split(jax.random.key(1), 3)
    query = jax.random.normal(keys[0], (2, 4))
    item = jax.random.normal(keys[1], (ITEMS, 4))
    label = jnp.asarray([[0, 20], [3, -1]], jnp.int32)
    y = jnp.asarray([[0.25, 0.75], [1.0, 0.0]])
    case = label, y, jnp.ones(2)
    source = make_source(name, FREQUENCY, count=count, power=0.75)
    target = jnp.sum(y * jnp.einsum("bd,bpd->bp", query, item[label]), axis=1)

    def estimated(key):
        candidates = source.draw(key, *case, jnp.arange(2)).candidates
        candidate, positive = item[candidates.ids_C], item[label]

        def loss(query):
            return sampled_softmax(
                query, positive, candidate, label, y, candidates, case[2], correct=correct
            )

        grad, loss_B = jax.grad(loss, has_aux=True)(query)
        return jnp.exp(loss_B + target), grad

    grad, loss_B = jax.grad(lambda query: softmax(query, item, *case), has_aux=True)(query)
    many = jax.jit(jax.vmap(estimated))(jax.random.split(keys[2], repeats))
    return jax.tree.map(np.asarray, (many, (jnp.exp(loss_B + target), grad)))


def errors(many, exact):
    """Distance of the mean from the exact value, in standard errors."""
    standard_error = many.std(0, ddof=1) / np.sqrt(len(many))
    return np.abs(many.mean(0) - exact) / standard_error


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "unigram"])
def test_the_estimate_of_z_is_unbiased_and_the_gradient_tends_to_the_exact_one(name):
    (z, grad_few), (exact_z, exact_grad) = estimates(name, 4, 2000)
    assert errors(z, exact_z).max() < 4
    (_, grad_many), _ = estimates(name, 1024, 200)
    assert errors(grad_many, exact_grad).max() < 4
    few, many = (np.abs(grad - exact_grad).mean() for grad in (grad_few, grad_many))
    assert many < few / 8  # 256 times as many candidates


@pytest.mark.parametrize("name", ["log_uniform", "unigram"])
def test_a_wrong_log_q_is_found_out(name):
    (z, _), (exact_z, _) = estimates(name, 4, 2000, correct=False)
    assert errors(z, exact_z).min() > 8
    (_, grad), (_, exact_grad) = estimates(name, 1024, 200, correct=False)
    assert errors(grad, exact_grad).max() > 8


@pytest.mark.parametrize("labels", [1, 3])
def test_in_batch_z_is_unbiased_over_batches(labels):
    """Batches of examples drawn from a population whose label mass is the frequency."""
    rng = np.random.default_rng(0)
    population = np.stack([rng.permutation(8)[:labels] for _ in range(40)]).astype(np.int32)
    y = rng.random(population.shape)
    y /= y.sum(1, keepdims=True)
    frequency = np.bincount(population.ravel(), weights=y.ravel(), minlength=8)
    source = make_source("in_batch", frequency)
    item = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    query = jnp.asarray(rng.normal(size=(1, 4)), jnp.float32)
    batch = 6
    rows = rng.integers(0, 40, size=(4000, batch))
    rows[:, 0] = 0

    def z(key, label, y):
        draw = source.draw(key, label, y, jnp.ones(batch), jnp.arange(batch))
        positive = item[label]
        _, loss_B = sampled_softmax(
            jnp.broadcast_to(query, (batch, 4)),
            positive,
            item[draw.candidates.ids_C],
            label,
            y,
            draw.candidates,
            jnp.ones(batch),
        )
        return jnp.exp(loss_B[0] + jnp.sum(y[0] * (positive[0] @ query[0])))

    keys = jax.random.split(jax.random.key(0), len(rows))
    many = jax.jit(jax.vmap(z))(keys, population[rows], y[rows].astype(np.float32))
    exact = np.exp(np.asarray(item @ query[0])).sum()
    assert errors(np.asarray(many), exact) < 4
