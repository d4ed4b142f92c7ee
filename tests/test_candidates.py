import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from recjax.candidates import gather_candidates, make_source
from recjax.errors import ConfigError, DataError
from recjax.losses import sampled_softmax

KEY = jax.random.key(7)
ONE_LABEL = (
    jnp.asarray([[3], [1], [3], [0]], jnp.int32),
    jnp.asarray([[1.0], [1.0], [1.0], [1.0]]),
    jnp.asarray([1.0, 0.5, 1.0, 0.0]),
    jnp.arange(4),
)
FREQUENCY = np.array([4.0, 0, 1, 2, 1, 8])
MASK = np.array([True, True, False, True, True, True])


def multi_hot(batch=8, items=6, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    label = np.stack([rng.permutation(items)[:labels] for _ in range(batch)])
    y = rng.random((batch, labels))
    label[::3, -1], y[::3, -1] = -1, 0
    y /= y.sum(1, keepdims=True)
    weight = np.where(np.arange(batch) == 1, 0, 1)
    return (
        jnp.asarray(label, jnp.int32),
        jnp.asarray(y, jnp.float32),
        jnp.asarray(weight, jnp.float32),
        jnp.arange(batch),
    )


@pytest.mark.parametrize(
    "name, power, p",
    [
        ("uniform", 1.0, [1 / 5, 1 / 5, 0, 1 / 5, 1 / 5, 1 / 5]),
        ("unigram", 1.0, [4 / 15, 0, 0, 2 / 15, 1 / 15, 8 / 15]),
        ("unigram", 0.0, [1 / 4, 0, 0, 1 / 4, 1 / 4, 1 / 4]),
        # Ranks by falling frequency: items 5, 0, 3, 4, 1.
        ("log_uniform", 1.0, np.log([3 / 2, 6 / 5, 1, 4 / 3, 5 / 4, 2]) / np.log(6)),
    ],
)
def test_draws_follow_the_distribution_that_log_q_states(name, power, p):
    count = 20_000
    source = make_source(name, FREQUENCY, count=count, power=power, mask_N=MASK)
    draw = source.draw(KEY, *ONE_LABEL)
    ids, log_q = (np.asarray(x) for x in draw.candidates)
    p = np.asarray(p)
    np.testing.assert_allclose(log_q, np.log(count * p[ids]), rtol=1e-6)
    drawn = np.bincount(ids, minlength=6)
    assert (drawn[p == 0] == 0).all()
    assert (np.abs(drawn - count * p) <= 4 * np.sqrt(count * p * (1 - p))).all()
    with np.errstate(divide="ignore"):
        label_log_q = np.log(count * p[[3, 1, 3, 0]])
    np.testing.assert_allclose(draw.label_log_q_BxP[:, 0], label_log_q, rtol=1e-6)


def test_the_rarest_item_of_a_large_corpus_can_be_drawn():
    frequency = np.full(300_000, 1e-13)
    frequency[5] = 1.0
    source = make_source("unigram", frequency, count=1, power=1.0)
    draw = source.draw(KEY, *ONE_LABEL)
    np.testing.assert_allclose(draw.label_log_q_BxP, -32 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(np.exp(source.tables["log_p_N"]).sum(), 1, rtol=1e-5)
    bound = np.asarray(source.tables["bound_T"]).astype(np.int64)
    assert (np.diff(bound) > 0).all() and bound[-1] == 2**32 - 1


def test_in_batch_candidates_are_the_labels_of_rows_that_count():
    frequency = np.array([1.0, 2, 0, 5])
    draw = make_source("in_batch", frequency).draw(KEY, *ONE_LABEL)
    np.testing.assert_array_equal(draw.candidates.ids_C[:3], [3, 1, 3])
    two_others = np.log([2 * 5 / 8, 2 * 2 / 8, 2 * 5 / 8, np.inf])
    np.testing.assert_allclose(draw.candidates.log_q_C, two_others, rtol=1e-6)
    np.testing.assert_allclose(
        draw.label_log_q_BxP[:, 0], np.log([10 / 8, 4 / 8, 10 / 8, 2 / 8]), rtol=1e-6
    )


def test_in_batch_leaves_out_an_item_that_training_never_saw():
    draw = make_source("in_batch", np.array([1.0, 0, 0, 5])).draw(KEY, *ONE_LABEL)
    assert draw.candidates.log_q_C[1] == jnp.inf


def test_multi_hot_rows_give_each_label_as_often_as_its_weight():
    label, y, weight, _ = multi_hot()
    source = make_source("in_batch", np.ones(6))
    repeats = 2000
    rows = jnp.arange(8 * repeats)
    draw = source.draw(
        KEY, *(jnp.tile(x, (repeats, *[1] * (x.ndim - 1))) for x in (label, y, weight)), rows
    )
    slots = np.asarray(draw.slot_B).reshape(repeats, 8)
    share = np.stack([(slots == slot).mean(0) for slot in range(3)], axis=1)
    p = np.asarray(y)
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / repeats)).all()
    ids = np.take_along_axis(np.tile(label, (repeats, 1)), slots.reshape(-1, 1), axis=1)[:, 0]
    np.testing.assert_array_equal(draw.candidates.ids_C, ids)
    assert (ids >= 0).all()


def in_batch_gradient(label, y, weight, index, query, positive, *, axis):
    draw = make_source("in_batch", FREQUENCY + 1).draw(KEY, label, y, weight, index, axis=axis)

    def loss(query, positive):
        own = jnp.take_along_axis(positive, draw.slot_B[:, None, None], axis=1)[:, 0]
        candidates, embedding = gather_candidates(draw.candidates, own, axis)
        return sampled_softmax(query, positive, embedding, label, y, candidates, weight)

    grads, loss_B = jax.grad(loss, argnums=(0, 1), has_aux=True)(query, positive)
    return loss_B, grads


def test_eight_devices_draw_and_differentiate_as_one():
    rng = np.random.default_rng(0)
    batch = multi_hot(batch=16)
    query = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    positive = jnp.asarray(rng.normal(size=(16, 3, 4)), jnp.float32)
    one = in_batch_gradient(*batch, query, positive, axis=None)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(
        lambda *args: in_batch_gradient(*args, axis="data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=False,
    )
    eight = jax.jit(run)(*batch, query, positive)
    for got, expected in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_a_source_is_an_argument_of_a_jitted_function():
    source = make_source("uniform", FREQUENCY, count=3)
    draw = jax.jit(lambda source, key: source.draw(key, *ONE_LABEL))(source, KEY)
    np.testing.assert_array_equal(
        draw.candidates.ids_C, source.draw(KEY, *ONE_LABEL).candidates.ids_C
    )


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        ({"name": "unifrom", "count": 3}, ConfigError, "'unifrom'.*'uniform'"),
        ({"name": "uniform"}, ConfigError, "at least 1 draw per step, not 0"),
        ({"name": "unigram", "count": 3, "power": -1.0}, ConfigError, "power"),
        ({"name": "uniform", "count": 3, "mask_N": np.zeros(6, bool)}, DataError, "no item"),
    ],
)
def test_what_cannot_be_drawn_from_is_an_error(kwargs, error, words):
    with pytest.raises(error, match=words):
        make_source(frequency_N=FREQUENCY, **kwargs)


def test_frequencies_that_are_all_zero_are_an_error():
    with pytest.raises(DataError, match="not all 0"):
        make_source("in_batch", np.zeros(3))
