"""Running trials on this machine: in processes of their own, or in this one."""

import contextlib
import os
import pathlib
import platform
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence

from recjax.data.dataset import Dataset
from recjax.errors import CheckpointError, ConfigError, DataError, DivergenceError
from recjax.run import train_until
from recjax.sweeps.attempts import Runner
from recjax.sweeps.trials import Trial

MAIN = (sys.executable, "-m", "recjax.main")
_POLL_SECONDS = 0.1


class Subprocess:
    """Runs trials as `python -m recjax.main`, each in a process of its own.

    Args:
      stopping: when it is set, the process is told to save and end.
      environment: variables beside this process's, or in their place.
      cores: CPU cores of the process; all of this one's where empty.
      accelerator: as `recjax.main` takes it.
      stop_signal: which tells it to save and end.

    Attributes:
      process: the one that runs, or the last that ran.
    """

    def __init__(
        self,
        stopping: threading.Event,
        environment: Mapping[str, str] | None = None,
        cores: Sequence[int] = (),
        accelerator: str = "auto",
        stop_signal: int = signal.SIGTERM,
    ):
        self.process: subprocess.Popen | None = None
        self._stopping = stopping
        self._environment = environment or {}
        self._cores = cores
        self._accelerator = accelerator
        self._stop_signal = stop_signal

    def __call__(self, trial: Trial, folder: pathlib.Path, descriptor: int) -> int:
        """Returns the exit status of a process that holds the claim as long as it lives."""
        with open(folder / "log.txt", "ab") as log:
            # In a session of its own, so that Ctrl-C on the terminal reaches it once, from here.
            self.process = process = subprocess.Popen(
                [*MAIN, *trial.arguments(folder, self._accelerator)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        if self._cores:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, self._cores)
        while not self._stopping.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_SECONDS)
        process.send_signal(self._stop_signal)
        return process.wait()


def run_here(is_stopping: Callable[[], bool], dataset: Dataset | None = None) -> Runner:
    """Runs trials in this process, one after another; `dataset` is in place of the config's."""

    def run(trial: Trial, folder: pathlib.Path, descriptor: int) -> int:
        del descriptor
        with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log):
            try:
                train_until(is_stopping, trial.config, folder, dataset)
                return 0
            except (ConfigError, DataError, CheckpointError) as error:
                print(f"error: {error}")
                return 2
            except DivergenceError as error:
                print(f"error: {error}")
                return 3
            except Exception:
                traceback.print_exc(file=log)
                return 1

    return run


def subprocesses(
    workers: int,
    workdir: pathlib.Path,
    accelerator: str,
    stopping: threading.Event,
    stop_signal: int = signal.SIGTERM,
) -> list[Subprocess]:
    """A runner for each worker, with its share of the CPU cores and of CUDA_VISIBLE_DEVICES.

    Each has as many cores as the others, since the last bits of a result may depend on that.
    Programs are compiled once and kept in the workdir: those for one machine and number of cores
    apart from others.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // workers
    variables = {}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        compiled = workdir.absolute() / ".compiled" / f"{platform.node()}-{share}"
        variables["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [
        Subprocess(
            stopping,
            {**variables, **gpu_share(i, workers, visible)},
            cores[i * share : (i + 1) * share] if workers > 1 else [],
            accelerator,
            stop_signal,
        )
        for i in range(workers)
    ]


def gpu_share(worker: int, workers: int, visible: str) -> dict[str, str]:
    """The variables that give a worker its GPUs of those visible, and its part of their memory."""
    gpus = [gpu for gpu in visible.split(",") if gpu.strip()]
    if len(gpus) >= workers:
        own = gpus[worker * len(gpus) // workers : (worker + 1) * len(gpus) // workers]
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)}
    variables = {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}
    if workers > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        on_one = -(-workers // max(len(gpus), 1))
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / on_one:.3f}"
    return variables
