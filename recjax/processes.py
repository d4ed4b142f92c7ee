"""Several processes that train one run together: begun, agreed with, and left when one dies.

Every process takes the same path through the program, since a computation on devices of all of them
waits for all. What differs (who prints, who writes into the workdir) is asked of this module.
"""

import os
import sys
import time
import zlib
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from recjax.errors import ConfigError

LOST = 4  # the exit status where another process died

# In what JAX raises where a collective fails since another process is gone: of gloo (CPU), NCCL
# (GPU) and the service that processes meet at.
_SIGNS_OF_LOSS = (
    "gloo",
    "nccl",
    "coordination",
    "connection reset",
    "connection closed",
    "barrier",
)
_GRACE_SECONDS = 1.0  # the first process, whom the others hang on, leaves last


def start_processes(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    *,
    heartbeat_seconds: int = 30,
) -> None:
    """Makes this process one of several, before JAX's first computation.

    Args:
      coordinator: HOST:PORT of process 0, which listens there; found by JAX where empty (Slurm,
        Open MPI, TPU), with the two numbers.
      num_processes: how many there are.
      process_id: which of them this is, from 0 on.
      heartbeat_seconds: after how long without a sign of one process the others end.

    Raises:
      ConfigError: settings that do not go together, or no cluster to find them in.
    """
    given = bool(coordinator), num_processes > 0, process_id >= 0
    if any(given) and not (all(given) and process_id < num_processes and ":" in coordinator):
        raise ConfigError(
            f"--coordinator={coordinator} --num_processes={num_processes} --process_id="
            f"{process_id}: give all three, HOST:PORT of process 0, how many processes there are "
            "and which of them this is, from 0 on; or --distributed alone under Slurm or on TPU"
        )
    if heartbeat_seconds < 1:
        raise ConfigError(f"--heartbeat={heartbeat_seconds}: it must be at least 1 second")
    # JAX's own handler of SIGTERM would replace ours, which saves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes or None,
            process_id if all(given) else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"several processes could not be begun ({' '.join(str(error).split())[:200]}): give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


def num_processes() -> int:
    """How many processes train together; 1 where none were begun."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes into the workdir."""
    return num_processes() == 1 or jax.process_index() == 0


def from_first(value: float) -> float:
    """The first process's number, on all: what they decide by must not differ in a last bit."""
    return value if num_processes() == 1 else float(_gathered(value)[0])


def largest(value: float) -> float:
    """The largest of the processes' numbers, on all."""
    return value if num_processes() == 1 else float(_gathered(value).max())


def check_same(text: str, what: str) -> None:
    """Checks that all processes were given the same.

    Raises:
      ConfigError: they were not; on all of them.
    """
    if num_processes() == 1:
        return
    found = _gathered(float(zlib.crc32(text.encode())))
    others = np.flatnonzero(found != found[0])
    if len(others):
        raise ConfigError(
            f"process {others[0]} has not the same {what} as process 0: start all processes with "
            "the same program, flags and data"
        )


def check_shared(workdir: str | os.PathLike[str]) -> None:
    """Checks that several processes were given one workdir.

    Raises:
      ConfigError: they would each make their own.
    """
    if num_processes() > 1 and not os.fspath(workdir):
        raise ConfigError(
            f"{num_processes()} processes train one run: give all the same --workdir=DIR, in a "
            "file system that they share"
        )


def is_loss(error: BaseException) -> bool:
    """Whether it is an error that the death of another process brings."""
    text = f"{error} {error.__cause__}".lower()
    return num_processes() > 1 and any(sign in text for sign in _SIGNS_OF_LOSS)


def loss_message(error: BaseException) -> str:
    """What to tell people of such an error."""
    said = " ".join(str(error).split())[:160]
    return (
        f"another of the {num_processes()} processes died or cannot be reached ({said}); its own "
        "output says why. Start again with the processes that are left and the same --workdir: "
        "the run goes on from its last checkpoint"
    )


def leave(status: int, message: str) -> NoReturn:
    """Says what is wrong and ends this process, and with it the run of all.

    At a usual exit JAX waits for all processes, and they would wait for this one.
    """
    if num_processes() == 1:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(status)
    print(f"error: process {jax.process_index()}: {message}", file=sys.stderr)
    if is_first():
        time.sleep(_GRACE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _gathered(value: float) -> np.ndarray:
    """The number of every process, float64, which JAX would round."""
    words = np.asarray([value], np.float64).view(np.uint32)
    found = np.asarray(multihost_utils.process_allgather(words), np.uint32)
    return np.ascontiguousarray(found).reshape(-1, 2).view(np.float64)[:, 0]
