"""Devices, meshes and mappers: the one module that names them.

A step is written for one replica with named axes, and runs under either mapper: `shard_map` on a
mesh ('data', 'model'), or `pmap` over 'data' alone. Examples are split over 'data'; the rows of
sharded tables over 'model'.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recjax.errors import ConfigError
from recjax.processes import num_processes

DATA, MODEL = "data", "model"
ROW_MULTIPLE = 64  # sharded tables have a multiple of this many rows, on any number of devices
WHOLE, BY_DATA, BY_MODEL = P(), P(DATA), P(MODEL)
_MOST_RANKINGS = 8
# A ranking holds a tile of scores, of 32 rows at least: 512 MB for all of them.
_SCORES_AT_ONCE, _TILE_ROWS = 2**27, 32
STOP = "stop"  # in the batch and the metrics: how many devices are asked to stop

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
_INSTALL = {
    "cpu": "pip install jax",
    "gpu": "pip install -e '.[gpu]'",
    "tpu": "pip install -e '.[tpu]'",
}

PyTree = Any


def num_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def select_accelerator(name: str) -> None:
    """Asks JAX for one platform, before its first computation; `auto` leaves the choice to JAX.

    Raises:
      ConfigError: JAX has no such platform here; says what to install.
    """
    if name == "auto":
        return
    jax.config.update("jax_platforms", _PLATFORMS[name])
    try:
        found = jax.devices()[0].platform
        reason = f"it starts on {found}"
    except RuntimeError as error:
        found, reason = "", str(error).splitlines()[0]
    if found != name:
        raise ConfigError(
            f"--accelerator={name}: JAX finds no {name} here ({reason}). If this machine has one, "
            f"`{_INSTALL[name]}`; otherwise use --accelerator=auto"
        )


def describe_devices() -> str:
    """The platform and number of the devices at hand, for people."""
    return _describe(jax.devices())


def _describe(devices: Sequence[Any]) -> str:
    processes = num_processes()
    where = f" in {processes} processes" if processes > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){where}"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A mapper over a mesh of `data` x `model` devices.

    Attributes:
      mapper: `shard_map` or `pmap`.
      mesh: axes ('data', 'model'); under pmap, which makes one of its own, ('data',).
    """

    mapper: str
    mesh: Mesh

    @property
    def data(self) -> int:
        """Devices over which examples are split."""
        return self.mesh.shape[DATA]

    @property
    def model(self) -> int:
        """Devices over which table rows are split."""
        return self.mesh.shape.get(MODEL, 1)

    @property
    def model_axis(self) -> str | None:
        """The axis over which tables are split; None where they are whole."""
        return MODEL if self.model > 1 else None

    @property
    def is_one_device(self) -> bool:
        """Whether nothing is split."""
        return self.mesh.size == 1

    def describe(self) -> str:
        """The platform and number of the devices that are used, for people."""
        return _describe(list(self.mesh.devices.flat))

    @property
    def is_one_process(self) -> bool:
        """Whether every device belongs to this process."""
        return num_processes() == 1

    @property
    def is_cpu(self) -> bool:
        """Whether the devices are CPUs."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def steps_in_flight(self) -> int:
        """How many steps may be queued: several collective steps on CPU devices deadlock."""
        return 1 if self.is_cpu and not self.is_one_device else 2

    def rankings_at_once(self, num_items: int) -> int:
        """How many batches may be ranked at once, each by a thread of its own.

        More devices than one must all start their collectives in one order, so there one thread
        ranks, and waits for each batch. Else there is one a core, while their scores fit.
        """
        if not self.is_one_device:
            return 1
        fit = max(1, _SCORES_AT_ONCE // (_TILE_ROWS * num_items))
        return min(num_cores() if self.is_cpu else 2, _MOST_RANKINGS, fit)

    def specs(self, state: PyTree, sharded: Collection[str]) -> PyTree:
        """A PartitionSpec per leaf: leaves under a table's name in `sharded` split their rows."""

        def spec(path, leaf):
            names = {getattr(k, "key", getattr(k, "name", None)) for k in path}
            split = self.model > 1 and leaf.ndim > 0 and names & set(sharded)
            return P(MODEL) if split else P()

        return jax.tree_util.tree_map_with_path(spec, state)

    def shardings(self, specs: PyTree) -> PyTree:
        """Where a state with these specs lies on the mesh."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)

    def abstract(self, state: PyTree, specs: PyTree) -> PyTree:
        """Shapes, dtypes and shardings of `state`, to restore into."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            state,
            self.shardings(specs),
        )

    @property
    def whole(self) -> NamedSharding:
        """Where a copy of an array lies on each device."""
        return NamedSharding(self.mesh, P())

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts a copy of every leaf on each device."""
        return self._put(tree, P())

    def local_rows(self, batch_size: int) -> slice:
        """Of a global batch, the rows of this process's devices, which are all it has to make."""
        shares = NamedSharding(self.mesh, P(DATA)).addressable_devices_indices_map((batch_size,))
        bounds = [share[0].indices(batch_size) for share in shares.values() if share is not None]
        return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))

    def put_batch(self, batch: Mapping[str, np.ndarray], stop: bool = False) -> Mapping[str, Any]:
        """Splits the rows of a host batch over 'data'.

        Args:
          batch: the rows of `local_rows`.
          stop: whether this process is asked to stop; where there are several, they learn of it
            from what the step returns as `STOP`.
        """
        if self.mapper == "pmap":
            batch = {k: v.reshape(self.data, -1, *v.shape[1:]) for k, v in batch.items()}
        if not self.is_one_process:
            rows = self.local_rows(self.data)
            batch = {**batch, STOP: np.full(rows.stop - rows.start, stop, np.int32)}
        return self._put(batch, P(DATA))

    def put_split(self, tree: PyTree, axis: str | None) -> PyTree:
        """Splits the rows of whole host arrays, which every process holds, over an axis, if any."""
        where = NamedSharding(self.mesh, P(axis))
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, where, x.__getitem__), tree
        )

    def _put(self, tree: PyTree, spec: P) -> PyTree:
        """Global arrays of what each process holds of them."""
        where = NamedSharding(self.mesh, spec)
        if self.is_one_process:
            return jax.device_put(tree, where)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), tree
        )

    def map(self, function: Callable, in_specs: PyTree, out_specs: PyTree) -> Callable:
        """A function of one device's shards, compiled for all of them."""
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return jax.jit(mapped)

    def compile(self, step: Callable, state_specs: PyTree) -> Callable:
        """Maps `step(state, batch, arrays) -> (state, metrics)` and donates the state.

        `check_vma` is off: replicas compute equal updates from gathered gradients, which it cannot
        see; tests compare the copies instead.
        """
        if self.mapper == "pmap":
            devices = list(self.mesh.devices.flat)
            return jax.pmap(
                step,
                axis_name=DATA,
                in_axes=(None, 0, None),
                out_axes=None,
                devices=devices,
                donate_argnums=0,
            )
        mapped = jax.shard_map(
            step if self.is_one_process else _counting_stops(step),
            mesh=self.mesh,
            in_specs=(state_specs, P(DATA), P()),
            out_specs=(state_specs, P()),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)

    def compile_many(self, step: Callable) -> Callable:
        """As `compile`, for several runs side by side on one device.

        State, batch and metrics have a leading axis, one run each; the arrays are shared.
        """
        mapped = jax.shard_map(
            jax.vmap(step, in_axes=(0, 0, None)),
            mesh=self.mesh,
            in_specs=(P(), P(None, DATA), P()),
            out_specs=P(),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)

    def put_batches(self, batches: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, Any]:
        """Stacks host batches, one of each run, on one device."""
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        return self.replicate(stacked)

    @functools.cached_property
    def stack(self) -> Callable[[Sequence[PyTree]], PyTree]:
        """Joins the states of several runs along a new leading axis."""

        def stack(states: Sequence[PyTree]) -> PyTree:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

        return jax.jit(stack, out_shardings=NamedSharding(self.mesh, P()))

    @functools.cached_property
    def pick(self) -> Callable[[PyTree, Any], PyTree]:
        """Of a tree of stacked arrays, what lies at a place or at an array of places."""

        def pick(stacked: PyTree, place: Any) -> PyTree:
            return jax.tree.map(lambda leaf: leaf[place], stacked)

        return jax.jit(pick, out_shardings=NamedSharding(self.mesh, P()))


def _counting_stops(step: Callable) -> Callable:
    """A step that also sums, beside the sums that it takes anyway, who is asked to stop."""

    def counting(state: PyTree, batch: Mapping[str, Any], arrays: PyTree) -> tuple[PyTree, Any]:
        asked = jax.lax.psum(jnp.sum(batch[STOP]), (DATA, MODEL))
        batch = {name: rows for name, rows in batch.items() if name != STOP}
        state, metrics = step(state, batch, arrays)
        return state, {**metrics, STOP: asked}

    return counting


def choose_model(table_bytes: int, mapper: str, data: int, gib: float) -> int:
    """How many devices to split tables over: the fewest that leave each no more than it may hold.

    Args:
      table_bytes: of the tables that can be split, with their optimizer state.
      mapper: `pmap` splits no table.
      data: devices over which examples are split; 0 where that is open.
      gib: what a device may hold of tables, in GiB; 0.0 for half of its memory.
    """
    devices = len(jax.devices())
    limit = gib * 2**30 or 0.5 * _device_bytes()
    model = 1
    while (
        mapper != "pmap"
        and table_bytes / model > limit
        and ROW_MULTIPLE % (2 * model) == 0
        and (devices % (2 * model) == 0 if data == 0 else 2 * model * data <= devices)
    ):
        model *= 2
    return model


def _device_bytes() -> float:
    """Memory of one device; of CPU devices, their share of the machine's."""
    device = jax.local_devices()[0]
    known = (device.memory_stats() or {}).get("bytes_limit")
    if known:
        return float(known)
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return pages * size / len(jax.local_devices())


def make_parallel(mapper: str, data: int, model: int, batch_size: int) -> Parallel:
    """A mesh over the devices at hand.

    Args:
      mapper: `shard_map` or `pmap`.
      data: devices over which examples are split; 0 takes all that `model` leaves.
      model: devices over which table rows are split.
      batch_size: of the global batch.

    Raises:
      ConfigError: more devices than there are, a batch that they do not divide, or pmap with
        model > 1.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    processes = num_processes()
    if mapper == "pmap" and processes > 1:
        raise ConfigError(
            f"config.parallel.mapper=pmap is for one process, and here are {processes}; use "
            "parallel.mapper=shard_map"
        )
    if mapper == "pmap" and model > 1:
        raise ConfigError(
            "config.parallel.mapper=pmap splits examples only, so parallel.model="
            f"{model} cannot be; use parallel.mapper=shard_map"
        )
    if model < 1 or ROW_MULTIPLE % model or model > len(devices):
        raise ConfigError(
            f"config.parallel.model={model}: it must divide {ROW_MULTIPLE} and be at most the "
            f"{len(devices)} devices at hand"
        )
    data = data or len(devices) // model
    if data * model > len(devices):
        raise ConfigError(
            f"config.parallel.data={data} x parallel.model={model} needs {data * model} devices; "
            f"JAX has {len(devices)}"
        )
    if batch_size % data:
        raise ConfigError(
            f"config.train.batch_size={batch_size} is not divisible by the {data} devices of "
            f"parallel.data; the nearest that is: {max(round(batch_size / data), 1) * data}"
        )
    if data * model % processes:
        raise ConfigError(
            f"config.parallel.data={data} x parallel.model={model} devices are no equal share of "
            f"{processes} processes; set parallel.data to 0 for all {len(devices)} devices"
        )
    share = data * model // processes
    own = [[d for d in devices if d.process_index == index] for index in range(processes)]
    chosen = [device for each in own for device in each[:share]]
    grid = np.asarray(chosen).reshape(data, model)
    if mapper == "pmap":
        return Parallel(mapper, Mesh(grid[:, 0], (DATA,), axis_types=(AxisType.Auto,)))
    return Parallel(mapper, Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2))
