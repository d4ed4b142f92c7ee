import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from recjax.candidates import (
    SOURCES,
    Candidates,
    gather_candidates,
    make_source,
    pick_hard,
    why_biased,
)
from recjax.errors import ConfigError, DataError
from recjax.losses import make_loss

KEY = jax.random.key(7)
ONE_LABEL = {
    "label": jnp.asarray([[3], [1], [3], [0]], jnp.int32),
    "label_weight": jnp.asarray([[1.0], [1.0], [1.0], [1.0]]),
    "weight": jnp.asarray([1.0, 0.5, 1.0, 0.0]),
    "index": jnp.arange(4),
}
FREQUENCY = np.array([4.0, 0, 1, 2, 1, 8])
MASK = np.array([True, True, False, True, True, True])


pytestmark = pytest.mark.usefixtures("quick_compilation")


def multi_hot(batch=8, items=6, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    label = np.stack([rng.permutation(items)[:labels] for _ in range(batch)])
    y = rng.random((batch, labels))
    label[::3, -1], y[::3, -1] = -1, 0
    y /= y.sum(1, keepdims=True)
    return {
        "label": jnp.asarray(label, jnp.int32),
        "label_weight": jnp.asarray(y, jnp.float32),
        "weight": jnp.asarray(np.where(np.arange(batch) == 1, 0, 1), jnp.float32),
        "index": jnp.arange(batch),
    }


@jax.jit
def draw(source, batch=ONE_LABEL, step=0):
    return source.draw(source.init(2), KEY, batch, step)[0]


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
    drawn = draw(make_source(name, FREQUENCY, count=count, power=power, mask_N=MASK))
    ids, log_q = (np.asarray(x) for x in drawn.shared)
    p = np.asarray(p)
    np.testing.assert_allclose(log_q, np.log(count * p[ids]), rtol=1e-6)
    times = np.bincount(ids, minlength=6)
    assert (times[p == 0] == 0).all()
    assert (np.abs(times - count * p) <= 4 * np.sqrt(count * p * (1 - p))).all()
    with np.errstate(divide="ignore"):
        label_log_q = np.log(count * p[[3, 1, 3, 0]])
    np.testing.assert_allclose(drawn.label_log_q_BxP[:, 0], label_log_q, rtol=1e-6)


def test_the_rarest_item_of_a_large_corpus_can_be_drawn():
    frequency = np.full(300_000, 1e-13)
    frequency[5] = 1.0
    source = make_source("unigram", frequency, count=1, power=1.0)
    np.testing.assert_allclose(draw(source).label_log_q_BxP, -32 * np.log(2), rtol=1e-6)
    (unigram,) = source.distributions
    np.testing.assert_allclose(np.exp(unigram.log_p_N).sum(), 1, rtol=1e-5)
    bound = np.asarray(unigram.bound_T).astype(np.int64)
    assert (np.diff(bound) > 0).all() and bound[-1] == 2**32 - 1


def test_steps_draw_anew():
    source = make_source("uniform", np.ones(1000), count=50)
    first, again, later = (draw(source, step=step).shared.ids_C for step in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != later).any()


def test_in_batch_candidates_are_the_labels_of_rows_that_count():
    drawn = draw(make_source("in_batch", np.array([1.0, 2, 0, 5])))
    np.testing.assert_array_equal(drawn.own.ids_C, [3, 1, 3, -1])
    two_others = np.log([2 * 5 / 8, 2 * 2 / 8, 2 * 5 / 8, np.inf])
    np.testing.assert_allclose(drawn.own.log_q_C, two_others, rtol=1e-6)
    np.testing.assert_allclose(
        drawn.label_log_q_BxP[:, 0], np.log([10 / 8, 4 / 8, 10 / 8, 2 / 8]), rtol=1e-6
    )
    assert drawn.shared is drawn.stored is drawn.negative is drawn.pool is None


def test_in_batch_leaves_out_an_item_that_training_never_saw():
    drawn = draw(make_source("in_batch", np.array([1.0, 0, 0, 5])))
    assert drawn.own.log_q_C[1] == jnp.inf


def test_multi_hot_rows_give_each_label_as_often_as_its_weight():
    batch, repeats = multi_hot(), 2000
    many = {name: jnp.tile(x, (repeats, *[1] * (x.ndim - 1))) for name, x in batch.items()}
    drawn = draw(make_source("in_batch", np.ones(6)), many | {"index": jnp.arange(8 * repeats)})
    slots = np.asarray(drawn.slot_B).reshape(repeats, 8)
    share = np.stack([(slots == slot).mean(0) for slot in range(3)], axis=1)
    p = np.asarray(batch["label_weight"])
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / repeats)).all()
    ids = np.take_along_axis(np.asarray(many["label"]), slots.reshape(-1, 1), axis=1)[:, 0]
    gives = np.asarray(many["weight"]) > 0
    assert (ids[gives] >= 0).all()
    np.testing.assert_array_equal(drawn.own.ids_C, np.where(gives, ids, -1))


def test_log_q_of_a_mixture_counts_the_draws_of_all_its_parts():
    source = make_source(
        "mixed",
        FREQUENCY,
        mixed=("uniform", "unigram", "memory"),
        count=3,
        mask_N=MASK,
        memory=4,
    )
    state = source.push(source.init(2), jnp.array([5, 1, -1]), jnp.ones((3, 2)))
    drawn, _ = source.draw(state, KEY, ONE_LABEL, 0)
    p = FREQUENCY / 16
    # Two other rows that give and two items in memory; three draws from each distribution.
    expected = 4 * p + 3 * MASK / 5 + 3 * np.where(MASK, FREQUENCY, 0) / 15
    assert drawn.shared.ids_C.shape == (6,)
    np.testing.assert_array_equal(drawn.stored.ids_C, [5, 1, -1, -1])
    for ids, log_q in (drawn.shared, drawn.own, drawn.stored):
        q = np.where(np.asarray(ids) < 0, np.inf, expected[ids])
        np.testing.assert_allclose(np.exp(log_q), q, rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(drawn.label_log_q_BxP), expected[ONE_LABEL["label"]], rtol=1e-5
    )


def test_the_memory_keeps_the_latest_items():
    source = make_source("memory", FREQUENCY, memory=3)
    state, push = source.init(1), jax.jit(source.push)
    for ids, expected in (
        ([-1, 4, -1, -1, -1], [4, -1, -1]),
        ([0, -1, -1, -1, 3], [4, 0, 3]),
        ([-1, -1, -1, -1, -1], [4, 0, 3]),
        ([2, -1, -1, -1, -1], [2, 0, 3]),
        ([1, -1, 5, 0, 4], [0, 4, 5]),  # more than there is room for: the last three
    ):
        ids = jnp.asarray(ids, jnp.int32)
        state = push(state, ids, 10.0 * ids[:, None].astype(jnp.float32))
        memory = state["memory"]
        np.testing.assert_array_equal(memory["ids_M"], expected)
        filled = np.asarray(expected) >= 0
        np.testing.assert_array_equal(
            memory["embedding_MxD"][filled, 0], 10.0 * np.array(expected)[filled]
        )
    assert make_source("in_batch", FREQUENCY).push({}, ids, jnp.ones((5, 1))) == {}


def test_explicit_negatives_are_no_labels_and_count_once():
    negative = jnp.asarray([[3, 2, -1], [2, 2, 0], [-1, -1, -1], [5, 0, 5]], jnp.int32)
    source = make_source("explicit", FREQUENCY, explicit_weight=4.0)
    drawn = draw(source, ONE_LABEL | {"negative": negative})
    np.testing.assert_array_equal(
        drawn.negative.ids_C, [[-1, 2, -1], [2, -1, 0], [-1, -1, -1], [5, -1, -1]]
    )
    np.testing.assert_allclose(drawn.negative.log_q_C, -np.log(4.0))
    assert drawn.shared is None and drawn.own is None
    assert not drawn.label_log_q_BxP.any()
    with pytest.raises(ConfigError, match="`negatives` column"):
        draw(source)


def test_the_pool_of_hard_negatives_is_distinct_and_refreshed():
    source = make_source("hard", FREQUENCY, count=8, hard_count=2, hard_refresh=3)
    pools = [np.asarray(draw(source, step=step).pool) for step in range(6)]
    np.testing.assert_array_equal(pools[:3], [pools[0]] * 3)
    np.testing.assert_array_equal(pools[3:], [pools[3]] * 3)
    assert (pools[0] != pools[3]).any()
    for pool in pools[::3]:
        ids = pool[pool >= 0]
        assert len(set(ids)) == len(ids) < 8 and (FREQUENCY[ids] > 0).all()
    assert source.num_hard == 2


def test_the_hardest_of_the_pool_are_no_labels():
    rng = np.random.default_rng(0)
    query, item = rng.normal(size=(5, 3)), rng.normal(size=(9, 3))
    pool = np.array([7, -1, 2, 0, 5, -1, 8, 3])
    bias = rng.normal(size=8)
    label = np.array([[7, -1], [2, 8], [-1, -1], [6, 0], [5, 3]])
    # Row 3 has 5 items of the pool left, the others 4 to 6.
    got = pick_hard(
        *(jnp.asarray(x, jnp.float32) for x in (query, item[pool])),
        jnp.asarray(pool, jnp.int32),
        jnp.asarray(bias, jnp.float32),
        jnp.asarray(label, jnp.int32),
        5,
        scale=2.0,
    )
    for b in range(5):
        score = {
            i: 2 * query[b] @ item[i] + bias[s]
            for s, i in enumerate(pool)
            if i >= 0 and i not in label[b]
        }
        best = sorted(score, key=lambda i: -score[i])[:5]
        np.testing.assert_array_equal(got.ids_C[b], best + [-1] * (5 - len(best)))
    assert not got.log_q_C.any()


MIXED = make_source(
    "mixed",
    FREQUENCY + 1,
    mixed=("unigram", "memory"),
    frequency="streaming",
    count=5,
    memory=20,
)


def two_steps(batch, query, positive, shared_item, *, axis):
    """(loss of each example, gradients, state) of the second step on a batch."""

    def loss(query, positive, item, state, step):
        drawn, state = MIXED.draw(state, KEY, batch, step, axis=axis)
        own = jnp.take_along_axis(positive, drawn.slot_B[:, None, None], axis=1)[:, 0]
        own, embedding = gather_candidates(drawn.own, own, axis)
        parts = [
            (own, embedding),
            (drawn.shared, item[drawn.shared.ids_C]),
            (drawn.stored, state["memory"]["embedding_MxD"]),
        ]
        candidates, candidate = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
        total, loss_B = make_loss("softmax").sampled(
            query,
            positive,
            candidate,
            batch["label"],
            batch["label_weight"],
            Candidates(*candidates),
            batch["weight"],
        )
        return total, (loss_B, MIXED.push(state, own.ids_C, embedding))

    def one_step(state, step):
        differentiated = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        grads, (loss_B, state) = differentiated(query, positive, shared_item, state, step)
        return state, (loss_B, grads)

    state, seen = jax.lax.scan(one_step, MIXED.init(4), jnp.arange(2, dtype=jnp.int32))
    loss_B, grads = jax.tree.map(lambda x: x[-1], seen)
    shared = grads[2] if axis is None else jax.lax.psum(grads[2], axis)
    return (loss_B, *grads[:2]), (shared, state)


def test_eight_devices_draw_and_differentiate_as_one():
    rng = np.random.default_rng(0)
    inputs = (
        multi_hot(batch=16),
        jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
        jnp.asarray(rng.normal(size=(16, 3, 4)), jnp.float32),
    )
    item = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    one = jax.jit(lambda *args: two_steps(*args, axis=None))(*inputs, item)

    def replica(*args):
        rows, whole = two_steps(*args, axis="data")
        return rows, jax.tree.map(lambda x: x[None], whole)

    run = jax.shard_map(
        replica,
        mesh=Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,)),
        in_specs=(P("data"), P("data"), P("data"), P()),
        out_specs=P("data"),
        check_vma=False,
    )
    rows, whole = jax.jit(run)(*inputs, item)
    for copies in jax.tree.leaves(whole[1]):
        np.testing.assert_array_equal(copies, np.broadcast_to(copies[:1], copies.shape))
    eight = rows, jax.tree.map(lambda x: x[0], whole)
    for got, expected in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_streaming_frequencies_count_what_the_batches_give():
    source = make_source("in_batch", np.ones(6), frequency="streaming")
    state = source.init(2)
    for step in range(3):
        drawn, state = source.draw(state, KEY, ONE_LABEL, step)
    # Item 3 twice and item 1 once of the three that are given at every step; item 0 never.
    np.testing.assert_allclose(drawn.own.log_q_C, np.log([4 / 3, 2 / 3, 4 / 3, np.inf]), rtol=1e-6)
    never = np.log(2 / 9)  # less than one of the nine so far
    np.testing.assert_allclose(
        drawn.label_log_q_BxP[:, 0], [*np.log([4 / 3, 2 / 3, 4 / 3]), never], rtol=1e-6
    )


def test_a_source_is_an_argument_of_a_jitted_function():
    source = make_source("mixed", FREQUENCY, mixed=("in_batch", "uniform"), count=3)
    jitted = jax.jit(lambda source, step: source.draw({}, KEY, ONE_LABEL, step)[0])
    same = jax.tree.map(np.array_equal, jitted(source, jnp.int32(4)), draw(source, step=4))
    assert jax.tree.all(same)


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        ({"name": "unifrom", "count": 3}, ConfigError, "'unifrom'.*'uniform'"),
        ({"name": "uniform"}, ConfigError, "num_sampled.*at least 1 draw per step, not 0"),
        ({"name": "unigram", "count": 3, "power": -1.0}, ConfigError, "unigram_power"),
        ({"name": "uniform", "count": 3, "mask_N": np.zeros(6, bool)}, DataError, "no item"),
        ({"name": "mixed", "mixed": ("uniform",)}, ConfigError, "loss.mixed.*two or more"),
        ({"name": "mixed", "mixed": ("uniform",) * 2}, ConfigError, "loss.mixed.*different"),
        ({"name": "mixed", "mixed": ("uniform", "hard")}, ConfigError, "mixed=.*: no 'hard'"),
        (
            {"name": "mixed", "mixed": ("in_batch", "memory"), "memory": 4},
            ConfigError,
            r"config.loss.mixed=\('in_batch', 'memory'\): memory brings in_batch already",
        ),
        ({"name": "uniform", "count": 3, "frequency": "streaming"}, ConfigError, "frequency=str"),
        ({"name": "in_batch", "frequency": "streamed"}, ConfigError, "did you mean 'streaming'"),
        ({"name": "in_batch", "frequency_buckets": 8}, ConfigError, "loss.frequency_buckets=8"),
        (
            {"name": "in_batch", "frequency": "streaming", "frequency_rate": 0.0},
            ConfigError,
            "loss.frequency_rate=0.0: it must be in",
        ),
        ({"name": "memory"}, ConfigError, "config.loss.memory=0: it must be at least 1"),
        ({"name": "explicit", "explicit_weight": 0.0}, ConfigError, "explicit_weight=0.0"),
        ({"name": "hard", "count": 4, "hard_count": 5}, ConfigError, "hard_negatives=5: .*pool"),
        ({"name": "hard", "count": 4}, ConfigError, "hard_negatives=0: it must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_from_is_an_error(kwargs, error, words):
    with pytest.raises(error, match=words):
        make_source(frequency_N=FREQUENCY, **kwargs)


def test_frequencies_that_are_all_zero_are_an_error():
    with pytest.raises(DataError, match="not all 0"):
        make_source("in_batch", np.zeros(3))


def test_sources_that_are_biased_say_why():
    assert {name for name in SOURCES if why_biased(name)} == {"explicit", "hard", "memory"}
    assert why_biased("mixed", ("in_batch", "explicit")) == ""
    assert "4 times" in why_biased("mixed", ("in_batch", "explicit"), 4.0)
    assert "stale" in why_biased("mixed", ("uniform", "memory"))
