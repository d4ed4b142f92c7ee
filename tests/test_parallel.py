"""Devices: what cannot be is refused in words, what can be is laid out as asked."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from recjax import parallel
from recjax.errors import ConfigError
from recjax.parallel import choose_model, describe_devices, make_parallel, select_accelerator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pmap", 4, 2, 8), "parallel.mapper=pmap .* parallel.model=2 .* use .*shard_map"),
        (("shard_map", 8, 1, 12), "train.batch_size=12 .* 8 devices .* nearest that is: 16"),
        (("shard_map", 0, 1, 3), "train.batch_size=3 .* 8 devices .* nearest that is: 8"),
        (("shard_map", 4, 4, 8), "parallel.data=4 x parallel.model=4 needs 16 devices; JAX has 8"),
        (("shard_map", 16, 1, 16), "needs 16 devices; JAX has 8"),
        (("shard_map", 0, 16, 16), "parallel.model=16: .* at most the 8 devices"),
        (("shard_map", 2, 3, 6), "parallel.model=3: it must divide 64"),
        (("shard_map", 0, 0, 16), "parallel.model=0"),
    ],
)
def test_what_the_devices_cannot_do_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_parallel(*arguments)


@pytest.mark.parametrize(("data", "model", "found"), [(0, 1, 8), (0, 2, 4), (2, 2, 2), (1, 8, 1)])
def test_data_takes_the_devices_that_model_leaves(data, model, found):
    parallel = make_parallel("shard_map", data, model, 16)
    assert (parallel.data, parallel.model) == (found, model)
    assert parallel.model_axis == ("model" if model > 1 else None)


def test_several_fake_devices_take_one_step_at_a_time():
    assert make_parallel("shard_map", 8, 1, 16).steps_in_flight == 1
    assert make_parallel("pmap", 8, 1, 16).steps_in_flight == 1
    assert make_parallel("shard_map", 1, 1, 16).steps_in_flight == 2


@pytest.mark.parametrize(
    ("cores", "items", "found"),
    [(1, 100, 1), (4, 100, 4), (64, 100, 8), (64, 1_000_000, 4), (64, 10**8, 1)],
)
def test_a_core_ranks_a_batch_while_the_scores_of_all_fit(monkeypatch, cores, items, found):
    monkeypatch.setattr(parallel, "num_cores", lambda: cores)
    assert make_parallel("shard_map", 1, 1, 16).rankings_at_once(items) == found
    assert make_parallel("shard_map", 8, 1, 16).rankings_at_once(items) == 1


def test_named_tables_are_split_and_all_else_is_whole():
    parallel = make_parallel("shard_map", 4, 2, 16)
    table = jnp.arange(16.0).reshape(8, 2)
    state = {"params": {"head": table, "w": table}, "optim": {"head": (table, jnp.float32(1))}}
    specs = parallel.specs(state, ("head",))
    assert specs == {"params": {"head": P("model"), "w": P()}, "optim": {"head": (P("model"), P())}}
    placed = jax.device_put(state, parallel.shardings(specs))
    assert {s.data.shape for s in placed["params"]["head"].addressable_shards} == {(4, 2)}
    assert {s.data.shape for s in placed["params"]["w"].addressable_shards} == {(8, 2)}
    abstract = parallel.abstract(jax.eval_shape(lambda: state), specs)
    assert abstract["params"]["head"].sharding == placed["params"]["head"].sharding


def test_without_a_model_axis_nothing_is_split():
    state = {"head": jnp.ones((8, 2))}
    for mapper in ("shard_map", "pmap"):
        assert make_parallel(mapper, 8, 1, 16).specs(state, ("head",)) == {"head": P()}


@pytest.mark.parametrize("mapper", ["shard_map", "pmap"])
def test_each_device_gets_its_own_rows_of_the_batch(mapper):
    parallel = make_parallel(mapper, 8, 1, 16)
    first = jnp.zeros((), jnp.int32)

    def step(state, batch, arrays):
        rows = jax.lax.all_gather(batch["row"], "data", tiled=True)
        return state + jnp.sum(arrays["one"]) * batch["row"].shape[0], {"rows": rows}

    state = jax.device_put(first, parallel.shardings(P()))
    mapped = parallel.compile(step, P())
    batch = parallel.put_batch({"row": np.arange(16)})
    arrays = parallel.replicate({"one": np.ones(1, np.int32)})
    state, metrics = mapped(state, batch, arrays)
    assert int(state) == 2
    assert metrics["rows"].tolist() == list(range(16))


@pytest.mark.parametrize(
    ("gib", "data", "model"),
    [(8.0, 0, 1), (4.0, 0, 2), (2.0, 0, 4), (1.0, 0, 8), (0.1, 0, 8), (1.0, 4, 2)],
)
def test_tables_are_split_over_the_fewest_devices_that_hold_them(gib, data, model):
    assert choose_model(8 * 2**30, "shard_map", data, gib) == model
    assert choose_model(8 * 2**30, "pmap", data, gib) == 1


def test_a_small_table_is_not_split_and_the_rows_of_one_process_are_all():
    assert choose_model(2**20, "shard_map", 0, 0.0) == 1
    assert make_parallel("shard_map", 4, 2, 16).local_rows(16) == slice(0, 16)


def test_devices_are_described():
    assert describe_devices() == "8 x cpu (cpu)"
    assert make_parallel("shard_map", 2, 1, 16).describe() == "2 x cpu (cpu)"


def test_the_cpu_is_always_there():
    for name in ("auto", "cpu"):
        select_accelerator(name)
        assert jax.devices()[0].platform == "cpu"


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_an_accelerator_that_jax_lacks_is_refused_with_what_to_install(name):
    """In a process of its own: JAX chooses its platform once."""
    program = (
        "import sys; from recjax.parallel import select_accelerator; "
        "select_accelerator(sys.argv[1])"
    )
    if name == "gpu" and shutil.which("nvidia-smi"):
        pytest.skip("this machine may have one")
    found = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True)
    last_line = found.stderr.splitlines()[-1]
    assert last_line.startswith(f"recjax.errors.ConfigError: --accelerator={name}: JAX finds no")
    assert f"`pip install -e '.[{name}]'`" in last_line
