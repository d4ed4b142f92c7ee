"""Runs the trials of a sweep, so many at a time, until each is finished or has failed."""

import concurrent.futures
import functools
import json
import os
import pathlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import rich.console

from recjax.errors import ConfigError
from recjax.files import write_file
from recjax.parallel import select_accelerator
from recjax.sweeps.attempts import TrialResult, attempt_trial, read_failure
from recjax.sweeps.claims import claim
from recjax.sweeps.local import run_here, subprocesses
from recjax.sweeps.status import Status
from recjax.sweeps.trials import Sweep, Trial

_POLL_SECONDS = 0.2
_ELSEWHERE_SECONDS = 1.0

OnChange = Callable[[Trial, TrialResult], None]
# `attempt_trial(trial, workdir, on_start, known_failure)`, here or on another machine.
Slot = Callable[[Trial, pathlib.Path, Callable[[], None], str | None], TrialResult]


def run_sweep(
    sweep: Sweep,
    workdir: str | os.PathLike[str],
    *,
    workers: int = 1,
    accelerator: str = "auto",
    quiet: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_change: OnChange | None = None,
) -> list[TrialResult]:
    """Runs every trial of a sweep that is not finished, each in a folder of its own in `workdir`.

    A trial that crashes is run once more; then its failure is recorded and the others go on. One
    that another sweep in the same workdir runs at that time is waited for. The same call later
    goes on where this one was stopped or killed, and tries failed ones again.

    Args:
      sweep: as `load_sweep` returns it.
      workdir: where everything is left.
      workers: processes at a time; 0 runs the trials in this process.
      accelerator: as `recjax.main` takes it.
      quiet: show nothing.
      should_stop: asked several times a second; if true, the trials save and end.
      on_change: called with a trial and its new state, from any thread.

    Returns:
      A result for each trial, in the sweep's order.

    Raises:
      ConfigError: the workdir holds another sweep, or `workers` is negative.
      CheckpointError: the workdir cannot be written.
    """
    if workers < 0:
        raise ConfigError(f"workers={workers}: 0 is this process, n so many processes")
    path = pathlib.Path(workdir)
    _write_sweep(sweep, path)
    stopping = threading.Event()

    def is_stopping() -> bool:
        if not stopping.is_set() and should_stop():
            stopping.set()
        return stopping.is_set()

    if workers:
        runners = subprocesses(workers, path, accelerator, stopping)
    else:
        select_accelerator(accelerator)
        runners = [run_here(is_stopping)]
    slots = [functools.partial(attempt_trial, run=run, is_stopping=is_stopping) for run in runners]
    console = rich.console.Console(file=sys.stdout, quiet=quiet)
    with Status(sweep.trials, path, console) as status:

        def changed(trial: Trial, result: TrialResult) -> None:
            status.change(trial, result)
            if on_change is not None:
                on_change(trial, result)

        executor = concurrent.futures.ThreadPoolExecutor(workers) if workers else _Here()
        try:
            found = run_trials(sweep.trials, path, slots, executor, is_stopping, changed)
        finally:
            stopping.set()
            executor.shutdown()
    results = [found[trial.name] for trial in sweep.trials]
    if not quiet:
        print(_summary(results, path), flush=True)
    return results


def run_trials(
    trials: Iterable[Trial],
    workdir: pathlib.Path,
    slots: Sequence[Slot],
    executor: concurrent.futures.Executor,
    is_stopping: Callable[[], bool],
    on_change: OnChange,
    follow: Callable[[Trial, TrialResult], Iterable[Trial]] = lambda trial, result: (),
) -> dict[str, TrialResult]:
    """Runs trials, each begun after those before it.

    Args:
      trials: what is run.
      workdir: of the sweep.
      slots: what they are run by, a trial at a time each.
      executor: calls the slots, all of them at a time.
      is_stopping: if true, no other is begun, and the slots have been told.
      on_change: called with a trial and its new state, from any thread.
      follow: the trials that come after one that has ended, and are run before those that wait.

    Returns:
      Results by the trials' names.
    """
    waiting, elsewhere = deque(trials), deque[tuple[float, Trial]]()
    known = {trial.name: read_failure(workdir / trial.name) for trial in waiting}
    free, running = list(slots), dict[concurrent.futures.Future, tuple[Trial, Slot]]()
    results: dict[str, TrialResult] = {}

    def change(trial: Trial, state: str) -> None:
        on_change(trial, TrialResult(trial.name, state, workdir / trial.name))

    def begin(trial: Trial) -> None:
        slot = free.pop(0)
        future = executor.submit(
            slot,
            trial,
            workdir,
            functools.partial(change, trial, "running"),
            known.get(trial.name),
        )
        running[future] = trial, slot

    def end(trial: Trial, result: TrialResult) -> None:
        is_new = trial.name not in results or results[trial.name].state != result.state
        results[trial.name] = result
        if result.state == "elsewhere":
            elsewhere.append((time.monotonic() + _ELSEWHERE_SECONDS, trial))
        if is_new:
            on_change(trial, result)
        following = list(follow(trial, result))
        known.update({after.name: read_failure(workdir / after.name) for after in following})
        waiting.extendleft(reversed(following))

    while running or not is_stopping() and (waiting or elsewhere):
        while free and waiting and not is_stopping():
            begin(waiting.popleft())
        if free and elsewhere and elsewhere[0][0] <= time.monotonic() and not is_stopping():
            begin(elsewhere.popleft()[1])
        if running:
            first = concurrent.futures.FIRST_COMPLETED
            for future in concurrent.futures.wait(running, _POLL_SECONDS, first).done:
                trial, slot = running.pop(future)
                free.append(slot)
                end(trial, future.result())
        elif elsewhere and not waiting:
            time.sleep(_POLL_SECONDS)
    for trial in waiting:
        results[trial.name] = TrialResult(trial.name, "waiting", workdir / trial.name)
    return results


class _Here(concurrent.futures.Executor):
    """Calls at once, in this thread."""

    def submit(self, fn: Callable, /, *args: Any, **options: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(fn(*args, **options))
        return future


def _write_sweep(sweep: Sweep, workdir: pathlib.Path) -> None:
    """Writes sweep.json, or checks that the workdir's is of this sweep."""
    file = workdir / "sweep.json"
    record = {
        "sweep": sweep.path,
        "title": sweep.title,
        "about": sweep.about,
        "arms": [arm.name for arm in sweep.arms],
        "seeds": {arm.name: list(arm.seeds) for arm in sweep.arms},
        "trials": [trial.name for trial in sweep.trials],
    }
    with claim(workdir, wait=True):
        if file.exists():
            known = json.loads(file.read_text())["sweep"]
            if pathlib.Path(known).name != pathlib.Path(sweep.path).name:
                raise ConfigError(
                    f"{workdir} holds the sweep {known}, not {sweep.path}: give this one another "
                    "--workdir"
                )
        write_file(file, json.dumps(record, indent=2) + "\n")


def _summary(results: Sequence[TrialResult], workdir: pathlib.Path) -> str:
    """What failed, with its traceback, and what is to be done next."""
    failed = [result for result in results if result.state == "failed"]
    unfinished = sum(result.state not in ("finished", "failed") for result in results)
    parts = [f"failed: {result.workdir}\n{_indented(result.error)}\n" for result in failed]
    if failed:
        what = f"{len(failed)} of {len(results)} trials failed"
        parts.append(f"{what}; the same command tries them again")
    if unfinished:
        what = f"{unfinished} of {len(results)} trials are not finished"
        parts.append(f"{what}; the same command goes on there")
    if not failed and not unfinished:
        parts.append(f"Everything lies in {workdir}: python -m recjax.report {workdir}")
    return "\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
