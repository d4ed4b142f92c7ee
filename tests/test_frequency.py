import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax.frequency import StreamingFrequency

BATCH, ITEMS, STEPS = 32, 200, 4000


pytestmark = pytest.mark.usefixtures("quick_compilation")


def power_law(items):
    p = 1.0 / np.arange(1, items + 1) ** 1.2
    return p / p.sum()


def stream(p, steps, seed=0):
    return np.random.default_rng(seed).choice(len(p), (steps, BATCH), p=p)


@functools.cache
def scan(estimator):
    def one(state, batch):
        return estimator.update(state, *batch), None

    return jax.jit(lambda state, batches: jax.lax.scan(one, state, batches)[0])


def after(estimator, ids_SxG, state=None, start=0):
    """The state after a stream of batches."""
    steps = jnp.arange(start, start + len(ids_SxG), dtype=jnp.int32)
    state = estimator.init() if state is None else state
    return scan(estimator)(state, (jnp.asarray(ids_SxG, jnp.int32), steps))


def share(estimator, state, items):
    return np.asarray(estimator.share(state, jnp.arange(items)))


def test_a_stream_counted_by_hand():
    estimator = StreamingFrequency(3, rate=0.4)
    batches = [[0, 0, 1, -1], [1, -1, -1, -1], [0, 0, 0, 0], [0, -1, -1, -1]]
    state = after(estimator, np.array(batches))
    # Item 0: gaps 1, 2, 1 and counts 2, 4, 1, with weights 1, 1/2 and 0.4 in place of 1/3.
    gap, count = 0.6 * 1.5 + 0.4 * 1, 0.6 * 3 + 0.4 * 1
    draws = (3 + 1 + 4 + 1) / 4
    expected = [count / gap / draws, 1 / draws, 0]
    np.testing.assert_allclose(share(estimator, state, 3), expected, rtol=1e-6)
    assert estimator.share(state, jnp.array([[-1, 0]])).shape == (1, 2)
    assert estimator.share(state, jnp.array([-1]))[0] == 0


@pytest.mark.parametrize("rate", [1e-4, 0.002])
def test_shares_converge_on_a_stationary_stream(rate):
    p = power_law(ITEMS)
    estimator = StreamingFrequency(ITEMS, rate)
    p_hat = share(estimator, after(estimator, stream(p, STEPS)), ITEMS)
    # The means are over the smaller of all occurrences and about 2 / rate, and an occurrence's
    # gap and count have a relative standard deviation of 1 at most.
    sd = np.sqrt(1 / (p * BATCH * STEPS) + rate / 2)
    error = np.abs(p_hat / p - 1)
    assert (error <= 4 * sd).all()
    assert p[-1] * BATCH < 0.02
    if rate == 1e-4:
        assert error[:5].max() < 0.04
    # 1 / gap alone stops at one a step.
    assert p_hat[0] * BATCH > 5


def test_shares_follow_a_stream_that_drifts():
    rate = 0.002
    before, later = power_law(ITEMS), power_law(ITEMS)
    before[[0, 20]] = before[[20, 0]]
    assert later[0] > 30 * before[0]
    estimator = StreamingFrequency(ITEMS, rate)
    state = after(estimator, stream(before, STEPS))
    sd = np.sqrt(rate / 2 + 1 / (before[0] * BATCH * STEPS))
    assert abs(share(estimator, state, ITEMS)[0] / before[0] - 1) < 4 * sd
    # In every step by now: after 8 / rate occurrences e^-8 of the old gap is left, 30 e^-8 = 1 %.
    assert STEPS * rate == 8
    state = after(estimator, stream(later, STEPS, seed=1), state, STEPS)
    assert abs(share(estimator, state, ITEMS)[0] / later[0] - 1) < 4 * np.sqrt(rate / 2) + 0.01


def test_hashed_shares_exceed_the_truth_by_a_bounded_amount():
    items, buckets, steps = 2000, 512, STEPS
    p = power_law(items)
    estimator = StreamingFrequency(0, rate=1e-4, buckets=buckets)
    far = 1_000_000_007  # ids are anything
    ids = stream(p, steps)
    state = after(estimator, np.where(ids == 7, far, ids))
    p_hat = np.asarray(estimator.share(state, jnp.arange(items).at[7].set(far)))
    noise = 4 * np.sqrt(p / (BATCH * steps)) + 4 / (BATCH * steps)
    occurred = np.bincount(ids.ravel(), minlength=items) > 0
    assert (p_hat >= p - noise)[occurred].all()
    assert np.mean(p_hat > p + noise + np.e / buckets) <= np.exp(-4)
    assert (np.abs(p_hat / p - 1)[:10] < 0.1).all()


def test_one_compilation_serves_every_step():
    estimator = StreamingFrequency(5, rate=0.1)
    traces = []

    @jax.jit
    def update(state, ids, step):
        traces.append(step)
        return estimator.update(state, ids, step)

    state = estimator.init()
    for step in range(3):
        state = update(state, jnp.array([step, 1], jnp.int32), jnp.int32(step))
    assert len(traces) == 1
    assert {name: x.dtype for name, x in state.items()} == {
        name: x.dtype for name, x in estimator.init().items()
    }
