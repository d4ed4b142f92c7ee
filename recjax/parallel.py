"""Devices, meshes and mappers: the one module that names them.

A step is written for one replica with named axes, and runs under either mapper: `shard_map` on a
mesh ('data', 'model'), or `pmap` over 'data' alone. Examples are split over 'data'; the rows of
sharded tables over 'model'.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recjax.errors import ConfigError

DATA, MODEL = "data", "model"
ROW_MULTIPLE = 64  # sharded tables have a multiple of this many rows, on any number of devices

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
_INSTALL = {
    "cpu": "pip install jax",
    "gpu": "pip install -e '.[gpu]'",
    "tpu": "pip install -e '.[tpu]'",
}

PyTree = Any


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
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


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
    def is_cpu(self) -> bool:
        """Whether the devices are CPUs."""
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def steps_in_flight(self) -> int:
        """How many steps may be queued: several collective steps on CPU devices deadlock."""
        return 1 if self.is_cpu and not self.is_one_device else 2

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

    def replicate(self, tree: PyTree) -> PyTree:
        """Puts a copy of every leaf on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """Splits the rows of a host batch over 'data'."""
        if self.mapper == "pmap":
            batch = {k: v.reshape(self.data, -1, *v.shape[1:]) for k, v in batch.items()}
        return jax.device_put(batch, NamedSharding(self.mesh, P(DATA)))

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
            step,
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
    devices = jax.devices()
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
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    if mapper == "pmap":
        return Parallel(mapper, Mesh(grid[:, 0], (DATA,), axis_types=(AxisType.Auto,)))
    return Parallel(mapper, Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2))
