import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recjax import embedding
from recjax.embedding import (
    TableSpec,
    deduplicate,
    init_table,
    local_ids,
    lookup,
    lookup_sum,
    slots_by_hash,
    slots_by_sort,
    take,
)
from recjax.rounding import as_float32, as_kept

TABLE = jnp.arange(24, dtype=jnp.float32).reshape(8, 3)
WIDE = jnp.arange(512, dtype=jnp.float32).reshape(8, 64)  # of those `take` has a branch for
IDS = jnp.asarray([[0, -1, 7], [3, 3, -1]], jnp.int32)

each_width = pytest.mark.parametrize("table", [TABLE, WIDE], ids=["3", "64"])


def on_four_devices(function, in_specs, out_specs):
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


@each_width
def test_lookup_gives_rows_and_zeros_for_padding(table):
    rows = lookup(table, IDS)
    assert rows.shape == (2, 3, table.shape[1])
    zero = np.zeros(table.shape[1])
    np.testing.assert_array_equal(rows[0], [table[0], zero, table[7]])
    np.testing.assert_array_equal(rows[1], [table[3], table[3], zero])
    np.testing.assert_array_equal(lookup(table, jnp.full(2, -1)), [zero, zero])


@each_width
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("unique", [False, True])
def test_take_gives_numbers_at_ids_and_zeros_beyond(table, dtype, unique):
    ids = jnp.asarray([5, 8, 2, 9, 0])
    kept = as_kept(table, dtype)
    rows = take(kept, ids, unique=unique)
    assert rows.dtype == jnp.float32
    wanted = np.concatenate([as_float32(kept), np.zeros((2, table.shape[1]))])[ids]
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(take(kept[:, 0], ids, unique=unique), wanted[:, 0])
    some_and_none = jnp.stack([ids, ids + 8])
    by_row = jax.vmap(lambda ids: take(kept, ids, unique=unique))(some_and_none)
    np.testing.assert_array_equal(by_row, [wanted, np.zeros_like(wanted)])


@each_width
def test_what_is_no_number_stays_in_its_row(table):
    rows = lookup(table.at[0].set(jnp.nan).at[7].set(jnp.inf), IDS)
    assert np.isnan(rows[0, 0]).all() and np.isposinf(rows[0, 2]).all()
    np.testing.assert_array_equal(rows[[0, 1], [1, 2]], np.zeros((2, table.shape[1])))


@each_width
def test_the_gradient_of_lookup_counts_each_use_and_no_padding(table):
    grad = jax.grad(lambda table: lookup(table, IDS).sum())(table)
    np.testing.assert_array_equal(grad[:, 0], [1, 0, 0, 2, 0, 0, 0, 1])
    np.testing.assert_array_equal(grad[:, -1], grad[:, 0])


def test_a_sum_of_rows_and_its_gradient_are_those_of_the_rows_looked_up():
    weight = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    at_once = lambda table: (lookup(table, IDS).sum(1) * weight).sum()  # noqa: E731
    summed = lambda table: (lookup_sum(table, IDS) * weight).sum()  # noqa: E731
    np.testing.assert_array_equal(lookup_sum(TABLE, IDS), lookup(TABLE, IDS).sum(1))
    np.testing.assert_array_equal(jax.grad(summed)(TABLE), jax.grad(at_once)(TABLE))


def test_a_sum_of_rows_never_holds_them_on_cpu():
    shapes = ((1000, 64), jnp.float32), ((512, 200), jnp.int32)
    step = jax.jit(jax.grad(lambda table, ids: lookup_sum(table, ids).sum()))
    memory = step.lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 512 * 200 * 64 * 4 / 10


@each_width
@pytest.mark.parametrize("look_up", [lookup, lookup_sum])
def test_a_table_split_over_four_devices_gives_the_same_rows(look_up, table):
    run = on_four_devices(
        lambda table, ids: look_up(table, ids, axis="model"), (P("model"), P()), P()
    )
    np.testing.assert_array_equal(run(table, IDS), look_up(table, IDS))


def test_local_ids_are_rows_of_the_shard():
    run = on_four_devices(lambda ids: local_ids(ids, 2, "model")[None], P(), P("model"))
    ids = jnp.asarray([-1, 0, 1, 5, 7], jnp.int32)
    expected = [[-1, 0, 1, -1, -1], [-1] * 5, [-1, -1, -1, 1, -1], [-1, -1, -1, -1, 1]]
    np.testing.assert_array_equal(run(ids), expected)


def test_a_new_table_is_normal_with_the_given_scale():
    table = init_table(jax.random.key(0), TableSpec("user_id", rows=500, dim=20, scale=0.1))
    assert table.shape == (500, 20) and table.dtype == jnp.float32
    np.testing.assert_allclose([table.mean(), table.std()], [0, 0.1], atol=2e-3)


def test_a_large_table_is_normal_its_entries_independent_and_its_memory_its_own(monkeypatch):
    monkeypatch.setattr(embedding, "LARGE", 10_000)
    spec = TableSpec("item_id", rows=20_000, dim=16, scale=0.1)
    draw = jax.jit(lambda key: init_table(key, spec)).lower(jax.random.key(0)).compile()
    assert draw.memory_analysis().temp_size_in_bytes < 4 * spec.rows * 2
    table = np.asarray(draw(jax.random.key(0)), np.float64) / 0.1
    # Of 320,000 numbers: a mean of n has the deviation 1 / sqrt(n), n moments those of a normal.
    np.testing.assert_allclose(table.mean(), 0, atol=4 / 566)
    moments = [(table**n).mean() for n in (2, 3, 4)]
    np.testing.assert_allclose(moments, [1, 0, 3], atol=0.08)
    within, across = np.corrcoef(table.T) - np.eye(16), (table[1:] * table[:-1]).mean()
    assert np.abs(within).max() < 5 / 141 and abs(across) < 4 / 566
    assert len(np.unique(table[:, 0])) > 19_900
    other = np.asarray(draw(jax.random.key(1)), np.float64) / 0.1
    assert abs((table * other).mean()) < 4 / 566


def test_a_large_table_is_the_same_split_over_devices_and_cut_to_fewer_rows(monkeypatch):
    monkeypatch.setattr(embedding, "LARGE", 100)
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",), axis_types=(AxisType.Auto,))

    def draw(rows, spec):
        where = NamedSharding(mesh, spec)
        table = TableSpec("item_id", rows=rows, dim=5)
        return jax.jit(lambda key: init_table(key, table), out_shardings=where)(jax.random.key(0))

    whole, split, fewer = draw(64, P()), draw(64, P("model")), draw(60, P())
    assert {shard.data.shape for shard in split.addressable_shards} == {(16, 5)}
    np.testing.assert_array_equal(split, whole)
    np.testing.assert_array_equal(fewer, whole[:60])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 6), min_size=12, max_size=12), st.sampled_from([5, 13]))
def test_deduplicate_sums_the_gradients_of_each_id(ids, num_rows):
    """Of two uses: six ids with a gradient each, two bags of three that share theirs."""
    grads = np.arange(24, dtype=np.float32).reshape(12, 2)
    grads[6:9], grads[9:] = grads[6], grads[9]
    uses = jnp.asarray(ids[:6], jnp.int32)[:, None], jnp.asarray(ids[6:], jnp.int32).reshape(2, 3)
    of_uses = jnp.asarray(grads[:6]), jnp.asarray(grads[6::3])
    unique, sums = map(np.asarray, jax.jit(deduplicate, static_argnums=2)(uses, of_uses, num_rows))
    expected = np.zeros((num_rows, 2), np.float32)
    for id_, grad in zip(ids, grads, strict=True):
        if 0 <= id_ < num_rows:
            expected[id_] += grad
    left = unique < num_rows
    assert sorted(unique[left]) == sorted({i for i in ids if 0 <= i < num_rows})
    np.testing.assert_array_equal(sums[left], expected[unique[left]])
    assert (unique[~left] == num_rows).all() and not sums[~left].any()


@pytest.mark.parametrize("slots", [slots_by_hash, slots_by_sort])
@pytest.mark.parametrize("num_rows", [7, 300, 2**31 - 1])
def test_equal_ids_and_only_they_share_a_slot(slots, num_rows):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, num_rows, 500)
        ids[::3] = ids[rng.integers(0, 500, 167)]  # some more than once
        ids[rng.random(500) < 0.1] = num_rows
        slot, unique = map(
            np.asarray, jax.jit(slots, static_argnums=1)(jnp.asarray(ids, jnp.int32), num_rows)
        )
        is_row = ids < num_rows
        np.testing.assert_array_equal(unique[slot[is_row]], ids[is_row])
        assert (slot[~is_row] == 500).all()
        assert sorted(unique[unique < num_rows]) == sorted(set(ids[is_row]))


def test_slots_of_several_models_at_once_are_those_of_each():
    rng = np.random.default_rng(0)
    rows = [np.full(64, 1000), np.full(64, 3), rng.permutation(1000)[:64]]  # 0, 1 and more rounds
    ids = jnp.asarray(np.stack(rows), jnp.int32)
    find = functools.partial(slots_by_hash, num_rows=1000)
    together, one_by_one = jax.vmap(find)(ids), zip(*map(find, ids), strict=True)
    jax.tree.map(np.testing.assert_array_equal, together, tuple(map(jnp.stack, one_by_one)))
