"""Gradients from drawn candidates against the exact softmax gradient.

An estimate is made for one probe query at a time, over and over: its own label, and candidates
that are drawn afresh. The error of the mean of these gradients is the estimator's bias.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.candidates import Candidates, make_source, pick_hard
from recjax.distributions import unigram
from recjax.losses import make_loss
from recjax.ops.softmax import softmax_loss

ITEMS, DIM, PROBES, REPEATS, LONGEST = 50, 4, 4, 2048, 128
COUNTS = (8, 32, 128)
RNG = np.random.default_rng(0)
P_N = np.arange(1, ITEMS + 1) ** -0.8
P_N /= P_N.sum()
QUERY = jnp.asarray(0.5 * RNG.normal(size=(PROBES, DIM)), jnp.float32)
ITEM = jnp.asarray(RNG.normal(size=(ITEMS, DIM)), jnp.float32)
STALE = jnp.asarray(ITEM + 0.5 * RNG.normal(size=ITEM.shape), jnp.float32)
LABELS = unigram(P_N, P_N > 0, 1, 1.0)
LABEL = jnp.asarray([[0], [3], [20], [40]], jnp.int32)
sampled_softmax = make_loss("softmax").sampled


pytestmark = pytest.mark.usefixtures("quick_compilation")


class Measured(NamedTuple):
    """Of the gradient's mean over the repeats, in units of the exact gradient's length."""

    error: float
    standard_error: float


@functools.cache
def exact_gradient():
    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(query, item):
        ones = jnp.ones(PROBES)
        return softmax_loss(query, item, LABEL, ones[:, None], ones)[0]

    return gradient(QUERY, ITEM)


def probe_loss(query, item, label_P, ids_C, log_q_C, stored_C):
    """The loss of one query; stored candidates have the embeddings of an earlier time."""
    stale = jax.lax.stop_gradient(STALE[ids_C])
    candidate_CxD = jnp.where(stored_C[:, None], stale, item[ids_C])
    return sampled_softmax(
        query[None],
        item[label_P][None],
        candidate_CxD,
        label_P[None],
        jnp.ones((1, 1)),
        Candidates(ids_C, log_q_C),
        jnp.ones(1),
    )[0]


@jax.jit
def sums_of_errors(exact, ids_RxBxC, log_q_RxBxC, stored_RxBxC):
    """(sum, sum of the squared lengths) of the repeats' gradients less the exact one."""

    def one_repeat(drawn):
        def loss(query, item):
            each = jax.vmap(probe_loss, in_axes=(0, None, 0, 0, 0, 0))
            return jnp.sum(each(query, item, LABEL, *drawn))

        off = jax.tree.map(jnp.subtract, jax.grad(loss, argnums=(0, 1))(QUERY, ITEM), exact)
        return jnp.concatenate([x.reshape(-1) for x in off])

    def one_chunk(sums, drawn):
        off_RxM = jax.vmap(one_repeat)(drawn)
        return (sums[0] + off_RxM.sum(0), sums[1] + jnp.sum(off_RxM**2)), None

    chunks = jax.tree.map(
        lambda x: x.reshape(-1, 256, *x.shape[1:]), (ids_RxBxC, log_q_RxBxC, stored_RxBxC)
    )
    zero = jnp.zeros(QUERY.size + ITEM.size), jnp.zeros(())
    return jax.lax.scan(one_chunk, zero, chunks)[0]


def measure(ids_RxBxC, log_q_RxBxC, stored_RxBxC=None):
    """The error of the mean gradient over the repeats, each with candidates of its own."""
    missing = [(0, 0), (0, 0), (0, LONGEST - ids_RxBxC.shape[2])]
    if stored_RxBxC is None:
        stored_RxBxC = np.zeros(ids_RxBxC.shape, bool)
    exact = exact_gradient()
    total, squares = sums_of_errors(
        exact,
        np.pad(ids_RxBxC, missing),
        np.pad(log_q_RxBxC, missing, constant_values=np.inf),
        np.pad(stored_RxBxC, missing),
    )
    length = np.sqrt(sum(np.sum(np.square(x)) for x in exact))
    error = np.linalg.norm(total) / REPEATS
    variance = max(float(squares) / REPEATS - error**2, 0.0) / (REPEATS - 1)
    return Measured(float(error / length), float(np.sqrt(variance) / length))


def falls(measured):
    """Whether the error at least halves with each fourfold number of candidates.

    A bias of order 1 / count quarters. Judged within four standard errors of the mean gradients,
    and only if those let the first and the last be told apart.
    """
    halves = all(
        after.error <= before.error / 2 + 4 * (before.standard_error / 2 + after.standard_error)
        for before, after in zip(measured, measured[1:], strict=False)
    )
    first, last = measured[0], measured[-1]
    noise = 4 * (first.standard_error + last.standard_error)
    return halves and last.error < first.error - noise


def keys_of_repeats(repeats, seed):
    return jax.random.split(jax.random.key(seed), (repeats, PROBES))


def one_batch(label_P, rows, key):
    """A probe's example, and others whose labels are drawn as the training labels are."""
    others = dataclasses.replace(LABELS, count=rows - 1).draw(key)
    return {
        "label": jnp.concatenate([label_P, others])[:, None],
        "label_weight": jnp.ones((rows, 1)),
        "weight": jnp.ones(rows),
        "index": jnp.arange(rows),
    }


@functools.partial(jax.jit, static_argnames="rows")
def draw_probes(source, keys_RxB, rows):
    def draw(label_P, key):
        found, _ = source.draw({}, key, one_batch(label_P, rows, key), 0)
        parts = [part for part in (found.shared, found.own) if part is not None]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    return jax.vmap(jax.vmap(draw), in_axes=(None, 0))(LABEL, keys_RxB)


@functools.cache
def drawn(name, count):
    """Ids and log q [R, B, C] of every probe's candidates."""
    rows = {"in_batch": count, "mixed": count // 2}.get(name, 1)
    count = count // 2 if name == "mixed" else count
    source = make_source(name, P_N, count=count, power=0.75, mixed=("in_batch", "unigram"))
    return draw_probes(source, keys_of_repeats(REPEATS, count), rows)


def show(title, measured):
    print(title, " ".join(f"{each.error:.4f} +- {each.standard_error:.4f}" for each in measured))


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "unigram", "in_batch", "mixed"])
def test_the_error_of_the_mean_gradient_falls_with_more_candidates(name):
    measured = [measure(*drawn(name, count)) for count in COUNTS]
    show(name, measured)
    assert falls(measured)


def test_all_items_once_give_the_exact_gradient():
    def loss(query, item):
        candidates = Candidates(jnp.arange(ITEMS), jnp.zeros(ITEMS))
        ones = jnp.ones(PROBES)
        own = item[LABEL]
        return sampled_softmax(query, own, item, LABEL, ones[:, None], candidates, ones)[0]

    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(QUERY, ITEM)
    for part, exact in zip(got, exact_gradient(), strict=True):
        np.testing.assert_allclose(part, exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["unigram", "in_batch"])
def test_a_wrong_log_q_does_not_pass(name):
    """As if every item were drawn alike."""
    wrong = []
    for count in COUNTS:
        ids, log_q = drawn(name, count)
        alike = np.where(np.isinf(log_q), np.inf, np.float32(np.log(count / ITEMS)))
        wrong.append(measure(ids, alike))
    show(f"{name}, wrong log q", wrong)
    assert not falls(wrong)


def test_logq_makes_in_batch_candidates_less_biased():
    ids, log_q = drawn("in_batch", LONGEST)
    with_logq = measure(ids, log_q)
    without = measure(ids, np.where(np.isinf(log_q), np.inf, np.float32(0.0)))
    show("in_batch with and without logQ", [with_logq, without])
    noise = 4 * (with_logq.standard_error + without.standard_error)
    assert with_logq.error < without.error - noise


def explicit():
    """Eight negatives of each probe's own, from the head of the catalogue."""
    source = make_source("explicit", P_N)
    negative = jnp.arange(PROBES * 8, dtype=jnp.int32).reshape(PROBES, 8)
    batch = {"label": LABEL, "negative": negative}
    found, _ = source.draw({}, jax.random.key(0), batch, 0)
    # The loss masks an id of -1 where it is one of the example's own; here it is a candidate.
    log_q = np.where(found.negative.ids_C < 0, np.inf, found.negative.log_q_C)
    return [np.broadcast_to(x, (REPEATS, *x.shape)) for x in (found.negative.ids_C, log_q)]


def hard():
    """The eight best of a pool of 64."""
    source = make_source("hard", P_N, count=64, hard_count=8)

    @jax.jit
    @jax.vmap
    def draw(key):
        pool = source.draw({}, key, {"label": LABEL}, 0)[0].pool
        return pick_hard(QUERY, ITEM[pool], pool, None, LABEL, source.num_hard)

    ids, log_q = draw(jax.random.split(jax.random.key(1), REPEATS))
    return ids, np.where(ids < 0, np.inf, log_q)


def memory():
    """A batch of 32 and 96 items of earlier batches."""
    source = make_source("memory", P_N, memory=96)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @jax.vmap
    def draw(label_P, key):
        batch = one_batch(label_P, LONGEST, key)
        ids_G = batch["label"][32:, 0]
        state = source.push(source.init(DIM), ids_G, STALE[ids_G])
        now = {name: x[:32] for name, x in batch.items()}
        found, _ = source.draw(state, key, now, 0)
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), found.own, found.stored)

    ids, log_q = draw(LABEL, keys_of_repeats(REPEATS, 1))
    return ids, log_q, np.broadcast_to(np.arange(LONGEST) >= 32, ids.shape)


@pytest.mark.parametrize("draw", [explicit, hard, memory], ids=lambda draw: draw.__name__)
def test_sources_that_are_biased_by_nature_measure_as_such(draw):
    measured = measure(*draw())
    show(draw.__name__, [measured])
    assert measured.error > 4 * measured.standard_error + 0.1
    if draw is not explicit:
        unbiased = measure(*drawn("in_batch", LONGEST))
        assert measured.error > 2 * unbiased.error


def test_in_batch_z_is_unbiased_over_batches():
    """Batches of examples drawn from a population whose label mass is the frequency."""
    rng = np.random.default_rng(0)
    population = np.stack([rng.permutation(8)[:3] for _ in range(40)]).astype(np.int32)
    y = rng.random(population.shape)
    y /= y.sum(1, keepdims=True)
    frequency = np.bincount(population.ravel(), weights=y.ravel(), minlength=8)
    source = make_source("in_batch", frequency)
    item = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    query = jnp.asarray(rng.normal(size=(1, 4)), jnp.float32)
    size = 6
    rows = rng.integers(0, 40, size=(4000, size))
    rows[:, 0] = 0

    def z(key, label, y):
        batch = {"label": label, "label_weight": y}
        batch |= {"weight": jnp.ones(size), "index": jnp.arange(size)}
        own = source.draw({}, key, batch, 0)[0].own
        assert own is not None
        case = label, y, own, jnp.ones(size)
        queries = jnp.broadcast_to(query, (size, 4))
        _, loss_B = sampled_softmax(queries, item[label], item[own.ids_C], *case)
        return jnp.exp(loss_B[0] + jnp.sum(y[0] * (item[label[0]] @ query[0])))

    keys = jax.random.split(jax.random.key(0), len(rows))
    many = jax.jit(jax.vmap(z))(keys, population[rows], y[rows].astype(np.float32))
    exact = np.exp(np.asarray(item @ query[0])).sum()
    many = np.asarray(many)
    assert np.abs(many.mean() - exact) < 4 * many.std(ddof=1) / np.sqrt(len(many))
