"""Running trials as Slurm jobs, through submitit."""

import ast
import contextlib
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from recjax.errors import ConfigError
from recjax.extras import require
from recjax.run import is_finished
from recjax.sweeps.attempts import TrialResult, attempt_trial, write_trial
from recjax.sweeps.claims import claim
from recjax.sweeps.local import Subprocess, subprocesses
from recjax.sweeps.trials import Trial

# Submitit's own time limit is five minutes.
_DEFAULTS = {"name": "recjax", "timeout_min": 240}
# What it translates for every cluster; other parameters are Slurm's own.
_GENERAL = (
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
)
_ONE = ("nodes", "tasks_per_node")
_POLL_SECONDS = 0.5
_SAVE_SECONDS = 60.0


class TrialJob:
    """What a job does: `attempt_trial` on the machine that it is given.

    The job claims the trial itself, so that it stays claimed if the sweep that submitted it ends.
    A job that is preempted or out of time has its trial saved, and goes on with it when Slurm
    starts it again.
    """

    def __init__(
        self, trial: Trial, workdir: pathlib.Path, known_failure: str | None, accelerator: str
    ):
        self._job = (trial, workdir, known_failure, accelerator)
        self._runner: Subprocess | None = None

    def __call__(self) -> TrialResult:
        """Runs the trial to its end."""
        trial, workdir, known_failure, accelerator = self._job
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        # Slurm may send the trial a SIGTERM of its own, and a second one would end it unsaved.
        (runner,) = subprocesses(1, workdir, accelerator, stopping, stop_signal=signal.SIGINT)
        self._runner = runner
        return attempt_trial(
            trial,
            workdir,
            lambda: None,
            known_failure,
            run=runner,
            is_stopping=stopping.is_set,
        )

    def checkpoint(self) -> Any:
        """What submitit submits anew when the job is preempted or out of time."""
        process = None if self._runner is None else self._runner.process
        if process is not None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SAVE_SECONDS)
        return require("submitit", "slurm").helpers.DelayedSubmission(TrialJob(*self._job))


class SlurmSlot:
    """Submits one trial at a time and waits for its job.

    Args:
      executor: as `make_executor` returns it.
      lock: held while a job is submitted, which submitit does not allow from two threads.
      stopping: when it is set, the job is cancelled, which saves its trial.
      accelerator: as `recjax.main` takes it.
    """

    def __init__(
        self, executor: Any, lock: Any, stopping: threading.Event, accelerator: str = "auto"
    ):
        self._executor = executor
        self._lock = lock
        self._stopping = stopping
        self._accelerator = accelerator

    def __call__(
        self,
        trial: Trial,
        workdir: pathlib.Path,
        on_start: Callable[[], None],
        known_failure: str | None,
    ) -> TrialResult:
        """Returns when the job has ended, or at once where another process runs the trial."""
        folder = workdir / trial.name
        with claim(folder) as descriptor:
            if descriptor is None:
                return TrialResult(trial.name, "elsewhere", folder)
            write_trial(trial, folder)
            if is_finished(folder):
                return TrialResult(trial.name, "finished", folder)
        log = folder / "log.txt"
        before, started, cancelled = _size(log), False, False
        with self._lock:
            job = self._executor.submit(TrialJob(trial, workdir, known_failure, self._accelerator))
        while not job.done():
            if not started and _size(log) != before:
                started = True
                on_start()
            if self._stopping.is_set() and not cancelled:
                cancelled = True
                job.cancel(check=False)
            time.sleep(_POLL_SECONDS)
        return self._result_of(job, trial, folder)

    def _result_of(self, job: Any, trial: Trial, folder: pathlib.Path) -> TrialResult:
        if is_finished(folder):
            return TrialResult(trial.name, "finished", folder)
        if job.paths.result_pickle.exists() and job.exception() is None:
            return job.result()
        if self._stopping.is_set():
            return TrialResult(trial.name, "stopped", folder)
        said = (job.stderr() or "").strip().splitlines()[-20:]
        error = [*said, f"(job {job.job_id} ended as {job.state}; {job.paths.stderr})"]
        return TrialResult(trial.name, "failed", folder, "\n".join(error))


def slurm_slots(
    count: int,
    workdir: pathlib.Path,
    options: Mapping[str, str | None],
    accelerator: str,
    stopping: threading.Event,
) -> list[SlurmSlot]:
    """Slots for so many jobs at a time; errors are those of `make_executor`."""
    if count < 1:
        raise ConfigError(f"workers={count}: with --launcher=slurm, how many jobs at a time?")
    executor, lock = make_executor(options, workdir), threading.Lock()
    return [SlurmSlot(executor, lock, stopping, accelerator) for _ in range(count)]


def make_executor(options: Mapping[str, str | None], workdir: pathlib.Path) -> Any:
    """What submits jobs, their logs and submitit's own files going to `workdir/slurm`.

    Args:
      options: submitit's parameters as words, such as partition=gpu, timeout_min=60,
        gpus_per_node=1; and cluster=local, which runs the jobs on this machine.
      workdir: of the sweep, which every machine must see.

    Raises:
      ConfigError: submitit is missing, there is no Slurm here, or an option it does not know.
    """
    submitit = require("submitit", "slurm")
    values = {key: _value(key, word) for key, word in options.items()}
    cluster = values.pop("cluster", "slurm")
    for key in _ONE:
        if values.get(key, 1) != 1:
            raise ConfigError(f"--slurm.{key}={values[key]}: a trial is one task on one node")
    try:
        executor = submitit.AutoExecutor(workdir.absolute() / "slurm", cluster=cluster)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--launcher=slurm: {error} (--slurm.cluster=local runs the same jobs on this machine)"
        ) from error
    named = {key if key in _GENERAL else f"slurm_{key}": value for key, value in values.items()}
    try:
        executor.update_parameters(**{**_DEFAULTS, **named})
    except (AssertionError, NameError, ValueError) as error:
        raise ConfigError(f"--slurm: {error}") from error
    return executor


def _value(key: str, word: str | None) -> Any:
    if word is None:
        raise ConfigError(f"--slurm.{key} needs a value: --slurm.{key}=VALUE")
    try:
        return ast.literal_eval(word)
    except (SyntaxError, ValueError):
        return word


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.exists() else 0
