"""Tables and moments in bfloat16: rounded without bias, and the same however a run goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recjax import train
from recjax.checkpoint import Checkpointer
from recjax.errors import CheckpointError
from recjax.layout import split_bytes
from recjax.rounding import as_float32, as_kept, round_randomly
from recjax.run import train_until
from tests.runs import assert_same_run, checkpoints_of, small_config, stopper
from tests.tiny import host_batch, tiny_experiment, variables_of, whole_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

HALF = {"tables.dtype": "bfloat16", "optim.moments_dtype": "bfloat16"}
SAMPLED = {"tables.mode": "rows", "loss.candidates": "uniform", "loss.num_sampled": 16}
ADAM = {"optim.name": "adam", "optim.learning_rate": 0.01, "optim.eps": 1e-4}


@functools.cache
def half_on(data=1, model=1):
    """`trained` in bfloat16 on so many devices, made once."""
    return trained(experiment_of(data, model))


def experiment_of(data=1, model=1, **changes):
    settings = {**SAMPLED, **ADAM, **HALF, "parallel.data": data, "parallel.model": model}
    settings |= changes
    return tiny_experiment("softmax", **{k.replace(".", "__"): v for k, v in settings.items()})


def test_every_number_of_bfloat16_stays_as_it_is():
    bits = jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16)
    numbers = as_float32(bits)
    expected = jax.lax.bitcast_convert_type(bits, jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(numbers, expected)
    is_nan = np.isnan(numbers)
    rounded = round_randomly(numbers, jax.random.key(0), jnp.arange(2**16))
    np.testing.assert_array_equal(rounded[~is_nan], bits[~is_nan])
    assert np.isnan(as_float32(rounded)[is_nan]).all() and is_nan.sum() == 254
    np.testing.assert_array_equal(as_kept(numbers, "bfloat16")[~is_nan], bits[~is_nan])
    assert as_float32(numbers) is numbers and as_kept(numbers, "float32") is numbers


def test_no_chance_makes_a_number_of_what_is_none():
    nan = jnp.asarray([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], jnp.uint32)
    nan_Mx3 = jnp.broadcast_to(jax.lax.bitcast_convert_type(nan, jnp.float32), (1000, 3))
    rounded = round_randomly(nan_Mx3, jax.random.key(0), jnp.arange(1000))
    assert np.isnan(as_float32(rounded)).all()


def test_a_number_becomes_one_of_its_neighbours_and_their_mean_is_the_number():
    times = 20_000
    x_D = jax.random.normal(jax.random.key(1), (64,)) * jnp.logspace(-12, 6, 64)
    x_MxD = jnp.broadcast_to(x_D, (times, 64))
    found = as_float32(round_randomly(x_MxD, jax.random.key(2), jnp.arange(times)))
    found, x_D = np.asarray(found, np.float64), np.asarray(x_D, np.float64)
    low, high = found.min(axis=0), found.max(axis=0)
    gap = 2.0 ** (np.floor(np.log2(np.abs(x_D))) - 7)
    assert (low <= x_D).all() and (x_D <= high).all() and ((found == low) | (found == high)).all()
    np.testing.assert_array_equal(high - low, gap)
    chance = (x_D - low) / gap
    deviation = gap * np.sqrt(chance * (1 - chance) / times)
    assert (np.abs(found.mean(axis=0) - x_D) < 4.5 * deviation + 1e-30).all()
    above = (found == high) - chance
    assert np.abs(np.corrcoef(above.T) - np.eye(64)).max() < 5 / times**0.5
    assert np.abs((above[1:] * above[:-1]).mean(axis=0)).max() < 5 / times**0.5


def test_chance_is_of_the_row_and_the_column_and_the_key():
    x_MxD = jax.random.normal(jax.random.key(0), (100, 8))
    row_M = jnp.asarray(np.random.default_rng(0).permutation(1000)[:100])
    whole = round_randomly(x_MxD, jax.random.key(1), row_M)
    part = round_randomly(x_MxD[30:20:-1, :5], jax.random.key(1), row_M[30:20:-1])
    np.testing.assert_array_equal(part, whole[30:20:-1, :5])
    np.testing.assert_array_equal(
        round_randomly(x_MxD[:, 0], jax.random.key(1), row_M), whole[:, 0]
    )
    assert (round_randomly(x_MxD, jax.random.key(2), row_M) != whole).mean() > 0.2
    assert (round_randomly(x_MxD, jax.random.key(1), row_M + 1) != whole).mean() > 0.2


def trained(experiment):
    """The state after ten steps, on the host, and the ranking of some queries by it."""
    step = experiment.parallel.compile(experiment.step, experiment.state_specs)
    shardings = experiment.parallel.shardings(experiment.state_specs)
    state = jax.device_put(whole_state(experiment), shardings)
    for number in range(10):
        batch = experiment.parallel.put_batch(host_batch(experiment, number))
        state, _ = step(state, batch, experiment.arrays)
        jax.block_until_ready(state)
    queries = experiment.queries("test")
    rows = np.arange(8)
    rank = experiment.scorer.ranker(
        variables_of(state), experiment.arrays, experiment.rankable_mask_N
    )
    scores, _ = rank(queries.batch(rows), queries.seen(rows, "known"), 5)
    return jax.device_get((state, scores))


@pytest.mark.slow
def test_a_step_in_bfloat16_is_the_same_on_several_devices():
    state, scores = half_on()
    kept = state.tables, state.table_state
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("uint16")}
    by_model, by_model_scores = half_on(1, 2)
    jax.tree.map(np.testing.assert_array_equal, (by_model.tables, by_model.table_state), kept)
    np.testing.assert_allclose(by_model_scores, scores, rtol=1e-6)


@pytest.mark.slow
def test_a_step_in_bfloat16_is_the_same_on_many_devices_but_for_the_order_of_sums():
    state, scores = half_on()
    kept = state.tables, state.table_state
    # Examples split over devices are summed in another order, which may turn a rounding or two.
    by_both, by_both_scores = half_on(4, 2)
    for found, wanted in zip(
        jax.tree.leaves((by_both.tables, by_both.table_state)), jax.tree.leaves(kept), strict=True
    ):
        assert (found != wanted).mean() < 0.01
    np.testing.assert_allclose(by_both_scores, scores, atol=1e-2)


def test_rounding_costs_little_of_what_is_learned():
    half, scores = half_on()
    single, single_scores = trained(
        experiment_of(**{"tables.dtype": "float32", "optim.moments_dtype": "float32"})
    )
    for name, table in half.tables.items():
        np.testing.assert_allclose(as_float32(jnp.asarray(table)), single.tables[name], atol=0.02)
    np.testing.assert_allclose(scores, single_scores, atol=0.05)


@pytest.mark.slow
def test_a_run_in_bfloat16_that_was_stopped_goes_on_bit_for_bit_and_in_no_other_dtype(tmp_path):
    config = small_config("mf", **SAMPLED, **HALF)
    config.diagnostics.every, config.diagnostics.queries, config.diagnostics.draws = 10, 4, 2
    run = train(config, tmp_path / "straight", quiet=True)
    assert train_until(stopper(8), config, tmp_path / "stopped", quiet=True) is None
    other = small_config("mf", **SAMPLED, **HALF | {"tables.dtype": "float32"})
    with pytest.raises(CheckpointError, match="tables.dtype was 'bfloat16', is 'float32'"):
        train(other, tmp_path / "stopped", quiet=True)
    train(config, tmp_path / "stopped", quiet=True)
    assert_same_run(tmp_path / "stopped", run)
    state = checkpoints_of(run)[0][1]
    assert {leaf.dtype for leaf in jax.tree.leaves((state.tables, state.table_state))} == {
        np.dtype("uint16")
    }


def test_a_checkpoint_of_one_dtype_is_no_state_of_another(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, experiment_of().init_state(), {})
    checkpointer.wait()
    other = experiment_of(**{"tables.dtype": "float32"}).abstract_state
    with pytest.raises(CheckpointError, match=r"'tables/head' is uint16\[.*float32\["):
        checkpointer.restore_latest(other)
    checkpointer.close()


@pytest.mark.parametrize("name", ["sgd", "adagrad", "row_adagrad", "adam"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_of_tables_that_are_split_are_those_of_the_state(name, dtype):
    changes = {"optim.name": name, "tables.dtype": dtype, "optim.moments_dtype": dtype}
    if name == "sgd":
        changes["optim.moments_dtype"] = "float32"
    experiment = experiment_of(**changes)
    state = experiment.abstract_state
    leaves = jax.tree.leaves((state.tables, state.table_state))
    expected = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert split_bytes(experiment.step.objective, experiment.config.optim) == expected
