"""Checkpoints of a run: written in the background, verified when they are read back."""

import contextlib
import errno
import gc
import json
import logging
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from recjax.errors import CheckpointError, ConfigError
from recjax.processes import is_first, num_processes

Restored = tuple[int, Any, dict[str, Any]]


class Checkpointer:
    """The latest checkpoints of a run and its best one, in a folder of the workdir.

    `latest/<step>` holds the newest `keep`, `best/<n>` the n-th that was the best so far. Each
    is the state (any tree of jax arrays), the step, and a record (what JSON can hold). Saving
    copies the state and returns; it is written while training goes on. An older checkpoint is
    removed only after the new one is complete, and a save that was killed leaves nothing that
    would be read. Of several processes all call the same methods, each writes its shards, and
    another number of processes or devices reads them.

    Raises:
      CheckpointError: from any method, when a checkpoint could not be written (a save's error
        is raised by the next `save`, `wait` or `close`), or when there are checkpoints and none
        can be read.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2, *, read_only: bool = False):
        """Opens a folder of checkpoints.

        Args:
          directory: where they are; made if it is absent.
          keep: how many of the latest are kept; with one, nothing replaces it if it is damaged.
          read_only: changes nothing on disk, for reading a run that may still be going on.
        """
        if keep < 1:
            raise ConfigError(f"checkpoint.keep={keep}: at least one checkpoint must be kept")
        _silence_orbax()
        directory = pathlib.Path(directory).absolute()
        self._latest = _Folder(directory / "latest", keep, read_only)
        self._best = _Folder(directory / "best", 1, read_only)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Begins to save the state after `step` steps; waits for the save before it.

        Checkpoints of this step or later ones that are there already (damaged, or of a run that
        was resumed from an earlier one) are replaced, unless this very one was the last saved
        or restored.
        """
        self._wait_before(self._latest)
        if self._latest.current != (step, record):
            for number in self._latest.numbers():
                if number >= step:
                    self._latest.delete(number)
            self._latest.write(step, step, state, record)

    def save_best(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Begins to save the state as the best so far; the one before stays until it is done."""
        self._wait_before(self._best)
        self._best.write(max(self._best.numbers(), default=0) + 1, step, state, record)

    def _wait_before(self, folder: "_Folder") -> None:
        """Orbax numbers what processes meet at by save: those of two folders must not overlap."""
        folder.wait()
        if num_processes() > 1:
            self.wait()

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """The newest intact checkpoint as (step, state, record); None if there never was one.

        Of each damaged one that is passed over, a warning is logged.

        Args:
          abstract_state: the shapes, dtypes and shardings to restore to.
        """
        return self._latest.read_newest(abstract_state)

    def restore_best(self, abstract_state: Any) -> Restored | None:
        """The best checkpoint as (step, state, record); None if there never was one."""
        return self._best.read_newest(abstract_state)

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._latest.wait()
        self._best.wait()

    def close(self) -> None:
        """Waits, then ends the threads that write."""
        try:
            self._latest.close()
        finally:
            self._best.close()


class _Folder:
    """Numbered checkpoints under one Orbax manager."""

    def __init__(self, path: pathlib.Path, keep: int, read_only: bool):
        self.current: tuple[int, dict[str, Any]] | None = None
        self._path = path
        self._keep = keep
        self._read_only = read_only
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None

    def numbers(self) -> list[int]:
        if self._manager is None and not self._path.is_dir():
            return []
        return sorted(self._open().all_steps())

    def write(self, number: int, step: int, state: Any, record: dict[str, Any]) -> None:
        leaves = _named_leaves(state)
        arrays = {name: [_type(leaf), _checksum(leaf)] for name, leaf in leaves.items()}
        note = {"step": step, "record": record, "arrays": arrays}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_not_empty(leaves)),
            record=ocp.args.JsonSave({**note, "checksum": _checksum_of_note(note)}),
        )
        self._saving = step
        with self._naming_failure():
            self._open().save(number, args=items, force=True)
        self.current = (step, record)

    def delete(self, number: int) -> None:
        self._open().delete(number)

    def read_newest(self, abstract_state: Any) -> Restored | None:
        self.wait()
        problems = []
        for number in reversed(self.numbers()):
            with _quiet_leftovers():
                restored = self._read_or_reason(number, abstract_state)
                if isinstance(restored, str):
                    gc.collect()  # what was never awaited is reported when it is collected,
                    time.sleep(0.2)  # and what TensorStore still reads, when it is done
            if not isinstance(restored, str):
                step, _, record = restored
                self.current = (step, record)
                return restored
            path = self._path / str(number)
            problems.append(f"{path}: {restored}")
            absl_logging.warning("Checkpoint %s is damaged (%s)", path, restored)
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self._path} can be read ({'; '.join(problems)}): "
                "start anew in another --workdir"
            )
        return None

    def _read_or_reason(self, number: int, abstract_state: Any) -> Restored | str:
        try:
            return self._read(number, abstract_state)
        except _OtherStateError:
            raise
        # Damage shows as nearly any exception: of json, of the file system, of TensorStore.
        except Exception as error:
            return _one_line(error)

    def _read(self, number: int, abstract_state: Any) -> Restored:
        manager = self._open()
        note = manager.restore(number, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        note = dict(note["record"])
        if note.pop("checksum", None) != _checksum_of_note(note):
            raise CheckpointError("its record is not what was written")
        targets = _named_leaves(abstract_state)
        _check_same_arrays(targets, note["arrays"])
        items = ocp.args.Composite(state=ocp.args.StandardRestore(_not_empty(targets)))
        restored = manager.restore(number, args=items)["state"]
        for name, leaf in restored.items():
            written = note["arrays"][name][1]
            if not _is_as_written(leaf, written):
                raise CheckpointError(f"the array {name} is not what was written")
        leaves = [
            restored[name]
            if name in restored
            else jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
            for name, x in targets.items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return note["step"], state, note["record"]

    def wait(self) -> None:
        if self._manager is not None and self._saving is not None:
            with self._naming_failure():
                self._manager.wait_until_finished()
            self._saving = None

    def close(self) -> None:
        if self._manager is not None:
            try:
                self.wait()
            finally:
                manager, self._manager = self._manager, None
                manager.close()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            several = num_processes() > 1
            if several and is_first() and not self._read_only:
                self._path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=not (several or self._read_only),
                read_only=self._read_only,
                cleanup_tmp_directories=not self._read_only,
                # Named, they meet at a service; else in a computation, among those of the training.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes=set(range(num_processes())) if several else None,
                    barrier_sync_key_prefix=self._path.name if several else None,
                ),
            )
            self._manager = ocp.CheckpointManager(self._path, options=options)
        return self._manager

    @contextlib.contextmanager
    def _naming_failure(self) -> Iterator[None]:
        """Turns any failure to write into one message, and forgets the checkpoint it was for."""
        try:
            yield
        except Exception as error:
            step, self._saving, self.current = self._saving, None, None
            failed = f"the checkpoint of step {step} could not be written in {self._path}"
            if num_processes() > 1:  # the others do not come to close it together
                raise CheckpointError(f"{failed}: {_one_line(error)}") from error
            manager, self._manager = self._manager, None
            with contextlib.suppress(Exception):
                assert manager is not None
                manager.close()
            intact = self.numbers()
            left = f"{self._path / str(intact[-1])} is intact" if intact else "there is none before"
            raise CheckpointError(
                f"{failed}: {_one_line(error)}; {left}: put this right, then resume with the same "
                "--workdir"
            ) from error


class _OtherStateError(CheckpointError):
    """The checkpoint is of another state, which is no damage."""


def _check_same_arrays(targets: dict[str, Any], arrays: dict[str, list[Any]]) -> None:
    wanted = {name: _type(target) for name, target in targets.items()}
    saved = {name: kind for name, (kind, _) in arrays.items()}
    for name in sorted(wanted.keys() | saved.keys()):
        if wanted.get(name) != saved.get(name):
            raise _OtherStateError(
                f"the checkpoint holds the state of another model or optimizer: {name!r} is "
                f"{saved.get(name, 'absent')} in it, {wanted.get(name, 'absent')} in this run"
            )


def _named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their path, in the order of the tree: Orbax sees no containers but this."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"two leaves of the state have the path {name!r}")
        named[name] = leaf
    return named


def _not_empty(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves that Orbax can save: those with elements."""
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _checksum(leaf: Any) -> int | str:
    """CRC-32 of a leaf's bytes; a sum that all processes take together of one that they share.

    Orbax notices missing and truncated files, but restores flipped bytes of an array as they are.
    """
    return _crc(leaf) if _is_here(leaf) else f"sum {int(_sum_of_words(leaf))}"


def _is_as_written(leaf: Any, checksum: int | str | None) -> bool:
    """Whether it has that checksum, where this can be said: a CRC needs all of the leaf here."""
    if isinstance(checksum, str):
        return checksum == f"sum {int(_sum_of_words(leaf))}"
    return checksum is None or not _is_here(leaf) or checksum == _crc(leaf)


def _is_here(leaf: Any) -> bool:
    return leaf.is_fully_addressable or leaf.is_fully_replicated


def _crc(leaf: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)


@jax.jit
def _sum_of_words(leaf: Any) -> Any:
    """Sum of the entries as whole numbers, each times an odd number of its place, modulo 2^32."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    words = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(words * (place * np.uint32(2654435761) * np.uint32(2) + np.uint32(1)))


def _checksum_of_note(note: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(note, sort_keys=True).encode())


class _NotOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


class _NotLateWrites:
    """A hook for unraisable errors: writes that outlive a failed save find its loop closed."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)


def _silence_orbax() -> None:
    """Drops what Orbax logs: its failures are exceptions, and the rest concerns Orbax."""
    logger = absl_logging.get_absl_logger()
    if not any(isinstance(known, _NotOrbax) for known in logger.filters):
        logger.addFilter(_NotOrbax())
    if not isinstance(sys.unraisablehook, _NotLateWrites):
        sys.unraisablehook = _NotLateWrites(sys.unraisablehook)


@contextlib.contextmanager
def _quiet_leftovers() -> Iterator[None]:
    """Of several reads that fail, Orbax raises one; Python would print the others' tracebacks."""
    logger = logging.getLogger("asyncio")
    disabled, hook = logger.disabled, sys.unraisablehook
    logger.disabled, sys.unraisablehook = True, lambda _: None
    try:
        yield
    finally:
        logger.disabled, sys.unraisablehook = disabled, hook


def _one_line(error: Exception) -> str:
    """What went wrong, in the system's words where TensorStore wraps them in its own."""
    text = " ".join(str(error).split())
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        if os.strerror(code) in text:
            return os.strerror(code)
    return f"{type(error).__name__}: {text[:200]}"
