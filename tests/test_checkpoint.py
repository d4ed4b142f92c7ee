"""What is saved comes back bit for bit, or the one before it does; nothing is lost on the way."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from recjax.checkpoint import Checkpointer
from recjax.errors import CheckpointError, ConfigError


def state_at(step):
    return {
        "step": jnp.int32(step),
        "table": jax.random.normal(jax.random.key(step), (100, 8)),
        "key": jax.random.key_data(jax.random.key(step)),
    }


def abstract(state):
    """The state's shapes, dtypes and shardings, as a target to restore to."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


TARGET = abstract(state_at(0))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save_steps(directory, *steps):
    checkpointer = Checkpointer(directory)
    for step in steps:
        checkpointer.save(step, state_at(step), {"best": step / 3})
    checkpointer.close()


def restore(directory):
    checkpointer = Checkpointer(directory)
    restored = checkpointer.restore_latest(TARGET)
    checkpointer.close()
    return restored


def test_a_new_folder_has_nothing_to_restore(tmp_path):
    checkpointer = Checkpointer(tmp_path / "new", read_only=True)
    assert checkpointer.restore_latest(TARGET) is None
    assert checkpointer.restore_best(TARGET) is None
    checkpointer.close()
    assert not (tmp_path / "new").exists()


def test_the_newest_comes_back_bit_for_bit_and_only_so_many_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    step, state, record = restore(tmp_path)
    assert (step, record) == (3, {"best": 1.0})
    assert_same(state, state_at(3))
    assert sorted(os.listdir(tmp_path / "latest")) == ["2", "3"]


@struct.dataclass
class State:
    params: dict
    opt: tuple
    nothing: None


def test_any_tree_of_arrays_is_restored_as_it_was(tmp_path):
    params = {"x": {"b": jnp.zeros(2, jnp.bfloat16)}, "y/z": jnp.ones(2), "e": jnp.ones((0, 3))}
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(jnp.ones(3))
    state = State(params, opt, None)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {"loss": float("inf"), "name": [None, "é"]})
    restored = checkpointer.restore_latest(abstract(state))
    checkpointer.close()
    assert restored is not None
    assert_same(restored[1], state)
    assert restored[2] == {"loss": float("inf"), "name": [None, "é"]}


def test_two_leaves_of_one_path_are_refused(tmp_path):
    state = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match="'a/b'"):
        Checkpointer(tmp_path).save(1, state, {})


def test_a_state_donated_after_saving_is_saved_as_it_was(tmp_path):
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    state = {"table": jnp.zeros((20_000, 16)), "step": jnp.int32(0)}
    checkpointer = Checkpointer(tmp_path)
    for _ in range(3):
        state = add(state)
    checkpointer.save(3, state, {})
    for _ in range(10):
        state = add(state)
    restored = checkpointer.restore_latest(abstract(state))
    checkpointer.close()
    assert restored is not None
    np.testing.assert_array_equal(np.asarray(restored[1]["table"]), np.full((20_000, 16), 3.0))


def test_sharded_arrays_are_restored_to_another_topology(tmp_path):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("model"))
    single = SingleDeviceSharding(jax.devices()[0])
    table = jnp.arange(64.0).reshape(16, 4)
    checkpointer = Checkpointer(tmp_path)
    for step, (source, target) in enumerate([(sharded, single), (single, sharded)]):
        state = {"table": jax.device_put(table, source)}
        checkpointer.save(step, state, {})
        restored = checkpointer.restore_latest(
            {"table": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=target)}
        )
        assert restored is not None
        assert restored[1]["table"].sharding == target
        np.testing.assert_array_equal(np.asarray(restored[1]["table"]), np.asarray(table))
    checkpointer.close()


def files_of(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file()]


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [delete, truncate, flip])
@pytest.mark.parametrize("what", ["record", "data"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage, what):
    save_steps(tmp_path, 1, 2)
    newest = tmp_path / "latest" / "2"
    largest = max(files_of(newest), key=lambda path: path.stat().st_size)
    damage(largest if what == "data" else newest / "record" / "metadata")
    restored = restore(tmp_path)
    assert restored is not None
    assert restored[0] == 1
    assert_same(restored[1], state_at(1))
    assert f"{newest} is damaged" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", [delete, truncate, flip])
def test_no_damage_to_any_file_is_restored_silently(tmp_path, damage):
    save_steps(tmp_path / "whole", 1, 2)
    for i in range(len(files_of(tmp_path / "whole" / "latest" / "2"))):
        directory = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", directory)
        damage(files_of(directory / "latest" / "2")[i])
        restored = restore(directory)
        assert restored is not None
        assert_same(restored[1], state_at(restored[0]))


def test_where_all_are_damaged_the_error_names_them(tmp_path):
    save_steps(tmp_path, 1)
    delete(tmp_path / "latest" / "1" / "record" / "metadata")
    with pytest.raises(CheckpointError, match="latest/1: .*another --workdir"):
        restore(tmp_path)


def test_a_state_of_another_model_is_not_called_damaged(tmp_path):
    save_steps(tmp_path, 1)
    target = {**TARGET, "table": jax.ShapeDtypeStruct((100, 16), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"'table' is float32\[100, 8\] in it"):
        Checkpointer(tmp_path).restore_latest(target)


def test_resuming_before_a_damaged_checkpoint_replaces_it(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    delete(tmp_path / "latest" / "3" / "record" / "metadata")
    assert restore(tmp_path)[0] == 2
    save_steps(tmp_path, 3)
    assert restore(tmp_path)[0] == 3


def test_saving_the_step_just_saved_or_restored_again_does_nothing(tmp_path):
    save_steps(tmp_path, 1, 1)
    before = (tmp_path / "latest" / "1").stat().st_mtime_ns
    checkpointer = Checkpointer(tmp_path)
    checkpointer.restore_latest(TARGET)
    checkpointer.save(1, state_at(1), {"best": 1 / 3})
    checkpointer.close()
    assert (tmp_path / "latest" / "1").stat().st_mtime_ns == before


def test_the_best_is_replaced_also_by_one_of_an_earlier_step(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (5, 3, 3):
        checkpointer.save_best(step, state_at(step), {"recall": 0.1 * step})
    restored = checkpointer.restore_best(TARGET)
    checkpointer.close()
    assert restored is not None
    assert restored[::2] == (3, {"recall": 0.1 * 3})
    assert os.listdir(tmp_path / "best") == ["3"]


def test_a_full_disk_is_one_error_and_the_one_before_is_intact(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state_at(1), {})
    checkpointer.save_best(1, state_at(1), {})
    checkpointer.wait()

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", no_space)
        for save in (checkpointer.save, checkpointer.save_best):
            with pytest.raises(CheckpointError, match="step 2 .*No space left.*/1 is intact"):
                save(2, state_at(2), {})
    for restored in (checkpointer.restore_latest(TARGET), checkpointer.restore_best(TARGET)):
        assert restored is not None
        assert restored[0] == 1
    checkpointer.save(3, state_at(3), {})
    checkpointer.close()
    assert restore(tmp_path)[0] == 3


def in_child(directory, body):
    """Saves step 1 in another process, then does what `body` says."""
    script = f"""
        import os, resource, signal, sys
        import jax
        import jax.numpy as jnp
        from recjax.checkpoint import Checkpointer, CheckpointError

        def state_at(step):
            return {{
                "step": jnp.int32(step),
                "table": jax.random.normal(jax.random.key(step), (100_000, 8)),
            }}

        checkpointer = Checkpointer({str(directory)!r})
        for save in (checkpointer.save, checkpointer.save_best):
            save(1, state_at(1), {{}})
        checkpointer.wait()
        {body}
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )


LARGE = {
    "step": TARGET["step"],
    "table": jax.ShapeDtypeStruct((100_000, 8), jnp.float32, sharding=TARGET["table"].sharding),
}


def test_a_write_that_fails_in_the_background_is_reported_by_wait(tmp_path):
    body = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for save in (checkpointer.save, checkpointer.save_best):
            save(2, state_at(2), {})
            try:
                checkpointer.wait()
            except CheckpointError as error:
                print(error)
    """
    messages = in_child(tmp_path, body.strip()).stdout.splitlines()
    for message, name in zip(messages, ("latest", "best"), strict=True):
        assert f"step 2 could not be written in {tmp_path / name}: File too large" in message
        assert f"{tmp_path / name / '1'} is intact" in message


def test_killed_in_the_middle_of_a_save_the_one_before_is_read(tmp_path):
    body = """
        checkpointer.save(2, state_at(2), {})
        checkpointer.save_best(2, state_at(2), {})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert in_child(tmp_path, body.strip()).returncode == -signal.SIGKILL
    checkpointer = Checkpointer(tmp_path)
    for restored in (checkpointer.restore_latest(LARGE), checkpointer.restore_best(LARGE)):
        assert restored is not None
        step, state, _ = restored
        assert step in (1, 2)
        assert int(state["step"]) == step
    checkpointer.save(3, state, {})
    checkpointer.close()
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name]


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint.keep=0"):
        Checkpointer(tmp_path, keep=0)
