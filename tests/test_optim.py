import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from recjax.errors import ConfigError
from recjax.optim import make_optimizer, make_row_optimizer, make_schedule
from recjax.rounding import as_float32, as_kept

ROWS, DIM, STEPS = 128, 3, 5
NAMES = ["sgd", "adagrad", "row_adagrad", "adam"]


def optim(**changes):
    defaults = {
        "name": "adam",
        "learning_rate": 0.1,
        "schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-6,
        "initial_accumulator": 0.1,
        "moments_dtype": "float32",
    }
    return ConfigDict(defaults | changes)


def table():
    return jax.random.normal(jax.random.key(0), (ROWS, DIM))


def touches(every_row=False):
    """Ids and gradients of each step: duplicates, padding, and rows that are never touched."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        ids = rng.choice([-1, 0, 1, ROWS // 2, ROWS - 1], size=10)
        if every_row:
            ids = np.concatenate([ids, np.arange(ROWS)])
        grads = rng.normal(size=(len(ids), DIM))
        yield jnp.asarray(ids, jnp.int32), jnp.asarray(grads, jnp.float32)


def dense_gradient(ids, grads):
    whole = np.zeros((ROWS, DIM))
    for id_, grad in zip(np.asarray(ids), np.asarray(grads, np.float64), strict=True):
        if id_ >= 0:
            whole[id_] += grad
    return whole


def key_of(step):
    return jax.random.fold_in(jax.random.key(0), step)


def row_wise(config, steps, dtype="float32"):
    optimizer = make_row_optimizer(config, 10)
    update = jax.jit(optimizer.update)
    rows, state = as_kept(table(), dtype), optimizer.init(table())
    for step, (ids, grads) in enumerate(steps):
        rows, state = update(rows, state, [ids[:, None]], [grads], jnp.int32(step), key_of(step))
    return rows, state


def dense(config, steps):
    optimizer = make_optimizer(config, 10)
    params = {"table": table()}
    state = optimizer.init(params)
    for ids, grads in steps:
        whole = {"table": jnp.asarray(dense_gradient(ids, grads), jnp.float32)}
        updates, state = optimizer.update(whole, state, params)
        params = optax.apply_updates(params, updates)
    return params["table"]


@pytest.mark.parametrize(
    "changes, every_row",
    [
        ({"name": "sgd"}, False),
        ({"name": "sgd", "clip_norm": 0.5}, False),
        ({"name": "adagrad"}, False),
        ({"name": "adagrad", "initial_accumulator": 0.0}, False),
        ({"name": "row_adagrad"}, False),
        ({"name": "row_adagrad", "initial_accumulator": 0.0}, False),
        ({"name": "adam"}, True),
        ({"name": "adam", "weight_decay": 0.1, "clip_norm": 0.5}, True),
    ],
)
def test_row_wise_rules_are_optax_on_the_whole_table(changes, every_row):
    config, steps = optim(**changes), list(touches(every_row))
    np.testing.assert_allclose(row_wise(config, steps)[0], dense(config, steps), atol=1e-6)


def test_lazy_adam_is_its_float64_rule():
    config, steps = optim(schedule="constant", weight_decay=0.05), list(touches())
    expected = np.asarray(table(), np.float64)
    m, v = np.zeros_like(expected), np.zeros_like(expected)
    for step, (ids, grads) in enumerate(steps):
        grad = dense_gradient(ids, grads)
        for row in {int(i) for i in ids if i >= 0}:
            m[row] = 0.9 * m[row] + 0.1 * grad[row]
            v[row] = 0.99 * v[row] + 0.01 * grad[row] ** 2
            m_hat, v_hat = m[row] / (1 - 0.9 ** (step + 1)), v[row] / (1 - 0.99 ** (step + 1))
            direction = m_hat / (np.sqrt(v_hat) + 1e-6) + 0.05 * expected[row]
            expected[row] -= 0.1 * min(1, (step + 1) / 2) * direction
    got, state = row_wise(config, steps)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    np.testing.assert_allclose(state["m"], m, atol=1e-6)
    np.testing.assert_allclose(state["v"], v, atol=1e-6)


def test_row_adagrad_is_its_float64_rule_with_one_accumulator_a_row():
    config, steps = optim(name="row_adagrad", schedule="constant", warmup_steps=0), list(touches())
    expected, accumulator = np.asarray(table(), np.float64), np.full(ROWS, 0.1)
    for ids, grads in steps:
        grad = dense_gradient(ids, grads)
        accumulator += (grad**2).mean(axis=1)
        expected -= 0.1 * grad / np.sqrt(accumulator + 1e-6)[:, None]
    got, state = row_wise(config, steps)
    assert state["accumulator"].shape == (ROWS,)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(state["accumulator"], accumulator, rtol=1e-6)


def test_row_adagrad_has_an_accumulator_for_each_input_of_a_layer_and_each_entry_of_a_bias():
    config = optim(name="row_adagrad", schedule="constant", warmup_steps=0)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "log_temperature": jnp.float32(1)}
    grads = {
        "kernel": jnp.asarray([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]),
        "bias": jnp.asarray([1.0, 0.0, -2.0]),
        "log_temperature": jnp.float32(3),
    }
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    root = np.sqrt(0.1 + 1e-6 + np.asarray([14 / 3, 12.0]))
    np.testing.assert_allclose(updates["kernel"], -0.1 * grads["kernel"] / root[:, None], rtol=1e-5)
    for name in ("bias", "log_temperature"):
        expected = -0.1 * grads[name] / np.sqrt(0.1 + 1e-6 + np.asarray(grads[name]) ** 2)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_a_gradient_is_not_written(name):
    got, state = row_wise(optim(name=name, weight_decay=0.1), list(touches()))
    untouched = jnp.asarray([2, 3, 5, 6])
    initial = make_row_optimizer(optim(name=name), 10).init(table())
    np.testing.assert_array_equal(got[untouched], table()[untouched])
    for array, before in zip(state.values(), initial.values(), strict=True):
        np.testing.assert_array_equal(array[untouched], before[untouched])


def split_in_four(config, steps, dtype="float32"):
    """As `row_wise`, on four devices."""
    optimizer = make_row_optimizer(config, 10)
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",), axis_types=(AxisType.Auto,))
    split = P("model")
    run = jax.jit(
        jax.shard_map(
            functools.partial(optimizer.update, axis="model"),
            mesh=mesh,
            in_specs=(split, split, P(), P(), P(), P()),
            out_specs=split,
            check_vma=False,
        )
    )
    rows, state = as_kept(table(), dtype), optimizer.init(table())
    for step, (ids, grads) in enumerate(steps):
        rows, state = run(rows, state, [ids[:, None]], [grads], jnp.int32(step), key_of(step))
    return rows, state


@pytest.mark.parametrize("name", NAMES)
def test_a_table_split_over_four_devices_is_updated_as_one(name):
    config, steps = optim(name=name, clip_norm=0.5), list(touches())
    rows, state = split_in_four(config, steps)
    expected, expected_state = row_wise(config, steps)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert state.keys() == expected_state.keys()
    for key in state:
        np.testing.assert_allclose(state[key], expected_state[key], atol=1e-6)


@pytest.mark.parametrize("name", ["row_adagrad", "adam"])
def test_in_bfloat16_it_is_the_same_on_four_devices_and_in_any_order_bit_for_bit(name):
    config, steps = optim(name=name, moments_dtype="bfloat16"), list(touches(every_row=True))
    rows, state = row_wise(config, steps, "bfloat16")
    assert {leaf.dtype for leaf in (rows, *state.values())} == {jnp.dtype("uint16")}
    np.testing.assert_allclose(as_float32(rows), row_wise(config, steps)[0], atol=0.1)
    once = [(jnp.arange(ROWS), grads[:ROWS]) for _, grads in steps]  # no sums, which have an order
    turned = [(ids[::-1], grads[::-1]) for ids, grads in once]
    for found, wanted in (
        (split_in_four(config, steps, "bfloat16"), (rows, state)),
        (row_wise(config, turned, "bfloat16"), row_wise(config, once, "bfloat16")),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_in_bfloat16_no_whole_table_is_turned_into_float32():
    optimizer = make_row_optimizer(optim(moments_dtype="bfloat16"), 10)
    rows = jax.ShapeDtypeStruct((100_000, 16), jnp.uint16)
    ids = jax.ShapeDtypeStruct((32, 1), jnp.int32)
    grads = jax.ShapeDtypeStruct((32, 16), jnp.float32)
    state = jax.eval_shape(optimizer.init, rows)
    update = jax.jit(optimizer.update, donate_argnums=(0, 1))
    compiled = update.lower(rows, state, [ids], [grads], jnp.int32(0), key_of(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100_000


def test_in_bfloat16_many_updates_too_small_for_it_add_up():
    config = optim(name="sgd", learning_rate=1.0, schedule="constant", warmup_steps=0)
    optimizer = make_row_optimizer(config, 10)
    ids, grads = jnp.arange(512), jnp.full((512, 4), -1e-4)  # bfloat16 has 1 and then 1.0078

    def update(step, rows):
        return optimizer.update(rows, {}, [ids[:, None]], [grads], step, key_of(step))[0]

    start = as_kept(jnp.ones((512, 4)), "bfloat16")
    rows = jax.jit(lambda rows: jax.lax.fori_loop(0, 1000, update, rows))(start)
    rows = np.asarray(as_float32(rows), np.float64)
    # 1000 times 0 or 0.0078, the latter with a chance of 0.0128: a deviation of 0.028 each.
    np.testing.assert_allclose(rows.mean(), 1.1, atol=5 * 0.028 / 2048**0.5)
    np.testing.assert_allclose(rows.std(), 0.028, rtol=0.1)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"name": "sgd"}, optax.sgd(0.1)),
        ({"name": "adagrad"}, optax.adagrad(0.1, 0.1, 1e-6)),
        ({"weight_decay": 0.2}, optax.adamw(0.1, 0.9, 0.99, 1e-6, weight_decay=0.2)),
        (
            {"clip_norm": 1.0},
            optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1, 0.9, 0.99, 1e-6)),
        ),
    ],
)
def test_the_optimizer_is_optax_own_and_runs_under_strict_dtypes(changes, expected):
    optimizer = make_optimizer(optim(schedule="constant", warmup_steps=0, **changes), 10)
    params = {"a": table()}
    state, expected_state = optimizer.init(params), expected.init(params)
    for step in range(3):
        grads = {"a": jax.random.normal(jax.random.key(step), (ROWS, DIM))}
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        with jax.numpy_dtype_promotion("standard"):
            expected_updates, expected_state = expected.update(grads, expected_state, params)
        np.testing.assert_allclose(updates["a"], expected_updates["a"], rtol=1e-5, atol=1e-7)


def test_a_learned_temperature_does_not_decay():
    optimizer = make_optimizer(optim(name="sgd", schedule="constant", weight_decay=0.5), 10)
    params = {"log_temperature": jnp.float32(-2.3), "table": jnp.ones((2, 2))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert updates["log_temperature"] == 0 and (updates["table"] < 0).all()


@pytest.mark.parametrize(
    "changes, rates",
    [
        ({"schedule": "constant", "warmup_steps": 0}, [0.1, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "constant", "warmup_steps": 2}, [0.05, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine", "warmup_steps": 0}, [0.1, 0.0853553, 0.05, 0.0146447, 0.0]),
        ({"schedule": "cosine", "warmup_steps": 2}, [0.05, 0.1, 0.1, 0.05, 0.0]),
    ],
)
def test_schedules(changes, rates):
    schedule = make_schedule(optim(**changes), 4)
    np.testing.assert_allclose([schedule(step) for step in range(5)], rates, atol=1e-7)


@pytest.mark.parametrize(
    "make, changes, words",
    [
        (make_optimizer, {"name": "adma"}, "optim.name='adma'.*'adam'"),
        (
            make_row_optimizer,
            {"name": "lion"},
            "optim.name='lion'.*sgd, adagrad, row_adagrad, adam",
        ),
        (make_schedule, {"schedule": "cosin"}, "optim.schedule='cosin'.*'cosine'"),
        (make_schedule, {"warmup_steps": -1}, "optim.warmup_steps=-1"),
    ],
)
def test_an_illegal_value_names_its_key(make, changes, words):
    with pytest.raises(ConfigError, match=words):
        make(optim(**changes), 10)
