"""One trial: claimed, run, tried again if it crashes, and its failure recorded."""

import json
import pathlib
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

from recjax.files import write_file
from recjax.run import is_finished
from recjax.sweeps.claims import claim
from recjax.sweeps.trials import Trial

ATTEMPTS = 2
# What `recjax.main` ends with where the same command would fail in the same way.
_DETERMINISTIC = {2, 3}
_ERROR_LINES = 40

# Runs a trial in its folder, its output going to log.txt, and returns its exit status, which is
# -n where signal n killed it. The descriptor holds its claim.
Runner = Callable[[Trial, pathlib.Path, int], int]


class TrialResult(NamedTuple):
    """What became of a trial.

    Attributes:
      name: of its folder.
      state: waiting, running, elsewhere (another process runs it), finished, failed or stopped
        (unfinished; the same sweep goes on with it).
      workdir: its folder.
      error: of a failed one, the last lines of its log.
    """

    name: str
    state: str
    workdir: pathlib.Path
    error: str = ""


def attempt_trial(
    trial: Trial,
    workdir: pathlib.Path,
    on_start: Callable[[], None],
    known_failure: str | None,
    *,
    run: Runner,
    is_stopping: Callable[[], bool],
) -> TrialResult:
    """Runs a trial unless it is finished or claimed, once more if it crashes.

    Args:
      trial: what is run.
      workdir: of the sweep.
      on_start: called when it is claimed and about to run.
      known_failure: its failure.json when the sweep began, which is tried again; what another
        sweep has written there since then is the trial's result.
      run: runs it once.
      is_stopping: whether trials have been told to stop.

    Raises:
      CheckpointError: its folder cannot be written.
    """
    folder = workdir / trial.name
    log = folder / "log.txt"

    def result(state: str, error: str = "") -> TrialResult:
        return TrialResult(trial.name, state, folder, error)

    with claim(folder) as descriptor:
        if descriptor is None:
            return result("elsewhere")
        write_trial(trial, folder)
        if is_finished(folder):
            return result("finished")
        failure = read_failure(folder)
        if failure is not None and failure != known_failure:
            return result("failed", json.loads(failure)["error"])
        on_start()
        (folder / "failure.json").unlink(missing_ok=True)
        status = attempts = 0
        error = ""
        while attempts < ATTEMPTS and status not in _DETERMINISTIC:
            attempts += 1
            began = log.stat().st_size if log.exists() else 0
            status = run(trial, folder, descriptor)
            if is_finished(folder):
                return result("finished")
            if status == 0 or is_stopping() and status not in _DETERMINISTIC:
                return result("stopped")
            error = _error_of(log, began, status)
        record = {"attempts": attempts, "status": status, "error": error}
        write_file(folder / "failure.json", json.dumps(record, indent=2) + "\n")
        return result("failed", error)


def read_failure(folder: pathlib.Path) -> str | None:
    """The text of a trial's failure.json; None where there is none."""
    try:
        return (folder / "failure.json").read_text()
    except FileNotFoundError:
        return None


def write_trial(trial: Trial, folder: pathlib.Path) -> None:
    """Writes trial.json; anew where an arm of another name, or another search, has the same config.

    Raises:
      CheckpointError: it cannot be written.
    """
    record: dict[str, Any] = {
        "arm": trial.arm,
        "seed": trial.seed,
        "overrides": dict(trial.overrides),
        "search_trials": trial.search_trials,
    }
    file, text = folder / "trial.json", json.dumps(record, indent=2) + "\n"
    if not file.exists() or file.read_text() != text:
        write_file(file, text)


def _error_of(log: pathlib.Path, began: int, status: int) -> str:
    """The last traceback of what the log holds from byte `began` on, or its last lines."""
    with open(log, "rb") as file:
        file.seek(began)
        lines = file.read().decode(errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    found = lines[starts[-1] :] if starts else [line for line in lines if line.strip()][-10:]
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return "\n".join([*found[-_ERROR_LINES:], f"({how}; all of it: {log})"])
