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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rich.console

from recjax.data.dataset import Dataset
from recjax.errors import ConfigError
from recjax.files import write_file
from recjax.parallel import select_accelerator
from recjax.sweeps.attempts import TrialResult, attempt_trial, read_failure
from recjax.sweeps.claims import claim
from recjax.sweeps.local import run_here, subprocesses
from recjax.sweeps.search import Search
from recjax.sweeps.slurm import slurm_slots
from recjax.sweeps.status import Status
from recjax.sweeps.trials import Sweep, Trial

_POLL_SECONDS = 0.2
_ELSEWHERE_SECONDS = 1.0

_MOST_JOBS = 256

OnChange = Callable[[Trial, TrialResult], None]
# `attempt_trial(trial, workdir, on_start, known_failure)`, here or on another machine.
Slot = Callable[[Trial, pathlib.Path, Callable[[], None], str | None], TrialResult]
# The trials that come after one that has ended.
Follow = Callable[[Trial, TrialResult], Sequence[Trial]]


def run_sweep(
    sweep: Sweep,
    workdir: str | os.PathLike[str],
    *,
    dataset: Dataset | None = None,
    workers: int | None = None,
    launcher: str = "local",
    slurm: Mapping[str, str | None] | None = None,
    search: str = "",
    search_trials: int = 10,
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
      dataset: in place of the one that the config names; with `workers=0` only.
      workers: trials at a time; 0 runs them in this process, one after another. By default 1, and
        as many as there are with Slurm.
      launcher: `local`, processes on this machine, or `slurm`, jobs.
      slurm: parameters of the jobs; see `recjax.sweeps.slurm.make_executor`.
      search: `optuna` to choose, for each arm and before its trials, the keys for which the file
        declares ranges; by the validation metric, with one seed.
      search_trials: of each arm, when it is searched.
      accelerator: as `recjax.main` takes it.
      quiet: show nothing.
      should_stop: asked several times a second; if true, the trials save and end.
      on_change: called with a trial and its new state, from any thread.

    Returns:
      A result for each trial, in the sweep's order.

    Raises:
      ConfigError: the workdir holds another sweep or, given a dataset, other data; a wrong option;
        an extra that is missing.
      CheckpointError: the workdir cannot be written.
    """
    path = pathlib.Path(workdir)
    if search not in ("", "optuna"):
        raise ConfigError(f"search={search!r}: the one there is is 'optuna'")
    if dataset is not None and (workers != 0 or launcher != "local"):
        raise ConfigError("a data set in memory reaches no other process: run_sweep(workers=0)")
    if dataset is not None:
        _check_data(dataset, path)
    searching = Search(sweep, path, search_trials) if search else None
    stopping = threading.Event()

    def is_stopping() -> bool:
        if not stopping.is_set() and should_stop():
            stopping.set()
        return stopping.is_set()

    if launcher == "slurm":
        count = min(len(sweep.trials), _MOST_JOBS) if workers is None else workers
        slots = slurm_slots(count, path, slurm or {}, accelerator, stopping)
    elif launcher == "local":
        count = 1 if workers is None else workers
        slots = _local_slots(count, path, accelerator, is_stopping, stopping, dataset)
    else:
        raise ConfigError(f"launcher={launcher!r}: 'local' or 'slurm'")
    first = sweep.trials if searching is None else searching.first()
    words = list(sweep.words)
    words += [f"--search={search}", f"--search_trials={search_trials}"] if search else []
    _write_sweep(sweep, path, words, sweep.trials if searching is None else searching.trials)
    console = rich.console.Console(file=sys.stdout, quiet=quiet)
    to_come = (lambda: 0) if searching is None else searching.to_come
    with Status(first, path, console, to_come) as status:

        def changed(trial: Trial, result: TrialResult) -> None:
            status.change(trial, result)
            if on_change is not None:
                on_change(trial, result)

        def follow(trial: Trial, result: TrialResult) -> Sequence[Trial]:
            trials = () if searching is None else searching.follow(trial, result)
            status.add(trials)
            return trials

        here = launcher == "local" and workers == 0
        executor = _Here() if here else concurrent.futures.ThreadPoolExecutor(len(slots))
        try:
            found = run_trials(first, path, slots, executor, is_stopping, changed, follow)
        finally:
            stopping.set()
            executor.shutdown()
    if searching is None:
        results = [found[trial.name] for trial in sweep.trials]
    else:
        results = searching.results(found)
        _write_sweep(sweep, path, words, searching.trials)
        with claim(path, wait=True):
            write_file(path / "search.json", json.dumps(searching.record(), indent=2) + "\n")
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
    follow: Follow,
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
    known = {file.parent: read_failure(file.parent) for file in _of_trials(workdir, "failure.json")}
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
            known.get(workdir / trial.name),
        )
        running[future] = trial, slot

    def end(trial: Trial, result: TrialResult) -> None:
        is_new = trial.name not in results or results[trial.name].state != result.state
        results[trial.name] = result
        if result.state == "elsewhere":
            elsewhere.append((time.monotonic() + _ELSEWHERE_SECONDS, trial))
        if is_new:
            on_change(trial, result)
        waiting.extendleft(reversed(follow(trial, result)))

    while True:
        goes_on = not is_stopping()
        while goes_on and free and waiting:
            begin(waiting.popleft())
        if goes_on and free and elsewhere and elsewhere[0][0] <= time.monotonic():
            begin(elsewhere.popleft()[1])
        if not running and not (goes_on and (waiting or elsewhere)):
            break
        if running:
            first = concurrent.futures.FIRST_COMPLETED
            for future in concurrent.futures.wait(running, _POLL_SECONDS, first).done:
                trial, slot = running.pop(future)
                free.append(slot)
                end(trial, future.result())
        else:
            time.sleep(_POLL_SECONDS)
    for trial in waiting:
        results[trial.name] = TrialResult(trial.name, "waiting", workdir / trial.name)
    return results


def _local_slots(
    workers: int,
    workdir: pathlib.Path,
    accelerator: str,
    is_stopping: Callable[[], bool],
    stopping: threading.Event,
    dataset: Dataset | None,
) -> list[Slot]:
    if workers < 0:
        raise ConfigError(f"workers={workers}: 0 is this process, n so many processes")
    if workers:
        runners = subprocesses(workers, workdir, accelerator, stopping)
    else:
        select_accelerator(accelerator)
        runners = [run_here(is_stopping, dataset)]
    return [functools.partial(attempt_trial, run=run, is_stopping=is_stopping) for run in runners]


class _Here(concurrent.futures.Executor):
    """Calls at once, in this thread."""

    def submit(self, fn: Callable, /, *args: Any, **options: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(fn(*args, **options))
        return future


def _write_sweep(
    sweep: Sweep, workdir: pathlib.Path, words: Sequence[str], trials: Iterable[Trial]
) -> None:
    """Writes sweep.json, or checks that the workdir's is of this sweep."""
    file = workdir / "sweep.json"
    record = {
        "sweep": sweep.path,
        "words": list(words),
        "title": sweep.title,
        "about": sweep.about,
        "arms": [arm.name for arm in sweep.arms],
        "seeds": {arm.name: list(arm.seeds) for arm in sweep.arms},
        "trials": [trial.name for trial in trials],
    }
    with claim(workdir, wait=True):
        if file.exists():
            known = json.loads(file.read_text())["sweep"]
            if _file_and_argument(known) != _file_and_argument(sweep.path):
                raise ConfigError(
                    f"{workdir} holds the sweep {known}, not {sweep.path}: give this one another "
                    "--workdir"
                )
        write_file(file, json.dumps(record, indent=2) + "\n")


def _file_and_argument(path: str) -> tuple[str, str]:
    """The name of a sweep's file, wherever it lies, and the argument of its `get_config`."""
    file, _, argument = path.partition(".py:")
    return pathlib.Path(file).name, argument


def _check_data(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Checks that the trials in the workdir, finished ones too, are of this data."""
    for file in _of_trials(workdir, "protocol.json"):
        known = json.loads(file.read_text())
        if known["dataset_hash"] != dataset.hash:
            raise ConfigError(
                f"{file.parent} was trained on other data ({known['dataset']!r}, hash "
                f"{known['dataset_hash']}) than this ({dataset.name!r}, hash {dataset.hash}): give "
                "this sweep another workdir"
            )


def _of_trials(workdir: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The files of this name in the folders of trials, those of a search too."""
    return sorted((*workdir.glob(f"*/{name}"), *workdir.glob(f"search/*/*/{name}")))


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
